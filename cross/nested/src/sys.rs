//! The system calls that std lacks, each behind a safe function: all `unsafe` of this package.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libc::{c_int, c_ulong};

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn cstring(bytes: &[u8]) -> io::Result<CString> {
    Ok(CString::new(bytes)?)
}

/// One file descriptor to wait for, and what became of it.
pub struct Wait {
    pub fd: RawFd,
    pub read: bool,
    pub write: bool,
    /// Ready to read, or closed at the other end.
    pub readable: bool,
    pub writable: bool,
    pub hung_up: bool,
}

impl Wait {
    pub fn new(fd: &impl AsRawFd, read: bool, write: bool) -> Wait {
        let fd = fd.as_raw_fd();
        Wait { fd, read, write, readable: false, writable: false, hung_up: false }
    }
}

/// Waits until one of `waits` is ready or `milliseconds` have passed.
pub fn poll(waits: &mut [Wait], milliseconds: u64) -> io::Result<()> {
    let mut fds: Vec<libc::pollfd> = waits
        .iter()
        .map(|wait| libc::pollfd {
            fd: wait.fd,
            events: if wait.read { libc::POLLIN } else { 0 }
                | if wait.write { libc::POLLOUT } else { 0 },
            revents: 0,
        })
        .collect();
    let limit = milliseconds.min(i32::MAX as u64) as c_int;
    // SAFETY: the pointer and the count are those of the live vector.
    match check(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, limit) }) {
        Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(e),
        _ => {}
    }
    for (wait, fd) in waits.iter_mut().zip(&fds) {
        let closed = fd.revents & (libc::POLLHUP | libc::POLLERR) != 0;
        wait.hung_up = closed;
        wait.readable = wait.read && (fd.revents & libc::POLLIN != 0 || closed);
        wait.writable = wait.write && (fd.revents & libc::POLLOUT != 0 || closed);
    }
    Ok(())
}

pub fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    let fd = fd.as_raw_fd();
    // SAFETY: fcntl on a live descriptor with an integer argument touches no memory.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    Ok(())
}

/// Lets a descriptor outlive an exec.
pub fn keep_over_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: fcntl with an integer argument touches no memory; a bad descriptor is an error.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) })?;
    Ok(())
}

/// A pipe: its reading and its writing end, both closed on exec.
pub fn pipe() -> io::Result<(File, File)> {
    let mut fds = [0; 2];
    // SAFETY: the array has room for the two descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: pipe2 just made both, and nobody else owns them.
    Ok(unsafe { (File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1])) })
}

/// Puts a copy of `fd` at the number `at`.
pub fn place(fd: &impl AsRawFd, at: RawFd) -> io::Result<()> {
    // SAFETY: dup2 touches no memory. Callers name numbers that they own: 0 to 3.
    check(unsafe { libc::dup2(fd.as_raw_fd(), at) })?;
    Ok(())
}

/// Closes all descriptors from `first` on.
///
/// # Safety
/// No object that owns one of them may be used or dropped afterwards.
pub unsafe fn close_from(first: RawFd) {
    // SAFETY: the call touches no memory; what the caller promised covers the owners.
    unsafe { libc::syscall(libc::SYS_close_range, first, c_int::MAX, 0) };
}

/// `flock` exclusively. `false`: someone else holds it, and `wait` was not asked for.
pub fn lock(file: &File, wait: bool) -> io::Result<bool> {
    let how = libc::LOCK_EX | if wait { 0 } else { libc::LOCK_NB };
    loop {
        // SAFETY: flock on a live descriptor touches no memory.
        match check(unsafe { libc::flock(file.as_raw_fd(), how) }) {
            Ok(_) => return Ok(true),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Blocks the signals and returns a descriptor that reads them.
pub fn take_signals(numbers: &[c_int]) -> io::Result<File> {
    let set = signal_set(numbers);
    // SAFETY: the set is initialised, and no old set is asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) })?;
    // SAFETY: the set is initialised.
    let fd = check(unsafe { libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) })?;
    // SAFETY: signalfd just made it, and nobody else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn signal_set(numbers: &[c_int]) -> libc::sigset_t {
    // SAFETY: all zeros is a valid value of this plain C struct.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is a live variable of this function.
    unsafe { libc::sigemptyset(&mut set) };
    for number in numbers {
        // SAFETY: as above.
        unsafe { libc::sigaddset(&mut set, *number) };
    }
    set
}

/// The number of a signal that waits in a descriptor from [`take_signals`].
pub fn next_signal(signals: &mut File) -> Option<c_int> {
    let mut record = [0; size_of::<libc::signalfd_siginfo>()];
    io::Read::read_exact(signals, &mut record).ok()?;
    let number = record.first_chunk::<4>().expect("the record is longer");
    Some(u32::from_ne_bytes(*number) as c_int)
}

/// Blocks until one of the signals, which must be blocked, arrives.
pub fn wait_signal(numbers: &[c_int]) -> c_int {
    let set = signal_set(numbers);
    // SAFETY: the set is initialised, and no details are asked for.
    unsafe { libc::sigwaitinfo(&set, std::ptr::null_mut()) }
}

/// Blocks these signals, and no other; those that Rust's start-up ignores get their default again.
pub fn block_signals(numbers: &[c_int]) -> io::Result<()> {
    let set = signal_set(numbers);
    // SAFETY: the set is initialised, and no old set is asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()) })?;
    // SAFETY: the default action is no function that could be wrong.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    Ok(())
}

pub fn kill(pid: i32, signal: c_int) {
    // SAFETY: kill touches no memory of this process. That the target is gone is no error here.
    unsafe { libc::kill(pid, signal) };
}

/// Forks. `None` in the child.
///
/// # Safety
/// The process must have one thread only.
pub unsafe fn fork() -> io::Result<Option<i32>> {
    // SAFETY: with one thread, the child finds every lock as its parent left it.
    let pid = check(unsafe { libc::fork() })?;
    Ok((pid != 0).then_some(pid))
}

/// Leaves at once, without destructors: for a forked child.
pub fn leave(status: i32) -> ! {
    // SAFETY: _exit takes any status and never returns.
    unsafe { libc::_exit(status) }
}

/// Reaps one ended child, if there is one: its pid and its status as a shell tells it.
pub fn reap() -> Option<(i32, u32)> {
    let mut status = 0;
    // SAFETY: the status is a live variable.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    let told = if libc::WIFSIGNALED(status) {
        128 + libc::WTERMSIG(status)
    } else {
        libc::WEXITSTATUS(status)
    };
    (pid > 0).then_some((pid, told as u32))
}

/// A session of its own: no terminal, and a process group named like its leader.
pub fn new_session() {
    // SAFETY: setsid touches no memory; that we lead a group already is no error here.
    unsafe { libc::setsid() };
}

/// Asks for this signal when the parent ends.
pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: prctl with integers touches no memory.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong, 0, 0, 0) })?;
    Ok(())
}

