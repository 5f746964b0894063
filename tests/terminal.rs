//! A guest at a terminal: raw while the guest reads, as it was in the end, and the keys that are ours.

mod common;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{cases, folder, kvm, run_guest, wait};
use tempfile::TempDir;

/// Our choice: more than any step takes on an emulated host that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// The result of a system call that gives -1 on failure.
fn check(result: i32) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A guest at a terminal, with a person.
struct Seat {
    child: Child,
    person: File,
    lower: OwnedFd,
    /// What the terminal was like.
    before: Vec<u32>,
    /// Where its image is.
    _folder: TempDir,
}

fn settings(terminal: &OwnedFd) -> Vec<u32> {
    // SAFETY: a `termios` is numbers.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the settings have a place.
    check(unsafe { libc::tcgetattr(terminal.as_raw_fd(), &mut settings) }).unwrap();
    let mut all = vec![settings.c_iflag, settings.c_oflag, settings.c_cflag, settings.c_lflag];
    all.extend(settings.c_cc.iter().map(|&c| u32::from(c)));
    all
}

/// Makes the terminal that is standard input the one that the process belongs to.
fn take_terminal() -> io::Result<()> {
    // SAFETY: has no argument.
    check(unsafe { libc::setsid() })?;
    // SAFETY: the argument is a number.
    check(unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY as _, 0) })
}

/// The same, but another process group has the terminal, and hands it over in two seconds.
fn take_background() -> io::Result<()> {
    take_terminal()?;
    // SAFETY: between fork and exit there are system calls only.
    let child = unsafe { libc::fork() };
    check(child)?;
    if child == 0 {
        // Else whoever waits for the program to start would wait for this too.
        // SAFETY: the arguments are numbers.
        unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
        // SAFETY: the argument is a number.
        unsafe { libc::sleep(2) };
        // SAFETY: has no argument.
        let parent = unsafe { libc::getppid() };
        // SAFETY: the arguments are numbers.
        unsafe { libc::tcsetpgrp(libc::STDIN_FILENO, parent) };
        // SAFETY: ends the process.
        unsafe { libc::_exit(0) };
    }
    // SAFETY: the arguments are numbers.
    check(unsafe { libc::setpgid(child, child) })?;
    // SAFETY: the arguments are numbers.
    check(unsafe { libc::tcsetpgrp(libc::STDIN_FILENO, child) })
}

impl Seat {
    fn new(name: &str, start: fn() -> io::Result<()>) -> Self {
        let folder = folder();
        let (mut master, mut slave) = (-1, -1);
        let none = std::ptr::null_mut();
        // SAFETY: both descriptors have a place, and what is null may be.
        let result =
            unsafe { libc::openpty(&mut master, &mut slave, none, none.cast(), none.cast()) };
        check(result).expect("open a terminal");
        // SAFETY: openpty opened it just now, and nobody else has it.
        let person = unsafe { File::from_raw_fd(master) };
        // SAFETY: openpty opened it just now, and nobody else has it.
        let lower = unsafe { OwnedFd::from_raw_fd(slave) };
        let before = settings(&lower);
        let run = run_guest(&folder, name, |o| o.replace("--timeout 500ms", "--timeout 20s"));
        let mut command = run.command;
        let side = || Stdio::from(lower.try_clone().unwrap());
        command.stdin(side()).stdout(side()).stderr(side());
        // SAFETY: `start` makes system calls and nothing else.
        unsafe { command.pre_exec(start) };
        let child = command.spawn().unwrap();
        Self { child, person, lower, before, _folder: folder }
    }

    /// Someone who echoes, and whose terminal is raw by now.
    fn echo() -> Self {
        let seat = Self::new("echo", take_terminal);
        seat.wait_until_raw(true);
        seat
    }

    fn is_raw(&self) -> bool {
        settings(&self.lower)[3] & libc::ICANON == 0
    }

