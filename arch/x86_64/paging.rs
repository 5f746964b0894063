//! The walk through a guest's page tables, from a linear to a guest-physical address.
//!
//! Source: SDM vol. 3A, "Paging", ed. 083. Permissions are not looked at: a debugger may read and
//! write everything. What a guest put into its tables is believed but never trusted: each level
//! reads one entry, and there are five levels at most.

/// CR0.PG: paging is on.
const CR0_PG: u64 = 1 << 31;
/// CR4.PSE: 32-bit paging has 4 MiB pages.
const CR4_PSE: u64 = 1 << 4;
/// CR4.PAE: entries have 64 bits.
const CR4_PAE: u64 = 1 << 5;
/// CR4.LA57: five levels.
const CR4_LA57: u64 = 1 << 12;
/// EFER.LMA: IA-32e mode is active.
const EFER_LMA: u64 = 1 << 10;

/// An entry is present.
const PRESENT: u64 = 1 << 0;
/// An entry above the last level is a page itself.
const LARGE: u64 = 1 << 7;
/// Where an entry of 64 bits holds an address: bits 51 to 12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The registers that decide how linear addresses are translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paging {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
}

/// Reads so many bytes (4 or 8) at a guest-physical address, if RAM is there.
pub trait ReadEntry: Fn(u64, usize) -> Option<u64> {}
impl<F: Fn(u64, usize) -> Option<u64>> ReadEntry for F {}

impl Paging {
    /// The guest-physical address of `linear`, if it is mapped.
    pub fn translate(&self, linear: u64, read: impl ReadEntry) -> Option<u64> {
        if self.cr0 & CR0_PG == 0 {
            return Some(linear);
        }
        if self.efer & EFER_LMA != 0 {
            let levels = if self.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
            let unused = 64 - (12 + 9 * levels);
            let canonical = ((linear << unused) as i64 >> unused) as u64;
            // Compatibility mode has linear addresses of 32 bits, which are canonical.
            return (canonical == linear)
                .then(|| walk(self.cr3 & ADDRESS, linear, levels, read))
                .flatten();
        }
        let linear = linear & 0xffff_ffff;
        if self.cr4 & CR4_PAE != 0 {
            // Four pointers, whose bit 7 means nothing; the table is aligned to 32 bytes.
            let pointers = self.cr3 & 0xffff_ffe0;
            let entry = read(pointers + (linear >> 30) * 8, 8).filter(|e| e & PRESENT != 0)?;
            return walk(entry & ADDRESS, linear, 2, read);
        }
        self.walk_32(linear, read)
    }

    /// 32-bit paging: two levels of 1024 entries.
    fn walk_32(&self, linear: u64, read: impl ReadEntry) -> Option<u64> {
        let directory = self.cr3 & 0xffff_f000;
        let entry = read(directory + (linear >> 22) * 4, 4).filter(|e| e & PRESENT != 0)?;
        if entry & LARGE != 0 && self.cr4 & CR4_PSE != 0 {
            // PSE-36: bits 20 to 13 are bits 39 to 32 of the address.
            let base = (entry & 0xffc0_0000) | (entry >> 13 & 0xff) << 32;
            return Some(base | linear & 0x3f_ffff);
        }
        let table = entry & 0xffff_f000;
        let entry = read(table + (linear >> 12 & 0x3ff) * 4, 4).filter(|e| e & PRESENT != 0)?;
        Some(entry & 0xffff_f000 | linear & 0xfff)
    }
}

