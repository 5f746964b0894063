//! ELF executables: both classes, little-endian, any layout of `PT_LOAD` segments.
//!
//! Source: Tool Interface Standard ELF 1.2 and the System V ABI, chapter 4 "Object Files". Segments
//! go to their *physical* addresses; the entry, which is a virtual address, is carried over through
//! the segment that holds it. That surprises people whose kernel is linked high.

use anyhow::Result;

use super::note::{self, Place};
use super::{Payload, bad_image};
use crate::memory::GuestRam;
use crate::places::Places;

const ELFCLASS32: u8 = 1;
const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
/// `e_phnum` that says "the number is elsewhere": no executable that we could run has so many.
const PN_XNUM: u16 = 0xffff;
/// Our choice: linkers make one or two `PT_NOTE` segments.
const MOST_NOTES: usize = 8;

/// One `PT_LOAD` segment with something in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    offset: u64,
    vaddr: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
}

/// What the headers of an ELF executable say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// 32 or 64.
    bits: u8,
    machine: u16,
    entry: u64,
    segments: Vec<Segment>,
    notes: Vec<Place>,
}

/// A little-endian field of `width` bytes at `at`. The callers' tables keep it inside `bytes`.
fn field(bytes: &[u8], at: usize, width: usize) -> u64 {
    bytes[at..at + width].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

impl Image {
    /// Reads and checks the headers of `payload`.
    pub fn read(payload: &Payload) -> Result<Self> {
        let mut header = [0; 64];
        payload.read_at(&mut header[..16], 0, "ELF identification")?;
        let (bits, header_len, word, entry_len) = match header[4] {
            ELFCLASS32 => (32, 52, 4, 32),
            ELFCLASS64 => (64, 64, 8, 56),
            class => bad_image!("is a damaged ELF file: class {class} is neither 32 nor 64 bits"),
        };
        if header[5] != ELFDATA2LSB {
            bad_image!("is an ELF file for a big-endian machine: it can't run here");
        }
        payload.read_at(&mut header[..header_len], 0, "ELF header")?;
        let kind = field(&header, 16, 2) as u16;
        if kind != ET_EXEC && kind != ET_DYN {
            bad_image!("is an ELF file of type {kind}, not an executable: link it first");
        }
        let machine = field(&header, 18, 2) as u16;
        let entry = field(&header, 24, word);
        let table = field(&header, 24 + word, word);
        // After e_entry, e_phoff, e_shoff (a word each), e_flags (4) and e_ehsize (2).
        let sizes = 24 + 3 * word + 6;
        let (size, count) = (field(&header, sizes, 2), field(&header, sizes + 2, 2) as u16);
        if count == 0 || count == PN_XNUM || size != entry_len {
            bad_image!(
                "is a damaged ELF file: {count} program headers of {size} bytes \
                 (1 to 65534 of {entry_len} are expected)"
            );
        }
        let mut headers = vec![0; usize::from(count) * entry_len as usize];
        payload.read_at(&mut headers, table, "program headers")?;
        let (mut segments, mut notes) = (Vec::new(), Vec::new());
        for header in headers.chunks_exact(entry_len as usize) {
            match field(header, 0, 4) as u32 {
                PT_LOAD => segments.extend(Segment::read(header, bits, payload.len())?),
                PT_INTERP => bad_image!(
                    "is a program for an operating system (it asks for a dynamic linker): \
                     link it statically, for bare metal"
                ),
                PT_NOTE if notes.len() < MOST_NOTES => notes.push(note_place(header, bits)),
                _ => {}
            }
        }
        if segments.is_empty() {
            bad_image!("is an ELF file without anything to load (no PT_LOAD segment)");
        }
        Ok(Self { bits, machine, entry, segments, notes })
    }

    /// 32 or 64.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// `e_machine`.
    pub fn machine(&self) -> u16 {
        self.machine
    }

    /// The usual name of the machine that it is for.
    pub fn machine_name(&self) -> String {
        machine_name(self.machine)
    }

    /// The memory that the segments take, from the first to past the last (guest-physical).
    pub fn load_range(&self) -> (u64, u64) {
        let start = self.segments.iter().map(|segment| segment.paddr).min().unwrap_or_default();
        let end = self.segments.iter().map(|segment| segment.paddr + segment.memsz).max();
        (start, end.unwrap_or_default())
    }

    /// The descriptor of the note of `owner` and `kind`, if the file has it.
    pub fn note(&self, payload: &Payload, owner: &[u8], kind: u32) -> Result<Option<Vec<u8>>> {
        for place in &self.notes {
            if let Some(descriptor) = note::find(payload, *place, owner, kind)? {
                return Ok(Some(descriptor));
            }
        }
        Ok(None)
    }

    /// The mode that `elf_mode` names for this file's class and machine.
    pub fn machine_mode<M>(&self, elf_mode: fn(u8, u16) -> Option<M>) -> Result<M> {
        match elf_mode(self.bits, self.machine) {
            Some(mode) => Ok(mode),
            None => bad_image!(
                "is a {}-bit ELF file for {}: it can't run on this host's architecture",
                self.bits,
                machine_name(self.machine)
            ),
        }
    }

    /// Copies the segments to their physical addresses. What lies between `p_filesz` and
    /// `p_memsz` is zero because RAM is new.
    pub fn place(&self, payload: &Payload, ram: &GuestRam, places: &mut Places) -> Result<()> {
        for (index, segment) in self.segments.iter().enumerate() {
            places.reserve(segment.paddr, segment.memsz, &format!("segment {index}"))?;
        }
        for segment in self.segments.iter().filter(|segment| segment.filesz > 0) {
            payload.place(ram, segment.offset, segment.filesz, segment.paddr)?;
        }
        Ok(())
    }

    /// The guest-physical address of the entry.
    pub fn entry_guest_addr(&self) -> Result<u64> {
        let inside = |start: u64, segment: &Segment| {
            self.entry >= start && self.entry - start < segment.memsz
        };
        if self.segments.iter().any(|segment| inside(segment.paddr, segment)) {
            return Ok(self.entry);
        }
        match self.segments.iter().find(|segment| inside(segment.vaddr, segment)) {
            Some(segment) => Ok(segment.paddr + (self.entry - segment.vaddr)),
            None => bad_image!(
                "is a damaged ELF file: its entry {:#x} lies in none of its segments",
                self.entry
            ),
        }
    }
}

impl Segment {
    /// Reads one program header; nothing for a segment without memory.
    fn read(header: &[u8], bits: u8, file_len: u64) -> Result<Option<Self>> {
        let segment = if bits == 32 {
            Self {
                offset: field(header, 4, 4),
                vaddr: field(header, 8, 4),
                paddr: field(header, 12, 4),
                filesz: field(header, 16, 4),
                memsz: field(header, 20, 4),
            }
        } else {
            Self {
                offset: field(header, 8, 8),
                vaddr: field(header, 16, 8),
                paddr: field(header, 24, 8),
                filesz: field(header, 32, 8),
                memsz: field(header, 40, 8),
            }
        };
        let Self { offset, vaddr, paddr, filesz, memsz } = segment;
        if filesz > memsz {
            bad_image!(
                "is a damaged ELF file: the segment at {paddr:#x} has {filesz:#x} bytes \
                 in the file but only {memsz:#x} in memory"
            );
        }
        if offset.checked_add(filesz).is_none_or(|end| end > file_len) {
            bad_image!(
                "is truncated or damaged: the segment at {paddr:#x} ends past the end of the file \
                 ({offset:#x} + {filesz:#x} of {file_len:#x} bytes)"
            );
        }
        if paddr.checked_add(memsz).is_none() || vaddr.checked_add(memsz).is_none() {
            bad_image!(
                "is a damaged ELF file: the segment at {paddr:#x} wraps around \
                 ({memsz:#x} bytes in memory)"
            );
        }
        Ok((memsz > 0).then_some(segment))
    }
}

/// Where the notes of one program header lie.
fn note_place(header: &[u8], bits: u8) -> Place {
    let (offset, len, align) = if bits == 32 { (4, 16, 28) } else { (8, 32, 48) };
    let word = usize::from(bits / 8);
    Place {
        offset: field(header, offset, word),
        len: field(header, len, word),
        align: field(header, align, word),
    }
}

/// The usual name of `e_machine`.
fn machine_name(machine: u16) -> String {
    match machine {
        3 => "Intel 80386".into(),
        8 => "MIPS".into(),
        20 | 21 => "PowerPC".into(),
        22 => "S/390".into(),
        40 => "32-bit Arm".into(),
        62 => "AMD64".into(),
        183 => "Arm 64-bit".into(),
        243 => "RISC-V".into(),
        258 => "LoongArch".into(),
        other => format!("machine {other}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::{ImageMemory, RamRange};

    /// An ELF file with the given segments (paddr, vaddr, file bytes, memsz).
    fn elf(bits: u8, machine: u16, entry: u64, segments: &[(u64, u64, &[u8], u64)]) -> Vec<u8> {
        let word = usize::from(bits / 8);
        let (header_len, entry_len) = if bits == 32 { (52, 32) } else { (64, 56) };
        let mut file = b"\x7fELF".to_vec();
        file.extend([if bits == 32 { 1 } else { 2 }, 1, 1, 0]);
        file.resize(16, 0);
        let put = |file: &mut Vec<u8>, value: u64, width: usize| {
            file.extend(&value.to_le_bytes()[..width]);
        };
        for (value, width) in [
            (2, 2),
            (u64::from(machine), 2),
            (1, 4),
            (entry, word),
            (header_len, word),
            (0, word),
            (0, 4),
            (header_len, 2),
            (entry_len, 2),
            (segments.len() as u64, 2),
            (0, 2),
            (0, 2),
            (0, 2),
        ] {
            put(&mut file, value, width);
        }
        let mut offset = header_len + entry_len * segments.len() as u64;
        for (paddr, vaddr, bytes, memsz) in segments {
            put(&mut file, 1, 4);
            if bits == 64 {
                put(&mut file, 7, 4);
            }
            for value in [offset, *vaddr, *paddr, bytes.len() as u64, *memsz] {
                put(&mut file, value, word);
            }
            if bits == 32 {
                put(&mut file, 7, 4);
            }
            put(&mut file, 0, word);
            offset += bytes.len() as u64;
        }
        segments.iter().for_each(|(_, _, bytes, _)| file.extend(*bytes));
        file
    }

    fn payload(bytes: Vec<u8>) -> Payload {
        Payload::Bytes(bytes.leak())
    }

    fn load(bytes: Vec<u8>) -> Result<(u64, Vec<u8>)> {
        let ranges = vec![RamRange { start: 0x10_0000, len: 0x1_0000 }];
        let mut places = Places::new(&ranges);
        let ram = GuestRam::new(ranges, ImageMemory::Copy)?;
        let payload = payload(bytes);
        let image = Image::read(&payload)?;
        image.machine_mode(|_, machine| (machine == 62).then_some(()))?;
        image.place(&payload, &ram, &mut places)?;
        let entry = image.entry_guest_addr()?;
        Ok((entry, ram.peek(entry, 4)))
    }

    #[test]
    fn both_classes_are_placed_at_their_physical_addresses() {
        for bits in [32, 64] {
            let file = elf(
                bits,
                62,
                0x10_2002,
                &[(0x10_0000, 0x10_0000, b"data", 0x1000), (0x10_2000, 0x10_2000, b"..code", 6)],
            );
            assert_eq!(load(file).unwrap(), (0x10_2002, b"code".to_vec()), "{bits}");
        }
    }

    #[test]
    fn an_entry_in_a_high_virtual_address_is_carried_to_its_physical_one() {
        let high = 0xffff_ffff_8010_0000;
        let file = elf(64, 62, high + 1, &[(0x10_3000, high, b".code", 5)]);
        assert_eq!(load(file).unwrap(), (0x10_3001, b"code".to_vec()));
    }

    #[test]
    fn each_kind_of_damage_has_its_own_message() {
        let good = |machine| elf(64, machine, 0x10_0000, &[(0x10_0000, 0x10_0000, b"code", 4)]);
        let changed = |at: usize, bytes: &[u8]| {
            let mut file = good(62);
            file[at..at + bytes.len()].copy_from_slice(bytes);
            file
        };
        assert!(load(good(62)).is_ok());
        for (file, message) in [
            (good(183), "64-bit ELF file for Arm 64-bit"),
            (good(62)[..10].to_vec(), "ELF identification"),
            (good(62)[..40].to_vec(), "ELF header"),
            (good(62)[..80].to_vec(), "program headers"),
            (good(62)[..121].to_vec(), "ends past the end of the file"),
            (changed(4, &[3]), "class 3"),
            (changed(5, &[2]), "big-endian"),
            (changed(16, &[1]), "link it first"),
            (changed(32, &[0xff; 8]), "program headers"),
            (changed(54, &[55]), "1 program headers of 55 bytes"),
            (changed(56, &[0, 0]), "0 program headers"),
            (changed(56, &[0xff, 0xff]), "65535 program headers"),
            (changed(64, &[4]), "no PT_LOAD"),
            (changed(64, &[3]), "dynamic linker"),
            (changed(64 + 32, &[5]), "only 0x4 in memory"),
            (changed(64 + 8, &[0xff; 8]), "ends past the end of the file"),
            (changed(64 + 24, &[0xff; 8]), "wraps around"),
            (changed(64 + 40, &[0, 0, 0, 0, 1]), "lie outside RAM"),
            (changed(24, &[0xff; 8]), "in none of its segments"),
        ] {
            let error = load(file).unwrap_err().to_string();
            assert!(error.contains(message), "{error} should say {message}");
        }
        let twice = [(0x10_0000, 0x10_0000, &b"code"[..], 4), (0x10_0002, 0x10_0002, b"code", 4)];
        let error = load(elf(64, 62, 0x10_0000, &twice)).unwrap_err().to_string();
        assert!(error.contains("segment 1 at 0x100002..0x100006 overlaps segment 0"), "{error}");
    }

    proptest! {
        #[test]
        fn damaged_headers_never_panic(at in 0usize..124, bytes in prop::collection::vec(any::<u8>(), 1..9)) {
            let mut file = elf(64, 62, 0x10_0000, &[(0x10_0000, 0x10_0000, b"code", 4)]);
            let end = (at + bytes.len()).min(file.len());
            file[at..end].copy_from_slice(&bytes[..end - at]);
            let _ = load(file);
        }
    }
}