    fn wait_until_raw(&self, raw: bool) {
        let deadline = Instant::now() + PATIENCE;
        while self.is_raw() != raw {
            assert!(Instant::now() < deadline, "raw is not {raw}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn press(&mut self, keys: &[u8]) {
        self.person.write_all(keys).unwrap();
    }

    /// Reads what is shown until `text` has come.
    fn read_until(&mut self, text: &str) -> String {
        let mut shown = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while !String::from_utf8_lossy(&shown).contains(text) {
            assert!(Instant::now() < deadline);
            let mut byte = [0];
            self.person.read_exact(&mut byte).unwrap();
            shown.push(byte[0]);
        }
        String::from_utf8_lossy(&shown).into_owned()
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the child has not been waited for, so its number is its own.
        check(unsafe { libc::kill(self.child.id() as i32, signal) }).unwrap();
    }

    /// Waits until the child has stopped.
    fn wait_until_stopped(&self) {
        let mut status = 0;
        // SAFETY: the status has a place.
        let child = unsafe { libc::waitpid(self.child.id() as i32, &mut status, libc::WUNTRACED) };
        assert!(child > 0 && libc::WIFSTOPPED(status), "it ended with {status:#x}");
    }

    /// Its status; the terminal is as it was.
    fn end(mut self) -> i32 {
        let status = wait(&mut self.child, PATIENCE).expect("it ends");
        assert!(settings(&self.lower) == self.before, "the terminal is left in another state");
        status
    }
}

fn ctrl_a_x_quits() {
    let mut seat = Seat::echo();
    // Ctrl-C and Ctrl-Z are the guest's.
    seat.press(b"ab\x03\x1ac");
    seat.read_until("ab\x03\x1ac");
    seat.press(b"\x01x");
    assert_eq!(seat.end(), 130);
}

fn ctrl_a_h_helps_and_ctrl_a_twice_is_one() {
    let mut seat = Seat::echo();
    seat.press(b"\x01h");
    seat.read_until("Ctrl-A  send one");
    seat.read_until("others");
    seat.press(b"[\x01\x01][\x01e]");
    seat.read_until("[\x01][\x01e]");
    seat.press(b"\x04");
    assert_eq!(seat.end(), 0);
}

fn ctrl_a_x_quits_a_guest_that_takes_nothing() {
    let mut seat = Seat::echo();
    // What comes back is not read: it stops in its output, and what is typed stays.
    let keys = vec![b'x'; 3000];
    for _ in 0..40 {
        seat.press(&keys);
    }
    thread::sleep(Duration::from_millis(200));
    seat.press(b"\x01x");
    assert_eq!(seat.end(), 130);
}

fn a_guest_that_does_not_read_leaves_the_terminal_alone() {
    let seat = Seat::new("spin", take_terminal);
    thread::sleep(Duration::from_millis(300));
    assert!(!seat.is_raw());
    seat.signal(libc::SIGINT);
    assert_eq!(seat.end(), 130);
    let mut seat = Seat::new("spin", take_terminal);
    thread::sleep(Duration::from_millis(300));
    // And so Ctrl-C is what it always is.
    seat.press(b"\x03");
    assert_eq!(seat.end(), 130);
}

fn a_stopped_guest_gives_the_terminal_back_meanwhile() {
    for (stop, restores) in [(libc::SIGTSTP, true), (libc::SIGSTOP, false)] {
        let mut seat = Seat::echo();
        seat.signal(stop);
        seat.wait_until_stopped();
        if restores {
            assert!(settings(&seat.lower) == seat.before, "stopped, and still raw");
        }
        // Whoever had it meanwhile has set it up.
        let mut cooked: libc::termios = {
            // SAFETY: a `termios` is numbers.
            unsafe { std::mem::zeroed() }
        };
        // SAFETY: the settings have a place.
        check(unsafe { libc::tcgetattr(seat.lower.as_raw_fd(), &mut cooked) }).unwrap();
        cooked.c_lflag |= libc::ICANON | libc::ECHO | libc::ISIG | libc::IEXTEN;
        cooked.c_iflag |= libc::ICRNL | libc::IXON;
        // SAFETY: the settings have a place.
        check(unsafe { libc::tcsetattr(seat.lower.as_raw_fd(), libc::TCSANOW, &cooked) }).unwrap();
        seat.signal(libc::SIGCONT);
        seat.wait_until_raw(true);
        seat.press(b"again");
        seat.read_until("again");
        seat.signal(libc::SIGTERM);
        assert_eq!(seat.end(), 143);
    }
}

fn in_the_background_the_terminal_is_left_alone_until_it_is_ours() {
    let mut seat = Seat::new("echo", take_background);
    thread::sleep(Duration::from_millis(500));
    assert!(!seat.is_raw(), "it is somebody else's");
    // Nobody has stopped it.
    assert!(seat.child.try_wait().unwrap().is_none());
    seat.wait_until_raw(true);
    seat.press(b"\x01x");
    assert_eq!(seat.end(), 130);
}

fn main() {
    common::conclude(cases![
        ctrl_a_x_quits, kvm;
        ctrl_a_h_helps_and_ctrl_a_twice_is_one, kvm;
        ctrl_a_x_quits_a_guest_that_takes_nothing, kvm;
        a_guest_that_does_not_read_leaves_the_terminal_alone, kvm;
        a_stopped_guest_gives_the_terminal_back_meanwhile, kvm;
        in_the_background_the_terminal_is_left_alone_until_it_is_ours, kvm;
    ]);
}
