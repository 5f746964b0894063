//! The multiboot 1 protocol: the information that a kernel finds in ebx.
//!
//! Source: Multiboot Specification 0.6.96, 3.2 "Machine state" and 3.3 "Boot information format".

use super::linux::MapEntry;
use crate::board::Module;
use crate::memory::RamRange;

/// What a kernel finds in eax.
pub const MAGIC: u64 = 0x2bad_b002;

/// Bits of `flags`: which fields are valid.
const HAS_MEMORY: u32 = 1 << 0;
const HAS_CMDLINE: u32 = 1 << 2;
const HAS_MODULES: u32 = 1 << 3;
const HAS_MAP: u32 = 1 << 6;
const HAS_LOADER_NAME: u32 = 1 << 9;

/// Bytes of the structure, of a module's entry, and of one of the map behind its own size.
const INFO_LEN: usize = 116;
const MODULE_LEN: usize = 16;
const MAP_ENTRY_LEN: u32 = 20;

const LOADER_NAME: &[u8] = b"bivisor\0";

/// Bytes of the whole, for these modules and so many `entries` of the map.
pub fn len(modules: &[Module], entries: usize) -> u64 {
    let names: usize = modules.iter().map(|module| module.name.len() + 1).sum();
    let map = entries * (MAP_ENTRY_LEN as usize + 4);
    (INFO_LEN + modules.len() * MODULE_LEN + map + names + LOADER_NAME.len()) as u64
}

/// The KiB of RAM in one piece from `start`, up to `limit` (`mem_lower` and `mem_upper`).
pub fn kib(ram: &[RamRange], start: u64, limit: u64) -> u32 {
    let range = ram.iter().find(|range| range.start <= start && start < range.end());
    range.map_or(0, |range| ((range.end().min(limit) - start) >> 10) as u32)
}

/// The information, to be placed at `at` (below 4 GiB), with what it points to behind it.
///
/// `usable` is the start of what a PC keeps for its firmware: lower memory ends there.
pub fn info(
    at: u64,
    cmdline: u64,
    modules: &[Module],
    map: &[MapEntry],
    ram: &[RamRange],
    usable: u64,
) -> Vec<u8> {
    let list = at as u32 + INFO_LEN as u32;
    let entries = list + (modules.len() * MODULE_LEN) as u32;
    let map_len = map.len() as u32 * (MAP_ENTRY_LEN + 4);
    let names = entries + map_len;
    let flags = HAS_MEMORY | HAS_CMDLINE | HAS_MODULES | HAS_MAP | HAS_LOADER_NAME;
    let (lower, upper) = (kib(ram, 0, usable), kib(ram, 1 << 20, 1 << 32));
    let mut bytes = Vec::with_capacity(len(modules, map.len()) as usize);
    let mut words = |words: &[u32]| words.iter().for_each(|w| bytes.extend(w.to_le_bytes()));
    // The boot device (offset 12) and symbols (28 to 44) are not said.
    words(&[flags, lower, upper, 0, cmdline as u32, modules.len() as u32, list, 0, 0, 0, 0]);
    // Drives and the configuration table (52 to 64) are not there; the rest is about video.
    words(&[map_len, entries, 0, 0, 0, names]);
    words(&[0; INFO_LEN / 4 - 17]);
    let mut name = names + LOADER_NAME.len() as u32;
    for Module { place, name: text } in modules {
        words(&[place.start as u32, place.end() as u32, name, 0]);
        name += text.len() as u32 + 1;
    }
    for entry in map {
        let halves = |value: u64| [value as u32, (value >> 32) as u32];
        words(&[MAP_ENTRY_LEN]);
        words(&halves(entry.start));
        words(&halves(entry.len));
        words(&[entry.kind as u32]);
    }
    bytes.extend(LOADER_NAME);
    for module in modules {
        bytes.extend(&module.name);
        bytes.push(0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::layout::LEGACY;
    use super::super::linux::memory_map;
    use super::*;

    const AT: u64 = 0x9_e000;

    fn module(start: u64, len: u64, name: &[u8]) -> Module {
        Module { place: RamRange { start, len }, name: name.to_vec() }
    }

    #[test]
    fn the_information_leads_to_everything() {
        let ram = [
            RamRange { start: 0, len: 0xc000_0000 },
            RamRange { start: 1 << 32, len: 0x4000_0000 },
        ];
        let map = memory_map(&ram, LEGACY);
        let modules = [module(0x20_0000, 5, b"one"), module(0x30_0000, 0x1000, b"")];
        let bytes = info(AT, 0x9_d000, &modules, &map, &ram, LEGACY.start);
        assert_eq!(bytes.len() as u64, len(&modules, map.len()));
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let text = |addr: u32| {
            let rest = &bytes[(u64::from(addr) - AT) as usize..];
            rest.split(|byte| *byte == 0).next().unwrap()
        };
        assert_eq!((word(0), word(4), word(8)), (0x24d, 639, (0xc000_0000 - 0x10_0000) >> 10));
        assert_eq!((word(16), word(20), text(word(64))), (0x9_d000, 2, &b"bivisor"[..]));
        let list = (u64::from(word(24)) - AT) as usize;
        assert_eq!([word(list), word(list + 4), word(list + 12)], [0x20_0000, 0x20_0005, 0]);
        assert_eq!(text(word(list + 8)), b"one");
        assert_eq!([word(list + 16), word(list + 20)], [0x30_0000, 0x30_1000]);
        assert_eq!(text(word(list + 24)), b"");
        let (mut at, end) = (u64::from(word(48)) - AT, u64::from(word(48) + word(44)) - AT);
        let mut found = Vec::new();
        while at < end {
            let field = |n: usize| u64::from(word(at as usize + 4 * n));
            found.push((field(1) | field(2) << 32, field(3) | field(4) << 32, field(5)));
            at += field(0) + 4;
        }
        assert_eq!(
            found,
            [
                (0, 0x9_fc00, 1),
                (0x9_fc00, 0x6_0400, 2),
                (0x10_0000, 0xbff0_0000, 1),
                (1 << 32, 0x4000_0000, 1),
            ]
        );
        // What is not there is not pointed to.
        assert!([12, 28, 32, 36, 40, 52, 56, 60, 68, 72, 112].iter().all(|at| word(*at) == 0));
    }

    #[test]
    fn little_ram_has_no_upper_memory() {
        for (ram, expected) in [
            (&[][..], (0, 0)),
            (&[RamRange { start: 0, len: 0x8_0000 }], (512, 0)),
            (&[RamRange { start: 0x1000, len: 0x10_0000 }], (0, 4)),
            (&[RamRange { start: 0x10_0000, len: 0x10_0000 }], (0, 1024)),
        ] {
            let bytes = info(AT, 0, &[], &[], ram, LEGACY.start);
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            assert_eq!((word(4), word(8), word(20), word(44)), (expected.0, expected.1, 0, 0));
        }
    }
}
