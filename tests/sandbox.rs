//! What is left to a thread in the sandbox, from inside; and that the threads of a real guest are in it.
//!
//! For the first, this program starts itself: a thread of each kind enters, and tries to get out.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Error};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bivisor::sandbox::{Again, Kind, Mode, Sandbox};
use common::{bivisor, cases, folder, guest_file, kvm, wait};
use vmm_sys_util::eventfd::EventFd;

/// What tells this program that it is to get out, from which kind of thread.
const KIND: &str = "BIVISOR_TEST_KIND";

/// A way out: what it is, and its system call, whose numbers mean nothing that could succeed and do
/// harm.
type Escape = (&'static str, libc::c_long, [usize; 6]);

/// Every way that is tried. Strings end with a zero byte.
fn escapes() -> Vec<Escape> {
    let text = |text: &'static [u8]| text.as_ptr() as usize;
    let here = libc::AT_FDCWD as usize;
    let parent = std::os::unix::process::parent_id() as usize;
    let page = [0, 4096, (libc::PROT_READ | libc::PROT_EXEC) as usize];
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
    let (tcp, inet) = (libc::SOCK_STREAM as usize, libc::AF_INET as usize);
    let user_namespace = libc::CLONE_NEWUSER as usize;
    vec![
        ("open a file", libc::SYS_openat, [here, text(b"/etc/passwd\0"), 0, 0, 0, 0]),
        ("make a socket", libc::SYS_socket, [inet, tcp, 0, 0, 0, 0]),
        ("execute", libc::SYS_execve, [text(b"/bin/true\0"), 0, 0, 0, 0, 0]),
        ("start a process", libc::SYS_clone, [libc::SIGCHLD as usize, 0, 0, 0, 0, 0]),
        ("trace", libc::SYS_ptrace, [libc::PTRACE_ATTACH as usize, parent, 0, 0, 0, 0]),
        ("write to a process", libc::SYS_process_vm_writev, [parent, 0, 0, 0, 0, 0]),
        ("signal a process", libc::SYS_kill, [parent, 0, 0, 0, 0, 0]),
        ("load a module", libc::SYS_finit_module, [0, text(b"\0"), 0, 0, 0, 0]),
        ("change a filter", libc::SYS_seccomp, [0, 0, 0, 0, 0, 0]),
        (
            "change a filter by prctl",
            libc::SYS_prctl,
            [libc::PR_SET_SECCOMP as usize, 1, 0, 0, 0, 0],
        ),
        ("load a program into the kernel", libc::SYS_bpf, [0, 0, 0, 0, 0, 0]),
        ("map code", libc::SYS_mmap, [page[0], page[1], page[2], anonymous, usize::MAX, 0]),
        ("make code of data", libc::SYS_mprotect, [page[0], page[1], page[2], 0, 0, 0]),
        ("have the kernel open files", libc::SYS_io_uring_setup, [1, 0, 0, 0, 0, 0]),
        ("mount", libc::SYS_mount, [0, text(b"/\0"), 0, 0, 0, 0]),
        ("leave a namespace", libc::SYS_unshare, [user_namespace, 0, 0, 0, 0, 0]),
        ("type into the terminal", libc::SYS_ioctl, [0, 0x5412, text(b"x\0"), 0, 0, 0]),
    ]
}

/// Enters the sandbox in a thread of the kind that the environment names, and tries every way out.
fn try_to_get_out(name: &str) -> ! {
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name).expect("a kind of thread");
    let sandbox = Sandbox::new(Mode::On, Again::Never).expect("it is on");
    let wake = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    sandbox.prepare(&wake, kind == Kind::Alone).unwrap();
    let escapes = escapes();
    let attempts = move || {
        sandbox.enter(kind, false, None).unwrap();
        for (what, number, [a, b, c, d, e, f]) in escapes {
            // SAFETY: it is refused, and if it were not, nothing that it names is used by anybody.
            let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
            let error = Error::last_os_error();
            println!("{what}: {}", if result == -1 { error.to_string() } else { "done".into() });
        }
    };
    thread::spawn(attempts).join().unwrap();
    std::process::exit(0);
}

fn no_thread_gets_out() {
    for kind in Kind::ALL {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.env(KIND, kind.name()).output().unwrap();
        let (out, err) = (String::from_utf8(output.stdout), String::from_utf8(output.stderr));
        let (out, err, name) = (out.unwrap(), err.unwrap(), kind.name());
        assert!(output.status.success(), "{name}: {out}{err}");
        let refused = Error::from_raw_os_error(libc::EPERM).to_string();
        for (what, ..) in escapes() {
            let line = format!("{what}: {refused}");
            assert!(out.lines().any(|found| found == line), "{name}: {line}? {out}{err}");
        }
        // The first one is told, by its name, and only that.
        let told = format!("the sandbox refused the {name} thread the system call openat (number ");
        assert!(err.starts_with(&format!("bivisor: {told}")), "{name}: {err}");
        assert_eq!(err.lines().count(), 1, "{name}: {err}");
    }
}

