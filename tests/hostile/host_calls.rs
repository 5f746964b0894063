//! HOSTILE 7: each of KVM's ioctls that a start makes fails in turn, by a filter of the kernel's; and the
//! system calls beside them that can.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::process::CommandExt;

use libtest_mimic::Trial;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::common::{Run, bivisor, cases, emulated, folder, guest_file, kvm};
use crate::is_clean;

/// What fails, and with which error.
struct Fault {
    call: i64,
    /// Of an ioctl: only this request (the lowest 16 bits).
    request: Option<u64>,
    errno: i32,
}

impl Fault {
    fn program(&self) -> BpfProgram {
        let only = self.request.map(|request| {
            let len = SeccompCmpArgLen::Dword;
            let condition = SeccompCondition::new(1, len, SeccompCmpOp::MaskedEq(0xffff), request);
            SeccompRule::new(vec![condition.unwrap()]).unwrap()
        });
        let rules = [(self.call, only.into_iter().collect())].into();
        let fails = SeccompAction::Errno(self.errno as u32);
        let machine = std::env::consts::ARCH.try_into().unwrap();
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, fails, machine).unwrap();
        filter.try_into().unwrap()
    }
}

/// `run`, where this fails from its first instruction on.
fn under(mut run: Run, fault: &Fault) -> Run {
    let program = fault.program();
    // To walk the stack, a library makes calls of its own and takes for granted that they work.
    run.command.env_remove("RUST_BACKTRACE");
    let apply =
        move || seccompiler::apply_filter(&program).map_err(|_| io::ErrorKind::Other.into());
    // SAFETY: the closure makes two system calls.
    unsafe { run.command.pre_exec(apply) };
    run
}

/// KVM's requests, by type and number (linux/kvm.h), that any start here may make: all of type 0xae that
/// our machines are built with, on either architecture. One that is not made fails nothing.
const REQUESTS: [u64; 26] = [
    0xae00, 0xae01, 0xae03, 0xae04, 0xae05, 0xae41, 0xae46, 0xae47, 0xae48, 0xae60, 0xae6a, 0xae76,
    0xae77, 0xae79, 0xae81, 0xae82, 0xae83, 0xae84, 0xae88, 0xae89, 0xae90, 0xaea3, 0xaeab, 0xaeac,
    0xaeae, 0xaee1,
];

/// Nothing of it may end otherwise than well or with one line and status 125. Gives whether it failed.
fn survives(run: Run, fault: &Fault, what: &str) -> bool {
    let ran = under(run, fault).finish();
    assert!(is_clean(&ran), "{what}: {ran:?}");
    ran.status != 0
}

/// A machine with everything that a start can need of KVM here.
fn machines() -> Vec<(&'static str, String)> {
    let folder = folder();
    let disk = folder.path().join("disk.img");
    std::fs::write(&disk, [0; 4096]).unwrap();
    let poweroff = guest_file(&folder, "poweroff");
    let options = "--scratch 1M --rng --balloon --console virtio";
    let poweroff = poweroff.display();
    // The folder goes with the test program's own.
    let kept = folder.keep();
    let disk = kept.join("disk.img");
    vec![
        ("hello", "hello".into()),
        ("registers", format!("run {poweroff} {options} --disk {}", disk.display())),
        ("bus", format!("run {poweroff} --cpus 2 {options} --transport pci")),
    ]
}

/// Which of these errors are tried: one of them where a start takes long.
fn errors(all: &[i32]) -> &[i32] {
    if emulated() { &all[..1] } else { all }
}

fn hostile_07_every_ioctl_of_a_start_may_fail() {
    let mut failed = BTreeSet::new();
    for (name, line) in machines() {
        for request in REQUESTS {
            for &errno in errors(&[libc::EIO, libc::ENOSYS, libc::ENOMEM]) {
                let fault = Fault { call: libc::SYS_ioctl, request: Some(request), errno };
                let what = format!("{name}: ioctl {request:#x} fails with {errno}");
                if survives(bivisor(&line), &fault, &what) {
                    failed.insert(request);
                }
            }
        }
    }
    // A capability, VM, its memory, a vCPU and its page are of every start.
    for request in [0xae03, 0xae01, 0xae46, 0xae41, 0xae04] {
        assert!(failed.contains(&request), "{request:#x} was not missed: {failed:x?}");
    }
}

/// Not `rt_sigprocmask`, which no kernel refuses: musl takes away the stack of a thread that ends with all
/// signals blocked, as it believes, and a kick that comes then has none.
fn hostile_07_every_system_call_of_a_start_may_fail() {
    let calls = [
        libc::SYS_eventfd2,
        libc::SYS_signalfd4,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_fcntl,
        libc::SYS_rt_sigaction,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_io_uring_setup,
        libc::SYS_getrandom,
        libc::SYS_ftruncate,
        libc::SYS_memfd_create,
        libc::SYS_landlock_create_ruleset,
        libc::SYS_landlock_restrict_self,
        libc::SYS_seccomp,
        libc::SYS_prctl,
        libc::SYS_capset,
        libc::SYS_timerfd_create,
        libc::SYS_sysinfo,
        libc::SYS_setitimer,
    ];
    for (name, line) in machines() {
        for call in calls {
            for &errno in errors(&[libc::EPERM, libc::ENOSYS, libc::EMFILE]) {
                let fault = Fault { call, request: None, errno };
                survives(
                    bivisor(&line),
                    &fault,
                    &format!("{name}: call {call} fails with {errno}"),
                );
            }
        }
    }
}

/// A kernel without filters, or one where somebody forbids to make more, has no sandbox; that is said.
fn hostile_56_without_a_sandbox_nothing_starts() {
    let fault = Fault { call: libc::SYS_seccomp, request: None, errno: libc::EINVAL };
    let ran = under(bivisor("hello"), &fault).finish();
    assert_eq!(ran.status, 125, "{ran:?}");
    assert!(ran.stderr.contains("--sandbox off"), "{ran:?}");
    let ran = under(bivisor("hello --sandbox off"), &fault).finish();
    assert_eq!((ran.status, ran.text().as_str()), (0, "Hello, world!\n"), "{ran:?}");
    // One without landlock has the rest.
    let fault =
        Fault { call: libc::SYS_landlock_create_ruleset, request: None, errno: libc::ENOSYS };
    let ran = under(bivisor("hello"), &fault).finish();
    assert_eq!((ran.status, ran.text().as_str()), (0, "Hello, world!\n"), "{ran:?}");
}

pub fn trials() -> Vec<Trial> {
    cases![
        hostile_07_every_ioctl_of_a_start_may_fail, kvm;
        hostile_07_every_system_call_of_a_start_may_fail, kvm;
        hostile_56_without_a_sandbox_nothing_starts, kvm;
    ]
}
