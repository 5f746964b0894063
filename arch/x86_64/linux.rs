//! The 64-bit Linux boot protocol: the "zero page" that a kernel finds in rsi.
//!
//! Source: Linux v6.12 Documentation/arch/x86/boot.rst, "64-bit BOOT PROTOCOL", and zero-page.rst.

use crate::memory::RamRange;

/// Bytes of `struct boot_params`.
pub const ZERO_PAGE_LEN: u64 = 0x1000;

/// Bytes of a real-mode part at the most, and its entry (boot.rst, "Memory Layout" and "Running the
/// kernel").
pub const REAL_MODE_MOST: u64 = 0x8000;
/// See [`REAL_MODE_MOST`].
pub const REAL_MODE_ENTRY: u64 = 0x200;
/// Where the real-mode part's stack starts: the end of what it may use.
pub const REAL_MODE_STACK: u64 = 0x9000;

/// Offsets in `struct boot_params`.
mod offset {
    pub const ACPI_RSDP_ADDR: usize = 0x070;
    pub const EXT_RAMDISK_IMAGE: usize = 0x0c0;
    pub const EXT_RAMDISK_SIZE: usize = 0x0c4;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const SETUP_HEADER: usize = 0x1f1;
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const HEADER_MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const LOADFLAGS: usize = 0x211;
    pub const CODE32_START: usize = 0x214;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const HEAP_END_PTR: usize = 0x224;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const E820_TABLE: usize = 0x2d0;
}

/// `type_of_loader` of a loader that has no number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// `loadflags` bit: the protected-mode code is at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// `loadflags` bit: `heap_end_ptr` is valid.
const CAN_USE_HEAP: u8 = 1 << 7;
/// The oldest version with everything that is used here; for a vmlinux, which has no header.
const VERSION_2_12: u16 = 0x20c;
/// Entries that `struct boot_params` holds.
pub const E820_MAX: usize = 128;

/// Kinds of memory in a map (ACPI 6.5, "Address Range Types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Free to be used.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
}

/// One entry of a memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What it is.
    pub kind: Kind,
}

/// The memory map: RAM, without the part below 1 MiB that a PC keeps for its firmware.
pub fn memory_map(ram: &[RamRange], legacy: RamRange) -> Vec<MapEntry> {
    let mut map = Vec::new();
    let mut add = |start: u64, end: u64, kind| {
        if start < end {
            map.push(MapEntry { start, len: end - start, kind });
        }
    };
    for range in ram {
        add(range.start, range.end().min(legacy.start), Kind::Ram);
        let hidden = (range.start.max(legacy.start), range.end().min(legacy.end()));
        add(hidden.0, hidden.1, Kind::Reserved);
        add(range.start.max(legacy.end()), range.end(), Kind::Ram);
    }
    map
}

/// What the zero page points to.
#[derive(Clone, Debug)]
pub struct Params<'a> {
    /// The setup header of a bzImage, from offset 0x1f1 on; empty for a vmlinux.
    pub header: &'a [u8],
    /// Where the protected-mode part of a bzImage lies, if that is what starts.
    pub code32_start: Option<u32>,
    /// Where the command line lies, with its zero byte.
    pub cmdline: u64,
    /// Where the initial RAM disk lies.
    pub initrd: Option<RamRange>,
    /// Where the ACPI RSDP lies.
    pub rsdp: u64,
    /// The memory map.
    pub map: &'a [MapEntry],
}

