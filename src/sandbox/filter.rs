//! From a list of system calls to a filter of the kernel's.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, sock_filter,
};
use syscalls::Sysno;

use super::Mode;
use super::calls::{Allowed, Check};

/// A program for the kernel that lets through what `rules` allow. Names that this machine's kernel
/// does not have stand for calls that another has instead.
pub fn compile(rules: &[Allowed], mode: Mode) -> Result<BpfProgram> {
    let mut by_number: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut always = Vec::new();
    for rule in rules {
        let Ok(call) = rule.call.parse::<Sysno>() else { continue };
        let number = i64::from(call.id());
        let ways = by_number.entry(number).or_default();
        if rule.checks.is_empty() {
            always.push(number);
        } else {
            let checks = rule.checks.iter().map(condition).collect::<Result<_>>()?;
            ways.push(SeccompRule::new(checks)?);
        }
    }
    // No way is a call that is allowed whatever its arguments are.
    always.iter().for_each(|number| {
        by_number.insert(*number, Vec::new());
    });
    let other = if mode == Mode::Log { SeccompAction::Log } else { SeccompAction::Trap };
    let machine = std::env::consts::ARCH.try_into().context("no filters for this machine")?;
    let filter = SeccompFilter::new(by_number, other, SeccompAction::Allow, machine)?;
    let mut program = BpfProgram::try_from(filter)?;
    program.splice(0..0, without_clone3());
    Ok(program)
}

/// Puts this thread under `program`, which must have no new privileges (seccomp(2),
/// SECCOMP_SET_MODE_FILTER).
pub fn install(program: &BpfProgram) -> Result<()> {
    let len = program.len().try_into().context("the filter is too long")?;
    let filter = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: pointer and length are those of one vector, of the kernel's `struct sock_filter`, which
    // the kernel copies.
    match unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, &raw const filter) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()).context("seccomp"),
    }
}

fn condition(check: &Check) -> Result<SeccompCondition> {
    let len = SeccompCmpArgLen::Dword;
    let operator = SeccompCmpOp::MaskedEq(check.mask.into());
    Ok(SeccompCondition::new(check.argument, len, operator, check.is.into())?)
}

/// A kernel of before clone3(2), whose flags no filter can see: C libraries then call clone(2).
fn without_clone3() -> [sock_filter; 3] {
    // linux/bpf_common.h: load 32 bits from a place; skip so many instructions if they are equal to,
    // or not; return.
    const LOAD: u16 = 0x20;
    const IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let fail = u32::from(SeccompAction::Errno(libc::ENOSYS as u32));
    [
        // The number is the first member of `struct seccomp_data`.
        sock_filter { code: LOAD, jt: 0, jf: 0, k: 0 },
        sock_filter { code: IF_EQUAL, jt: 0, jf: 1, k: libc::SYS_clone3 as u32 },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: fail },
    ]
}
