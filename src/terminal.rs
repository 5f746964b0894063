//! The terminal that we were started from, and new pseudo-terminals.
//!
//! While a guest reads it, our terminal is raw: every key is the guest's at once, and the terminal
//! neither echoes nor makes signals of keys. There is one such terminal in a process, and whoever
//! ends the process must leave it as it was, so its state is a static, and [`leave`] can be called
//! from anywhere, any number of times. In the background the terminal is somebody else's, and is
//! left alone.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The terminal once it has been raw.
struct Taken {
    fd: OwnedFd,
    /// What it was like before.
    before: libc::termios,
    /// It is raw now, as far as we know.
    raw: bool,
}

static TAKEN: Mutex<Option<Taken>> = Mutex::new(None);

fn lock() -> MutexGuard<'static, Option<Taken>> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// True if `fd` is a terminal.
pub fn is_one(fd: BorrowedFd<'_>) -> bool {
    fd.is_terminal()
}

/// Makes the terminal `fd` raw if it is not yet. False when it is not ours: this process runs in
/// its background and may neither read nor change it now.
pub fn enter(fd: BorrowedFd<'_>) -> bool {
    if !is_ours(fd) {
        return false;
    }
    let mut taken = lock();
    if taken.as_ref().is_some_and(|terminal| terminal.raw) {
        return true;
    }
    // What can't be changed is read as it is.
    let Ok(before) = settings(fd) else { return true };
    let first = taken.is_none();
    let clone = match taken.take() {
        Some(terminal) => Ok(terminal.fd),
        None => fd.try_clone_to_owned(),
    };
    if let Ok(clone) = clone
        && set(fd, &raw(before)).is_ok()
    {
        *taken = Some(Taken { fd: clone, before, raw: true });
        if first && io::stderr().is_terminal() {
            let hint = "bivisor: Ctrl-A x ends the guest, Ctrl-A h shows more keys\r\n";
            // Only a hint.
            let _ = io::stderr().write_all(hint.as_bytes());
        }
    }
    true
}

/// Leaves the terminal as it was before [`enter`]; tells whether it was raw.
pub fn leave() -> bool {
    let mut taken = lock();
    let Some(terminal) = taken.as_mut().filter(|terminal| terminal.raw) else { return false };
    terminal.raw = false;
    let fd = terminal.fd.as_fd();
    if is_ours(fd) {
        // A terminal that is gone has no state to restore.
        let _ = set(fd, &terminal.before);
    }
    true
}

/// Stops this process as SIGTSTP would have done, with the terminal as it was meanwhile.
pub fn suspend() {
    let was_raw = leave();
    crate::sys::signal_process(libc::SIGSTOP);
    if was_raw {
        let fd = lock().as_ref().and_then(|terminal| terminal.fd.try_clone().ok());
        // From the background the thread that reads does it, later.
        fd.map(|fd| enter(fd.as_fd()));
    }
}

/// Makes the terminal raw again after this process was stopped and continued: whoever had it
/// meanwhile has changed it.
pub fn resume() {
    let mut taken = lock();
    if let Some(terminal) = taken.as_mut().filter(|terminal| terminal.raw) {
        let fd = terminal.fd.as_fd();
        // Where it is not ours, the thread that reads makes it raw once it is.
        terminal.raw = is_ours(fd) && set(fd, &raw(terminal.before)).is_ok();
    }
}

/// True unless this process runs in the background of the terminal `fd`. One that is not the
/// terminal of our session has neither a foreground nor a background.
fn is_ours(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: tcgetpgrp takes a descriptor, open as long as it is borrowed.
    let front = unsafe { libc::tcgetpgrp(fd.as_raw_fd()) };
    // SAFETY: getpgrp has no preconditions.
    front == -1 || front == unsafe { libc::getpgrp() }
}

fn settings(fd: BorrowedFd<'_>) -> io::Result<libc::termios> {
    // Zeros, since some libraries have room for more than the kernel fills in.
    let mut settings = MaybeUninit::zeroed();
    // SAFETY: the settings have a place.
    check(unsafe { libc::tcgetattr(fd.as_raw_fd(), settings.as_mut_ptr()) })?;
    // SAFETY: the call has filled them in, and all zeros would be valid too.
    Ok(unsafe { settings.assume_init() })
}

/// `settings` with every byte of input passed through at once. Output stays as it is: a line's end
/// begins a new line at its left.
fn raw(mut settings: libc::termios) -> libc::termios {
    settings.c_iflag &= !(libc::IGNBRK
        | libc::BRKINT
        | libc::PARMRK
        | libc::ISTRIP
        | libc::INLCR
        | libc::IGNCR
        | libc::ICRNL
        | libc::IXON);
    settings.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::ISIG | libc::IEXTEN);
    settings.c_cc[libc::VMIN] = 1;
    settings.c_cc[libc::VTIME] = 0;
    settings
}

