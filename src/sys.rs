//! The few system calls that neither std nor the rust-vmm crates wrap safely.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use kvm_ioctls::Kvm;
use rustix::fs::{Mode, OFlags};

/// Waits until one of `fds` is ready, or `timeout` is over (`None`: for ever). Each entry holds a
/// descriptor and the events to wait for, and gets the events that happened; a signal counts as
/// nothing having happened.
pub fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    // Rounded up: a wait that ends just before its deadline would be repeated at once.
    let millis =
        timeout.map_or(-1, |t| t.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i32);
    // SAFETY: the pointer and the length are those of one slice.
    let count = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, millis) };
    if count < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        fds.iter_mut().for_each(|fd| fd.revents = 0);
    }
    Ok(())
}

/// An entry for [`poll`].
pub fn poll_entry(fd: &impl AsRawFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }
}

/// Opens KVM's device at `path`. As kvm-ioctls does it, but past musl's open(2), which makes a second
/// system call for a flag that is there already.
pub fn open_kvm(path: &str) -> rustix::io::Result<Kvm> {
    let file = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: the descriptor is open, and nobody else's.
    Ok(unsafe { Kvm::from_raw_fd(file.into_raw_fd()) })
}

/// A set of signals.
pub(crate) fn signal_set(signals: &[libc::c_int]) -> io::Result<libc::sigset_t> {
    vmm_sys_util::signal::create_sigset(signals)
        .map_err(|e| io::Error::from_raw_os_error(e.errno()))
}

/// Blocks `signals`, and no others, in this thread and those that it starts, and gives a descriptor to
/// read them from, non-blocking. What else whoever started the process had blocked would be missed: the
/// signals that kick and ring.
pub fn signal_fd(signals: &[libc::c_int]) -> io::Result<OwnedFd> {
    let set = signal_set(signals)?;
    // SAFETY: `set` is an initialised signal set; the old set is not asked for.
    let error = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    // SAFETY: `set` is an initialised signal set.
    let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Unblocks `signals` in this thread.
pub fn unblock_signals(signals: &[libc::c_int]) -> io::Result<()> {
    let set = signal_set(signals)?;
    // SAFETY: `set` is an initialised signal set; the old set is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The next signal of a descriptor that [`signal_fd`] made, if there is one.
pub fn next_signal(fd: &OwnedFd) -> Option<i32> {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    // SAFETY: the pointer and the length are those of one array.
    let read = unsafe { libc::read(fd.as_raw_fd(), info.as_mut_ptr().cast(), info.len()) };
    // signalfd(2): `ssi_signo` is the first field, 32 bits.
    (read == info.len() as isize)
        .then(|| i32::from_ne_bytes(info[..4].try_into().expect("four bytes")))
}

/// The count of a system call that transferred bytes, or its error.
fn transferred(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Reads once from `file` at `offset`.
///
/// # Safety
///
/// The kernel may write to what the pieces point to.
pub unsafe fn preadv(file: &impl AsFd, pieces: &[libc::iovec], offset: u64) -> io::Result<usize> {
    let (fd, count) = (file.as_fd().as_raw_fd(), pieces.len() as libc::c_int);
    // SAFETY: the pointer and the length are those of one slice; the caller vouches for the rest.
    transferred(unsafe { libc::preadv(fd, pieces.as_ptr(), count, offset as libc::off_t) })
}

/// Writes once to `file` at `offset`. Pieces that point nowhere are an error (EFAULT).
pub fn pwritev(file: &impl AsFd, pieces: &[libc::iovec], offset: u64) -> io::Result<usize> {
    let (fd, count) = (file.as_fd().as_raw_fd(), pieces.len() as libc::c_int);
    // SAFETY: the pointer and the length are those of one slice; the kernel only reads the pieces.
    transferred(unsafe { libc::pwritev(fd, pieces.as_ptr(), count, offset as libc::off_t) })
}

/// Reads once from a stream.
///
/// # Safety
///
/// The kernel may write to what the pieces point to.
pub unsafe fn readv(stream: &impl AsFd, pieces: &[libc::iovec]) -> io::Result<usize> {
    let (fd, count) = (stream.as_fd().as_raw_fd(), pieces.len() as libc::c_int);
    // SAFETY: the pointer and the length are those of one slice; the caller vouches for the rest.
    transferred(unsafe { libc::readv(fd, pieces.as_ptr(), count) })
}

/// Writes once to a stream. Pieces that point nowhere are an error (EFAULT).
pub fn writev(stream: &impl AsFd, pieces: &[libc::iovec]) -> io::Result<usize> {
    let (fd, count) = (stream.as_fd().as_raw_fd(), pieces.len() as libc::c_int);
    // SAFETY: the pointer and the length are those of one slice; the kernel only reads the pieces.
    transferred(unsafe { libc::writev(fd, pieces.as_ptr(), count) })
}

/// A copy of descriptor number `fd`, which this process was started with, and which no program that
/// it starts gets.
pub fn inherited(fd: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: fcntl takes plain integers and checks them.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    // SAFETY: the call above just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// The kind of a socket, `SOCK_…`.
pub fn socket_type(socket: &impl AsFd) -> io::Result<libc::c_int> {
    let (mut kind, mut len) = (0 as libc::c_int, size_of::<libc::c_int>() as libc::socklen_t);
    let fd = socket.as_fd().as_raw_fd();
    let (level, name, to) = (libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut kind).cast());
    // SAFETY: the pointers are to an int and to its length.
    match unsafe { libc::getsockopt(fd, level, name, to, &mut len) } {
        0 => Ok(kind),
        _ => Err(io::Error::last_os_error()),
    }
}

/// This thread's id, for [`signal_thread`].
pub fn thread_id() -> libc::pid_t {
    // SAFETY: gettid has no preconditions.
    unsafe { libc::gettid() }
}

/// Sends `signal` to the thread `tid` of this process. A thread that is gone is no error.
pub fn signal_thread(tid: libc::pid_t, signal: libc::c_int) {
    // SAFETY: getpid has no preconditions.
    let pid = unsafe { libc::getpid() };
    // SAFETY: tgkill takes plain integers and checks them.
    unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) };
}

/// Sends `signal` to this process, as if from outside.
pub fn signal_process(signal: libc::c_int) {
    // SAFETY: getpid has no preconditions.
    let pid = unsafe { libc::getpid() };
    // SAFETY: kill takes plain integers and checks them.
    unsafe { libc::kill(pid, signal) };
}

/// Bytes of a page of host memory.
pub fn page_size() -> u64 {
    // SAFETY: sysconf has no preconditions.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 }
}

/// Bytes of memory and swap that this host has.
pub fn host_memory() -> u64 {
    // SAFETY: all-zero is a valid `sysinfo`.
    let mut info: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a `sysinfo` to be filled.
    if unsafe { libc::sysinfo(&mut info) } != 0 {
        return u64::MAX;
    }
    let units = u64::from(info.mem_unit);
    #[allow(clippy::useless_conversion, reason = "the field's type differs between C libraries")]
    let (ram, swap) = (u64::from(info.totalram), u64::from(info.totalswap));
    ram.saturating_add(swap).saturating_mul(units)
}

/// CPU time that this process has used so far: user and system.
pub fn cpu_time() -> Duration {
    // SAFETY: all-zero is a valid `timespec`.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: `time` is a `timespec` to be filled.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
