//! The debug registers: what goes in, and what a debug exception says.
//!
//! Source: SDM vol. 3B, "Debug, Branch Profile, TSC…", "Debug Registers", ed. 083.

use crate::debug::{Access, Hardware, Slots, Trap};

/// The instruction INT3.
pub const BREAKPOINT: &[u8] = &[0xcc];

/// Vectors of #DB and #BP (SDM vol. 3A, "Exception and Interrupt Reference").
const VECTOR_DB: u32 = 1;
const VECTOR_BP: u32 = 3;

/// DR6.BS: the exception is that of a single step.
const DR6_BS: u64 = 1 << 14;
/// DR7 bit 10 reads as one.
const DR7_FIXED: u64 = 1 << 10;
/// How many addresses the debug registers hold.
const ADDRESSES: usize = 4;

/// DR0 to DR7.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugRegisters(pub [u64; 8]);

/// What can be watched: instructions and data share the registers.
pub const SLOTS: Slots = Slots { breakpoints: ADDRESSES, watchpoints: ADDRESSES };

/// The debug registers that wait for all of `wanted`; none if they can't.
pub fn debug_registers(wanted: &[Hardware], _: Slots) -> Option<DebugRegisters> {
    if wanted.len() > ADDRESSES {
        return None;
    }
    let mut registers = [0; 8];
    let mut dr7 = DR7_FIXED;
    for (index, hardware) in wanted.iter().enumerate() {
        let Hardware { access, address, len } = *hardware;
        let (kind, len) = match (access, len) {
            (Access::Execute, _) => (0b00, 1),
            (Access::Write, len) => (0b01, len),
            (Access::Any, len) => (0b11, len),
            // Nothing waits for reads alone.
            (Access::Read, _) => return None,
        };
        let size = match len {
            1 => 0b00,
            2 => 0b01,
            4 => 0b11,
            8 => 0b10,
            _ => return None,
        };
        if !address.is_multiple_of(len) {
            return None;
        }
        registers[index] = address;
        // G0 to G3, then R/W0, LEN0 and so on.
        dr7 |= 0b10 << (2 * index) | (kind | size << 2) << (16 + 4 * index);
    }
    registers[7] = dr7;
    Some(DebugRegisters(registers))
}

/// What happened, by the exception's vector and DR6, with our registers.
pub fn trap(vector: u32, dr6: u64, registers: &DebugRegisters) -> Trap {
    let dr7 = registers.0[7];
    let hit = (0..ADDRESSES).find(|n| dr6 >> n & 1 != 0 && dr7 >> (2 * n) & 0b10 != 0);
    match (vector, hit) {
        (VECTOR_BP, _) => Trap::Software,
        (VECTOR_DB, Some(n)) if dr7 >> (16 + 4 * n) & 0b11 == 0 => Trap::Hardware,
        (VECTOR_DB, Some(n)) => Trap::Watch(registers.0[n]),
        (VECTOR_DB, None) if dr6 & DR6_BS != 0 => Trap::Step,
        _ => Trap::Foreign,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn hardware(access: Access, address: u64, len: u64) -> Hardware {
        Hardware { access, address, len }
    }

    #[test]
    fn debug_registers_wait_for_what_is_wanted() {
        use Access::*;
        for (wanted, dr7) in [
            (&[][..], Some(0x400)),
            (&[hardware(Execute, 0xffff_ffff_8100_0001, 1)], Some(0x402)),
            (&[hardware(Write, 8, 4), hardware(Any, 16, 8)], Some(0x00bd_040a)),
            (&[hardware(Write, 9, 1), hardware(Write, 10, 2)], Some(0x0051_040a)),
            (&[hardware(Write, 10, 4)], None),
            (&[hardware(Write, 0, 3)], None),
            (&[hardware(Read, 8, 4)], None),
            (&[hardware(Execute, 0, 1); 4], Some(0x4aa)),
            (&[hardware(Execute, 0, 1); 5], None),
        ] {
            let registers = debug_registers(wanted, SLOTS);
            assert_eq!(registers.map(|r| r.0[7]), dr7, "{wanted:?}");
        }
    }

    #[test]
    fn exceptions_tell_what_happened() {
        let wanted = [hardware(Access::Execute, 0x1000, 1), hardware(Access::Write, 0x2000, 8)];
        let registers = debug_registers(&wanted, SLOTS).unwrap();
        for (vector, dr6, expected) in [
            (3, 0, Trap::Software),
            (1, 0xffff_0ff1, Trap::Hardware),
            (1, 0xffff_0ff2, Trap::Watch(0x2000)),
            (1, 0xffff_4ff0, Trap::Step),
            // Both: the step ended at the breakpoint.
            (1, 0xffff_4ff1, Trap::Hardware),
            // The guest's own registers, and something new.
            (1, 0xffff_0ff8, Trap::Foreign),
            (6, 0, Trap::Foreign),
        ] {
            assert_eq!(trap(vector, dr6, &registers), expected, "{vector} {dr6:#x}");
        }
    }
}
