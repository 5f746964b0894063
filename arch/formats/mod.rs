//! File formats of kernels that belong to an architecture, as parsers of their headers.
//!
//! All of them are compiled on every host: `inspect` tells what a file is wherever it runs, and a
//! kernel for another machine is refused by its name. What surprises people: an ELF file can carry
//! a multiboot header as well, so [`Kernel`] may describe a whole file or what an ELF file says on
//! top. Placing and entering a kernel is the business of the architecture that runs it; it matches
//! on [`Kernel`], and the core only asks it for [`Facts`].

pub mod arm64_image;
pub mod bzimage;
pub mod linux_note;
pub mod multiboot;
pub mod pvh;

#[cfg(test)]
mod damage;
#[cfg(any(test, fuzzing))]
pub mod samples;

use anyhow::Result;

use crate::payload::{Payload, pe};

/// ELF's `e_machine` values (System V ABI, "ELF Header").
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const EM_AARCH64: u16 = 183;

/// A kernel in a format of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Linux for x86: a real-mode part, a protected-mode part, and a packed `vmlinux` in that.
    BzImage(bzimage::Header),
    /// Linux for arm64: a flat image with a header in its first instructions.
    Arm64(arm64_image::Header),
    /// Whatever a multiboot 1 loader starts; placed by its header's address fields or as ELF.
    Multiboot(multiboot::Header),
}

/// What every kernel can tell about itself, whatever its format.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The format's name, with its version where it has one.
    pub format: String,
    /// The architecture that it is for, as target triples call it.
    pub architecture: &'static str,
    /// Where it starts (guest-physical); `None` where the loader chooses.
    pub entry: Option<u64>,
    /// Start and length of the memory that it takes (guest-physical); a start that the loader
    /// chooses is `None`.
    pub load: (Option<u64>, u64),
    /// Why it can't be run on any host.
    pub refused: Option<&'static str>,
    /// What else its header says, as name and value.
    pub details: Vec<(&'static str, String)>,
}

impl Kernel {
    /// Reads the header that the first bytes of a file of `len` bytes hold, if it is one of ours
    /// and no ELF file. `head` needs [`HEAD`] bytes, or all that the file has.
    pub fn read(head: &[u8], len: u64) -> Result<Option<Self>> {
        if let Some(header) = bzimage::Header::read(head, len)? {
            return Ok(Some(Self::BzImage(header)));
        }
        if let Some(header) = arm64_image::Header::read(head, len)? {
            return Ok(Some(Self::Arm64(header)));
        }
        // EFI programs are not for multiboot loaders, even if ELF files of the same kernel are.
        if pe::is_pe(head) {
            return Ok(None);
        }
        Ok(multiboot::Header::read(head, len, false)?.map(Self::Multiboot))
    }

    /// Reads the header that an ELF file for `machine` may have besides.
    pub fn read_in_elf(head: &[u8], len: u64, machine: u16) -> Result<Option<Self>> {
        match machine {
            EM_386 | EM_X86_64 => {
                Ok(multiboot::Header::read(head, len, true)?.map(Self::Multiboot))
            }
            _ => Ok(None),
        }
    }

    /// Where the packed kernel lies in this one, as offset and length in the file.
    pub fn packed(&self) -> Option<(u64, u64)> {
        match self {
            Self::BzImage(header) => header.packed(),
            Self::Arm64(_) | Self::Multiboot(_) => None,
        }
    }

    /// The version that the header names; nothing where one has to search the image for it.
    pub fn version(&self, payload: &Payload) -> Option<String> {
        match self {
            Self::BzImage(header) => header.kernel_version(payload),
            Self::Arm64(_) | Self::Multiboot(_) => None,
        }
    }

    /// What there is to tell about it.
    pub fn facts(&self) -> Facts {
        match self {
            Self::BzImage(header) => header.facts(),
            Self::Arm64(header) => header.facts(),
            Self::Multiboot(header) => header.facts(),
        }
    }
}

/// Bytes of a file that [`Kernel::read`] looks at: a multiboot header may lie this far inside.
pub const HEAD: usize = multiboot::SEARCHED;

/// The architecture of an ELF file, as target triples call it.
pub fn elf_architecture(machine: u16) -> Option<&'static str> {
    match machine {
        EM_386 => Some("i386"),
        EM_X86_64 => Some("x86_64"),
        EM_AARCH64 => Some("aarch64"),
        _ => None,
    }
}

/// True if machines of the architecture `host` run kernels for `architecture`.
pub fn host_runs(host: &str, architecture: &str) -> bool {
    host == architecture || (host, architecture) == ("x86_64", "i386")
}

/// The little-endian numbers at fixed offsets of a header. Reading past its end gives zero, which
/// is what every format here takes for "not said".
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u8(self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or_default()
    }

    fn u16(self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    fn u32(self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    fn u64(self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    fn array<const N: usize>(self, at: usize) -> [u8; N] {
        let bytes = at.checked_add(N).and_then(|end| self.0.get(at..end));
        bytes.map_or([0; N], |bytes| bytes.try_into().expect("it has N bytes"))
    }
}
