//! The debug registers, what a debug exception says, and how the guest is given one of its own.
//!
//! Source: Arm ARM DDI 0487 L.a, "D2 AArch64 Self-hosted Debug", "D24.3 Debug registers",
//! "D24.2.40 ESR_EL1", "D1.3.6 Exception entry".

use crate::debug::{Access, Hardware, Slots, Trap};

/// The instruction BRK #0.
pub const BREAKPOINT: &[u8] = &0xd420_0000u32.to_le_bytes();

/// Registers of each kind that KVM's structure has.
const REGISTERS: usize = 16;

/// DBGBCR_EL1: enabled, at EL0 and EL1 (PMC), all four bytes of the instruction (BAS).
const BCR: u64 = 1 | 0b11 << 1 | 0b1111 << 5;
/// DBGWCR_EL1: enabled, at EL0 and EL1 (PAC); which accesses (LSC); which bytes (BAS).
const WCR: u64 = 1 | 0b11 << 1;
const WCR_LSC_SHIFT: u32 = 3;
const WCR_BAS_SHIFT: u32 = 5;

/// DBGBCRn_EL1, DBGBVRn_EL1, DBGWCRn_EL1 and DBGWVRn_EL1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugRegisters {
    /// Control of each breakpoint.
    pub bcr: [u64; REGISTERS],
    /// Its address.
    pub bvr: [u64; REGISTERS],
    /// Control of each watchpoint.
    pub wcr: [u64; REGISTERS],
    /// Its address.
    pub wvr: [u64; REGISTERS],
}

/// The debug registers that wait for all of `wanted`; none if they can't.
pub fn debug_registers(wanted: &[Hardware], slots: Slots) -> Option<DebugRegisters> {
    let mut registers = DebugRegisters::default();
    let (mut breakpoints, mut watchpoints) = (0, 0);
    for hardware in wanted {
        let Hardware { access, address, len } = *hardware;
        let accesses = match access {
            Access::Execute => {
                if breakpoints == slots.breakpoints.min(REGISTERS) || !address.is_multiple_of(4) {
                    return None;
                }
                registers.bcr[breakpoints] = BCR;
                registers.bvr[breakpoints] = address;
                breakpoints += 1;
                continue;
            }
            Access::Read => 0b01,
            Access::Write => 0b10,
            Access::Any => 0b11,
        };
        // One register watches bytes of one doubleword.
        let first = address % 8;
        if watchpoints == slots.watchpoints.min(REGISTERS) || !(1..=8 - first).contains(&len) {
            return None;
        }
        let bytes = ((1 << len) - 1) << first;
        registers.wcr[watchpoints] = WCR | accesses << WCR_LSC_SHIFT | bytes << WCR_BAS_SHIFT;
        registers.wvr[watchpoints] = address - first;
        watchpoints += 1;
    }
    Some(registers)
}

/// What happened, by the syndrome and the fault address that KVM tells.
pub fn trap(syndrome: u32, far: u64) -> Trap {
    // ESR_ELx.EC.
    match syndrome >> 26 {
        0x30 | 0x31 => Trap::Hardware,
        0x32 | 0x33 => Trap::Step,
        0x34 | 0x35 => Trap::Watch(far),
        0x3c => Trap::Software,
        _ => Trap::Foreign,
    }
}

/// SCTLR_EL1.SPAN: PSTATE.PAN stays as it is; SCTLR_EL1.DSSBS: the new PSTATE.SSBS.
const SCTLR_SPAN: u64 = 1 << 23;
const SCTLR_DSSBS: u64 = 1 << 44;
/// Bits of PSTATE as SPSR_EL1 shows them.
const PSTATE_NZCV: u64 = 0xf << 28;
const PSTATE_PAN: u64 = 1 << 22;
const PSTATE_SSBS: u64 = 1 << 12;
const PSTATE_DAIF: u64 = 0xf << 6;
const PSTATE_AARCH32: u64 = 1 << 4;
const PSTATE_EL_MASK: u64 = 0b11 << 2;
const PSTATE_SP: u64 = 1 << 0;
const PSTATE_EL1H: u64 = 0b0101;

