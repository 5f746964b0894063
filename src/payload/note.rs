//! Notes of ELF files: what a kernel says to loaders besides its segments.
//!
//! Source: System V ABI, chapter 5 "Note Section". Every length in a note is the file's word, so
//! each is checked against what is left of the segment.

use anyhow::Result;

use super::{Payload, bad_image};

/// Our choice: Linux has half a KiB of notes; a file that claims more than this is damaged.
const MOST: u64 = 64 * 1024;

/// Where a `PT_NOTE` segment lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The first byte's offset.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// `p_align`: names and descriptors are padded to 8 bytes if it is 8, else to 4.
    pub align: u64,
}

/// The descriptor of the first note of `owner` and `kind` at `place`.
pub fn find(payload: &Payload, place: Place, owner: &[u8], kind: u32) -> Result<Option<Vec<u8>>> {
    if place.len > MOST {
        bad_image!("is a damaged ELF file: it has {:#x} bytes of notes", place.len);
    }
    let mut bytes = vec![0; place.len as usize];
    payload.read_at(&mut bytes, place.offset, "notes")?;
    let padding = if place.align == 8 { 8 } else { 4 };
    let mut left = &bytes[..];
    while left.len() >= 12 {
        let word = |at: usize| u32::from_le_bytes(left[at..at + 4].try_into().expect("4 bytes"));
        let (name_len, len, found) = (word(0) as usize, word(4) as usize, word(8));
        let start = 12 + name_len.next_multiple_of(padding);
        let Some(descriptor) = left.get(start..start.saturating_add(len)) else {
            bad_image!("is a damaged ELF file: a note ends past the end of its segment");
        };
        let name = &left[12..12 + name_len];
        if found == kind && name.strip_suffix(b"\0").unwrap_or(name) == owner {
            return Ok(Some(descriptor.to_vec()));
        }
        left = left.get(start + len.next_multiple_of(padding)..).unwrap_or_default();
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(owner: &[u8], len: u32, kind: u32, descriptor: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [owner.len() as u32, len, kind] {
            note.extend(word.to_le_bytes());
        }
        note.extend(owner);
        note.resize(note.len().next_multiple_of(4), 0);
        note.extend(descriptor);
        note.resize(note.len().next_multiple_of(4), 0);
        note
    }

    fn found(bytes: Vec<u8>) -> Result<Option<Vec<u8>>> {
        let place = Place { offset: 0, len: bytes.len() as u64, align: 4 };
        find(&Payload::Memory(bytes), place, b"Xen", 18)
    }

    #[test]
    fn a_note_is_found_by_owner_and_type() {
        let mut notes = note(b"Linux\0", 3, 18, b"abc");
        notes.extend(note(b"Xen\0", 1, 6, b"x"));
        notes.extend(note(b"Xen\0", 4, 18, b"here"));
        assert_eq!(found(notes.clone()).unwrap().unwrap(), b"here");
        notes.truncate(44);
        assert_eq!(found(notes).unwrap(), None);
    }

    #[test]
    fn hostile_18_a_notes_lengths_are_not_believed() {
        assert_eq!(found(note(b"Xen\0", 0, 18, b"")).unwrap(), Some(vec![]));
        for len in [5, 0x7fff_ffff, 0xffff_fffc, 0xffff_ffff] {
            assert!(found(note(b"Xen\0", len, 18, b"here")).is_err(), "{len:#x}");
        }
        let mut long_name = note(b"Xen\0", 4, 18, b"here");
        long_name[..4].fill(0xff);
        assert!(found(long_name).is_err());
        for (offset, len) in [(0, 1), (4, 12), (u64::MAX, 12), (0, u64::MAX), (0, MOST + 1)] {
            let place = Place { offset, len, align: 4 };
            let bytes = note(b"Xen\0", 0, 18, b"");
            let result = find(&Payload::Memory(bytes), place, b"Xen", 18);
            assert!(len == 1 || result.is_err(), "{offset:#x} {len:#x}");
        }
    }
}
