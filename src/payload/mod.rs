//! The image that a guest starts from: recognised by its content, placed in RAM.
//!
//! Every byte of it is foreign: each offset is checked before it is used, and nothing is read that
//! the file does not have. Which machines an image is for is the architecture's to say.

pub mod elf;

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::memory::GuestRam;
use crate::places::Places;

/// The file is there, but it can't be run here: unknown, damaged, or for another architecture.
#[derive(Debug)]
pub struct BadImage(pub String);

impl std::fmt::Display for BadImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadImage {}

/// Ends the loading with a [`BadImage`].
macro_rules! bad_image {
    ($($arg:tt)*) => {
        return Err($crate::payload::BadImage(format!($($arg)*)).into())
    };
}
pub(crate) use bad_image;

/// Where an image comes from.
pub enum Payload {
    /// A file, and its length in bytes when it was opened.
    File(File, u64),
    /// Bytes of this program.
    Bytes(&'static [u8]),
}

impl Payload {
    /// Opens the image at `path`. Never blocks and never reads a device: what is not a regular
    /// file is refused.
    pub fn open(path: &Path) -> Result<Self> {
        // O_NONBLOCK: opening a FIFO would wait for its writer.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(
            |error| match error.kind() {
                io::ErrorKind::NotFound => anyhow::anyhow!("no such file (is the path right?)"),
                io::ErrorKind::PermissionDenied => {
                    anyhow::anyhow!("permission denied (may you read it?)")
                }
                _ => error.into(),
            },
        )?;
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        let found = match () {
            () if kind.is_file() => None,
            () if kind.is_dir() => Some("a directory"),
            () if kind.is_fifo() => Some("a pipe"),
            () if kind.is_char_device() || kind.is_block_device() => Some("a device"),
            () => Some("not a file"),
        };
        if let Some(found) = found {
            bad_image!("is {found}: an image must be a regular file");
        }
        if metadata.len() == 0 {
            bad_image!("is empty: there is nothing to run");
        }
        Ok(Self::File(file, metadata.len()))
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::File(_, len) => *len,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// True without a byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads exactly `buffer.len()` bytes at `offset`, or fails with [`BadImage`] where the file ends.
    fn read_at(&self, buffer: &mut [u8], offset: u64, what: &str) -> Result<()> {
        let len = buffer.len() as u64;
        let end = offset.checked_add(len).filter(|&end| end <= self.len());
        let Some(end) = end else {
            bad_image!(
                "is truncated or damaged: the {what} ({len} bytes at {offset:#x}) \
                 ends past the end of the file ({:#x})",
                self.len()
            );
        };
        match self {
            Self::File(file, _) => file.read_exact_at(buffer, offset)?,
            Self::Bytes(bytes) => buffer.copy_from_slice(&bytes[offset as usize..end as usize]),
        }
        Ok(())
    }

    /// Copies `len` bytes at `offset` into RAM at `guest_addr`, without a buffer in between.
    fn place(&self, ram: &GuestRam, offset: u64, len: u64, guest_addr: u64) -> Result<()> {
        match self {
            Self::File(file, _) => {
                let mut file = file;
                io::Seek::seek(&mut file, io::SeekFrom::Start(offset))?;
                ram.fill(&mut file, guest_addr, len)
                    .with_context(|| format!("read {len} bytes at {offset:#x}"))
            }
            Self::Bytes(bytes) => {
                ram.write(&bytes[offset as usize..(offset + len) as usize], guest_addr)
            }
        }
    }
}

/// What an image is, told from its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// ELF: has load addresses and an entry of its own.
    Elf,
    /// None of the formats below: bytes to be placed and entered as they are.
    Flat,
    /// A format with this name that can't be started yet.
    Foreign(&'static str),
}

/// Bytes of a file that [`recognise`] looks at.
pub const HEAD: usize = 0x206;

/// Tells the format of an image from its first [`HEAD`] bytes (fewer if it is shorter).
pub fn recognise(head: &[u8]) -> Format {
    /// Format, offset of its magic, the magic.
    const MAGICS: &[(Format, usize, &[u8])] = &[
        (Format::Elf, 0, b"\x7fELF"),
        // Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
        (Format::Foreign("a bzImage Linux kernel"), 0x202, b"HdrS"),
        // Linux Documentation/arch/arm64/booting.rst, "Call the kernel image".
        (Format::Foreign("an arm64 Image Linux kernel"), 0x38, b"ARMd"),
        (Format::Foreign("an EFI zboot kernel"), 4, b"zimg"),
        (Format::Foreign("gzip-compressed"), 0, b"\x1f\x8b\x08"),
        (Format::Foreign("zstd-compressed"), 0, b"\x28\xb5\x2f\xfd"),
        (Format::Foreign("xz-compressed"), 0, b"\xfd7zXZ\0"),
        (Format::Foreign("lz4-compressed"), 0, b"\x02\x21\x4c\x18"),
        (Format::Foreign("a qcow2 disk"), 0, b"QFI\xfb"),
        (Format::Foreign("a script"), 0, b"#!"),
    ];
    let found = MAGICS.iter().find(|(_, at, magic)| {
        head.get(*at..*at + magic.len()).is_some_and(|bytes| bytes == *magic)
    });
    found.map_or(Format::Flat, |(format, ..)| *format)
}

/// What the user asked for, where the image leaves a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Where a flat binary goes (guest-physical).
    pub load: Option<u64>,
    /// Where the first vCPU starts (guest-physical).
    pub entry: Option<u64>,
}