/// The pc and PSTATE with which EL1 takes a synchronous exception, given those registers.
pub fn exception_entry(pstate: u64, vbar: u64, sctlr: u64) -> (u64, u64) {
    let offset = match (pstate & PSTATE_AARCH32 != 0, pstate & PSTATE_EL_MASK != 0) {
        (true, _) => 0x600,
        (false, false) => 0x400,
        (false, true) if pstate & PSTATE_SP != 0 => 0x200,
        (false, true) => 0,
    };
    let mut new = pstate & (PSTATE_NZCV | PSTATE_PAN) | PSTATE_DAIF | PSTATE_EL1H;
    if sctlr & SCTLR_SPAN == 0 {
        new |= PSTATE_PAN;
    }
    if sctlr & SCTLR_DSSBS != 0 {
        new |= PSTATE_SSBS;
    }
    (vbar.wrapping_add(offset), new)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOTS: Slots = Slots { breakpoints: 2, watchpoints: 1 };

    const fn hardware(access: Access, address: u64, len: u64) -> Hardware {
        Hardware { access, address, len }
    }

    #[test]
    fn debug_registers_wait_for_what_is_wanted() {
        use Access::*;
        for (wanted, expected) in [
            (&[][..], Some((0, 0, 0))),
            (&[hardware(Execute, 0x4008_0004, 4)], Some((0x1e7, 0, 0))),
            (&[hardware(Execute, 0x4008_0002, 4)], None),
            (&[hardware(Execute, 0, 4); 2], Some((0x1e7, 0, 0))),
            (&[hardware(Execute, 0, 4); 3], None),
            (&[hardware(Write, 0x1004, 4)], Some((0, 0x1e17, 0x1000))),
            (&[hardware(Any, 0x1000, 8)], Some((0, 0x1fff, 0x1000))),
            (&[hardware(Read, 0x1007, 1)], Some((0, 0x100f, 0x1000))),
            (&[hardware(Write, 0x1004, 8)], None),
            (&[hardware(Write, 0x1000, 0)], None),
            (&[hardware(Write, 0x1000, u64::MAX)], None),
            (&[hardware(Write, 0x1000, 1); 2], None),
        ] {
            let registers = debug_registers(wanted, SLOTS);
            let found = registers.map(|r| (r.bcr[0], r.wcr[0], r.wvr[0]));
            assert_eq!(found, expected, "{wanted:?}");
        }
        let many = Slots { breakpoints: 99, watchpoints: 99 };
        assert!(debug_registers(&[hardware(Execute, 0, 4); 17], many).is_none());
    }

    #[test]
    fn exceptions_tell_what_happened() {
        for (class, expected) in [
            (0x3c, Trap::Software),
            (0x30, Trap::Hardware),
            (0x32, Trap::Step),
            (0x34, Trap::Watch(0x1000)),
            (0x15, Trap::Foreign),
        ] {
            assert_eq!(trap(class << 26 | 1 << 25, 0x1000), expected, "{class:#x}");
        }
    }

    #[test]
    fn an_exception_is_taken_where_the_vectors_say() {
        for (pstate, sctlr, expected) in [
            (0x6000_0005, SCTLR_SPAN, (0x1200, 0x6000_03c5)),
            (0x0000_0004, SCTLR_SPAN, (0x1000, 0x3c5)),
            (0x8000_0000, 0, (0x1400, 0x8040_03c5)),
            (0x0000_0010, SCTLR_SPAN | SCTLR_DSSBS, (0x1600, 0x13c5)),
            (0x0040_1c25, SCTLR_SPAN, (0x1200, 0x0040_03c5)),
        ] {
            assert_eq!(exception_entry(pstate, 0x1000, sctlr), expected, "{pstate:#x}");
        }
    }
}
