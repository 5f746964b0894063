//! Counts what bivisor asks of the host's kernel from its start to the guest's first instruction.
//!
//! A count, unlike a time, does not depend on the machine's load. The counter is this program: it
//! traces `bivisor hello`, all of its threads, and needs no strace.

mod common;
#[allow(dead_code, reason = "a measurement of boots uses more of it")]
#[path = "../benches/common/smaps.rs"]
mod smaps;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Error;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use syscalls::Sysno;

use common::bzimage::bzimage;
use common::{bivisor, cases, elf, folder, guest_file, kvm, program};
use smaps::{Mappings, Usage};

/// The promise of `bivisor hello --sandbox off`, the execve included. Checks of std look at descriptors
/// that are closed, and what is linked dynamically finds and maps its libraries first.
const AT_MOST: usize = match (cfg!(target_env = "musl"), cfg!(debug_assertions)) {
    (true, false) => 35,
    (true, true) => 40,
    (false, _) => 75,
} + INTERRUPT_CHIPS;

/// What the interrupt controller takes that every machine of an architecture has.
const INTERRUPT_CHIPS: usize = if cfg!(target_arch = "aarch64") { 28 } else { 0 };

/// What the sandbox may add to that.
const SANDBOX_AT_MOST: usize = 12;

/// KVM_RUN, KVM_CREATE_IRQCHIP (KVM API 4.10, 4.24).
const KVM_RUN: u64 = 0xae80;
const KVM_CREATE_IRQCHIP: u64 = 0xae60;

/// ptrace(2), PTRACE_GET_SYSCALL_INFO: the same on every architecture.
const PTRACE_GET_SYSCALL_INFO: u32 = 0x420e;
const PTRACE_SYSCALL_INFO_ENTRY: u8 = 1;
/// Stops at a system call have this bit in their signal number (PTRACE_O_TRACESYSGOOD).
const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;

/// `struct ptrace_syscall_info` of linux/ptrace.h, as it is at a system call's entry.
#[repr(C)]
#[derive(Default)]
struct SyscallInfo {
    op: u8,
    arch: u32,
    instruction_pointer: u64,
    stack_pointer: u64,
    number: u64,
    arguments: [u64; 6],
}

/// One ptrace request on a thread; panics where it fails, since the tracee is ours and stopped.
fn ptrace(request: u32, thread: i32, address: usize, data: usize) {
    // SAFETY: `data` is a number, or the address of a place of `address` bytes that outlives this.
    let result = unsafe { libc::ptrace(request as _, thread, address, data) };
    assert_ne!(result, -1, "ptrace {request:#x}: {}", Error::last_os_error());
}

/// The system call that `thread` has just stopped at, if it is at one's entry.
fn entered(thread: i32) -> Option<SyscallInfo> {
    let mut info = SyscallInfo::default();
    let place = &raw mut info;
    ptrace(PTRACE_GET_SYSCALL_INFO, thread, size_of_val(&info), place as usize);
    (info.op == PTRACE_SYSCALL_INFO_ENTRY).then_some(info)
}

