//! Multiboot 1: a header somewhere in the first 8 KiB of a kernel.
//!
//! Source: Multiboot Specification 0.6.96, 3.1 "OS image format". An ELF file is placed by its
//! program headers; any other file needs the header's address fields (flag 16), which win over
//! ELF's where both are there. The checksum makes a chance hit unlikely, so bytes with the magic
//! number and a wrong sum are no header, and the search goes on.

use anyhow::Result;

use super::{Facts, Fields};
use crate::payload::bad_image;

/// The header lies wholly within so many bytes of the file.
pub const SEARCHED: usize = 8192;
const MAGIC: u32 = 0x1bad_b002;
/// A loader must understand every flag below this one.
const OPTIONAL: u32 = 1 << 16;
/// Flag 0: modules lie on page boundaries.
const ALIGN_MODULES: u32 = 1 << 0;
/// Flag 1: a memory map is needed.
const MEMORY_INFO: u32 = 1 << 1;
/// Flag 2: a video mode is wished for.
const VIDEO_MODE: u32 = 1 << 2;
/// Flag 16: the address fields are valid.
const ADDRESSES: u32 = 1 << 16;

/// Where the address fields place a file (guest-physical).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The first byte's offset in the file.
    pub offset: u64,
    /// Where that byte goes.
    pub load: u64,
    /// Bytes to take from the file.
    pub len: u64,
    /// Memory behind `load`, of which what is not loaded is zero.
    pub memory: u64,
    /// The entry.
    pub entry: u64,
}

/// The header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where it lies in the file.
    pub at: u64,
    /// Modules must lie on page boundaries.
    pub aligns_modules: bool,
    /// It wants a memory map.
    pub wants_memory: bool,
    /// It wishes for a video mode, which nobody has to grant.
    pub wishes_video: bool,
    /// How the file is placed; `None` leaves it to ELF.
    pub addresses: Option<Addresses>,
}

impl Header {
    /// Searches the first bytes of a file of `len` bytes; `None` if there is no header.
    pub fn read(head: &[u8], len: u64, is_elf: bool) -> Result<Option<Self>> {
        let searched = &head[..head.len().min(SEARCHED)];
        let fields = Fields(searched);
        let ends = |at: usize| {
            let sum = (0..3).fold(0u32, |sum, n| sum.wrapping_add(fields.u32(at + 4 * n)));
            fields.u32(at) == MAGIC && sum == 0
        };
        let last = searched.len().saturating_sub(11);
        let Some(at) = (0..last).step_by(4).find(|&at| ends(at)) else { return Ok(None) };
        let flags = fields.u32(at + 4);
        let known = ALIGN_MODULES | MEMORY_INFO | VIDEO_MODE;
        let unknown = flags & (OPTIONAL - 1) & !known;
        if unknown != 0 {
            bad_image!("is a multiboot kernel that needs unknown features (flags {unknown:#x})");
        }
        let addresses = match flags & ADDRESSES {
            0 if is_elf => None,
            0 => bad_image!(
                "is a damaged multiboot kernel: it is no ELF file and says not where it goes"
            ),
            _ if at + 32 > searched.len() => {
                bad_image!("is a truncated multiboot kernel: its header ends past byte 8192")
            }
            _ => Some(Addresses::read(fields, at, len)?),
        };
        Ok(Some(Self {
            at: at as u64,
            aligns_modules: flags & ALIGN_MODULES != 0,
            wants_memory: flags & MEMORY_INFO != 0,
            wishes_video: flags & VIDEO_MODE != 0,
            addresses,
        }))
    }

    /// What there is to tell about it.
    pub fn facts(&self) -> Facts {
        let yes = |is: bool| if is { "yes" } else { "no" }.to_string();
        Facts {
            format: "multiboot 1".into(),
            // A multiboot kernel starts in 32-bit protected mode, whatever it does then.
            architecture: "i386",
            entry: self.addresses.map(|addresses| addresses.entry),
            load: self.addresses.map_or((None, 0), |a| (Some(a.load), a.memory)),
            refused: None,
            details: vec![
                ("multiboot header", format!("{:#x}", self.at)),
                ("page-aligned modules", yes(self.aligns_modules)),
                ("wants a memory map", yes(self.wants_memory)),
            ],
        }
    }
}

impl Addresses {
    /// Reads the fields of the header at `at` of a file of `len` bytes.
    fn read(fields: Fields<'_>, at: usize, len: u64) -> Result<Self> {
        let word = |n: usize| u64::from(fields.u32(at + 12 + 4 * n));
        let [header, load, load_end, bss_end, entry] = std::array::from_fn(word);
        // The header itself lies at `at`, and goes to `header`.
        let before = header.checked_sub(load);
        let Some(offset) = before.and_then(|before| (at as u64).checked_sub(before)) else {
            bad_image!(
                "is a damaged multiboot kernel: its header, {at:#x} bytes into the file, goes to \
                 {header:#x}, and its first byte to {load:#x}"
            );
        };
        // Zero: everything to the end of the file.
        let taken = if load_end == 0 { Some(len - offset) } else { load_end.checked_sub(load) };
        let Some(taken) = taken.filter(|taken| *taken != 0 && offset + taken <= len) else {
            bad_image!(
                "is a truncated or damaged multiboot kernel: it loads {load:#x}..{load_end:#x} from \
                 offset {offset:#x} of {len:#x} bytes"
            );
        };
        let memory = if bss_end == 0 { taken } else { bss_end.saturating_sub(load) };
        if memory < taken || load + memory > 1 << 32 {
            bad_image!(
                "is a damaged multiboot kernel: it takes {taken:#x} bytes at {load:#x}, and memory \
                 up to {bss_end:#x}"
            );
        }
        if !(load..load + memory).contains(&entry) {
            bad_image!(
                "is a damaged multiboot kernel: its entry {entry:#x} lies outside of \
                 {load:#x}..{:#x}",
                load + memory
            );
        }
        Ok(Self { offset, load, len: taken, memory, entry })
    }
}
