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
/// Our choice: linkers make a dozen `PT_LOAD` segments at the most, and each is compared with all
/// others.
const MOST_SEGMENTS: usize = 1024;

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
        if segments.len() > MOST_SEGMENTS {
            bad_image!(
                "is a damaged ELF file: {} segments, not {MOST_SEGMENTS} at the most",
                segments.len()
            );
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
#[path = "elf_tests.rs"]
mod tests;
