//! Programs that are started to serve a guest: what they get of ours, what they say, and that they
//! end with us, however we end.
//!
//! The thread that starts one must stay: where it ends, so does the program (prctl(2),
//! PR_SET_PDEATHSIG).

use std::ffi::{CStr, CString};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::{MountPropagationFlags, mount_bind_recursive, mount_change};
use rustix::process::{Pid, Signal, getppid, kill_process_group, set_parent_process_death_signal};

use crate::notice;
use crate::sandbox::{self, Kind};

/// How long it may take to end by itself. Our choice: it does nothing but close files then.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two looks whether it has ended. Our choice: nobody notices.
const PAUSE: Duration = Duration::from_millis(2);

/// Bytes of a line of it that are kept. Our choice: what is longer is no message.
const LINE_MAX: usize = 500;

/// How a program is started.
pub struct Terms<'a> {
    /// What it is called in messages.
    pub name: &'static str,
    /// A descriptor that it gets, under our number.
    pub passes: OwnedFd,
    /// A folder that it can't write to, with all that is mounted in it; to be root is needed for
    /// that.
    pub read_only: Option<&'a Path>,
}

/// A program that runs, or ran. Dropped, it is waited for, and made to end if it does not.
pub struct Child {
    process: process::Child,
    said: Arc<Said>,
    reader: JoinHandle<()>,
}

/// What it says on its standard error, line by line.
struct Said {
    name: &'static str,
    state: Mutex<(Phase, Option<String>)>,
}

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The last one is kept: it tells why it does not begin.
    Starting,
    /// The user is told.
    Running,
    /// Nobody cares.
    Ending,
}

impl Said {
    fn state(&self) -> MutexGuard<'_, (Phase, Option<String>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, bytes: &[u8]) {
        let line = String::from_utf8_lossy(bytes);
        let line = line.trim();
        let mut state = self.state();
        match state.0 {
            _ if line.is_empty() => {}
            Phase::Starting => state.1 = Some(line.into()),
            Phase::Running => notice::say(&format!("{}: {line}", self.name)),
            Phase::Ending => {}
        }
    }

    /// Reads until the program has closed it.
    fn read(&self, mut from: ChildStderr) {
        let (mut bytes, mut line) = ([0; 1024], Vec::new());
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            for byte in &bytes[..count] {
                match byte {
                    b'\n' => {
                        self.line(&line);
                        line.clear();
                    }
                    _ if line.len() < LINE_MAX => line.push(*byte),
                    _ => {}
                }
            }
        }
        self.line(&line);
    }
}

impl Child {
    /// Starts `command`, in a process group of its own: what a terminal sends to ours is not for it.
    pub fn start(mut command: Command, terms: Terms<'_>) -> io::Result<Self> {
        let folder = terms.read_only.map(|path| CString::new(path.as_os_str().as_bytes()));
        let folder = folder.transpose()?;
        let (passes, parent) = (terms.passes, rustix::process::getpid());
        let prepare = move || {
            tie(parent)?;
            // In the child alone, so that no other program gets it.
            fcntl_setfd(&passes, FdFlags::empty())?;
            folder.as_deref().map_or(Ok(()), make_read_only)
        };
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // SAFETY: the closure makes system calls, and neither allocates nor takes a lock.
        unsafe { command.pre_exec(prepare) };
        let mut process = command.spawn()?;
        let stderr = process.stderr.take().expect("it is piped");
        let state = Mutex::new((Phase::Starting, None));
        let said = Arc::new(Said { name: terms.name, state });
        let listening = said.clone();
        sandbox::started(process.id());
        let read = move || listening.read(stderr);
        match sandbox::spawn(Kind::Listener, terms.name.into(), read) {
            Ok(reader) => Ok(Self { process, said, reader }),
            Err(error) => {
                process.kill()?;
                process.wait()?;
                Err(error)
            }
        }
    }

    /// It has begun: from now on the user is told what it says.
    pub fn has_begun(&self) {
        self.said.state().0 = Phase::Running;
    }