/// The zero page.
pub fn zero_page(params: &Params<'_>) -> Vec<u8> {
    let mut page = vec![0; ZERO_PAGE_LEN as usize];
    let room = offset::E820_TABLE - offset::SETUP_HEADER;
    let header = &params.header[..params.header.len().min(room)];
    page[offset::SETUP_HEADER..][..header.len()].copy_from_slice(header);
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    if header.is_empty() {
        put(offset::BOOT_FLAG, &0xaa55u16.to_le_bytes());
        put(offset::HEADER_MAGIC, b"HdrS");
        put(offset::VERSION, &VERSION_2_12.to_le_bytes());
    }
    put(offset::TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    put(offset::LOADFLAGS, &[LOADED_HIGH]);
    // Tables lie below 4 GiB, so the upper half is zero.
    put(offset::CMD_LINE_PTR, &(params.cmdline as u32).to_le_bytes());
    if let Some(start) = params.code32_start {
        put(offset::CODE32_START, &start.to_le_bytes());
    }
    if let Some(initrd) = params.initrd {
        let mut put_halves = |low_at: usize, high_at: usize, value: u64| {
            put(low_at, &(value as u32).to_le_bytes());
            put(high_at, &((value >> 32) as u32).to_le_bytes());
        };
        put_halves(offset::RAMDISK_IMAGE, offset::EXT_RAMDISK_IMAGE, initrd.start);
        put_halves(offset::RAMDISK_SIZE, offset::EXT_RAMDISK_SIZE, initrd.len);
    }
    put(offset::ACPI_RSDP_ADDR, &params.rsdp.to_le_bytes());
    let entries = &params.map[..params.map.len().min(E820_MAX)];
    put(offset::E820_ENTRIES, &[entries.len() as u8]);
    for (index, entry) in entries.iter().enumerate() {
        let at = offset::E820_TABLE + index * 20;
        put(at, &entry.start.to_le_bytes());
        put(at + 8, &entry.len.to_le_bytes());
        put(at + 16, &(entry.kind as u32).to_le_bytes());
    }
    page
}

/// The setup header of a real-mode part, filled in: where it starts in that part, and its bytes.
pub fn real_mode_header(params: &Params<'_>) -> (u64, Vec<u8>) {
    let mut page = zero_page(params);
    page[offset::LOADFLAGS] |= CAN_USE_HEAP;
    // Measured from the entry, and below the stack by what boot.rst leaves for it.
    let heap_end = (REAL_MODE_STACK - 0x200) as u16;
    page[offset::HEAP_END_PTR..][..2].copy_from_slice(&heap_end.to_le_bytes());
    let end =
        offset::SETUP_HEADER + params.header.len().min(offset::E820_TABLE - offset::SETUP_HEADER);
    (offset::SETUP_HEADER as u64, page[offset::SETUP_HEADER..end].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEGACY: RamRange = RamRange { start: 0x9_fc00, len: 0x6_0400 };

    fn range(start: u64, end: u64) -> RamRange {
        RamRange { start, len: end - start }
    }

    #[test]
    fn the_map_keeps_the_firmware_s_part_of_low_memory() {
        let entry = |start, end: u64, kind| MapEntry { start, len: end - start, kind };
        let whole = memory_map(&[range(0, 0x800_0000), range(1 << 32, 0x1_4000_0000)], LEGACY);
        let expected = [
            entry(0, 0x9_fc00, Kind::Ram),
            entry(0x9_fc00, 0x10_0000, Kind::Reserved),
            entry(0x10_0000, 0x800_0000, Kind::Ram),
            entry(1 << 32, 0x1_4000_0000, Kind::Ram),
        ];
        assert_eq!(whole, expected);
        assert_eq!(
            memory_map(&[range(0x1000, 0x2000)], LEGACY),
            [entry(0x1000, 0x2000, Kind::Ram)]
        );
    }

    #[test]
    fn the_zero_page_points_to_everything() {
        let map = [MapEntry { start: 0, len: 0x9_fc00, kind: Kind::Ram }; 2];
        let params = Params {
            header: &[],
            code32_start: Some(0x10_0000),
            cmdline: 0x2_0000,
            initrd: Some(range(0x1_2345_6000, 0x1_2345_7000)),
            rsdp: 0xe_0000,
            map: &map,
        };
        let page = zero_page(&params);
        assert_eq!((page.len(), &page[0x1fe..0x208]), (4096, &b"\x55\xaa\0\0HdrS\x0c\x02"[..]));
        assert_eq!(page[0x228..0x22c], 0x2_0000u32.to_le_bytes());
        assert_eq!(page[0x214..0x218], 0x10_0000u32.to_le_bytes());
        assert_eq!(page[0x218..0x21c], 0x2345_6000u32.to_le_bytes());
        assert_eq!(page[0x0c0..0x0c4], 1u32.to_le_bytes());
        assert_eq!(page[0x070..0x078], 0xe_0000u64.to_le_bytes());
        assert_eq!((page[0x1e8], page[0x2d0 + 20 + 16]), (2, 1));
        let header = vec![0xab; 0x400];
        let page = zero_page(&Params { header: &header, map: &[], ..params });
        assert_eq!((page[0x1f1], page[0x210], page[0x2cf], page[0x2d0]), (0xab, 0xff, 0xab, 0));
    }

    #[test]
    fn a_real_mode_part_is_told_its_heap_and_its_command_line() {
        let header = vec![0xab; 0x7b];
        let (initrd, map) = (None, &[][..]);
        let params =
            Params { header: &header, code32_start: None, cmdline: 0x9_d000, initrd, rsdp: 0, map };
        let (at, filled) = real_mode_header(&params);
        assert_eq!((at, filled.len()), (0x1f1, header.len()));
        let field = |at: usize, len: usize| &filled[at - 0x1f1..][..len];
        assert_eq!((field(0x210, 2), field(0x224, 2)), (&[0xff, 0x81][..], &[0, 0x8e][..]));
        assert_eq!((field(0x228, 4), field(0x22c, 1)), (&[0, 0xd0, 9, 0][..], &[0xab][..]));
    }
}
