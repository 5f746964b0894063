//! The walk through a guest's stage-1 translation tables, from a virtual to a guest-physical
//! address.
//!
//! Source: Arm ARM DDI 0487 L.a, "D8 The AArch64 Virtual Memory System Architecture". Permissions
//! are not looked at: a debugger may read and write everything. What a guest put into its tables
//! is believed but never trusted: each level reads one descriptor, and there are five at most.

use super::mode::SCTLR_M;

/// TCR_EL1.EPD0 and EPD1: no walks for that half.
const TCR_EPD: [u64; 2] = [1 << 7, 1 << 23];
/// TCR_EL1.TBI0 and TBI1: the top byte of an address does not count.
const TCR_TBI: [u64; 2] = [1 << 37, 1 << 38];
/// TCR_EL1.IPS, and its value for addresses of 52 bits.
const TCR_IPS: u64 = 0b111 << 32;
const TCR_IPS_52: u64 = 6 << 32;
/// TCR_EL1.DS: 52-bit addresses with small granules.
const TCR_DS: u64 = 1 << 59;

/// Addresses have 52 bits at most.
const ADDRESS_BITS: u32 = 52;
/// The lowest bit of a table's address in TTBRn_EL1: the one below is CnP.
const TTBR_ALIGN: u64 = 0x0000_ffff_ffff_fffe;

/// The registers that decide how virtual addresses are translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paging {
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// TCR_EL1.
    pub tcr: u64,
    /// TTBR0_EL1 and TTBR1_EL1.
    pub ttbr: [u64; 2],
}

/// How one half of the address space is translated.
struct Half {
    table: u64,
    page_bits: u32,
    address_bits: u32,
    /// Which bits of a descriptor are its address, besides 47 to `page_bits`.
    wide: Wide,
}

/// Where address bits past 47 are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wide {
    No,
    /// Bits 15:12 are bits 51:48: the granule of 64 KiB.
    Bits15To12,
    /// Bits 49 and 48 are themselves, bits 9:8 are bits 51:50: TCR_EL1.DS.
    Bits9To8,
}

impl Paging {
    /// The guest-physical address of `virtual_addr`, if it is mapped. `read` reads 8 bytes at a
    /// guest-physical address, if RAM is there.
    pub fn translate(&self, virtual_addr: u64, read: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        if self.sctlr & SCTLR_M == 0 {
            return Some(virtual_addr);
        }
        let upper = virtual_addr >> 55 & 1;
        let half = self.half(upper as usize)?;
        let ignored = if self.tcr & TCR_TBI[upper as usize] != 0 { 8 } else { 0 };
        // What is above the translated bits is all ones in the upper half, else all zeros.
        let above = ((virtual_addr << ignored) as i64 >> ignored) >> half.address_bits;
        if above != -(upper as i64) {
            return None;
        }
        half.walk(virtual_addr & ((1 << half.address_bits) - 1), read)
    }

    /// How the lower (0) or upper (1) half is translated, if it is.
    fn half(&self, upper: usize) -> Option<Half> {
        if self.tcr & TCR_EPD[upper] != 0 {
            return None;
        }
        // TG0 and TG1 have the same granules, with other numbers.
        let (size, granule) = match upper {
            0 => (
                self.tcr & 0x3f,
                [Some(12), Some(16), Some(14), None][(self.tcr >> 14 & 3) as usize],
            ),
            _ => (
                self.tcr >> 16 & 0x3f,
                [None, Some(14), Some(12), Some(16)][(self.tcr >> 30 & 3) as usize],
            ),
        };
        let page_bits: u32 = granule?;
        let address_bits = 64 - size as u32;
        if address_bits > ADDRESS_BITS || address_bits <= page_bits {
            return None;
        }
        let wide = if page_bits == 16 {
            if self.tcr & TCR_IPS == TCR_IPS_52 { Wide::Bits15To12 } else { Wide::No }
        } else if self.tcr & TCR_DS != 0 {
            Wide::Bits9To8
        } else {
            Wide::No
        };
        let ttbr = self.ttbr[upper];
        let table = match wide {
            Wide::No => ttbr & TTBR_ALIGN,
            // Bits 5:2 are bits 51:48, and the table is aligned to 64 bytes.
            _ => ttbr & TTBR_ALIGN & !0x3f | (ttbr >> 2 & 0xf) << 48,
        };
        Some(Half { table, page_bits, address_bits, wide })
    }
}

