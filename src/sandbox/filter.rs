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
    let mut groups = Vec::new();
    while let Some(first) = by_number.keys().next().copied() {
        let beyond = by_number.keys().nth(GROUP).copied();
        let rest = beyond.map_or(BTreeMap::new(), |number| by_number.split_off(&number));
        let filter = SeccompFilter::new(by_number, other.clone(), SeccompAction::Allow, machine)?;
        groups.push((first, BpfProgram::try_from(filter)?));
        by_number = rest;
    }
    let mut program = without_clone3().to_vec();
    append_search(&mut program, &groups);
    Ok(program)
}

/// System calls that are compared one after the other. When a filter is installed, the kernel tries
/// it with every number that there is: with all of them in one row, that took longer than to create a
/// VM. Our choice: each group looks at the machine once more, so that smaller ones are no shorter.
const GROUP: usize = 4;

// linux/bpf_common.h: load 32 bits from a place; skip so many instructions if they are equal to, or
// at least, or not; skip; return.
const LOAD: u16 = 0x20;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const SKIP: u16 = 0x05;
const RETURN: u16 = 0x06;

/// Adds a binary search by the number that was loaded: each group's program with its first number, in
/// their order.
fn append_search(program: &mut BpfProgram, groups: &[(i64, BpfProgram)]) {
    if let [(_, only)] = groups {
        program.extend_from_slice(only);
    } else if let (low, [(first, _), ..]) = groups.split_at(groups.len() / 2) {
        program.push(sock_filter { code: IF_AT_LEAST, jt: 0, jf: 1, k: *first as u32 });
        let skip = program.len();
        program.push(sock_filter { code: SKIP, jt: 0, jf: 0, k: 0 });
        append_search(program, low);
        program[skip].k = (program.len() - skip - 1) as u32;
        append_search(program, &groups[groups.len() / 2..]);
    }
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
    let fail = u32::from(SeccompAction::Errno(libc::ENOSYS as u32));
    [
        // The number is the first member of `struct seccomp_data`.
        sock_filter { code: LOAD, jt: 0, jf: 0, k: 0 },
        sock_filter { code: IF_EQUAL, jt: 0, jf: 1, k: libc::SYS_clone3 as u32 },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: fail },
    ]
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, calls};
    use super::*;

    /// What `program` answers to a call with the arguments `args` (`struct seccomp_data`, linux/seccomp.h).
    fn answer(program: &[sock_filter], number: u32, arch: u32, args: [u64; 6]) -> u32 {
        const AND: u16 = 0x54;
        let mut data = vec![number, arch, 0, 0];
        data.extend(args.iter().flat_map(|arg| [*arg as u32, (arg >> 32) as u32]));
        let (mut place, mut value) = (0, 0);
        loop {
            let step = &program[place];
            let jump = |holds| usize::from(if holds { step.jt } else { step.jf });
            place += 1;
            match step.code {
                LOAD => value = data[step.k as usize / 4],
                AND => value &= step.k,
                IF_EQUAL => place += jump(value == step.k),
                IF_AT_LEAST => place += jump(value >= step.k),
                SKIP => place += step.k as usize,
                RETURN => return step.k,
                code => panic!("{code:#x} is not understood"),
            }
        }
    }

    #[test]
    fn every_call_on_a_list_is_found_and_no_other() {
        let (allow, refuse) = (u32::from(SeccompAction::Allow), u32::from(SeccompAction::Trap));
        for (kind, again) in Kind::ALL.into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
            let rules = calls::allowed(kind, again, &[7]);
            let program = compile(&rules, Mode::On).unwrap();
            // What the program compares the second member with: the machine whose calls they are.
            let is_arch = |steps: &&[sock_filter]| steps[0].code == LOAD && steps[0].k == 4;
            let arch = program.windows(2).find(is_arch).expect("it looks at it")[1].k;
            let numbers = |rule: &Allowed| rule.call.parse::<Sysno>().map(|call| call.id() as u32);
            for rule in &rules {
                let Ok(number) = numbers(rule) else { continue };
                let mut args = [0; 6];
                rule.checks
                    .iter()
                    .for_each(|check| args[usize::from(check.argument)] |= u64::from(check.is));
                let expected = if number == libc::SYS_clone3 as u32 { 0x5_0026 } else { allow };
                let found = answer(&program, number, arch, args);
                assert_eq!(found, expected, "{} in the {} thread", rule.call, kind.name());
            }
            let listed: Vec<u32> = rules.iter().filter_map(|rule| numbers(rule).ok()).collect();
            // Those of the x32 ABI have a bit of their own; none of them is on a list.
            for number in (0..1024).chain(1 << 30..(1 << 30) + 1024).filter(|n| !listed.contains(n))
            {
                if number != libc::SYS_clone3 as u32 {
                    assert_eq!(answer(&program, number, arch, [0; 6]), refuse, "call {number}");
                }
            }
            assert_ne!(
                answer(&program, listed[0], arch ^ 1, [0; 6]),
                allow,
                "another machine's calls"
            );
        }
    }
}