/// Walks `levels` levels of 512 entries of 64 bits, from `table` on.
fn walk(mut table: u64, linear: u64, levels: u32, read: impl ReadEntry) -> Option<u64> {
    for level in (1..=levels).rev() {
        let shift = 12 + 9 * (level - 1);
        let index = linear >> shift & 0x1ff;
        let entry = read(table + index * 8, 8).filter(|entry| entry & PRESENT != 0)?;
        let page = level == 1 || (level <= 3 && entry & LARGE != 0);
        if page {
            let offset = (1 << shift) - 1;
            return Some(entry & ADDRESS & !offset | linear & offset);
        }
        table = entry & ADDRESS;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const LONG: Paging = Paging { cr0: CR0_PG, cr3: 0x1000, cr4: CR4_PAE, efer: EFER_LMA };

    fn translate(paging: Paging, linear: u64, entries: &[(u64, u64)]) -> Option<u64> {
        let entries: HashMap<u64, u64> = entries.iter().copied().collect();
        paging.translate(linear, |at, _| entries.get(&at).copied())
    }

    #[test]
    fn without_paging_an_address_is_itself() {
        assert_eq!(translate(Paging::default(), 0xffff_fff0, &[]), Some(0xffff_fff0));
    }

    #[test]
    fn four_levels() {
        // Linux's kernel text, and the same low.
        let high = 0xffff_ffff_8123_4567;
        let upper = [(0x1ff8, 0x2003), (0x2ff0, 0x3003)];
        let all = |last: &[(u64, u64)]| [&upper[..], last].concat();
        for (linear, entries, expected) in [
            (high, all(&[(0x3048, 0x4003), (0x41a0, 0x8000_0000_0765_4003)]), Some(0x765_4567)),
            (high, all(&[(0x3048, 0x4020_0083)]), Some(0x4023_4567)),
            (high, all(&[(0x3048, 0x4003), (0x41a0, 0x765_4002)]), None),
            (high, all(&[(0x3048, 0x4002)]), None),
            (high, all(&[]), None),
            (high, vec![(0x1ff8, 0x2003), (0x2ff0, 0x1_4000_0083)], Some(0x1_4123_4567)),
            // Bit 7 of the first level means nothing.
            (0x123, vec![(0x1000, 0x2083), (0x2000, 0x3003), (0x3000, 0x83)], Some(0x123)),
            // Not canonical.
            (0x8000_0000_0000, vec![(0x1800, 0x2003), (0x2000, 0x83)], None),
            (0x7fff_8123_4567, vec![(0x17f8, 0x2003), (0x2ff0, 0x83)], Some(0x0123_4567)),
        ] {
            assert_eq!(translate(LONG, linear, &entries), expected, "{linear:#x} {entries:x?}");
        }
    }

    #[test]
    fn other_kinds_of_paging() {
        let five = Paging { cr4: CR4_PAE | CR4_LA57, ..LONG };
        let pae = Paging { cr3: 0x1020, efer: 0, ..LONG };
        let old = Paging { cr4: CR4_PSE, efer: 0, ..LONG };
        let older = Paging { cr4: 0, ..old };
        for (paging, linear, entries, expected) in [
            (
                five,
                0xff00_0000_0000_1234,
                vec![(0x1800, 0x2001), (0x2000, 0x3001), (0x3000, 0x4000_0081)],
                Some(0x4000_1234),
            ),
            (five, 0x0100_0000_0000_0000, vec![(0x1800, 0x2001)], None),
            (pae, 0xc020_1234, vec![(0x1038, 0x5001), (0x5008, 0x60_0081)], Some(0x60_1234)),
            (
                pae,
                0xc020_1234,
                vec![(0x1038, 0x5001), (0x5008, 0x6001), (0x6008, 0x9_9999_9001)],
                Some(0x9_9999_9234),
            ),
            (pae, 0x1234, vec![(0x1020, 0x5000)], None),
            (old, 0xc040_1234, vec![(0x1c04, 0x80_0081)], Some(0x80_1234)),
            (old, 0xc040_1234, vec![(0x1c04, 0x80_2081)], Some(0x1_0080_1234)),
            (old, 0xc040_1234, vec![(0x1c04, 0x5001), (0x5004, 0x7001)], Some(0x7234)),
            (older, 0xc040_1234, vec![(0x1c04, 0x5081), (0x5004, 0x7001)], Some(0x7234)),
            (old, 0xc040_1234, vec![(0x1c04, 0x5001), (0x5004, 0x7000)], None),
        ] {
            let found = translate(paging, linear, &entries);
            assert_eq!(found, expected, "{paging:x?} {linear:#x} {entries:x?}");
        }
    }

    proptest! {
        #[test]
        fn no_registers_and_no_tables_are_too_much(
            cr0: u64, cr3: u64, cr4: u64, efer: u64, linear: u64, entry: u64,
        ) {
            let count = std::cell::Cell::new(0);
            let paging = Paging { cr0: cr0 | CR0_PG, cr3, cr4, efer };
            paging.translate(linear, |at, width| {
                assert!(width == 4 || width == 8);
                count.set(count.get() + 1);
                Some((entry ^ at) | PRESENT)
            });
            prop_assert!(count.get() <= 5);
        }
    }
}
