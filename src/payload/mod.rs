//! The image that a guest starts from: recognised by its content, placed in RAM.
//!
//! Every byte of it is foreign: each offset is checked before it is used, and nothing is read that
//! the file does not have. Which machines an image is for is the architecture's to say.

pub mod cache;
pub mod describe;
pub mod elf;
pub mod image;
pub mod load;
mod note;
pub mod pe;
pub mod unpack;
mod version;

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Result;

use crate::memory::GuestRam;

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
    /// Bytes that were unpacked from a file.
    Memory(Vec<u8>),
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
            bad_image!("is {found}: a regular file is needed");
        }
        if metadata.len() == 0 {
            bad_image!("is empty: there is nothing in it");
        }
        Ok(Self::File(file, metadata.len()))
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::File(_, len) => *len,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// True without a byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads exactly `buffer.len()` bytes at `offset`, or fails with [`BadImage`] where the file ends.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64, what: &str) -> Result<()> {
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
            Self::Memory(bytes) => buffer.copy_from_slice(&bytes[offset as usize..end as usize]),
        }
        Ok(())
    }

    /// The `len` bytes at `offset`, where they are in memory already.
    pub fn slice(&self, offset: u64, len: u64) -> Option<&[u8]> {
        let bytes = match self {
            Self::File(..) => return None,
            Self::Bytes(bytes) => bytes,
            Self::Memory(bytes) => &bytes[..],
        };
        let end = offset.checked_add(len).and_then(|end| usize::try_from(end).ok())?;
        bytes.get(usize::try_from(offset).ok()?..end)
    }

    /// The first `most` bytes, or all that there are.
    pub fn head(&self, most: usize) -> Result<Vec<u8>> {
        let mut head = vec![0; self.len().min(most as u64) as usize];
        self.read_at(&mut head, 0, "header")?;
        Ok(head)
    }

    /// Puts `len` bytes at `offset` into RAM at `guest_addr`.
    pub(crate) fn place(
        &self,
        ram: &GuestRam,
        offset: u64,
        len: u64,
        guest_addr: u64,
    ) -> Result<()> {
        match self {
            Self::File(file, _) => ram.load(file, offset, len, guest_addr),
            Self::Bytes(bytes) => {
                ram.write(&bytes[offset as usize..(offset + len) as usize], guest_addr)
            }
            Self::Memory(bytes) => {
                ram.write(&bytes[offset as usize..(offset + len) as usize], guest_addr)
            }
        }
    }
}