/// A guest that stays, once it has begun: `input` says so.
fn guest(options: &str) -> (tempfile::TempDir, Child) {
    let folder = folder();
    let run = bivisor("run").arg(guest_file(&folder, "echo")).words(options);
    let mut command = run.command;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
    let mut child = command.spawn().expect("start bivisor");
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, b"here\n").unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "here");
    child.stdin = Some(stdin);
    (folder, child)
}

/// The fields of a `/proc/…/status`.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name}: {status}")).trim().to_owned()
}

/// Of a guest that has the main thread for its only vCPU, and of one that has not.
fn all_threads_of_a_guest_are_in_it() {
    threads_are_in_it("", &["bivisor", "event loop", "input"]);
    threads_are_in_it("--cpus 2", &["bivisor", "input", "vcpu 0", "vcpu 1"]);
}

fn threads_are_in_it(options: &str, threads: &[&str]) {
    let (_folder, mut child) = guest(options);
    let process = format!("/proc/{}", child.id());
    let names = || -> Vec<String> {
        let tasks = fs::read_dir(format!("{process}/task")).unwrap();
        let statuses = tasks.map(|task| task.unwrap().path().join("status"));
        let names = statuses.map(|path| field(&fs::read_to_string(path).unwrap(), "Name"));
        // The kernel puts one of its own beside the first vCPU.
        let mut names: Vec<_> = names.filter(|name| !name.starts_with("kvm-")).collect();
        names.sort();
        names
    };
    // The event loop of a guest that is alone at first comes a little later.
    let deadline = Instant::now() + Duration::from_secs(30);
    while names() != threads && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(names(), threads);
    for task in fs::read_dir(format!("{process}/task")).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert_eq!(field(&status, "Seccomp"), "2", "{status}");
        assert_eq!(field(&status, "NoNewPrivs"), "1", "{status}");
        assert_eq!(field(&status, "CapEff"), "0000000000000000", "{status}");
        assert_eq!(field(&status, "CapPrm"), "0000000000000000", "{status}");
    }
    // What it has open is not for other programs, but for what it was itself started with.
    assert_eq!(passed_on(&process).split_off(3), passed_on("/proc/self").split_off(3));
    assert!(ram_is_left_out_of_dumps(Path::new(&process)), "RAM would be dumped");
    drop(child.stdin.take());
    assert_eq!(wait(&mut child, Duration::from_secs(60)), Some(0));
}

/// The descriptors of a process that programs get that it starts.
fn passed_on(process: &str) -> Vec<i32> {
    let mut numbers = Vec::new();
    for fd in fs::read_dir(format!("{process}/fdinfo")).unwrap() {
        let fd = fd.unwrap();
        // One of ours was that of the folder.
        let Ok(info) = fs::read_to_string(fd.path()) else { continue };
        let flags = i32::from_str_radix(&field(&info, "flags"), 8).unwrap();
        let number: i32 = fd.file_name().to_str().unwrap().parse().unwrap();
        numbers.extend((flags & libc::O_CLOEXEC == 0).then_some(number));
    }
    numbers.sort();
    numbers
}

/// The mapping of the guest's 128 MiB has the flag for that (proc(5), VmFlags: dd).
fn ram_is_left_out_of_dumps(process: &Path) -> bool {
    let maps = fs::read_to_string(process.join("smaps")).unwrap();
    let (mut size, mut left_out) = (0u64, 0);
    for line in maps.lines() {
        if let Some(kib) = line.strip_prefix("Size:") {
            size = kib.trim().trim_end_matches(" kB").parse().unwrap();
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && flags.split_whitespace().any(|flag| flag == "dd")
        {
            left_out += size;
        }
    }
    left_out >= 128 << 10
}

fn without_it_threads_are_as_they_were() {
    let (_folder, mut child) = guest("--sandbox off");
    let [own, its] = ["self", &child.id().to_string()].map(|process| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        ["Seccomp", "NoNewPrivs", "CapEff"].map(|name| field(&status, name))
    });
    assert_eq!(own, its);
    drop(child.stdin.take());
    assert_eq!(wait(&mut child, Duration::from_secs(60)), Some(0));
}

fn a_log_of_it_refuses_nothing() {
    let ran = bivisor("hello --sandbox log").finish();
    assert_eq!((ran.text().as_str(), ran.status, ran.stderr.as_str()), ("Hello, world!\n", 0, ""));
}

/// What a machine is built with can still be opened, and nothing else.
fn a_guest_that_starts_anew_finds_its_files() {
    let folder = folder();
    let run = bivisor("run").arg(guest_file(&folder, "reset")).words("--reboot --max-exits 9");
    let ran = run.finish();
    assert_eq!(ran.status, 124, "{ran:?}");
    assert!(ran.stderr.contains("start number 2") && !ran.stderr.contains("sandbox"), "{ran:?}");
}

fn main() {
    if let Ok(kind) = std::env::var(KIND) {
        try_to_get_out(&kind);
    }
    common::conclude(cases![
        no_thread_gets_out;
        all_threads_of_a_guest_are_in_it, kvm;
        without_it_threads_are_as_they_were, kvm;
        a_log_of_it_refuses_nothing, kvm;
        a_guest_that_starts_anew_finds_its_files, kvm;
    ]);
}
