//! The system calls that each kind of thread may make, by name; with the arguments that they may have
//! where that matters: an `ioctl` by its type and number, memory that is not to be executed, signals for
//! ourselves. A name that only some kernels have is passed over on others.

use super::Kind;

/// A system call that is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Its name.
    pub call: &'static str,
    /// What must hold of an argument; nothing where they may be whatever they are.
    pub check: Option<Check>,
}

/// What must hold of the lower half of an argument: under `mask` it is `is`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Check {
    /// Which argument, from 0.
    pub argument: u8,
    /// The bits that count.
    pub mask: u32,
    /// What they are.
    pub is: u32,
}

/// Whatever the arguments are.
const fn call(call: &'static str) -> Allowed {
    Allowed { call, check: None }
}

/// Only where under `mask` the argument is `is`.
const fn masked(call: &'static str, argument: u8, mask: u32, is: u32) -> Allowed {
    Allowed { call, check: Some(Check { argument, mask, is }) }
}

const fn equal(call: &'static str, argument: u8, is: u32) -> Allowed {
    masked(call, argument, u32::MAX, is)
}

const fn without(call: &'static str, argument: u8, bits: i32) -> Allowed {
    masked(call, argument, bits as u32, 0)
}

/// ioctls by their lowest 16 bits: type and number (asm-generic/ioctl.h).
const fn ioctl(number: u32) -> Allowed {
    masked("ioctl", 1, 0xffff, number)
}

type Rules = &'static [Allowed];

/// What the C library, std and every worker do: memory, locks, time, descriptors that are open.
const EVERY: Rules = &[
    call("brk"),
    call("clock_gettime"),
    call("clock_nanosleep"),
    call("close"),
    call("exit"),
    call("exit_group"),
    equal("fcntl", 1, libc::F_DUPFD as u32),
    equal("fcntl", 1, libc::F_DUPFD_CLOEXEC as u32),
    equal("fcntl", 1, libc::F_GETFD as u32),
    equal("fcntl", 1, libc::F_GETFL as u32),
    equal("fcntl", 1, libc::F_SETFD as u32),
    equal("fcntl", 1, libc::F_SETFL as u32),
    call("futex"),
    call("getpid"),
    call("getrandom"),
    call("gettid"),
    call("madvise"),
    without("mmap", 2, libc::PROT_EXEC),
    without("mprotect", 2, libc::PROT_EXEC),
    call("mremap"),
    call("munmap"),
    call("nanosleep"),
    call("poll"),
    call("ppoll"),
    equal("prctl", 0, libc::PR_SET_NAME as u32),
    call("read"),
    call("readv"),
    call("restart_syscall"),
    call("rseq"),
    call("rt_sigprocmask"),
    call("rt_sigreturn"),
    call("sched_yield"),
    call("set_robust_list"),
    call("sigaltstack"),
    call("write"),
    call("writev"),
];

/// Waiting for descriptors, as all workers do.
const WATCH: Rules = &[
    call("epoll_create1"),
    call("epoll_ctl"),
    call("epoll_pwait"),
    call("epoll_wait"),
    call("eventfd2"),
    call("timerfd_create"),
    call("timerfd_gettime"),
    call("timerfd_settime"),
];

/// Talking through sockets that are there.
const TALK: Rules =
    &[call("recvfrom"), call("recvmsg"), call("sendmsg"), call("sendto"), call("shutdown")];

/// The terminal's settings (asm-generic/ioctls.h): TCGETS, TCSETS, TCSETSW, TCSETSF, TIOCGPGRP,
/// TIOCGWINSZ, TCGETS2.
const TERMINAL: Rules = &[
    ioctl(0x5401),
    ioctl(0x5402),
    ioctl(0x5403),
    ioctl(0x5404),
    ioctl(0x540f),
    ioctl(0x5413),
    ioctl(0x542a),
    call("getpgrp"),
    call("getpgid"),
];

