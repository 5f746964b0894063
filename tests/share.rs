//! Shared folders and other devices that another program serves, with stock kernels: through Debian's
//! virtiofsd and QEMU's storage daemon, which cross/guests.sh has fetched.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::stock::{
    CLOUD, PATIENCE, PROLOGUE, add_program, boot, fetched, guests, program, root, whole_kernels,
    with_drivers,
};
use common::{Ran, Run, bivisor, folder, kvm, long, wait};
use tempfile::TempDir;

/// What is in the back end's folder of the guests.
const VIRTIOFSD: &str = "back-ends/virtiofsd";
const STORAGE_DAEMON: &str = "back-ends/qemu-storage-daemon";

/// Bytes of a large file. Our choice: many requests.
const LEN: usize = 3 << 20;

/// Debian's back ends are here.
fn back_ends() -> Option<String> {
    let there = guests().join(VIRTIOFSD).is_dir() && guests().join(STORAGE_DAEMON).is_dir();
    (!there).then(|| "no back ends here (cross/test fetches them)".into())
}

/// A virtiofsd is nowhere but where a test puts it.
fn no_virtiofsd() -> Option<String> {
    let folders = ["/usr/libexec", "/usr/lib", "/usr/lib/qemu"];
    let installed = folders.iter().any(|folder| Path::new(folder).join("virtiofsd").exists());
    installed.then(|| "this machine has a virtiofsd of its own".into())
}

/// A folder for `PATH`, with a virtiofsd in it.
fn programs() -> TempDir {
    let folder = folder();
    add_program(folder.path(), VIRTIOFSD);
    folder
}

/// A guest that does `script` and switches off, with `programs` to serve it.
fn guest(script: &str, programs: &TempDir) -> (Run, TempDir) {
    let root = root(&format!("{PROLOGUE}mkdir /a /b\n{script}\npoweroff -f\n"));
    let root = with_drivers(root, &["fuse", "virtiofs", "virtio_blk"]);
    let mut run = boot(CLOUD, &root).words("--cmdline quiet --memory 256M");
    run.command.env("PATH", programs.path()).env("TMPDIR", programs.path());
    (run, root)
}

fn shared(tag: &str, folder: &TempDir, options: &str) -> String {
    format!("{tag}={}{options}", folder.path().display())
}

/// What a guest that ended well showed.
fn said(ran: &Ran) -> String {
    assert_eq!(ran.status, 0, "{ran:?}");
    ran.text().replace('\r', "")
}

fn shows(ran: &Ran, what: &str) {
    assert!(said(ran).contains(what), "no {what}: {ran:?}");
}

/// Processes of the virtiofsd that serves `folder`; other tests have theirs.
fn serving(folder: &TempDir) -> Vec<i32> {
    let of_it = |entry: fs::DirEntry| {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        let names = |path: &Path| command.contains(path.to_str().unwrap());
        let pid = entry.file_name().to_str()?.parse().ok()?;
        (names(Path::new(VIRTIOFSD)) && names(folder.path())).then_some(pid)
    };
    fs::read_dir("/proc").unwrap().flatten().filter_map(of_it).collect()
}

/// Waits until nothing serves `folder`; and nothing of a socket is left where it was made.
fn nothing_left(folder: &TempDir, programs: &TempDir) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !serving(folder).is_empty() {
        assert!(Instant::now() < deadline, "virtiofsd still runs");
        thread::sleep(Duration::from_millis(50));
    }
    let left = fs::read_dir(programs.path()).unwrap().flatten().map(|entry| entry.file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["virtiofsd"]);
}

/// Two shares, of which one is read-only: what each side writes the other one reads, and what is
/// read-only stays as it is, whatever the guest's root does.
fn a_guest_reads_and_writes_shared_folders() {
    let (data, fixed, programs) = (folder(), folder(), programs());
    let large: Vec<u8> = (0..LEN).map(|at| (at * 7 + at / 251) as u8).collect();
    fs::write(data.path().join("large"), &large).unwrap();
    fs::write(data.path().join("text"), "from the host\n").unwrap();
    fs::write(fixed.path().join("text"), "as it was\n").unwrap();
    let script = "mount -t virtiofs data /a && mount -t virtiofs fixed /b && echo mounted
cat /a/text /b/text
echo from the guest > /a/new
cp /a/large /a/copy
echo changed > /b/text
rm -f /b/text
mkdir /b/new
mount -o remount,rw /b
echo changed > /b/text
cat /b/text
umount /a /b && echo unmounted";
    let (run, _root) = guest(script, &programs);
    let ran = run
        .args(&["--share", &shared("data", &data, "")])
        .args(&["--share", &shared("fixed", &fixed, ",readonly")])
        .finish();
    shows(&ran, "mounted\nfrom the host\nas it was\n");
    shows(&ran, "as it was\nunmounted\n");
    assert_eq!(said(&ran).matches("Read-only file system").count(), 4, "{ran:?}");
    assert_eq!(ran.stderr, "");
    assert_eq!(fs::read(data.path().join("new")).unwrap(), b"from the guest\n");
    assert!(fs::read(data.path().join("copy")).unwrap() == large, "a copy is one");
    assert_eq!(fs::read(fixed.path().join("text")).unwrap(), b"as it was\n");
    assert_eq!(fs::read_dir(fixed.path()).unwrap().count(), 1);
    nothing_left(&data, &programs);
    nothing_left(&fixed, &programs);
}

