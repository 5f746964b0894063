//! The PVH note: an ELF file that has it can be entered in 32-bit mode at a physical address.
//!
//! Source: Xen 4.17 docs/misc/pvh.pandoc and xen/include/public/elfnote.h. Linux has the note in
//! `vmlinux` (v6.12 arch/x86/platform/pvh/head.S), other kernels in files of their own; its
//! descriptor is one number of 4 or 8 bytes, and always an address below 4 GiB.

use anyhow::Result;

use crate::payload::bad_image;

/// The note's owner.
pub const OWNER: &[u8] = b"Xen";
/// The note's type, XEN_ELFNOTE_PHYS32_ENTRY.
pub const PHYS32_ENTRY: u32 = 18;

/// The entry (guest-physical) that the note's descriptor holds.
pub fn entry(descriptor: &[u8]) -> Result<u64> {
    let entry = match descriptor.len() {
        4 | 8 => descriptor.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)),
        len => bad_image!("is a damaged ELF file: its PVH note has {len} bytes, not 4 or 8"),
    };
    if entry > u64::from(u32::MAX) {
        bad_image!("is a damaged ELF file: its PVH entry {entry:#x} lies above 4 GiB");
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_18_the_descriptor_is_one_small_number() {
        assert_eq!(entry(&[1, 0, 0, 1]).unwrap(), 0x0100_0001);
        assert_eq!(entry(&[1, 0, 0, 1, 0, 0, 0, 0]).unwrap(), 0x0100_0001);
        for bad in [&[][..], &[1], &[1; 5], &[1; 9], &[0, 0, 0, 0, 1, 0, 0, 0]] {
            assert!(entry(bad).is_err(), "{bad:?}");
        }
    }
}