/// Has the calling process traced by its parent.
fn trace_me() -> Result<(), Error> {
    // SAFETY: has no argument.
    match unsafe { libc::ptrace(libc::PTRACE_TRACEME) } {
        -1 => Err(Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Starts bivisor with this command line, stopped at its first instruction.
fn start(line: &str) -> Child {
    let mut command = bivisor(line).command;
    command.stdin(Stdio::null()).stdout(Stdio::null());
    // cargo has the dynamic linker search its own folders first, which nobody else does.
    command.env_remove("LD_LIBRARY_PATH");
    // SAFETY: `trace_me` makes one system call.
    unsafe { command.pre_exec(trace_me) };
    command.spawn().expect("start bivisor")
}

/// Waits for any thread that this thread traces, and gives its number and its status.
fn wait() -> (i32, i32) {
    let mut status = 0;
    // SAFETY: the status has a place.
    let thread = unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) };
    assert_ne!(thread, -1, "bivisor ended before its guest ran");
    (thread, status)
}

/// Whether a system call is this ioctl.
fn is_ioctl(call: &SyscallInfo, request: u64) -> bool {
    call.number == libc::SYS_ioctl as u64 && call.arguments[1] == request
}

/// The system calls by number, the execve included, before the first one that `ends` says; or all.
fn trace(line: &str, ends: impl Fn(&SyscallInfo) -> bool) -> BTreeMap<u64, usize> {
    let mut child = start(line);
    let (first, _) = wait();
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
    ptrace(libc::PTRACE_SETOPTIONS as _, first, 0, options as usize);
    ptrace(libc::PTRACE_SYSCALL as _, first, 0, 0);
    let mut counts = BTreeMap::from([(libc::SYS_execve as u64, 1)]);
    let runs_on = loop {
        let (thread, status) = wait();
        if !libc::WIFSTOPPED(status) {
            if thread == first {
                break false;
            }
            continue;
        }
        let signal = libc::WSTOPSIG(status);
        if signal == SYSCALL_STOP
            && let Some(call) = entered(thread)
        {
            if ends(&call) {
                break true;
            }
            *counts.entry(call.number).or_default() += 1;
        }
        // The stops of ptrace itself are no signals for the thread. The bell of a guest that lasts
        // is kept from it, as being traced is what takes so long.
        let kept = matches!(signal, SYSCALL_STOP | libc::SIGTRAP | libc::SIGSTOP | libc::SIGALRM);
        let signal = if kept { 0 } else { signal };
        ptrace(libc::PTRACE_SYSCALL as _, thread, 0, signal as usize);
    };
    if runs_on {
        child.kill().expect("kill bivisor");
        // Its threads are this thread's tracees, and all must be waited for.
        while wait().0 != first {}
    }
    // So this finds nothing left to do.
    let _ = child.wait();
    counts
}

fn hello_asks_little_of_the_host_before_its_guest_runs() {
    let counts = trace("hello --sandbox off", |call| is_ioctl(call, KVM_RUN));
    let total: usize = counts.values().sum();
    println!("{total} system calls before the first KVM_RUN, by number: {counts:?}");
    assert!(total <= AT_MOST, "{total} system calls, more than {AT_MOST}; by number: {counts:?}");
}

/// A kernel by PVH's entry that is done at once: KVM's own interrupt controllers would have its end wait, and
/// a second thread its beginning.
fn a_kernel_has_neither_kvm_s_interrupt_controllers_nor_a_thread_more() {
    let folder = folder();
    let kernel = folder.path().join("kernel");
    std::fs::write(&kernel, elf::pvh(0x10_0000, elf::PVH_SAYS)).unwrap();
    let line = format!("run {} --sandbox off", kernel.display());
    let runs = Cell::new(0);
    let counts = trace(&line, |call| {
        assert!(!is_ioctl(call, KVM_CREATE_IRQCHIP));
        runs.set(runs.get() + usize::from(is_ioctl(call, KVM_RUN)));
        false
    });
    assert!(runs.get() > 0, "{counts:?}");
    for number in [libc::SYS_clone, libc::SYS_clone3] {
        assert_eq!(counts.get(&(number as u64)), None, "{counts:?}");
    }
}

/// Calls whose number depends on how long things take: those that wait, wake and write.
const TIMELY: [&str; 8] =
    ["clock_gettime", "futex", "poll", "ppoll", "read", "rt_sigreturn", "tgkill", "write"];

/// Counted to the guest's end.
fn the_sandbox_asks_little_of_the_host() {
    let [without, with] =
        ["off", "on"].map(|mode| trace(&format!("hello --sandbox {mode}"), |_| false));
    let timely = |number: u64| {
        let call = usize::try_from(number).ok().and_then(Sysno::new);
        call.is_some_and(|call| TIMELY.contains(&call.name()))
    };
    let [least, most] = [&without, &with].map(|counts| {
        let counted = counts.iter().filter(|(number, _)| !timely(**number));
        counted.map(|(_, count)| count).sum::<usize>()
    });
    println!("{most} system calls with the sandbox, {least} without");
    assert!(most <= least + SANDBOX_AT_MOST, "{most}: {with:?}; without it {least}: {without:?}");
}

/// Bytes that the program promises to stay below, with all of its devices and disk formats.
const PROGRAM_LEN: u64 = 2_500_000;

/// The same without the feature `full`.
const SMALL_LEN: u64 = 1_250_000;

fn the_program_is_small() {
    let len = std::fs::metadata(env!("CARGO_BIN_EXE_bivisor")).expect("it was built").len();
    println!("the program has {len} bytes");
    assert!(len < PROGRAM_LEN, "{len} bytes, not below {PROGRAM_LEN}");
}

fn without_features_it_is_half_as_large_and_runs_guests() {
    let small = small_program().expect("it is there, or this is skipped");
    let len = std::fs::metadata(&small).expect("it was built").len();
    println!("without features the program has {len} bytes");
    assert!(len < SMALL_LEN, "{len} bytes, not below {SMALL_LEN}");
    let greeted = program(&small, "hello").finish();
    assert_eq!((greeted.status, greeted.text().as_str()), (0, "Hello, world!\n"), "{greeted:?}");
    let folder = folder();
    let echo = program(&small, "run").arg(guest_file(&folder, "echo")).input(b"abc\n").finish();
    assert_eq!((echo.status, echo.text().as_str()), (0, "abc\n"), "{echo:?}");
    if cfg!(target_arch = "x86_64") {
        let kernel = folder.path().join("kernel");
        for (image, status) in [(bzimage(), 64), (elf::pvh(0x10_0000, elf::PVH_SAYS), 0)] {
            std::fs::write(&kernel, image).unwrap();
            let ran = program(&small, "run").arg(&kernel).finish();
            assert_eq!((ran.status, ran.text().as_str()), (status, ""), "{ran:?}");
        }
    }
}

fn without_features_it_refuses_what_it_lacks() {
    let small = small_program().expect("it is there, or this is skipped");
    let folder = folder();
    let packed = folder.path().join("packed");
    std::fs::write(&packed, b"\x1f\x8b\x08\0\0\0\0\0\0\x03").unwrap();
    let packed = packed.display();
    for (options, status, named) in [
        ("inspect README.md", 125, "'inspect'"),
        ("hello --verdict -", 125, "'--verdict'"),
        ("run x --gdb tcp:1", 125, "'--gdb'"),
        ("run x --disk x", 125, "'--disk'"),
        ("hello --console virtio", 125, "a virtio console is asked for"),
        (&format!("run {packed}"), 126, "is packed with gzip: unpack it first"),
    ] {
        let ran = program(&small, options).finish();
        let is_told = ran.status == status && ran.stderr.contains(named);
        assert!(is_told && ran.stderr.lines().count() == 1, "{options}: {ran:?}");
    }
}

/// KiB that a monitor keeps in memory beside its guest's pages, libraries that it shares with other
/// programs left out. Most of it is code, of which what only the start needs is given back.
const RESIDENT_KIB: u64 = 600;

/// KiB of them that are nobody else's and in no file: data, heap and stacks.
const PRIVATE_DIRTY_KIB: u64 = 220;

fn a_guest_that_stays_costs_little_memory() {
    let folder = folder();
    let run = bivisor("run").arg(guest_file(&folder, "spin")).words("--memory 128M");
    let mut child = run.patience(Duration::from_secs(60)).command.spawn().expect("start bivisor");
    let deadline = Instant::now() + Duration::from_secs(30);
    let (usage, is_little) = loop {
        sleep(Duration::from_millis(100));
        let usage = Mappings::of(child.id()).beside_largest();
        let is_little = (1..=RESIDENT_KIB).contains(&usage.resident)
            && usage.private_dirty <= PRIVATE_DIRTY_KIB;
        if is_little || Instant::now() > deadline {
            break (usage, is_little);
        }
    };
    child.kill().unwrap();
    child.wait().unwrap();
    let Usage { resident, private_dirty } = usage;
    println!("{resident} KiB are resident, {private_dirty} of them private and dirty");
    assert!(is_little, "{resident} KiB of {RESIDENT_KIB}, {private_dirty} of {PRIVATE_DIRTY_KIB}");
}

/// This is the program that people get: a debug build is some ten times as large.
fn release() -> Option<String> {
    cfg!(debug_assertions).then(|| "is about a release build (cargo test --release)".into())
}

/// What `cargo build --release --no-default-features` has built.
fn small_program() -> Option<OsString> {
    std::env::var_os("BIVISOR_SMALL")
}

fn small() -> Option<String> {
    let missing = "needs a build without the feature `full` (BIVISOR_SMALL is its path)";
    small_program().is_none().then(|| missing.into())
}

fn pvh() -> Option<String> {
    let there = cfg!(target_arch = "x86_64");
    (!there).then(|| "this architecture has no PVH".into())
}

/// This process may trace what it starts. Tried in a child that never becomes a program.
fn tracing() -> Option<String> {
    let mut command = bivisor("hello").command;
    let probe = || match trace_me() {
        Ok(()) => Err(Error::from_raw_os_error(libc::ECANCELED)),
        failure => failure,
    };
    // SAFETY: the closure makes one system call.
    unsafe { command.pre_exec(probe) };
    let error = command.spawn().err()?;
    let may = error.raw_os_error() == Some(libc::ECANCELED);
    (!may).then(|| format!("needs to trace a program: {error}"))
}

fn main() {
    common::conclude(cases![
        hello_asks_little_of_the_host_before_its_guest_runs, kvm, tracing;
        a_kernel_has_neither_kvm_s_interrupt_controllers_nor_a_thread_more, kvm, tracing, pvh;
        the_sandbox_asks_little_of_the_host, kvm, tracing;
        the_program_is_small, release;
        without_features_it_is_half_as_large_and_runs_guests, kvm, small;
        without_features_it_refuses_what_it_lacks, kvm, small;
        a_guest_that_stays_costs_little_memory, kvm, release;
    ]);
}
