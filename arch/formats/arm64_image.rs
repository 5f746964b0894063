//! arm64 `Image`: Linux for aarch64, and what else has its 64-byte header (U-Boot, Xen).
//!
//! Source: Linux v6.12 Documentation/arch/arm64/booting.rst, "Call the kernel image". The image
//! goes `text_offset` bytes above an address that is a multiple of 2 MiB. What surprises people:
//! `image_size` is larger than the file, since it counts what the kernel clears itself; an initrd
//! or a device tree placed right behind the file is overwritten. That the file is whole can be told
//! only where the kernel is an EFI program as well, by its sections.

use anyhow::Result;

use super::{Facts, Fields};
use crate::payload::{bad_image, pe};

const MAGIC: &[u8] = b"ARMd";
const MAGIC_AT: usize = 0x38;
/// Where an image that is an EFI program, too, says where its other header lies.
const PE_AT: usize = 0x3c;
/// Bytes of the header.
const HEADER: u64 = 64;
/// What the image's base must be a multiple of.
#[allow(dead_code, reason = "only the loader of that architecture needs it")]
pub const ALIGNMENT: u64 = 2 << 20;
/// Where an image without `image_size` goes (Linux before v3.17): `text_offset` may then be in the
/// wrong byte order and is always this.
const OLD_TEXT_OFFSET: u64 = 0x8_0000;

/// `flags` bit 0: the kernel is big-endian.
const BIG_ENDIAN: u64 = 1 << 0;
/// `flags` bits 1 and 2: the page size.
const PAGE_SIZE_SHIFT: u32 = 1;
/// `flags` bit 3: the image's base may be anywhere in RAM.
const ANYWHERE: u64 = 1 << 3;

/// The header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where the image goes, from a base that is a multiple of [`ALIGNMENT`].
    pub text_offset: u64,
    /// Memory that it takes from there, at least the file's length.
    pub image_size: u64,
    /// The kernel is big-endian.
    pub big_endian: bool,
    /// The page size that it was built for, in KiB; `None` if it does not say.
    pub page_kib: Option<u8>,
    /// Its base may be anywhere in RAM; otherwise it should be near RAM's start.
    pub anywhere: bool,
}

impl Header {
    /// Reads the header from the first bytes of a file of `len` bytes; `None` if there is none.
    pub fn read(head: &[u8], len: u64) -> Result<Option<Self>> {
        if head.get(MAGIC_AT..MAGIC_AT + MAGIC.len()) != Some(MAGIC) {
            return Ok(None);
        }
        if len < HEADER {
            bad_image!("is a truncated arm64 Image: its header has {len} of {HEADER} bytes");
        }
        let fields = Fields(head);
        let (text_offset, image_size, flags) = (fields.u64(8), fields.u64(16), fields.u64(24));
        let old = image_size == 0;
        let header = Self {
            text_offset: if old { OLD_TEXT_OFFSET } else { text_offset },
            // Our choice: what an old image clears is not said; as much again as the file is. Bytes
            // behind the kernel (a signature, a device tree) are memory that it takes, too.
            image_size: if old { len.saturating_mul(2) } else { image_size.max(len) },
            big_endian: !old && flags & BIG_ENDIAN != 0,
            page_kib: match flags >> PAGE_SIZE_SHIFT & 3 {
                1 if !old => Some(4),
                2 if !old => Some(16),
                3 if !old => Some(64),
                _ => None,
            },
            anywhere: !old && flags & ANYWHERE != 0,
        };
        if header.text_offset.checked_add(header.image_size).is_none_or(|end| end >> 52 != 0) {
            bad_image!(
                "is a damaged arm64 Image: {:#x} bytes at offset {:#x} fit no memory",
                header.image_size,
                header.text_offset
            );
        }
        let is_program = head.starts_with(b"MZ") && fields.u32(PE_AT) != 0;
        match pe::end(head).filter(|_| is_program) {
            Some(end) if end > len => bad_image!(
                "is a truncated arm64 Image: its sections end at {end:#x}, and the file at {len:#x}"
            ),
            None if is_program => bad_image!("is a truncated arm64 Image: it lacks its sections"),
            _ => {}
        }
        Ok(Some(header))
    }

    /// What there is to tell about it.
    pub fn facts(&self) -> Facts {
        let page = self.page_kib.map_or("not said".into(), |kib| format!("{kib} KiB"));
        Facts {
            format: "arm64 Image".into(),
            architecture: "aarch64",
            entry: None,
            load: (None, self.image_size),
            refused: self.big_endian.then_some("it is a big-endian kernel"),
            details: vec![
                ("text offset", format!("{:#x}", self.text_offset)),
                ("page size", page),
                (
                    "placement",
                    if self.anywhere { "anywhere in RAM" } else { "near RAM's start" }.into(),
                ),
            ],
        }
    }
}
