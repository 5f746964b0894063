//! bzImage: Linux for x86, and what else speaks its boot protocol (iPXE, memtest86+).
//!
//! Source: Linux v6.12 Documentation/arch/x86/boot.rst. The file is a real-mode part of whole
//! sectors with the setup header in it, then a protected-mode part, in which the packed `vmlinux`
//! lies. A field exists only if both the protocol's version and the header's own length say so:
//! iPXE has code where later versions have fields.
//!
//! ```text
//! 0        0x1f1          0x202 + jump    (setup_sects + 1) * 512
//! | ...    | setup header | real-mode code | protected-mode part: … [packed vmlinux] … |
//! ```

use anyhow::Result;

use super::{Facts, Fields};
use crate::payload::{Payload, bad_image};

/// Where the setup header starts.
pub const HEADER: usize = 0x1f1;
/// Where the jump over the header lies, whose second byte is the header's length from 0x202.
const JUMP: usize = 0x200;
const MAGIC: &[u8] = b"HdrS";
const MAGIC_AT: usize = 0x202;
const BOOT_FLAG: u16 = 0xaa55;
/// The zero page has room for the setup header up to here (arch/x86/include/uapi/asm/bootparam.h).
const HEADER_LIMIT: usize = 0x290;
const SECTOR: u64 = 512;
/// Below lie the firmware's places.
const ONE_MIB: u64 = 1 << 20;
/// `setup_sects` that stands for "not said", and what it means then.
const DEFAULT_SETUP_SECTS: u64 = 4;
/// Our choice: 2.06 of Linux 2.6.22 (2007) is the first with a command line's size.
const OLDEST: u16 = 0x0206;
/// The longest version string that we believe; Linux's own are below 200 bytes.
const VERSION_LEN: u64 = 256;

/// `loadflags`: the protected-mode part goes to 1 MiB (else: to 64 KiB, a zImage).
const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: there is a 64-bit entry, 512 bytes into the protected-mode part.
const XLF_KERNEL_64: u16 = 1 << 0;
/// `xloadflags`: everything may lie above 4 GiB.
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
/// The 64-bit entry, from the start of the protected-mode part.
pub const ENTRY_64: u64 = 0x200;

/// The setup header, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The protocol's version: major in the high byte.
    pub version: u16,
    /// The header as it is in the file, from 0x1f1: what a zero page starts with.
    pub raw: Vec<u8>,
    /// Where the protected-mode part starts in the file.
    pub protected_at: u64,
    /// Its length.
    pub protected_len: u64,
    /// The 32-bit entry, for a kernel that lies where it asks to (guest-physical).
    pub code32_start: u32,
    /// The longest command line, without its NUL.
    pub cmdline_size: u32,
    /// The last byte that an initrd may occupy (guest-physical).
    pub initrd_addr_max: u32,
    /// The kernel may be placed elsewhere.
    pub relocatable: bool,
    /// What its address must be a multiple of then.
    pub kernel_alignment: u64,
    /// The least that it can do with.
    pub min_alignment: u64,
    /// Bits of boot.rst, "xloadflags".
    pub xloadflags: u16,
    /// Where it prefers to lie (guest-physical).
    pub pref_address: u64,
    /// Memory that it needs there before it has read its memory map.
    pub init_size: u64,
    /// Deprecated EFI entry; 0 without.
    pub handover_offset: u32,
    /// The real-mode part's loadflags.
    pub loadflags: u8,
    payload_offset: u32,
    payload_length: u32,
    kernel_version: u16,
}

impl Header {
    /// Reads the header from the first bytes of a file of `len` bytes; `None` if there is none.
    pub fn read(head: &[u8], len: u64) -> Result<Option<Self>> {
        if head.get(MAGIC_AT..MAGIC_AT + MAGIC.len()) != Some(MAGIC) {
            return Ok(None);
        }
        let whole = Fields(head);
        let version = whole.u16(0x206);
        if whole.u16(0x1fe) != BOOT_FLAG {
            bad_image!("is a damaged bzImage: it has no boot flag");
        }
        if version < OLDEST {
            bad_image!(
                "is a Linux kernel with boot protocol {}: 2.06 (Linux 2.6.22) or newer is needed",
                protocol(version)
            );
        }
        let end = MAGIC_AT + usize::from(head[JUMP + 1]);
        if head[JUMP] != 0xeb || !(0x23c..=HEADER_LIMIT).contains(&end) || head.len() < end {
            bad_image!("is a truncated or damaged bzImage: its header ends at {end:#x}");
        }
        // Zero stands for a field that this version does not have, or that is cut off.
        let field = |since: u16| Fields(if version >= since { &head[..end] } else { &[] });
        let setup_sects = match whole.u8(0x1f1) {
            0 => DEFAULT_SETUP_SECTS,
            sectors => u64::from(sectors),
        };
        let protected_at = (setup_sects + 1) * SECTOR;
        // `syssize` counts units of 16 bytes, the last of which need not be whole.
        let syssize = u64::from(whole.u32(0x1f4)) * 16;
        if protected_at >= len || protected_at + syssize >= len + 16 {
            bad_image!(
                "is a truncated or damaged bzImage: its kernel ({syssize:#x} bytes at \
                 {protected_at:#x}) ends past the end of the file ({len:#x})"
            );
        }
        let protected_len = len - protected_at;
        let header = Self {
            version,
            raw: head[HEADER..end].to_vec(),
            protected_at,
            protected_len,
            code32_start: whole.u32(0x214),
            cmdline_size: whole.u32(0x238),
            initrd_addr_max: whole.u32(0x22c),
            relocatable: whole.u8(0x234) != 0,
            kernel_alignment: u64::from(whole.u32(0x230)),
            min_alignment: 1u64.checked_shl(field(0x020a).u8(0x235).into()).unwrap_or(0),
            xloadflags: field(0x020c).u16(0x236),
            pref_address: field(0x020a).u64(0x258),
            init_size: u64::from(field(0x020a).u32(0x260)).max(protected_len),
            handover_offset: field(0x020b).u32(0x264),
            loadflags: whole.u8(0x211),
            payload_offset: field(0x0208).u32(0x248),
            payload_length: field(0x0208).u32(0x24c),
            kernel_version: whole.u16(0x20e),
        };
        header.check()?;
        Ok(Some(header))
    }