impl Half {
    /// The address in a descriptor, from bit `low` up.
    fn address(&self, descriptor: u64, low: u32) -> u64 {
        let field = |bits: u32| descriptor & ((1 << bits) - 1) & !((1 << low) - 1);
        match self.wide {
            Wide::No => field(48),
            Wide::Bits15To12 => field(48) | (descriptor >> 12 & 0xf) << 48,
            Wide::Bits9To8 => field(50) | (descriptor >> 8 & 3) << 50,
        }
    }

    fn walk(&self, virtual_addr: u64, read: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        // A table fills one page, with descriptors of 8 bytes.
        let stride = self.page_bits - 3;
        let levels = (self.address_bits - self.page_bits).div_ceil(stride);
        let mut table = self.table;
        for left in (0..levels).rev() {
            let shift = self.page_bits + stride * left;
            // The first table may have fewer entries.
            let bits = stride.min(self.address_bits - shift);
            if left == levels - 1 {
                table &= !((8 << bits) - 1);
            }
            let index = virtual_addr >> shift & ((1 << bits) - 1);
            let descriptor = read(table + index * 8)?;
            let offset = virtual_addr & ((1 << shift) - 1);
            match (descriptor & 3, left) {
                (3, 0) => return Some(self.address(descriptor, shift) | offset),
                (3, _) => table = self.address(descriptor, self.page_bits),
                (1, _) if self.may_be_block(left) => {
                    return Some(self.address(descriptor, shift) | offset);
                }
                _ => return None,
            }
        }
        None
    }

