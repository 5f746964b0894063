//! From a list of system calls to a filter of the kernel's: a program for its packet filter (classic BPF:
//! Linux v6.12 Documentation/networking/filter.rst) that looks at `struct seccomp_data` (linux/seccomp.h).
//!
//! It is short, as a start waits until the kernel has compiled it and has tried it with every number that
//! there is: a binary search by the number, and at its end a row of numbers or one call's arguments.

use anyhow::{Context, Result};
use libc::sock_filter;
use syscalls::Sysno;

use super::Mode;
use super::calls::{Allowed, Check};
use crate::arch;

/// A filter.
pub type Program = Vec<sock_filter>;

/// The calls that are compared one after the other. Our choice: as few instructions in all as with fewer,
/// and not many in a row.
const ROW: usize = 6;

// linux/bpf_common.h: load 32 bits from a place; keep some of them; skip so many instructions if they are
// equal to, or at least, or not; skip; return.
const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const SKIP: u32 = libc::BPF_JMP | libc::BPF_JA;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

// `struct seccomp_data`: where the number is, the machine whose calls they are, and the arguments.
const NUMBER: u32 = 0;
const MACHINE: u32 = 4;
const ARGUMENTS: u32 = 16;

const fn step(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Skips one instruction unless the condition holds.
const fn if_not_skip_one(code: u32, k: u32) -> sock_filter {
    sock_filter { jf: 1, ..step(code, k) }
}

/// A program for the kernel that lets through what `rules` allow. Names that this machine's kernel
/// does not have stand for calls that another has instead.
pub fn compile(rules: &[Allowed], mode: Mode) -> Program {
    let refuse = match mode {
        Mode::Log => step(RETURN, libc::SECCOMP_RET_LOG),
        _ => step(RETURN, libc::SECCOMP_RET_TRAP),
    };
    let by_number =
        |rule: &Allowed| Some((rule.call.parse::<Sysno>().ok()?.id() as u32, rule.check));
    let mut ways: Vec<Way> = rules.iter().filter_map(by_number).collect();
    ways.sort_unstable();
    // Whatever the arguments are is less than any check of them, and allows them all.
    ways.dedup_by(|way, first| way.0 == first.0 && first.1.is_none());
    let leaves = leaves(&ways);
    let mut program = vec![
        step(LOAD, MACHINE),
        sock_filter { jt: 1, ..step(IF_EQUAL, arch::AUDIT) },
        step(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        step(LOAD, NUMBER),
        // A kernel of before clone3(2), whose flags no filter can see: C libraries then call clone(2).
        if_not_skip_one(IF_EQUAL, libc::SYS_clone3 as u32),
        step(RETURN, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    ];
    append_search(&mut program, &leaves, refuse);
    program
}

/// A number that is let through: with an argument of this kind, or whatever they are.
type Way = (u32, Option<Check>);

/// What a search ends at, of ways in their order: a call that has something checked, or a row of calls
/// that have not.
fn leaves(ways: &[Way]) -> Vec<&[Way]> {
    let is_free = |way: &Way| way.1.is_none();
    let mut leaves: Vec<&[Way]> = Vec::new();
    let mut from = 0;
    for call in ways.chunk_by(|a, b| a.0 == b.0) {
        let end = from + call.len();
        match leaves
            .last_mut()
            .filter(|row| is_free(&call[0]) && is_free(&row[0]) && row.len() < ROW)
        {
            Some(row) => *row = &ways[from - row.len()..end],
            None => leaves.push(call),
        }
        from = end;
    }
    leaves
}

/// Adds a binary search by the number that was loaded for the leaf that it may be in.
fn append_search(program: &mut Program, leaves: &[&[Way]], refuse: sock_filter) {
    if let [only] = leaves {
        append_leaf(program, only, refuse);
    } else if let (low, high @ [first, ..]) = leaves.split_at(leaves.len() / 2) {
        program.push(if_not_skip_one(IF_AT_LEAST, first[0].0));
        let skip = program.len();
        program.push(step(SKIP, 0));
        append_search(program, low, refuse);
        program[skip].k = (program.len() - skip - 1) as u32;
        append_search(program, high, refuse);
    }
}

/// Lets through what a leaf allows.
fn append_leaf(program: &mut Program, leaf: &[Way], refuse: sock_filter) {
    let number = |way: &Way| way.0;
    if leaf[0].1.is_none() {
        append_any_of(program, leaf, number);
    } else {
        program.extend([sock_filter { jt: 1, ..step(IF_EQUAL, leaf[0].0) }, refuse]);
        let place = |way: &Way| way.1.map(|check| (check.argument, check.mask));
        for ways in leaf.chunk_by(|a, b| place(a) == place(b)) {
            let Some((argument, mask)) = place(&ways[0]) else { continue };
            program.push(step(LOAD, ARGUMENTS + 8 * u32::from(argument)));
            if mask != u32::MAX {
                program.push(step(AND, mask));
            }
            append_any_of(program, ways, |way| way.1.map_or(0, |check| check.is));
        }
    }
    program.push(refuse);
}

/// Lets through what is loaded if it is the value of any of `ways`.
fn append_any_of(program: &mut Program, ways: &[Way], value: impl Fn(&Way) -> u32) {
    // As far as a condition can skip.
    for ways in ways.chunks(usize::from(u8::MAX)) {
        let left = (1..=ways.len()).rev();
        let conditions = ways.iter().zip(left);
        program.extend(
            conditions
                .map(|(way, left)| sock_filter { jt: left as u8, ..step(IF_EQUAL, value(way)) }),
        );
        program.push(step(SKIP, 1));
        program.push(step(RETURN, libc::SECCOMP_RET_ALLOW));
    }
}

/// Puts this thread under `program`, which must have no new privileges (seccomp(2),
/// SECCOMP_SET_MODE_FILTER).
pub fn install(program: &[sock_filter]) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::super::{Kind, calls};
    use super::*;

    /// What `program` answers to a call with the arguments `args` (`struct seccomp_data`, linux/seccomp.h).
    fn answer(program: &[sock_filter], number: u32, machine: u32, args: [u64; 6]) -> u32 {
        let mut data = vec![number, machine, 0, 0];
        data.extend(args.iter().flat_map(|arg| [*arg as u32, (arg >> 32) as u32]));
        let (mut place, mut value) = (0, 0);
        loop {
            let step = &program[place];
            let jump = |holds| usize::from(if holds { step.jt } else { step.jf });
            place += 1;
            match u32::from(step.code) {
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

    /// What should be answered, by the lists themselves.
    fn expected(rules: &[(u32, Option<Check>)], number: u32, args: [u64; 6]) -> u32 {
        let holds = |check: &Check| {
            args[usize::from(check.argument)] as u32 & check.mask == check.is & check.mask
        };
        let allows = |(call, check): &(u32, Option<Check>)| {
            *call == number && check.as_ref().is_none_or(holds)
        };
        match rules.iter().any(allows) {
            _ if number == libc::SYS_clone3 as u32 => 0x5_0026,
            true => libc::SECCOMP_RET_ALLOW,
            false => libc::SECCOMP_RET_TRAP,
        }
    }

    #[test]
    fn every_call_on_a_list_is_found_and_no_other() {
        let programs: Vec<u32> = (1000..1600).collect();
        for (kind, again) in Kind::ALL.into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
            let listed = calls::allowed(kind, again, &programs);
            let program = compile(&listed, Mode::On);
            println!("{}: {} instructions", kind.name(), program.len());
            let by_number = |rule: &Allowed| {
                rule.call.parse::<Sysno>().ok().map(|call| (call.id() as u32, rule.check))
            };
            let rules: Vec<_> = listed.iter().filter_map(by_number).collect();
            let check = |number, args| {
                let found = answer(&program, number, arch::AUDIT, args);
                let what = format!("call {number} {args:x?} in the {} thread", kind.name());
                assert_eq!(found, expected(&rules, number, args), "{what}");
            };
            // Those of the x32 ABI have a bit of their own; none of them is on a list.
            for number in (0..1024).chain(1 << 30..(1 << 30) + 1024) {
                check(number, [0; 6]);
                check(number, [u64::MAX; 6]);
            }
            for (number, wanted) in &rules {
                let Some(wanted) = wanted else { continue };
                for wrong in [0, 1, 1 << 31, 1 << 32, !wanted.mask as u64, 0xffff_ffff_0000_0000] {
                    let mut args = [0; 6];
                    args[usize::from(wanted.argument)] = u64::from(wanted.is) ^ wrong;
                    check(*number, args);
                }
            }
            let other = answer(&program, rules[0].0, arch::AUDIT ^ 1, [0; 6]);
            assert_eq!(other, libc::SECCOMP_RET_KILL_PROCESS, "another machine's calls");
        }
    }
}