/// Changes the terminal `fd`. From the background that would stop the process (termios(3), "job
/// control": not with SIGTTOU blocked), so whoever calls this has asked [`is_ours`], and the signal
/// is blocked in case the answer has changed.
fn set(fd: BorrowedFd<'_>, settings: &libc::termios) -> io::Result<()> {
    let stop = crate::sys::signal_set(&[libc::SIGTTOU])?;
    let mut mask = stop;
    // SAFETY: both are initialised signal sets.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &stop, &mut mask) };
    // SAFETY: `settings` is a whole `termios`.
    let result = check(unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSANOW, settings) });
    // SAFETY: `mask` was filled in above; the old set is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &mask, std::ptr::null_mut()) };
    result
}

/// The result of a system call that gives -1 on failure.
fn check(result: i32) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Columns and rows of the terminal `fd`; none of what is no terminal, or has no size.
pub fn size(fd: BorrowedFd<'_>) -> Option<(u16, u16)> {
    // SAFETY: all-zero is a valid `winsize`.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the request fills in a `winsize`, which has a place.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ as _, &raw mut size) }).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Changes the size of the terminal `fd` to so many columns and rows.
#[cfg(test)]
pub fn resize(fd: BorrowedFd<'_>, (ws_col, ws_row): (u16, u16)) -> io::Result<()> {
    let size = libc::winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request reads a `winsize`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size) })
}

/// Opens a new pseudo-terminal: its upper side, non-blocking, and the path of the other one, which
/// is raw (else it would send back as input all that is printed to it).
pub fn open_pty() -> io::Result<(File, String)> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: posix_openpt takes flags.
    let fd = unsafe { libc::posix_openpt(flags) };
    check(fd)?;
    // SAFETY: the call above just made this descriptor, and nobody else has it.
    let upper = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: grantpt takes a descriptor.
    check(unsafe { libc::grantpt(fd) })?;
    // SAFETY: unlockpt takes a descriptor.
    check(unsafe { libc::unlockpt(fd) })?;
    let mut path = [0u8; 64];
    // SAFETY: the pointer and the length are those of one array.
    match unsafe { libc::ptsname_r(fd, path.as_mut_ptr().cast(), path.len()) } {
        0 => {}
        error => return Err(io::Error::from_raw_os_error(error)),
    }
    let path: Vec<u8> = path.into_iter().take_while(|&byte| byte != 0).collect();
    let path = String::from_utf8_lossy(&path).into_owned();
    // Opened and closed once, so that from now on the kernel tells whether somebody is there.
    let lower = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path)?;
    let fd = lower.as_fd();
    let mut settings = raw(settings(fd)?);
    settings.c_oflag &= !libc::OPOST;
    set(fd, &settings)?;
    Ok((File::from(upper), path))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn open(path: &str) -> File {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).unwrap()
    }

    #[test]
    fn a_terminal_is_raw_in_between_and_then_as_it_was() {
        let (_upper, path) = open_pty().unwrap();
        let lower = open(&path);
        let fd = lower.as_fd();
        let mut cooked = settings(fd).unwrap();
        cooked.c_lflag |= libc::ICANON | libc::ECHO | libc::ISIG;
        cooked.c_oflag |= libc::OPOST;
        set(fd, &cooked).unwrap();
        let flags = || {
            let settings = settings(fd).unwrap();
            (settings.c_lflag & (libc::ICANON | libc::ECHO | libc::ISIG), settings.c_oflag)
        };
        let before = flags();
        assert!(!leave());
        for _ in 0..2 {
            assert!(enter(fd) && enter(fd));
            assert_eq!(flags(), (0, before.1));
            resume();
            assert_eq!(flags(), (0, before.1));
            assert!(leave() && !leave());
            assert!(flags() == before);
            resume();
            assert!(flags() == before);
        }
    }

    #[test]
    fn a_new_pseudo_terminal_sends_nothing_back() {
        let (mut upper, path) = open_pty().unwrap();
        let mut lower = open(&path);
        upper.write_all(b"a\n").unwrap();
        let mut buffer = [0; 8];
        assert_eq!(lower.read(&mut buffer).unwrap(), 2);
        let error = upper.read(&mut buffer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        lower.write_all(b"b\n").unwrap();
        assert_eq!((upper.read(&mut buffer).unwrap(), &buffer[..2]), (2, &b"b\n"[..]));
    }
}