/// Also with images that are to be mapped: they come into shared RAM all the same.
fn long_a_share_is_there_again_after_a_reset() {
    let (data, programs) = (folder(), programs());
    let script = "mount -t virtiofs data /a
if [ ! -e /a/was-here ]; then echo 1 > /a/was-here; reboot -f; fi
echo again $(cat /a/was-here)";
    let (run, _root) = guest(script, &programs);
    let ran =
        run.words("--reboot --image-memory map --share").arg(shared("data", &data, "")).finish();
    shows(&ran, "again 1\n");
    assert_eq!(ran.stderr, "bivisor: the guest asked for a reset: start number 2\n");
}

/// Starts a guest that mounts a share, says so and waits.
fn waiting(data: &TempDir, programs: &TempDir) -> (Child, BufReader<ChildStdout>, TempDir) {
    // Not by way of a sync, which would wait for a back end that is gone.
    let script = "mount -t virtiofs data /a && echo mounted\nread line\necho goes on\npoweroff -nf";
    let (run, root) = guest(script, programs);
    let mut command = run.arg("--share").arg(shared("data", data, "")).command;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("start bivisor");
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    wait_for(&mut lines, "mounted");
    (child, lines, root)
}

fn wait_for(lines: &mut BufReader<ChildStdout>, text: &str) {
    let found = lines.lines().find(|line| line.as_ref().is_ok_and(|line| line.contains(text)));
    assert!(found.is_some(), "the guest says '{text}'");
}

