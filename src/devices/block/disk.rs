//! Where a disk's bytes are: what each format does in its own way.

use std::io;
use std::os::fd::BorrowedFd;

use crate::pieces::Pieces;

/// A file that is a disk byte for byte, for those who read and write it themselves.
pub struct DiskFile<'a> {
    /// It.
    pub file: BorrowedFd<'a>,
    /// It is opened past the page cache: memory has to be aligned like sectors.
    pub direct: bool,
}

/// A disk. Its operations may wait, and come from several threads at once.
///
/// Offsets and lengths are multiples of a sector and inside the disk.
pub trait Disk: Send + Sync {
    /// Bytes in all, a multiple of a sector.
    fn size(&self) -> u64;

    /// True if nothing can be written.
    fn is_read_only(&self) -> bool;

    /// Bytes that are best discarded together.
    fn granularity(&self) -> u32 {
        4096
    }

    /// The file that it is, if it is one.
    fn file(&self) -> Option<DiskFile<'_>> {
        None
    }

    /// Fills `to` from `offset`.
    fn read(&self, to: &mut Pieces, offset: u64) -> io::Result<()>;

    /// Writes `from` at `offset`.
    fn write(&self, from: &mut Pieces, offset: u64) -> io::Result<()>;

    /// Returns once everything that was written before lasts.
    fn flush(&self) -> io::Result<()>;

    /// Nobody needs what is there any more. What a read gives then is anything.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes it zeros, without room in the file if `unmap`.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
}