    /// It is to end: nobody is told what it says about that.
    pub fn expect_end(&self) {
        self.said.state().0 = Phase::Ending;
    }

    /// Ends it, and gives why it ended by itself: the last line that it said, or else its status.
    pub fn last_words(mut self) -> Option<String> {
        let status = self.end()?;
        let line = self.said.state().1.take();
        Some(format!("{}: {}", self.said.name, line.unwrap_or_else(|| status.to_string())))
    }

    /// Waits for its end, which its own status tells, or else ends it and what it has started.
    fn end(&mut self) -> Option<process::ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.process.try_wait() {
                Ok(None) if Instant::now() < deadline => thread::sleep(PAUSE),
                Ok(status) => break status,
                Err(_) => break None,
            }
        };
        if status.is_none() {
            // One that has just ended is as good.
            let _ = kill_process_group(Pid::from_child(&self.process), Signal::KILL);
            let _ = self.process.wait();
        }
        // What it has started may live on, and then speaks to nobody.
        while !self.reader.is_finished() && Instant::now() < deadline {
            thread::sleep(PAUSE);
        }
        status
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

/// Has the kernel end this process when `parent` is gone.
fn tie(parent: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have gone before that.
    if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
}

/// Makes `folder`, with all that is mounted in it, read-only for this process and those that it
/// starts.
fn make_read_only(folder: &CStr) -> io::Result<()> {
    // SAFETY: takes flags only, and this process has no other thread.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount_bind_recursive(folder, folder)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let (place, flags) = (folder.as_ptr(), libc::AT_RECURSIVE);
    let (attributes, len) = (&raw const attributes, size_of::<libc::mount_attr>());
    let number = libc::SYS_mount_setattr;
    // SAFETY: the pointers are to a string and to attributes of this length (mount_setattr(2)).
    match unsafe { libc::syscall(number, libc::AT_FDCWD, place, flags, attributes, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// What tells this test program that it is one of the programs that are started here, and which;
    /// and its descriptor.
    const PART: &str = "BIVISOR_TEST_PART";
    const PASSED: &str = "BIVISOR_TEST_PASSED";

    /// An emulated host has no other program that could be started.
    fn program(part: &str) -> (Child, UnixStream) {
        let (ours, its) = UnixStream::pair().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child::tests::this_plays_its_part_as_a_program", "--nocapture"]);
        command.env(PART, part).env(PASSED, its.as_raw_fd().to_string());
        let terms = Terms { name: "it", passes: its.into(), read_only: None };
        (Child::start(command, terms).unwrap(), ours)
    }

    #[test]
    fn this_plays_its_part_as_a_program() {
        let Ok(part) = std::env::var(PART) else { return };
        let fd = std::env::var(PASSED).unwrap().parse().unwrap();
        // SAFETY: it was passed to this process, where nobody else knows of it.
        let mut passed = unsafe { File::from_raw_fd(fd) };
        match part.as_str() {
            "answers" => {
                passed.write_all(b"hi").unwrap();
                let _ = passed.read(&mut [0]);
            }
            "fails" => eprint!("first\n\nlast\n\n"),
            "floods" => eprint!("{}", "x".repeat(100_000)),
            _ => loop {
                eprintln!("said");
                thread::sleep(Duration::from_secs(60));
            },
        }
        process::exit(3);
    }

    #[test]
    fn a_program_has_its_descriptor_and_ends_with_it() {
        let (child, mut ours) = program("answers");
        let mut bytes = [0; 2];
        ours.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hi");
        ours.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(child.last_words().as_deref(), Some("it: exit status: 3"));
    }

    #[test]
    fn the_last_words_are_those_of_a_program_that_fails() {
        assert_eq!(program("fails").0.last_words().as_deref(), Some("it: last"));
        // What has no end is cut.
        let words = program("floods").0.last_words().unwrap();
        assert_eq!(words, format!("it: {}", "x".repeat(LINE_MAX)));
    }

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        assert_eq!(program("stays").0.last_words(), None);
    }
}