fn a_bivisor_that_is_killed_leaves_no_virtiofsd() {
    let (data, programs) = (folder(), programs());
    let (mut child, _lines, _root) = waiting(&data, &programs);
    assert!(!serving(&data).is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    nothing_left(&data, &programs);
}

fn a_guest_goes_on_without_its_virtiofsd() {
    let (data, programs) = (folder(), programs());
    let (mut child, mut lines, _root) = waiting(&data, &programs);
    for pid in serving(&data) {
        // SAFETY: kill takes plain integers and checks them.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut told = String::new();
    stderr.read_line(&mut told).unwrap();
    let expected =
        "bivisor: virtio-fs: share data: the back end is gone: the device needs a reset\n";
    assert_eq!(told, expected);
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"\n").unwrap();
    wait_for(&mut lines, "goes on");
    assert_eq!(wait(&mut child, PATIENCE), Some(0));
    assert_eq!(std::io::read_to_string(stderr).unwrap(), "", "one line is all");
}

fn a_guest_has_a_disk_of_a_storage_daemon() {
    let (folder, programs) = (folder(), programs());
    let (file, socket) = (folder.path().join("disk.img"), folder.path().join("disk.sock"));
    fs::write(&file, vec![b'x'; 1 << 20]).unwrap();
    let node = format!("driver=file,node-name=disk,filename={}", file.display());
    let export = format!(
        "type=vhost-user-blk,id=disk,node-name=disk,writable=on,addr.type=unix,addr.path={}",
        socket.display()
    );
    let mut daemon = program(STORAGE_DAEMON);
    daemon.args(["--blockdev", &node, "--export", &export]);
    let mut daemon = daemon.spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !socket.exists() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    // A reset of the device by the guest's own driver, too.
    let script = "size() { cat /sys/block/vda/size; }
head -c 4 /dev/vda; echo \" of $(size)\"
dd if=/modules/../init of=/dev/vda bs=512 count=1 seek=3 conv=fsync 2> /dev/null
cd /sys/bus/virtio/drivers/virtio_blk
echo virtio0 > unbind; echo virtio0 > bind
dd if=/dev/vda bs=512 skip=3 count=1 2> /dev/null | head -n 1";
    let (run, _root) = guest(script, &programs);
    let ran = run.arg("--disk").arg(format!("vhost-user={}", socket.display())).finish();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    shows(&ran, "xxxx of 2048\n#!/bin/busybox sh\n");
    assert_eq!(ran.stderr, "");
    let written = fs::read(&file).unwrap();
    assert_eq!(&written[3 * 512 - 1..][..18], b"x#!/bin/busybox sh");
}

/// The guest's RAM is a file that others can map when, and only when, there is somebody who does.
fn ram_is_shared_with_a_back_end_alone() {
    let (folder, data, programs) = (folder(), folder(), programs());
    for shared in [false, true] {
        let mut run = common::run_guest(&folder, "echo", str::to_owned);
        if shared {
            run = run.words("--share").arg(self::shared("data", &data, ""));
        }
        run.command.env("PATH", programs.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = run.command.spawn().expect("start bivisor");
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"there\n").unwrap();
        wait_for(&mut BufReader::new(child.stdout.take().unwrap()), "there");
        let maps = fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
        assert_eq!(maps.contains("memfd:guest RAM"), shared, "{maps}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// `bivisor run` of a small guest with `options`, and no program to be found.
fn small_guest(folder: &TempDir, options: &[&str]) -> Run {
    let mut run = bivisor("run").arg(common::guest_file(folder, "hello")).args(options);
    run.command.env("PATH", folder.path());
    run
}

fn without_virtiofsd_its_package_is_named() {
    let folder = folder();
    let share = shared("data", &folder, "");
    let ran = small_guest(&folder, &["--share", &share]).finish();
    let expected = format!(
        "bivisor: --share {share}: there is no virtiofsd here: install it \
         (apt install virtiofsd; in Debian 12 it is in qemu-system-common)\n"
    );
    assert_eq!((ran.status, ran.stderr), (125, expected));
}

/// The first line of a script, if something runs scripts: here, or in an emulated host.
fn shell() -> Option<String> {
    let busybox = guests().join("busybox");
    let own = Path::new("/bin/sh").exists().then(|| "#!/bin/sh\n".into());
    own.or_else(|| busybox.exists().then(|| format!("#!{} sh\n", busybox.display())))
}

fn a_shell() -> Option<String> {
    shell().is_none().then(|| "no shell here".into())
}

/// A virtiofsd of `script`, which says that it is the one in Rust.
fn pretending(folder: &TempDir, script: &str) {
    let path = folder.path().join("virtiofsd");
    let help = "[ \"$1\" != --help ] || { echo --shared-dir --readonly; exit; }";
    fs::write(&path, format!("{}{help}\n{script}\n", shell().unwrap())).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
}

fn a_virtiofsd_that_fails_tells_why() {
    let folder = folder();
    let share = shared("data", &folder, "");
    for (script, expected) in [
        ("echo 'a note' >&2; echo \"can't do $3\" >&2; exit 1", "virtiofsd: can't do --shared-dir"),
        ("exit 3", "virtiofsd: exit status: 3"),
    ] {
        pretending(&folder, script);
        let ran = small_guest(&folder, &["--share", &share]).finish();
        let expected = format!("bivisor: --share {share}: {expected}\n");
        assert_eq!((ran.status, ran.stderr), (125, expected));
    }
}

fn folders_and_sockets_that_are_not_there_are_named() {
    let folder = folder();
    let file = common::guest_file(&folder, "hello");
    let long = format!("{}=/", "t".repeat(37));
    for (option, value, named) in [
        ("--share", "a=/nosuch", "--share a=/nosuch: there is no such folder: make it (mkdir)"),
        (
            "--share",
            &format!("a={}", file.display()),
            "it is no folder: share the one that it lies",
        ),
        ("--share", "=/", "the tag is missing"),
        ("--share", "a=", "the folder is missing"),
        ("--share", &long, "has 37 bytes, use at most 36"),
        ("--share", "a=/,rw", "'rw' is not readonly"),
        ("--disk", "vhost-user=/nosuch", "--disk vhost-user=/nosuch: connect to it (does"),
        ("--disk", "vhost-user=/nosuch,readonly", "'readonly' is the back end's to say"),
        ("--net", "vhost-user=/nosuch", "--net vhost-user=/nosuch: connect to it (does"),
    ] {
        let ran = small_guest(&folder, &[option, value]).finish();
        assert!(ran.status == 125 && ran.stderr.contains(named), "{value}: {ran:?}");
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    }
}

fn main() {
    common::conclude(common::cases! {
        a_guest_reads_and_writes_shared_folders, kvm, fetched, back_ends, whole_kernels, common::root;
        long_a_share_is_there_again_after_a_reset, kvm, fetched, back_ends, whole_kernels, common::root, long;
        a_bivisor_that_is_killed_leaves_no_virtiofsd, kvm, fetched, back_ends, whole_kernels, common::root;
        a_guest_goes_on_without_its_virtiofsd, kvm, fetched, back_ends, whole_kernels, common::root;
        a_guest_has_a_disk_of_a_storage_daemon, kvm, fetched, back_ends, whole_kernels;
        ram_is_shared_with_a_back_end_alone, kvm, back_ends, common::root;
        without_virtiofsd_its_package_is_named, no_virtiofsd;
        a_virtiofsd_that_fails_tells_why, a_shell;
        folders_and_sockets_that_are_not_there_are_named;
    })
}
