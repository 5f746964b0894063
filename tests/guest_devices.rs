//! Devices that a stock kernel drives with its own modules: sockets between guest and host, a console,
//! a balloon.
//!
//! What a device does in each case is tested beside its code; here is that real drivers agree.

mod common;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::stock::{
    CLOUD, PATIENCE, PROLOGUE, add_example, boot, fetched, root, whole_kernels, with_drivers,
};
use common::{Run, folder, kvm, wait};
use tempfile::TempDir;

/// The init of a guest whose console needs a driver: where that is not there yet, so is no console.
const HVC_INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
exec </dev/null >/dev/kmsg 2>&1
echo '<3>words before the driver'
for module in /modules/*.ko; do insmod $module; done
# Its port is made once the host has named it, and the console for the early words goes last.
until grep -q ^hvc0 /proc/consoles && ! grep -q ^uart /proc/consoles; do sleep 0.1; done
echo '<3>words behind it'
exec </dev/hvc0 >/dev/hvc0 2>&1
echo The guest is up.
exec setsid -c sh
";

/// A root folder for a shell with these drivers.
fn shell(names: &[&str]) -> TempDir {
    let init = [PROLOGUE, "mkdir -p /tmp", "exec setsid -c sh\n"].join("\n");
    with_drivers(root(&init), names)
}

/// A guest with a shell at its console.
struct Guest {
    child: Child,
    typing: ChildStdin,
    lines: io::Lines<BufReader<ChildStdout>>,
}

impl Guest {
    /// Starts it, and waits until its drivers are there.
    fn start(run: Run) -> Self {
        // Else a guest that hangs would never end.
        let mut command = run.words("--timeout 400s").command;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start bivisor");
        let typing = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut guest = Self { child, typing, lines };
        guest.until("The guest is up.");
        guest
    }

    /// Passes over its output up to the line that ends with `text`, and gives that.
    fn until(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        for line in &mut self.lines {
            let line = String::from_utf8_lossy(line.expect("the guest prints text").as_bytes())
                .trim_end()
                .to_owned();
            if line.ends_with(text) {
                return line;
            }
            seen.push(line);
        }
        panic!("no '{text}' in\n{}", seen.join("\n"));
    }

    fn type_in(&mut self, line: &str) {
        writeln!(self.typing, "{line}").expect("the guest reads");
    }

    /// Has it power off.
    fn end(mut self) {
        self.type_in("poweroff -f");
        // What it still has to say.
        self.lines.for_each(drop);
        assert_eq!(wait(&mut self.child, PATIENCE), Some(0));
    }
}

/// Bytes whose every part looks different.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251 * 13 + seed) as u8).collect()
}

/// A connection to a port of the guest: as soon as somebody listens there.
fn dial(socket: &Path, port: u32) -> UnixStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut stream = UnixStream::connect(socket).expect("bivisor listens");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(stream, "CONNECT {port}").unwrap();
        let mut answer = Vec::new();
        let mut byte = [0];
        while matches!(stream.read(&mut byte), Ok(1)) && byte != *b"\n" {
            answer.extend(byte);
        }
        if answer.starts_with(b"OK ") {
            return stream;
        }
        assert!(answer.is_empty() && Instant::now() < deadline, "{answer:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Sends `bytes` to a port whose program sends back what it gets, all the while reads them again,
/// and ends its own direction first.
fn echo(socket: &Path, port: u32, bytes: &[u8]) {
    let mut stream = dial(socket, port);
    let mut back = Vec::new();
    thread::scope(|scope| {
        let mut there = stream.try_clone().unwrap();
        scope.spawn(move || {
            there.write_all(bytes).unwrap();
            there.shutdown(Shutdown::Write).unwrap();
        });
        stream.read_to_end(&mut back).expect("the guest sends back, and an end");
    });
    assert!(back == bytes, "{} of {} bytes came back", back.len(), bytes.len());
}

fn sockets_connect_programs_of_guest_and_host() {
    sockets("mmio");
}

fn sockets_connect_programs_over_a_pci_bus() {
    sockets("pci");
}

fn sockets(transport: &str) {
    let (root, folder) = (shell(&["vsock"]), folder());
    add_example(&root, "vsock", "vsock");
    let socket = folder.path().join("vsock");
    let option = format!("--vsock=42,unix={}", socket.display());
    let options = format!("--cmdline quiet --transport {transport}");
    let mut guest = Guest::start(boot(CLOUD, &root).words(&options).arg(option));

    guest.type_in("vsock listen 1000 cat &");
    echo(&socket, 1000, b"short");
    echo(&socket, 1000, &pattern(3 << 20, 0));
    thread::scope(|scope| {
        for seed in 1..=4 {
            let socket = &socket;
            scope.spawn(move || echo(socket, 1000, &pattern(1 << 20, seed)));
        }
    });

    // The other way: a file, which comes back once it has been read to its end.
    let listener = UnixListener::bind(folder.path().join("vsock_2000")).unwrap();
    guest.type_in("vsock connect 2 2000 </bin/busybox >/tmp/back; echo status $?.");
    let mut stream = listener.accept().unwrap().0;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut file = Vec::new();
    stream.read_to_end(&mut file).expect("the guest's file, and its end");
    assert!(file == fs::read(root.path().join("bin/busybox")).unwrap(), "{} bytes", file.len());
    stream.write_all(&file).unwrap();
    drop(stream);
    guest.until("status 0.");
    guest.type_in("cmp /bin/busybox /tmp/back; echo compared $?.");
    guest.until("compared 0.");

    guest.type_in("vsock connect 2 2001; echo nobody $?.");
    guest.until("nobody 1.");
    guest.type_in("rm /tmp/back");
    guest.end();
    assert!(!socket.exists());
}

fn console_root() -> TempDir {
    with_drivers(root(HVC_INIT), &["virtio_console"])
}

fn a_virtio_console_shows_everything_once_and_in_order() {
    let root = console_root();
    let input = "tty\nseq 1 1000\necho the end; sleep 1; poweroff -f\n";
    let run = boot(CLOUD, &root).words("--cmdline quiet --console virtio");
    let ran = run.input(input.as_bytes()).finish();
    let text = ran.text().replace('\r', "");
    assert_eq!(ran.status, 0, "{ran:?}");
    // By the serial port, before there is a driver, and only so; then by the console alone.
    assert_eq!(text.matches("words before the driver").count(), 1, "{ran:?}");
    assert_eq!(text.matches("words behind it").count(), 1, "{ran:?}");
    assert!(text.contains("\n/dev/hvc0\n"), "{ran:?}");
    let numbers = text.lines().filter_map(|line| line.parse::<u32>().ok());
    assert!(numbers.eq(1..=1000), "{ran:?}");
}

fn a_text_on_a_virtio_console_is_noticed() {
    let root = console_root();
    let run = boot(CLOUD, &root).words("--cmdline quiet --console virtio --expect 4321-mark");
    let ran = run.input(b"echo $((4320+1))-mark; sleep 1000\n").finish();
    assert_eq!(ran.status, 0, "{ran:?}");
}

/// Changes the size of a terminal.
fn resize(terminal: &fs::File, (ws_col, ws_row): (u16, u16)) {
    let size = libc::winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request reads a size.
    let result =
        unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size) };
    assert_eq!(result, 0);
}

fn the_size_of_a_terminal_reaches_the_guest() {
    let root = console_root();
    let (upper, path) = bivisor::terminal::open_pty().unwrap();
    resize(&upper, (100, 30));
    let lower = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut command =
        boot(CLOUD, &root).words("--cmdline quiet --console virtio --timeout 180s").command;
    command.stdin(lower.try_clone().unwrap()).stdout(lower).stderr(Stdio::null());
    let mut child = command.spawn().expect("start bivisor");
    drop(command);
    let mut seen = String::new();
    let mut until = |text: &str| {
        let deadline = Instant::now() + PATIENCE;
        let mut bytes = [0; 4096];
        while !seen.contains(text) {
            assert!(Instant::now() < deadline, "no {text} in {seen}");
            match (&upper).read(&mut bytes) {
                Ok(count) => seen += &String::from_utf8_lossy(&bytes[..count]),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
        seen.clear();
    };
    let type_in = |line: &[u8]| (&upper).write_all(line).unwrap();
    until("The guest is up.");
    type_in(b"stty size\n");
    until("30 100");
    resize(&upper, (132, 43));
    // SAFETY: takes numbers. The terminal is nobody's, so nobody else sends it.
    unsafe { libc::kill(child.id() as i32, libc::SIGWINCH) };
    type_in(b"while [ \"$(stty size)\" != '43 132' ]; do sleep 0.1; done; echo grown $((6*7))\n");
    until("grown 42");
    type_in(b"poweroff -f\n");
    assert_eq!(wait(&mut child, PATIENCE), Some(0));
}

/// Resident memory of a process in MiB.
fn resident(child: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().unwrap();
    kib >> 10
}

fn what_an_idle_guest_has_freed_is_given_back() {
    let root = shell(&["virtio_balloon"]);
    let mut run = boot(CLOUD, &root).words("--memory 512M --balloon=32M --cmdline quiet");
    run.command.stderr(Stdio::piped());
    let mut guest = Guest::start(run);
    guest.type_in("dd if=/dev/zero of=/tmp/large bs=1M count=128; echo used $?.");
    guest.until("used 0.");
    let used = resident(&guest.child);
    guest.type_in("rm /tmp/large; echo freed $?.");
    guest.until("freed 0.");
    let deadline = Instant::now() + PATIENCE;
    // What is free in pieces of less than 2 MiB is not reported: of the 128 MiB it was 20 to 49.
    while resident(&guest.child) + 64 > used {
        assert!(Instant::now() < deadline, "{} MiB of {used} MiB", resident(&guest.child));
        thread::sleep(Duration::from_millis(100));
    }
    eprintln!("{used} MiB resident with 128 MiB in use, then {} MiB", resident(&guest.child));

    let mut told = BufReader::new(guest.child.stderr.take().unwrap()).lines();
    let taken = loop {
        // SAFETY: takes numbers.
        unsafe { libc::kill(guest.child.id() as i32, libc::SIGUSR1) };
        let line = told.next().unwrap().unwrap();
        if line.contains("balloon: 32 of 32 MiB taken") {
            break line;
        }
        assert!(Instant::now() < deadline, "{line}");
        thread::sleep(Duration::from_millis(100));
    };
    assert!(taken.contains(" MiB free") && taken.contains(" MiB available"), "{taken}");
    guest.end();
}

fn main() {
    common::conclude(common::cases! {
        a_virtio_console_shows_everything_once_and_in_order, kvm, fetched, whole_kernels;
        a_text_on_a_virtio_console_is_noticed, kvm, fetched, whole_kernels;
        the_size_of_a_terminal_reaches_the_guest, kvm, fetched, whole_kernels;
        what_an_idle_guest_has_freed_is_given_back, kvm, fetched, whole_kernels;
        sockets_connect_programs_of_guest_and_host, kvm, fetched, whole_kernels;
        sockets_connect_programs_over_a_pci_bus, kvm, fetched, whole_kernels;
    })
}
