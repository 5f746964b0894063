//! The terminal is as it was, whatever happened.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::check;
use crate::common::{cases, folder, kvm, run_guest, wait};

/// Our choice: more than any step takes on an emulated host that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn trials() -> Vec<Trial> {
    cases![the_terminal_is_as_it_was, kvm;]
}

/// A pseudo-terminal: the side that a person sits at, and the side that programs see.
fn terminal() -> (OwnedFd, OwnedFd) {
    let (mut master, mut slave) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: both descriptors have a place, and what is null may be.
    let result = unsafe { libc::openpty(&mut master, &mut slave, none, none.cast(), none.cast()) };
    check(result).expect("open a terminal");
    // SAFETY: openpty opened it just now, and nobody else has it.
    let master = unsafe { OwnedFd::from_raw_fd(master) };
    // SAFETY: openpty opened it just now, and nobody else has it.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    (master, slave)
}

/// All that can be set of a terminal.
fn settings(terminal: &OwnedFd) -> (Vec<libc::tcflag_t>, [libc::cc_t; libc::NCCS]) {
    // Zeros, since some libraries have room for more than the kernel fills in.
    let mut settings = MaybeUninit::zeroed();
    // SAFETY: the settings have a place.
    check(unsafe { libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()) }).unwrap();
    // SAFETY: all of it is numbers, and was zero at least.
    let settings: libc::termios = unsafe { settings.assume_init() };
    let flags = vec![settings.c_iflag, settings.c_oflag, settings.c_cflag, settings.c_lflag];
    (flags, settings.c_cc)
}

/// Makes the terminal that is standard input the one that the process belongs to.
fn take_terminal() -> io::Result<()> {
    // SAFETY: has no argument.
    check(unsafe { libc::setsid() })?;
    // SAFETY: the argument is a number.
    check(unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY as _, 0) })
}

/// Runs the guest `name` at a terminal, types `typed`, and sends `signal` if there is one. Gives
/// the status; the terminal must be as it was.
fn run_at_terminal(name: &str, typed: &[u8], signal: Option<i32>) -> i32 {
    let folder = folder();
    let (master, slave) = terminal();
    let before = settings(&slave);
    let mut command = run_guest(&folder, name, str::to_owned).command;
    let side = || Stdio::from(slave.try_clone().unwrap());
    command.stdin(side()).stdout(side()).stderr(Stdio::null());
    // SAFETY: `take_terminal` makes two system calls and nothing else.
    unsafe { command.pre_exec(take_terminal) };
    let mut child = command.spawn().unwrap();
    let mut person = File::from(master);
    // What is typed before the guest reads, and the terminal is raw, is lost or means something else.
    let late = Instant::now() + PATIENCE;
    while (signal.is_some() || !typed.is_empty()) && settings(&slave) == before {
        assert!(Instant::now() < late, "{name} does not read");
        std::thread::sleep(Duration::from_millis(10));
    }
    io::Write::write_all(&mut person, typed).unwrap();
    if let Some(signal) = signal {
        // SAFETY: the child has not been waited for, so its number is its own.
        check(unsafe { libc::kill(child.id() as i32, signal) }).unwrap();
    }
    let status = wait(&mut child, PATIENCE).expect("it ends");
    assert!(settings(&slave) == before, "{name} left the terminal in another state");
    status
}

fn the_terminal_is_as_it_was() {
    assert_eq!(run_at_terminal("hello", b"", None), 0);
    assert_eq!(run_at_terminal("echo", b"typed\r\x04", None), 0);
    assert_eq!(run_at_terminal("crash", b"", None), 123);
    assert_eq!(run_at_terminal("spin", b"", None), 124);
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT] {
        assert_eq!(run_at_terminal("echo", b"x", Some(signal)), 128 + signal);
    }
}
