//! Exception vectors for a guest that has none yet: each one tells the monitor which it was.
//!
//! VBAR_EL1 is unknown after a reset, so a guest that has not set it owns no vectors, and an
//! exception would run whatever lies at address 0, for ever. Ours lie in a page of their own, and
//! each begins with a load from an address where nothing is: the load's address names the vector,
//! and no register of the guest is lost. On x86-64 a triple fault does the same.
//!
//! Source: Arm ARM DDI 0487 L.a, "D1.3.6 Exception vectors", "C6.2 LDR (literal)", "ESR_EL1".

use super::layout::{UNHANDLED, VECTORS};

/// Vectors, and bytes of each.
const COUNT: u64 = 16;
const STRIDE: u64 = 0x80;
/// Bytes between the addresses that the vectors load from.
const SLOT: u64 = 8;

/// `LDR XZR, label` and `B .` without their offsets.
const LDR_LITERAL_XZR: u32 = 0x5800_001f;
const BRANCH_TO_SELF: u32 = 0x1400_0000;

// LDR (literal) reaches 1 MiB either way.
const _: () = assert!(UNHANDLED.end() - VECTORS.start < 1 << 20 && VECTORS.start < UNHANDLED.start);

/// The table, to be placed at [`VECTORS`].
pub fn table() -> Vec<u8> {
    let mut table = vec![0; (COUNT * STRIDE) as usize];
    for vector in 0..COUNT {
        let at = VECTORS.start + vector * STRIDE;
        let offset = UNHANDLED.start + vector * SLOT - at;
        let load = LDR_LITERAL_XZR | (offset as u32 / 4) << 5;
        let code = [load.to_le_bytes(), BRANCH_TO_SELF.to_le_bytes()].concat();
        let start = (vector * STRIDE) as usize;
        table[start..start + code.len()].copy_from_slice(&code);
    }
    table
}

/// What the vector that loaded from `guest_addr` was for, if that is what the load was.
pub fn unhandled(guest_addr: u64) -> Option<&'static str> {
    let slot = guest_addr.checked_sub(UNHANDLED.start)? / SLOT;
    let kind = match slot % 4 {
        _ if slot >= COUNT => return None,
        0 => "an exception",
        1 => "an IRQ",
        2 => "an FIQ",
        _ => "an SError",
    };
    Some(kind)
}

/// The exception class of ESR_EL1 in words.
pub fn class(esr: u64) -> &'static str {
    match esr >> 26 & 0x3f {
        0x00 => "undefined instruction",
        0x01 => "trapped WFI or WFE",
        0x07 => "floating-point instruction while CPACR_EL1 traps it",
        0x0e => "illegal execution state",
        0x15 => "SVC",
        0x16 => "HVC",
        0x17 => "SMC",
        0x18 => "trapped system register",
        0x19 => "SVE instruction while CPACR_EL1 traps it",
        0x20 | 0x21 => "instruction abort",
        0x22 => "misaligned pc",
        0x24 | 0x25 => "data abort",
        0x26 => "misaligned sp",
        0x2c => "floating-point exception",
        0x2f => "SError",
        0x30..=0x35 => "debug exception",
        0x3c => "BRK",
        _ => "exception of a class that is not known here",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vector_loads_from_its_own_address() {
        let table = table();
        assert_eq!(table.len(), 0x800);
        for vector in 0..COUNT {
            let start = (vector * STRIDE) as usize;
            let word = u32::from_le_bytes(table[start..start + 4].try_into().unwrap());
            assert_eq!(word & 0xff00_001f, LDR_LITERAL_XZR);
            let target = VECTORS.start + vector * STRIDE + u64::from(word >> 5 & 0x7_ffff) * 4;
            assert_eq!(target, UNHANDLED.start + vector * SLOT);
            assert!(unhandled(target).is_some());
        }
        assert_eq!(unhandled(UNHANDLED.start + SLOT), Some("an IRQ"));
        assert_eq!(unhandled(UNHANDLED.start - 1), None);
        assert_eq!(unhandled(UNHANDLED.start + COUNT * SLOT), None);
    }

    #[test]
    fn classes_have_names() {
        assert_eq!(class(0x0200_0000), "undefined instruction");
        assert_eq!(class(0x9600_0050), "data abort");
        assert_eq!(class(0xf200_0000), "BRK");
    }
}