/// KVM's ioctls that read or change a vCPU (linux/kvm.h): a debugger's and a verdict's. KVM_GET_REGS to
/// KVM_SET_SREGS, KVM_TRANSLATE, KVM_GET_FPU and its like, KVM_GET_MP_STATE and the other states,
/// KVM_SET_GUEST_DEBUG, KVM_GET_ONE_REG, KVM_SET_ONE_REG, KVM_GET_REG_LIST.
const CPU_STATE: Rules = &[
    ioctl(0xae81),
    ioctl(0xae82),
    ioctl(0xae83),
    ioctl(0xae84),
    ioctl(0xae85),
    ioctl(0xae8c),
    ioctl(0xae8d),
    ioctl(0xae98),
    ioctl(0xae9b),
    ioctl(0xae9f),
    ioctl(0xaea0),
    ioctl(0xaea1),
    ioctl(0xaea2),
    ioctl(0xaea4),
    ioctl(0xaea5),
    ioctl(0xaeab),
    ioctl(0xaeac),
    ioctl(0xaeb0),
];

/// A line that is high as long as there is input: KVM_IRQ_LINE.
const LINE: Rules = &[ioctl(0xae61)];

/// What a driver negotiates with a tap: TUNSETOFFLOAD, TUNSETQUEUE.
const TAP: Rules = &[ioctl(0x54d0), ioctl(0x54d9)];

/// KVM_RUN; what a guest moves or sets up on its buses: KVM_SET_GSI_ROUTING, KVM_IRQFD, KVM_IOEVENTFD;
/// FIONBIO; for coalesced writes KVM_CHECK_EXTENSION, KVM_REGISTER_COALESCED_MMIO and
/// KVM_UNREGISTER_COALESCED_MMIO.
const VCPU: Rules = &[
    ioctl(0xae80),
    ioctl(0xae6a),
    ioctl(0xae76),
    ioctl(0xae79),
    ioctl(0x5421),
    ioctl(0xae03),
    ioctl(0xae67),
    ioctl(0xae68),
];

const BLOCK: Rules = &[
    call("fallocate"),
    call("fdatasync"),
    call("fstat"),
    call("fstatat"),
    call("fsync"),
    call("ftruncate"),
    call("io_uring_enter"),
    call("lseek"),
    call("newfstatat"),
    call("pread64"),
    call("preadv"),
    call("preadv2"),
    call("pwrite64"),
    call("pwritev"),
    call("pwritev2"),
    call("stat"),
    call("statx"),
];

const VSOCK: Rules = &[
    call("accept4"),
    call("connect"),
    call("getsockopt"),
    ioctl(0x5421),
    call("setsockopt"),
    equal("socket", 0, libc::AF_UNIX as u32),
];

/// Memory that comes back from a guest may be a file's.
const DEVICE: Rules = &[call("fallocate")];

const DEBUGGER: Rules = &[call("accept4"), ioctl(0x5421), call("setsockopt")];

/// Ending: what was opened is closed and removed, programs are waited for, other threads are started
/// but no process.
const EVENT_LOOP: Rules = &[
    masked("clone", 0, libc::CLONE_THREAD as u32, libc::CLONE_THREAD as u32),
    call("clone3"),
    // One more filter, for a thread that it starts.
    equal("seccomp", 0, libc::SECCOMP_SET_MODE_FILTER),
    equal("prctl", 0, libc::PR_SET_NO_NEW_PRIVS as u32),
    call("lstat"),
    // The name of a file that has shrunk.
    call("readlink"),
    call("readlinkat"),
    call("sched_getaffinity"),
    call("unlink"),
    call("unlinkat"),
    call("wait4"),
    call("waitid"),
];

/// What beginning takes beside what an event loop does, which it may have to start: C libraries handle
/// signals of their own once there are threads (glibc 2.36 nptl/pthread_create.c: SIGCANCEL, SIGSETXID).
const BEGIN: Rules = &[equal("rt_sigaction", 0, 32), equal("rt_sigaction", 0, 33)];