    /// True if a descriptor with so many levels below may be a block: level 2, level 1 with pages
    /// of 4 KiB, and one level more where addresses are wide.
    fn may_be_block(&self, left: u32) -> bool {
        let most = if self.page_bits == 12 { 2 } else { 1 };
        let most = if self.wide == Wide::No { most } else { most + 1 };
        (1..=most).contains(&left)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// TnSZ for so many bits, in both halves.
    const fn bits(count: u64) -> u64 {
        (64 - count) | (64 - count) << 16
    }
    const TG_4K: u64 = 0b10 << 30;
    const TG_16K: u64 = 0b10 << 14 | 0b01 << 30;
    const TG_64K: u64 = 0b01 << 14 | 0b11 << 30;

    fn translate(tcr: u64, virtual_addr: u64, entries: &[(u64, u64)]) -> Option<u64> {
        let entries: HashMap<u64, u64> = entries.iter().copied().collect();
        let paging = Paging { sctlr: SCTLR_M, tcr, ttbr: [0x1_0000, 0x2_0001] };
        paging.translate(virtual_addr, |at| entries.get(&at).copied())
    }

    #[test]
    fn without_the_mmu_an_address_is_itself() {
        let off = Paging { sctlr: !SCTLR_M, ..Paging::default() };
        assert_eq!(off.translate(0x4008_0000, |_| None), Some(0x4008_0000));
    }

    #[test]
    fn pages_of_4_kib() {
        let tcr = bits(48) | TG_4K;
        // Linux's kernel text.
        let text = 0xffff_8000_8012_3456;
        let upper = [(0x2_0800, 0x3_0003), (0x3_0010, 0x4_0003)];
        let all = |last: &[(u64, u64)]| [&upper[..], last].concat();
        for (at, entries, expected) in [
            (
                text,
                all(&[(0x4_0000, 0x5_0003), (0x5_0918, 0x60_0000_4123_4703)]),
                Some(0x4123_4456),
            ),
            (text, all(&[(0x4_0000, 0x60_0000_4120_0701)]), Some(0x4132_3456)),
            (text, vec![(0x2_0800, 0x3_0003), (0x3_0010, 0x8000_0701)], Some(0x8012_3456)),
            // No blocks at level 0, and none at level 3.
            (text, vec![(0x2_0800, 0x3_0001)], None),
            (text, all(&[(0x4_0000, 0x5_0003), (0x5_0918, 0x4123_4701)]), None),
            (text, all(&[(0x4_0000, 2)]), None),
            (text, all(&[]), None),
            (0x4000_0010, vec![(0x1_0000, 0x7_0003), (0x7_0008, 0x4000_0705)], Some(0x4000_0010)),
            // Outside of both halves, and with a tag.
            (0x0001_0000_4000_0010, vec![(0x1_0000, 0x7_0003), (0x7_0008, 0x4000_0705)], None),
            (0x1200_0000_4000_0010, vec![(0x1_0000, 0x7_0003), (0x7_0008, 0x4000_0705)], None),
            (0xfffe_8000_8012_3456, all(&[(0x4_0000, 0x4120_0701)]), None),
        ] {
            assert_eq!(translate(tcr, at, &entries), expected, "{at:#x} {entries:x?}");
        }
        let tagged = vec![(0x1_0000, 0x7_0003), (0x7_0008, 0x4000_0701)];
        let at = translate(tcr | TCR_TBI[0], 0x1200_0000_4000_0010, &tagged);
        assert_eq!(at, Some(0x4000_0010));
        assert_eq!(translate(tcr | TCR_EPD[0], 0x4000_0010, &tagged), None);
    }

    #[test]
    fn other_granules_and_sizes() {
        for (tcr, at, entries, expected) in [
            // 39 bits: three levels.
            (bits(39) | TG_4K, 0x4020_1234, vec![(0x1_0008, 0x4000_0001)], Some(0x4020_1234)),
            (bits(39) | TG_4K, 0x80_4020_1234, vec![(0x1_0008, 0x4000_0001)], None),
            // 36 bits: a short first table.
            (bits(36) | TG_4K, 0xf_c000_0004, vec![(0x1_01f8, 0x4000_0001)], Some(0x4000_0004)),
            // 16 KiB, 47 bits: three levels, blocks of 32 MiB.
            (
                bits(47) | TG_16K,
                0x0200_4321,
                vec![(0x1_0000, 0x8_0003), (0x8_0008, 0x4200_0001)],
                Some(0x4200_4321),
            ),
            (
                bits(47) | TG_16K,
                0x0200_4321,
                vec![(0x1_0000, 0x8_0003), (0x8_0008, 0xc_0003), (0xc_0008, 0x4300_c003)],
                Some(0x4300_c321),
            ),
            (bits(47) | TG_16K, 0x0200_4321, vec![(0x1_0000, 0x8_0001)], None),
            // 64 KiB, 42 bits: two levels, blocks of 512 MiB.
            (bits(42) | TG_64K, 0x2123_4567, vec![(0x1_0008, 0x6000_0001)], Some(0x6123_4567)),
            (
                bits(42) | TG_64K,
                0x2123_4567,
                vec![(0x1_0008, 0x9_0003), (0x9_0918, 0x4321_0003)],
                Some(0x4321_4567),
            ),
            // 64 KiB and 52 bits: bits 15:12 are bits 51:48.
            (
                bits(42) | TG_64K | TCR_IPS_52,
                0x2123_4567,
                vec![(0x1_0008, 0x9_0003), (0x9_0918, 0x4321_a003)],
                Some(0xa_0000_4321_4567),
            ),
            // 4 KiB and 52 bits: five levels.
            (
                bits(52) | TG_4K | TCR_DS,
                0x8_0000_4000_0004,
                vec![(0x1_0040, 0x3_0003), (0x3_0000, 0x4_0003), (0x4_0008, 0x3_4000_0301)],
                Some(0xc_0003_4000_0004),
            ),
        ] {
            assert_eq!(translate(tcr, at, &entries), expected, "{tcr:#x} {at:#x} {entries:x?}");
        }
    }

    proptest! {
        #[test]
        fn no_registers_and_no_tables_are_too_much(
            tcr: u64, low: u64, high: u64, virtual_addr: u64, entry: u64, kind in 0..4u64,
        ) {
            let paging = Paging { sctlr: SCTLR_M, tcr, ttbr: [low, high] };
            let count = std::cell::Cell::new(0);
            // Any address at all, and one that its half has.
            for at in [virtual_addr, (virtual_addr as i64 >> 30) as u64] {
                count.set(0);
                paging.translate(at, |at| {
                    count.set(count.get() + 1);
                    Some((entry ^ at) & !3 | kind)
                });
                prop_assert!(count.get() <= 6);
            }
        }
    }
}