/// What a guest's first vCPU starts in; from the image or from the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded<M> {
    /// The mode to start in.
    pub mode: M,
    /// Where the first vCPU starts (guest-physical).
    pub entry: u64,
}

/// What an architecture says about images.
pub struct Rules<M> {
    /// The mode of a flat binary.
    pub flat_mode: M,
    /// Where a flat binary goes in that mode, given the start of RAM.
    pub flat_load: fn(M, u64) -> u64,
    /// The mode for an ELF file by its class (bits) and `e_machine`, or why there is none.
    pub elf_mode: fn(u8, u16) -> Option<M>,
}

/// Recognises `payload` and places it in RAM.
pub fn load<M: Copy>(
    payload: &Payload,
    ram: &GuestRam,
    places: &mut Places,
    wish: Wish,
    mode: Option<M>,
    rules: &Rules<M>,
) -> Result<Loaded<M>> {
    let mut head = [0; HEAD];
    let head = &mut head[..payload.len().min(HEAD as u64) as usize];
    payload.read_at(head, 0, "header")?;
    let loaded = match recognise(head) {
        Format::Elf => {
            if wish.load.is_some() {
                bail!("--load is for flat binaries: this ELF file says itself where it goes");
            }
            let image = elf::Image::read(payload)?;
            let machine_mode = image.machine_mode(rules.elf_mode)?;
            image.place(payload, ram, places)?;
            let entry = match wish.entry {
                Some(entry) => entry,
                None => image.entry_guest_addr()?,
            };
            Loaded { mode: mode.unwrap_or(machine_mode), entry }
        }
        Format::Flat => {
            let mode = mode.unwrap_or(rules.flat_mode);
            let start = wish.load.unwrap_or_else(|| (rules.flat_load)(mode, places.ram_start()));
            places.reserve(start, payload.len(), "image")?;
            payload.place(ram, 0, payload.len(), start)?;
            Loaded { mode, entry: wish.entry.unwrap_or(start) }
        }
        Format::Foreign(name) => {
            bad_image!("is {name}: this version runs flat binaries and ELF executables")
        }
    };
    ensure!(
        places.in_ram(loaded.entry, 1),
        "entry {:#x} lies outside RAM: choose an --entry inside it",
        loaded.entry
    );
    Ok(loaded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_by_their_magic_and_anything_else_is_flat() {
        assert_eq!(recognise(b"\x7fELF\x02"), Format::Elf);
        assert_eq!(recognise(b"\x7fEL"), Format::Flat);
        assert_eq!(recognise(b""), Format::Flat);
        let mut image = vec![0; 0x206];
        assert_eq!(recognise(&image), Format::Flat);
        image[0x202..].copy_from_slice(b"HdrS");
        assert_eq!(recognise(&image), Format::Foreign("a bzImage Linux kernel"));
        assert_eq!(recognise(b"#!/bin/sh\n"), Format::Foreign("a script"));
    }
}
