//! HOSTILE 30, 31 and 57: a host whose files and clock change under a guest that runs. The guest sees an error
//! of its device, the monitor says one line, and everything else goes on.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::common::{Run, bivisor, cases, emulated, folder, guest, guest_file, kvm, root, wait};
use crate::limits::limited;

const MIB: u64 = 1 << 20;

/// The guest that does with its disk what it is told.
struct Driven {
    child: Child,
    typing: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Driven {
    fn start(image: &Path, options: &str, change: impl FnOnce(Run) -> Run) -> Self {
        let mode = guest("disk").options.replace("--scratch 1M", "");
        let mut command = change(bivisor("run").arg(image).words(&mode).words(options)).command;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("start bivisor");
        let typing = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, typing, answers }
    }

    /// Whether the request `what` at `place`, in MiB, was done.
    fn works(&mut self, what: char, place: u64) -> bool {
        write!(self.typing, "{place}{what}").expect("the guest reads");
        let status = self.answers.next().expect("the guest goes on").unwrap();
        assert!(["0", "1"].contains(&&*status), "status {status}");
        status == "0"
    }

    /// It ends well, and gives what bivisor said.
    fn end(mut self) -> String {
        drop(self.typing);
        assert_eq!(wait(&mut self.child, Duration::from_secs(60)), Some(0));
        io::read_to_string(self.child.stderr.take().unwrap()).unwrap()
    }
}

fn sparse(path: &Path, len: u64) -> File {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    file.set_len(len).unwrap();
    file
}

fn hostile_30_a_disk_that_is_cut_under_its_guest_fails_what_is_gone() {
    let folder = folder();
    let (image, path) = (guest_file(&folder, "disk"), folder.path().join("disk.img"));
    let file = sparse(&path, 4 * MIB);
    let mut guest = Driven::start(&image, &format!("--disk {}", path.display()), |run| run);
    assert!(guest.works('w', 3) && guest.works('r', 3));
    file.set_len(MIB).unwrap();
    assert!(!guest.works('r', 3) && !guest.works('r', 1));
    assert!(guest.works('r', 0) && guest.works('w', 0), "what is left");
    file.set_len(4 * MIB).unwrap();
    assert!(guest.works('r', 3), "it is there again");
    // Its name alone is nothing to the guest.
    fs::remove_file(&path).unwrap();
    assert!(guest.works('w', 2));
    let told = guest.end();
    let expected = format!(
        "bivisor: virtio-blk: {}: unexpected end of file: the guest has an error\n",
        path.display()
    );
    assert_eq!(told, expected);
}

/// A host that takes no more: by a limit for files, which any user has, where others have a full disk.
fn hostile_31_a_disk_that_may_not_grow_fails_its_writes_alone() {
    let folder = folder();
    let image = guest_file(&folder, "disk");
    for name in ["disk.img", "disk.qcow2"] {
        let path = folder.path().join(name);
        match name {
            "disk.img" => drop(sparse(&path, 8 * MIB)),
            _ => assert_eq!(bivisor("disk create").arg(&path).arg("8M").finish().status, 0),
        }
        let options = format!("--disk {}", path.display());
        let limit = |run| limited(run, libc::RLIMIT_FSIZE as libc::c_int, MIB / 2);
        let mut guest = Driven::start(&image, &options, limit);
        let done = (0..8).filter(|place| guest.works('w', *place)).count();
        // A raw disk has place 0 below the limit, and a qcow2 disk room for some clusters.
        assert!((1..8).contains(&done), "{name}: {done} of 8 writes");
        assert!(guest.works('r', 7) && guest.works('r', 0) && guest.works('w', 0), "{name}");
        let told = guest.end();
        let begin = format!("bivisor: virtio-blk: {}: ", path.display());
        assert!(told.starts_with(&begin) && told.contains("File too large"), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
}

/// The host is this test's own: its clock is nobody else's.
fn own_clock() -> Option<String> {
    (!emulated()).then(|| "others share this host's clock".into())
}

fn clock() -> libc::timespec {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time has a place.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut time) }, 0);
    time
}

/// Sets the host's clock so many seconds on.
fn step_clock(seconds: i64) {
    let mut time = clock();
    time.tv_sec += seconds;
    // SAFETY: reads a time.
    let set = unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

/// A year forth and one back while a guest sleeps: its time is as long as it was to be.
fn hostile_57_steps_of_the_clock_move_no_time_limit() {
    const YEAR: i64 = 365 * 86_400;
    const TIME: Duration = Duration::from_secs(2);
    let folder = folder();
    let options = guest("sleep").options.replace("500ms", "2s");
    let run = bivisor("run").arg(guest_file(&folder, "sleep")).words(&options);
    let (began, mut command) = (Instant::now(), run.command);
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    for step in [YEAR, -YEAR] {
        thread::sleep(TIME / 4);
        step_clock(step);
    }
    assert_eq!(wait(&mut child, Duration::from_secs(60)), Some(124));
    assert!(began.elapsed() >= TIME, "{:?}", began.elapsed());
}

pub fn trials() -> Vec<Trial> {
    cases![
        hostile_30_a_disk_that_is_cut_under_its_guest_fails_what_is_gone, kvm;
        hostile_31_a_disk_that_may_not_grow_fails_its_writes_alone, kvm;
        hostile_57_steps_of_the_clock_move_no_time_limit, kvm, own_clock, root;
    ]
}
