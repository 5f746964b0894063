//! A /dev/kvm that is missing, is something else, or is not for us: each is told apart.

use std::ffi::CStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use libtest_mimic::Trial;

use crate::common::{Run, bivisor, cases, root};
use crate::{FAILURE, check, check_refusal, soon};

pub fn trials() -> Vec<Trial> {
    cases![each_thing_that_is_wrong_with_dev_kvm_is_told, mounts;]
}

/// Calls that make a /dev with something else in it, before bivisor is started.
type Change = fn() -> io::Result<()>;

const KVM: &CStr = c"/dev/kvm";

/// Gives the run a /dev of its own that has only what `change` puts there.
fn with_dev(mut run: Run, change: Change) -> Run {
    let start = move || {
        // SAFETY: has no argument but a flag.
        check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        let none = std::ptr::null();
        // So that what follows stays in here.
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        // SAFETY: the strings are static, and what is null may be.
        check(unsafe { libc::mount(none, c"/".as_ptr(), none, flags, none.cast()) })?;
        let tmpfs = c"tmpfs".as_ptr();
        // SAFETY: the strings are static, and what is null may be.
        check(unsafe { libc::mount(tmpfs, c"/dev".as_ptr(), tmpfs, 0, none.cast()) })?;
        change()
    };
    // SAFETY: `start` makes system calls and nothing else: no lock, no allocation.
    unsafe { run.command.pre_exec(start) };
    run
}

fn kvm_is_missing() -> io::Result<()> {
    Ok(())
}

fn kvm_is_a_file() -> io::Result<()> {
    // SAFETY: the string is static.
    check(unsafe { libc::mknod(KVM.as_ptr(), libc::S_IFREG | 0o666, 0) })
}

fn kvm_is_a_directory() -> io::Result<()> {
    // SAFETY: the string is static.
    check(unsafe { libc::mkdir(KVM.as_ptr(), 0o777) })
}

fn kvm_is_the_null_device() -> io::Result<()> {
    // Linux Documentation/admin-guide/devices.txt: character device 1:3 is /dev/null.
    // SAFETY: the string is static.
    check(unsafe { libc::mknod(KVM.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(1, 3)) })
}

/// A file without any permission, and no right to pass over that (capabilities(7)).
fn kvm_is_not_for_us() -> io::Result<()> {
    const CAP_DAC_OVERRIDE: u64 = 1;
    const CAP_DAC_READ_SEARCH: u64 = 2;
    kvm_is_a_file()?;
    // SAFETY: the string is static.
    check(unsafe { libc::chmod(KVM.as_ptr(), 0) })?;
    for capability in [CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH] {
        // SAFETY: the arguments are numbers.
        check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) })?;
    }
    Ok(())
}

/// A /dev of one's own can be had here.
fn mounts() -> Option<String> {
    if let Some(reason) = root() {
        return Some(reason);
    }
    for change in [kvm_is_not_for_us, kvm_is_the_null_device] {
        let mut run = with_dev(bivisor("--version"), change);
        run.command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Err(error) = run.command.status() {
            return Some(format!("needs a /dev of its own: {error}"));
        }
    }
    None
}

fn each_thing_that_is_wrong_with_dev_kvm_is_told() {
    let changes: [(Change, &str); 5] = [
        (kvm_is_missing, "no such file"),
        (kvm_is_a_file, "not"),
        (kvm_is_a_directory, "directory"),
        (kvm_is_the_null_device, "not"),
        (kvm_is_not_for_us, "permission denied"),
    ];
    let mut told = Vec::new();
    for command in ["hello", "check"] {
        for (change, named) in changes {
            let ran = with_dev(bivisor(command), change).patience(soon()).finish();
            check_refusal(&ran, FAILURE, &["/dev/kvm", named]);
            told.push(ran.stderr);
        }
    }
    told.sort();
    told.dedup();
    assert!(told.len() >= 4, "these say too little: {told:?}");
}
