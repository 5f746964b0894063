//! Leaves debug information out of a program while it is sent: most of a test program's bytes,
//! and of no use there but for line numbers in backtraces (function names stay).
//!
//! Nothing moves. The bytes of `.debug_*` sections are sent as zeros, which costs nothing, and
//! their section headers say that they have none.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Section header fields by offset, and their size (System V ABI, "Sections", ELF64).
const SH_NAME: usize = 0;
const SH_TYPE: usize = 4;
const SH_OFFSET: usize = 24;
const SH_SIZE: usize = 32;
const SH_ENTRY: usize = 64;

/// "Occupies no space in the file".
const SHT_NOBITS: u32 = 8;

/// What to change in a file on its way.
#[derive(Default)]
pub struct Strip {
    zeros: Vec<Range<u64>>,
    types: Vec<u64>,
}

impl Strip {
    /// What to leave out of this file; nothing if it is not a 64-bit little-endian ELF file.
    pub fn of(file: &File) -> Strip {
        Strip::find(file).unwrap_or_default()
    }

    fn find(file: &File) -> Option<Strip> {
        let read = |at: u64, length: usize| {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
        };
        let header = read(0, 64)?;
        if !header.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        // e_shoff, e_shentsize, e_shnum, e_shstrndx
        let table = word(&header, 40)?;
        let (entry, count, names) = (half(&header, 58)?, half(&header, 60)?, half(&header, 62)?);
        if entry != SH_ENTRY || names >= count {
            return None;
        }
        let sections = read(table, count * SH_ENTRY)?;
        let sections: Vec<&[u8]> = sections.chunks_exact(SH_ENTRY).collect();
        let strings = sections[names];
        let strings =
            read(word(strings, SH_OFFSET)?, word(strings, SH_SIZE)?.min(1 << 20) as usize)?;
        let mut strip = Strip::default();
        for (index, section) in sections.iter().enumerate() {
            let name = strings.get(word(section, SH_NAME)? as u32 as usize..)?;
            if name.starts_with(b".debug_") {
                let start = word(section, SH_OFFSET)?;
                strip.zeros.push(start..start.checked_add(word(section, SH_SIZE)?)?);
                strip.types.push(table + (index * SH_ENTRY + SH_TYPE) as u64);
            }
        }
        Some(strip)
    }

    /// Changes the piece of the file that begins at `offset`, a multiple of four.
    pub fn apply(&self, piece: &mut [u8], offset: u64) {
        let end = offset + piece.len() as u64;
        for zeros in &self.zeros {
            let (from, to) = (zeros.start.max(offset), zeros.end.min(end));
            if from < to {
                piece[(from - offset) as usize..(to - offset) as usize].fill(0);
            }
        }
        for at in self.types.iter().filter(|at| (offset..end).contains(*at)) {
            let at = (at - offset) as usize;
            if let Some(kind) = piece.get_mut(at..at + 4) {
                kind.copy_from_slice(&SHT_NOBITS.to_le_bytes());
            }
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_program_loses_its_debug_sections_and_nothing_else() {
        let path = std::env::current_exe().unwrap();
        let before = std::fs::read(&path).unwrap();
        let strip = Strip::of(&File::open(&path).unwrap());
        assert!(!strip.zeros.is_empty(), "this test program has debug information");
        let mut after = before.clone();
        for (index, piece) in after.chunks_mut(1 << 16).enumerate() {
            strip.apply(piece, (index as u64) << 16);
        }
        for (at, (old, new)) in before.iter().zip(&after).enumerate() {
            let at = at as u64;
            let zeroed = strip.zeros.iter().any(|zeros| zeros.contains(&at));
            let typed = strip.types.iter().any(|kind| (*kind..kind + 4).contains(&at));
            assert!(old == new && !zeroed || zeroed && *new == 0 || typed, "byte {at:#x}");
        }
    }

    #[test]
    fn other_files_are_left_alone() {
        let mut cut = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        cut.truncate(100);
        for bytes in [&b""[..], b"#!/bin/sh", b"\x7fELF\x02\x01", &cut] {
            let path = std::env::temp_dir().join(format!("strip-{}", std::process::id()));
            File::create(&path).unwrap().write_all(bytes).unwrap();
            let strip = Strip::of(&File::open(&path).unwrap());
            std::fs::remove_file(&path).unwrap();
            assert!(strip.zeros.is_empty() && strip.types.is_empty());
        }
    }
}
