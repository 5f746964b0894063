//! The parts of PE, the format of EFI programs, that tell kernels from other programs.
//!
//! Source: Microsoft PE Format (2024-10), "COFF File Header" and "Section Table". Kernels carry
//! this header beside their own, so that firmware can start them.

/// Where the offset of the PE signature lies.
const SIGNATURE_AT: usize = 0x3c;
const SIGNATURE: &[u8] = b"PE\0\0";
/// Our choice: no kernel has as many; the Windows loader's limit is 96.
const MOST_SECTIONS: u64 = 96;

/// A little-endian number of `width` bytes.
fn number(head: &[u8], at: usize, width: usize) -> Option<u64> {
    let bytes = head.get(at..at.checked_add(width)?)?;
    Some(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

/// Where the signature lies, if the file is a PE file.
fn signature(head: &[u8]) -> Option<usize> {
    let at = usize::try_from(number(head, SIGNATURE_AT, 4)?).ok()?;
    let is = head.starts_with(b"MZ") && head.get(at..at.checked_add(4)?)? == SIGNATURE;
    is.then_some(at)
}

/// True if a file that begins with `head` is a PE file.
pub fn is_pe(head: &[u8]) -> bool {
    signature(head).is_some()
}

/// Where the last section ends in the file; nothing if `head` is no PE file or does not hold the
/// whole table of sections.
pub fn end(head: &[u8]) -> Option<u64> {
    let at = signature(head)?;
    let sections = number(head, at + 6, 2)?;
    let table = at + 24 + number(head, at + 20, 2)? as usize;
    if sections > MOST_SECTIONS {
        return None;
    }
    (0..sections as usize).try_fold(0, |end: u64, index| {
        let len = number(head, table + 40 * index + 16, 4)?;
        let start = number(head, table + 40 * index + 20, 4)?;
        Some(if len == 0 { end } else { end.max(start + len) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_section_ends_the_file() {
        let mut head = vec![0; 0x200];
        head[..2].copy_from_slice(b"MZ");
        head[0x3c] = 0x40;
        assert_eq!(end(&head), None);
        head[0x40..0x44].copy_from_slice(SIGNATURE);
        assert_eq!(end(&head), Some(0));
        head[0x46] = 2;
        head[0x54] = 0x10; // the optional header's length
        let table = 0x40 + 24 + 0x10;
        head[table + 17] = 2; // 0x200 bytes
        head[table + 21] = 4; // at 0x400
        assert_eq!(end(&head), Some(0x600));
        assert_eq!(end(&head[..table + 40]), None, "half a table says nothing");
        head[0x46..0x48].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(end(&head), None);
        head[0x3c..0x40].copy_from_slice(&[0xff; 4]);
        assert!(!is_pe(&head));
    }
}
