//! The PVH boot protocol: how a kernel that says so in an ELF note is entered at 32 bits.
//!
//! Source: Xen docs/misc/pvh.pandoc, and xen/include/public/arch-x86/hvm/start_info.h.

use super::linux::MapEntry;
use crate::memory::RamRange;

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// The version with a memory map.
const VERSION: u32 = 1;

/// Bytes of `hvm_start_info`, of `hvm_modlist_entry` and of `hvm_memmap_table_entry`.
const START_INFO_LEN: usize = 56;
const MODULE_LEN: usize = 32;
const MAP_ENTRY_LEN: usize = 24;

/// Bytes of the whole: start info, one module, `entries` of the map.
pub const fn len(entries: usize) -> u64 {
    (START_INFO_LEN + MODULE_LEN + entries * MAP_ENTRY_LEN) as u64
}

/// The start info with what it points to, to be placed at `at`.
pub fn start_info(
    at: u64,
    cmdline: u64,
    initrd: Option<RamRange>,
    rsdp: u64,
    map: &[MapEntry],
) -> Vec<u8> {
    let modules = at + START_INFO_LEN as u64;
    let entries = modules + MODULE_LEN as u64;
    let mut bytes = Vec::with_capacity(len(map.len()) as usize);
    let mut words = |words: &[u32]| words.iter().for_each(|w| bytes.extend(w.to_le_bytes()));
    let halves = |value: u64| [value as u32, (value >> 32) as u32];
    words(&[MAGIC, VERSION, 0, initrd.is_some().into()]);
    for pointer in [modules, cmdline, rsdp, entries] {
        words(&halves(pointer));
    }
    words(&[map.len() as u32, 0]);
    let (start, len) = initrd.map_or((0, 0), |range| (range.start, range.len));
    // Address, size, command line (none), reserved.
    for value in [start, len, 0, 0] {
        words(&halves(value));
    }
    for entry in map {
        words(&halves(entry.start));
        words(&halves(entry.len));
        words(&[entry.kind as u32, 0]);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::linux::Kind;
    use super::*;

    #[test]
    fn the_start_info_points_to_the_module_and_the_map() {
        let map = [MapEntry { start: 0x1_0000_0000, len: 0x1000, kind: Kind::Ram }];
        let initrd = RamRange { start: 0x200_0000, len: 0x1234 };
        let bytes = start_info(0x7000, 0x8000, Some(initrd), 0xe_0000, &map);
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(bytes.len() as u64, len(1));
        assert_eq!(word(0), u64::from(MAGIC) | 1 << 32);
        assert_eq!(word(8), 1 << 32, "no flags, one module");
        assert_eq!([word(16), word(24), word(32), word(40)], [0x7038, 0x8000, 0xe_0000, 0x7058]);
        assert_eq!([word(48), word(56), word(64)], [1, 0x200_0000, 0x1234]);
        assert_eq!([word(88), word(96), word(104)], [0x1_0000_0000, 0x1000, 1]);
    }
}