/// New mounts and process numbers for this process's children.
pub fn unshare_mounts_and_pids() -> io::Result<()> {
    // SAFETY: unshare takes flags only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWPID) })?;
    Ok(())
}

pub fn mount(
    source: &str,
    target: &Path,
    kind: &str,
    flags: c_ulong,
    data: &str,
) -> io::Result<()> {
    let (source, kind, data) =
        (cstring(source.as_bytes())?, cstring(kind.as_bytes())?, cstring(data.as_bytes())?);
    let target = cstring(target.as_os_str().as_bytes())?;
    let data = data.as_ptr().cast();
    // SAFETY: all five are live strings that end in a zero byte.
    let result =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data) };
    check(result)?;
    Ok(())
}

pub const MOUNT_BIND: c_ulong = libc::MS_BIND | libc::MS_REC;
pub const MOUNT_MOVE: c_ulong = libc::MS_MOVE;

pub fn load_module(file: &File, parameters: &CStr) -> io::Result<()> {
    // SAFETY: the descriptor is live, and the parameters are a live string.
    let result = unsafe {
        libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0 as c_int)
    };
    check(result as c_int)?;
    Ok(())
}

/// Requests of KVM that take an integer, and give a descriptor or nothing (KVM API, 4.2, 4.7, 4.24).
#[derive(Clone, Copy)]
pub enum Kvm {
    CreateVm = 0xae01,
    CreateVcpu = 0xae41,
    CreateIrqchip = 0xae60,
}

pub fn kvm(file: &impl AsRawFd, request: Kvm, number: u64) -> io::Result<Option<OwnedFd>> {
    // SAFETY: none of these requests takes a pointer.
    let fd = check(unsafe { libc::ioctl(file.as_raw_fd(), request as _, number) })?;
    // SAFETY: where KVM makes a descriptor, nobody else owns it. It is never 0: that is taken.
    Ok((fd > 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Clears a vCPU's `apic_base` (KVM API, 4.13 and 4.14; the number of bytes is part of the requests).
#[cfg(target_arch = "x86_64")]
pub fn switch_apic_off(vcpu: &OwnedFd) -> io::Result<()> {
    const KVM_GET_SREGS: u64 = 0x8138_ae83;
    const KVM_SET_SREGS: u64 = 0x4138_ae84;
    const APIC_BASE: usize = 272 / 8;
    let mut sregs = [0u64; 0x138 / 8];
    // SAFETY: the array has as many bytes as the request says, and its alignment.
    check(unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_SREGS as _, sregs.as_mut_ptr()) })?;
    sregs[APIC_BASE] = 0;
    // SAFETY: as above.
    check(unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SREGS as _, sregs.as_ptr()) })?;
    Ok(())
}

/// Sets the loopback interface up.
pub fn loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all zeros is a valid value of this plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: the request is live and filled in for this ioctl.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &mut request) })?;
    Ok(())
}

pub fn power_off() -> ! {
    // SAFETY: takes flags only, and never returns where it works.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    // SAFETY: as above; QEMU, which runs us with -no-reboot, ends then too.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    leave(1)
}

/// The next place at or behind `from` where `file` has data; `None`: there is none.
pub fn next_data(file: &File, from: u64) -> Option<u64> {
    // SAFETY: lseek on a live descriptor touches no memory.
    let at = unsafe { libc::lseek(file.as_raw_fd(), from as libc::off_t, libc::SEEK_DATA) };
    u64::try_from(at).ok()
}

/// The descriptor of this number, as the file that owns it.
///
/// # Safety
/// It must be open, and nothing else may own it.
pub unsafe fn own(fd: RawFd) -> File {
    // SAFETY: what the caller promised.
    unsafe { File::from_raw_fd(fd) }
}

/// Marks all descriptors from `first` on to close on exec.
pub fn close_on_exec_from(first: RawFd) {
    const CLOSE_RANGE_CLOEXEC: u32 = 1 << 2;
    // SAFETY: the call touches no memory and closes nothing yet.
    unsafe { libc::syscall(libc::SYS_close_range, first, c_int::MAX, CLOSE_RANGE_CLOEXEC) };
}

/// Reads standard input without a buffer in between.
pub fn read_stdin(bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: the pointer and the length are those of the live slice.
        let count = unsafe { libc::read(0, bytes.as_mut_ptr().cast(), bytes.len()) };
        match usize::try_from(count) {
            Ok(count) => return Ok(count),
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
}