    fn check(&self) -> Result<()> {
        if self.relocatable && !self.kernel_alignment.is_power_of_two() {
            bad_image!(
                "is a damaged bzImage: its alignment {:#x} is no power of two",
                self.kernel_alignment
            );
        }
        if self.min_alignment == 0 || self.min_alignment > 1 << 31 {
            bad_image!("is a damaged bzImage: its least alignment is above 2 GiB");
        }
        let (at, len) = (u64::from(self.payload_offset), u64::from(self.payload_length));
        if at + len > self.protected_len {
            bad_image!(
                "is a truncated or damaged bzImage: its payload ({len:#x} bytes at {at:#x}) ends \
                 past the end of its kernel ({:#x})",
                self.protected_len
            );
        }
        if self.pref_address.checked_add(self.init_size).is_none() {
            bad_image!(
                "is a damaged bzImage: the memory that it prefers ({:#x} bytes at {:#x}) wraps \
                 around",
                self.init_size,
                self.pref_address
            );
        }
        Ok(())
    }

    /// True if its protected-mode part goes to 1 MiB or above; a zImage's does not.
    pub fn loaded_high(&self) -> bool {
        self.loadflags & LOADED_HIGH != 0
    }

    /// Where its protected-mode part may go (guest-physical), the preferred place first.
    pub fn starts(&self) -> Vec<u64> {
        let preferred = if self.version >= 0x020a {
            self.pref_address
        } else {
            // In some files it is zero, and the loader's to write.
            u64::from(self.code32_start).max(ONE_MIB)
        };
        let mut starts = vec![preferred];
        if self.relocatable {
            // As low as the alignment that it wants allows, then as low as it can do with.
            let aligns = [self.kernel_alignment, self.min_alignment];
            starts.extend(aligns.iter().filter_map(|a| ONE_MIB.checked_next_multiple_of(*a)));
        }
        starts
    }

    /// True if it can be entered in 64-bit mode at [`ENTRY_64`].
    pub fn has_64_bit_entry(&self) -> bool {
        self.xloadflags & XLF_KERNEL_64 != 0
    }

    /// True if kernel, initrd, command line and zero page may lie above 4 GiB.
    pub fn may_lie_above_4_gib(&self) -> bool {
        self.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0
    }

    /// Where the packed kernel lies, as offset and length in the file.
    pub fn packed(&self) -> Option<(u64, u64)> {
        let at = self.protected_at + u64::from(self.payload_offset);
        (self.payload_length != 0).then_some((at, self.payload_length.into()))
    }

    /// The version string, which lies in the real-mode part.
    pub fn kernel_version(&self, payload: &Payload) -> Option<String> {
        if self.kernel_version == 0 {
            return None;
        }
        let at = u64::from(self.kernel_version) + SECTOR;
        let len = self.protected_at.checked_sub(at)?.min(VERSION_LEN);
        let mut bytes = vec![0; len as usize];
        payload.read_at(&mut bytes, at, "version").ok()?;
        let text = bytes.split(|&byte| byte == 0).next().filter(|text| text.len() < bytes.len())?;
        let text = String::from_utf8_lossy(text).trim().to_string();
        (!text.is_empty()).then_some(text)
    }

    /// What there is to tell about it.
    pub fn facts(&self) -> Facts {
        let high = self.loaded_high();
        let start = self.starts()[0];
        let entry = if self.has_64_bit_entry() { start + ENTRY_64 } else { start };
        let mut details = vec![
            ("longest command line", self.cmdline_size.to_string()),
            ("initrd up to", format!("{:#x}", self.initrd_addr_max)),
            ("relocatable", if self.relocatable { "yes" } else { "no" }.into()),
            ("64-bit entry", if self.has_64_bit_entry() { "yes" } else { "no" }.into()),
        ];
        if self.relocatable {
            details.push(("alignment", format!("{:#x}", self.kernel_alignment)));
        }
        Facts {
            format: format!("bzImage, boot protocol {}", protocol(self.version)),
            architecture: if self.has_64_bit_entry() { "x86_64" } else { "i386" },
            entry: Some(entry),
            load: (Some(start), self.init_size),
            refused: (!high).then_some("it is a zImage, loaded below 1 MiB"),
            details,
        }
    }
}

/// The protocol's version as boot.rst writes it.
fn protocol(version: u16) -> String {
    format!("{}.{:02}", version >> 8, version & 0xff)
}