/// What building one more machine takes beside all that its threads do.
const BUILD: Rules = &[
    call("bind"),
    call("dup"),
    call("fchmod"),
    call("fcntl"),
    call("flock"),
    call("fstatfs"),
    call("getcwd"),
    call("getdents64"),
    call("geteuid"),
    call("getrlimit"),
    call("getsockname"),
    call("ioctl"),
    call("io_uring_register"),
    call("io_uring_setup"),
    call("listen"),
    call("memfd_create"),
    call("mkdir"),
    call("mkdirat"),
    call("open"),
    call("openat"),
    call("pipe2"),
    call("prlimit64"),
    call("rename"),
    call("renameat"),
    call("renameat2"),
    call("rt_sigaction"),
    call("signalfd4"),
    call("socket"),
    call("socketpair"),
    call("statfs"),
    call("sysinfo"),
    call("uname"),
    call("utimensat"),
];

/// The lists of a kind of thread.
fn lists(kind: Kind) -> &'static [Rules] {
    match kind {
        Kind::Vcpu => &[WATCH, TALK, TERMINAL, LINE, TAP, VCPU, CPU_STATE],
        // Those that it starts inherit what it may do.
        Kind::EventLoop => {
            &[WATCH, TALK, TERMINAL, LINE, TAP, CPU_STATE, BLOCK, VSOCK, DEVICE, EVENT_LOOP]
        }
        Kind::Alone => &[WATCH, TALK, TERMINAL, LINE, CPU_STATE, VCPU, EVENT_LOOP, BEGIN],
        Kind::Block => &[WATCH, BLOCK],
        Kind::Net => &[WATCH, TALK, TAP],
        Kind::Vsock => &[WATCH, TALK, VSOCK],
        Kind::Device => &[WATCH, TALK, TERMINAL, DEVICE],
        Kind::Input => &[TERMINAL, WATCH, LINE],
        Kind::Listener => &[],
        Kind::Debugger => &[TALK, CPU_STATE, DEBUGGER],
    }
}

/// All that a thread of this kind may do, where `programs` serve the guest; with what building a
/// machine takes if it is to do that `again`.
pub fn allowed(kind: Kind, again: bool, programs: &[u32]) -> Vec<Allowed> {
    let mut lists: Vec<Rules> = [EVERY].iter().chain(lists(kind)).copied().collect();
    if again {
        lists.extend([VCPU, DEBUGGER, BUILD]);
    }
    let mut allowed = lists.concat();
    // A panic, and the kick of a vCPU.
    let own = std::process::id();
    allowed.push(equal("tgkill", 0, own));
    if matches!(kind, Kind::EventLoop | Kind::Alone | Kind::Input) {
        // Ctrl-A x, and being stopped.
        allowed.push(equal("kill", 0, own));
    }
    if matches!(kind, Kind::EventLoop | Kind::Alone) {
        // kill(2): a group is its leader's number, negative.
        allowed.extend(programs.iter().map(|leader| equal("kill", 0, leader.wrapping_neg())));
    }
    allowed
}

#[cfg(test)]
mod tests {
    use syscalls::Sysno;

    use super::*;

    /// Names of calls that only one architecture's kernel has.
    const OLD: [&str; 13] = [
        "epoll_wait",
        "fstatat",
        "newfstatat",
        "getpgrp",
        "getrlimit",
        "lstat",
        "mkdir",
        "open",
        "poll",
        "readlink",
        "rename",
        "stat",
        "unlink",
    ];

    #[test]
    fn every_name_is_a_system_call() {
        for kind in Kind::ALL {
            for rule in allowed(kind, true, &[]) {
                let known = rule.call.parse::<Sysno>().is_ok() || OLD.contains(&rule.call);
                assert!(known, "{}: {}", kind.name(), rule.call);
            }
        }
    }

    #[test]
    fn no_thread_may_start_a_process_or_change_its_filter() {
        for kind in Kind::ALL {
            for rule in allowed(kind, true, &[7]) {
                let never = [
                    "execve",
                    "execveat",
                    "fork",
                    "vfork",
                    "ptrace",
                    "init_module",
                    "process_vm_writev",
                    "bpf",
                    "mount",
                    "unshare",
                    "setns",
                ];
                assert!(!never.contains(&rule.call), "{}: {}", kind.name(), rule.call);
                let checked = ["mmap", "mprotect", "prctl", "clone", "kill", "tgkill", "seccomp"];
                let free = checked.contains(&rule.call) && rule.check.is_none();
                assert!(!free, "{}: {} without a check", kind.name(), rule.call);
            }
        }
    }
}
