//! The registers that gdb shows, and how it is told which they are.
//!
//! Besides those of a program there are four masks: which bits of a pointer are its signature. A
//! kernel that signs its return addresses has no readable backtrace without them. gdb knows them
//! since version 14, older ones ignore them (GDB manual, "AArch64 Features",
//! org.gnu.gdb.aarch64.pauth_v2).

use std::fmt::Write;

use gdbstub::arch::Registers;
use gdbstub_arch::aarch64::reg::AArch64CoreRegs;

/// What gdb gets, in the order of [`description`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GdbRegisters {
    /// Those that can be written.
    pub core: AArch64CoreRegs,
    /// What [`signature_masks`] gives.
    pub masks: [u64; 4],
}

impl Registers for GdbRegisters {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.core.pc
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.core.gdb_serialize(&mut write_byte);
        let bytes = self.masks.iter().flat_map(|mask| mask.to_le_bytes());
        bytes.for_each(|byte| write_byte(Some(byte)));
    }

    /// Masks are not written: they follow from other registers.
    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        self.core.gdb_deserialize(bytes)
    }
}

/// What gdb is told about the registers, in the order in which they are sent.
pub fn description() -> String {
    let mut xml = String::from(
        "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\">\
         <target version=\"1.0\"><architecture>aarch64</architecture>\
         <feature name=\"org.gnu.gdb.aarch64.core\">",
    );
    // Writing to a string can't fail.
    let register = |text: &mut String, name: &str, bits: u32, kind: &str| {
        let _ = write!(text, "<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\"/>");
    };
    for n in 0..31 {
        register(&mut xml, &format!("x{n}"), 64, "int");
    }
    register(&mut xml, "sp", 64, "data_ptr");
    register(&mut xml, "pc", 64, "code_ptr");
    register(&mut xml, "cpsr", 32, "int");
    xml.push_str("</feature><feature name=\"org.gnu.gdb.aarch64.fpu\">");
    for n in 0..32 {
        register(&mut xml, &format!("v{n}"), 128, "uint128");
    }
    register(&mut xml, "fpcr", 32, "int");
    register(&mut xml, "fpsr", 32, "int");
    xml.push_str("</feature><feature name=\"org.gnu.gdb.aarch64.pauth_v2\">");
    for name in ["pauth_dmask", "pauth_cmask", "pauth_dmask_high", "pauth_cmask_high"] {
        register(&mut xml, name, 64, "int");
    }
    xml.push_str("</feature></target>");
    xml
}

/// TCR_EL1.TBIn: the top byte of an address does not count; TBIDn: of data addresses alone (Arm
/// ARM DDI 0487 L.a, "D24.2 TCR_EL1").
const TBI_SHIFT: u32 = 37;
const TBID_SHIFT: u32 = 51;
/// TnSZ: how many bits an address lacks. Smaller than the smallest, it means the common one.
const SIZES: [u32; 2] = [0, 16];
const SMALLEST: u32 = 12;
const COMMON: u32 = 16;

/// The bits of pointers where a signature is: to data and to code in the lower half of the address
/// space, then the same in the upper one (Arm ARM, "D8.10 Pointer authentication"). Bit 55 tells
/// the halves apart and is never part of it, but always what the other bits are without one.
pub fn signature_masks(tcr: u64) -> [u64; 4] {
    let mask = |half: u32, code: bool| {
        let size = (tcr >> SIZES[half as usize]) as u32 & 0x3f;
        let size = if size < SMALLEST { COMMON } else { size };
        let flag = |shift| tcr >> (shift + half) & 1 != 0;
        let top_is_ignored = flag(TBI_SHIFT) && !(code && flag(TBID_SHIFT));
        let above = !0 << (64 - size);
        if top_is_ignored { above & (!0 >> 8) } else { above }
    };
    [mask(0, false), mask(0, true), mask(1, false), mask(1, true)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_has_every_register_once_and_in_order() {
        let xml = description();
        assert_eq!(xml.matches("<reg ").count(), 31 + 3 + 32 + 2 + 4);
        assert!(xml.ends_with("</target>"));
        let bits = xml.split("bitsize=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        let bits: usize = bits.map(|bits| bits.parse::<usize>().unwrap()).sum();
        let masks = [1, 2, 3, u64::MAX];
        let registers = GdbRegisters { masks, ..GdbRegisters::default() };
        let mut bytes = Vec::new();
        registers.gdb_serialize(|byte| bytes.extend(byte));
        assert_eq!(bytes.len() * 8, bits);
        assert_eq!(bytes[bytes.len() - 8..], [0xff; 8]);
        let mut read = GdbRegisters { masks, ..GdbRegisters::default() };
        assert_eq!(read.gdb_deserialize(&bytes), Ok(()));
        assert_eq!(read, registers);
        assert_eq!(read.gdb_deserialize(&bytes[..100]), Err(()));
    }

    #[test]
    fn signatures_are_above_the_address() {
        const WHOLE: u64 = 0xffff << 48;
        const SHORT: u64 = 0xff << 48;
        let sizes = |low: u64, high: u64| low | high << 16;
        for (tcr, expected) in [
            // No tables yet.
            (0, [WHOLE; 4]),
            (sizes(16, 16), [WHOLE; 4]),
            // As Linux has it: the top byte is ignored below, and above where it is data.
            (sizes(16, 16) | 1 << 37, [SHORT, SHORT, WHOLE, WHOLE]),
            (sizes(16, 16) | 0b11 << 37 | 1 << 52, [SHORT, SHORT, SHORT, WHOLE]),
            (sizes(25, 12), [!0 << 39, !0 << 39, !0 << 52, !0 << 52]),
            (u64::MAX, [!0 << 9 >> 8, !1, !0 << 9 >> 8, !1]),
        ] {
            assert_eq!(signature_masks(tcr), expected, "{tcr:#x}");
        }
    }
}
