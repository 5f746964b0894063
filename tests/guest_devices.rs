//! Devices that a stock kernel drives with its own modules: sockets between guest and host.
//!
//! What a device does in each case is tested beside its code; here is that real drivers agree.

mod common;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
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
        let mut command = run.command;
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
    let (root, folder) = (shell(&["vsock"]), folder());
    add_example(&root, "vsock", "vsock");
    let socket = folder.path().join("vsock");
    let option = format!("--vsock=42,unix={}", socket.display());
    let mut guest = Guest::start(boot(CLOUD, &root).words("--cmdline quiet").arg(option));

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

fn main() {
    common::conclude(common::cases! {
        sockets_connect_programs_of_guest_and_host, kvm, fetched, whole_kernels;
    })
}
