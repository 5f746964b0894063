//! A file or a block device that is the disk, byte for byte.
//!
//! It is locked against other monitors: two guests that write to one file system destroy it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FallocateFlags, OFlags, fallocate, fcntl_getfl, fcntl_setfl};

use super::buffer::buffered;
use super::disk::{Disk, DiskFile};
use super::request::SECTOR;
use crate::pieces::Pieces;

/// How a disk's file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Nothing is written.
    pub read_only: bool,
    /// Past the host's page cache.
    pub direct: bool,
}

/// A raw disk.
pub struct Raw {
    file: File,
    len: u64,
    access: Access,
}

/// Opens the file of a disk, of whatever format, and locks it: alone, or with other readers.
pub fn open(path: &Path, access: Access) -> Result<File> {
    let direct = if access.direct { libc::O_DIRECT } else { 0 };
    // A FIFO would wait for its other end; of files and disks the flag is without effect.
    let mut options = OpenOptions::new();
    options.read(true).write(!access.read_only).custom_flags(direct | libc::O_NONBLOCK);
    let file = options.open(path).map_err(|error| match error.raw_os_error() {
        Some(libc::EACCES | libc::EROFS | libc::EPERM) if !access.read_only => {
            anyhow::anyhow!("open it for writing: {error} (add ,readonly to only read it)")
        }
        Some(libc::EINVAL) if access.direct => {
            anyhow::anyhow!("open it: its file system can't do without a cache (leave ,direct out)")
        }
        _ => anyhow::anyhow!("open it: {error}"),
    })?;
    let kind = file.metadata().context("look at it")?.file_type();
    ensure!(kind.is_file() || kind.is_block_device(), "neither a file nor a block device");
    // Whoever reads it by io_uring is to wait for it.
    let flags = fcntl_getfl(&file).context("ask for its flags")?;
    fcntl_setfl(&file, flags - OFlags::NONBLOCK).context("change its flags")?;
    let locked = if access.read_only { file.try_lock_shared() } else { file.try_lock() };
    match locked {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) if access.read_only => {
            bail!("another process writes to it: end that one first")
        }
        Err(TryLockError::WouldBlock) => {
            bail!("another process uses it: end that one first, or add ,readonly to both")
        }
        Err(TryLockError::Error(error)) => Err(error).context("lock it"),
    }
}

impl Raw {
    /// The disk in the file at `path`.
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        let raw = Self::new(open(path, access)?, access)?;
        if access.direct {
            raw.try_a_sector().context(
                "read a sector past the cache: its disk wants larger ones (leave ,direct out)",
            )?;
        }
        Ok(raw)
    }

    /// An empty disk of `len` bytes that is gone with the process.
    pub fn scratch(len: u64) -> Result<Self> {
        let folder = std::env::temp_dir();
        let make = || -> io::Result<File> {
            let mut options = OpenOptions::new();
            options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE);
            let file = options.open(&folder)?;
            file.set_len(len)?;
            Ok(file)
        };
        let what = || format!("make a file of {len} bytes without a name in {}", folder.display());
        Self::new(make().with_context(what)?, Access::default())
    }

    fn new(mut file: File, access: Access) -> Result<Self> {
        // A block device has no length but its end.
        let len = file.seek(SeekFrom::End(0)).context("find its end")?;
        ensure!(len > 0, "it is empty: give it a size (truncate -s 1G FILE)");
        ensure!(
            len.is_multiple_of(SECTOR),
            "its {len} bytes are not a multiple of {SECTOR}, a sector: \
             fill the last one (truncate -s %{SECTOR} FILE)"
        );
        Ok(Self { file, len, access })
    }

    /// Frees the room of a range, which reads as zeros then. `false`: this file can't.
    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.allocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
    }

    fn allocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
        use rustix::io::Errno;
        loop {
            match fallocate(self.file.as_fd(), flags, offset, len) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::NOTSUP | Errno::NOSYS | Errno::NODEV) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Does `once` until `pieces` is used up: system calls may do less than they are asked for.
fn wholly(
    pieces: &mut Pieces,
    mut offset: u64,
    once: impl Fn(&mut Pieces, u64) -> io::Result<usize>,
) -> io::Result<()> {
    while !pieces.is_empty() {
        match once(pieces, offset) {
            // The file became shorter.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => offset += count as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Past the cache, memory has to be aligned like sectors (open(2), O_DIRECT).
pub fn is_aligned(pieces: &Pieces) -> bool {
    let whole = |bytes: usize| bytes.is_multiple_of(SECTOR as usize);
    pieces.as_iovecs().iter().all(|piece| whole(piece.iov_base.addr()) && whole(piece.iov_len))
}

impl Disk for Raw {
    fn size(&self) -> u64 {
        self.len
    }

    fn is_read_only(&self) -> bool {
        self.access.read_only
    }

    fn file(&self) -> Option<DiskFile<'_>> {
        Some(DiskFile { file: self.file.as_fd(), direct: self.access.direct })
    }

    fn read(&self, to: &mut Pieces, offset: u64) -> io::Result<()> {
        if self.access.direct && !is_aligned(to) {
            return buffered(to, |buffer, done, to| {
                self.file.read_exact_at(buffer, offset + done)?;
                to.write(buffer);
                Ok(())
            });
        }
        wholly(to, offset, |pieces, offset| pieces.read_at(&self.file, offset))
    }

    fn write(&self, from: &mut Pieces, offset: u64) -> io::Result<()> {
        if self.access.direct && !is_aligned(from) {
            return buffered(from, |buffer, done, from| {
                from.read(buffer);
                self.file.write_all_at(buffer, offset + done)
            });
        }
        wholly(from, offset, |pieces, offset| pieces.write_at(&self.file, offset))
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        // Only advice: a file that can't is as good.
        self.punch(offset, len).map(drop)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if unmap && self.punch(offset, len)? {
            return Ok(());
        }
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        if self.allocate(flags, offset, len)? {
            return Ok(());
        }
        self.write_zero_bytes(offset, len)
    }
}

impl Raw {
    /// One sector, not at the beginning, as any guest may read it.
    fn try_a_sector(&self) -> io::Result<()> {
        let mut memory = [0u8; 2 * SECTOR as usize];
        let start = memory.as_ptr().align_offset(SECTOR as usize);
        let sector = &mut memory[start..start + SECTOR as usize];
        self.file.read_exact_at(sector, (self.len - SECTOR).min(SECTOR))
    }

    /// The long way, where the file system knows no other.
    fn write_zero_bytes(&self, offset: u64, len: u64) -> io::Result<()> {
        #[repr(align(4096))]
        struct Aligned([u8; 1 << 16]);
        static ALIGNED: Aligned = Aligned([0; 1 << 16]);
        let zeros = &ALIGNED.0;
        let mut done = 0;
        while done < len {
            let count = (len - done).min(zeros.len() as u64);
            self.file.write_all_at(&zeros[..count as usize], offset + done)?;
            done += count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{GuestRam, RamRange};

    // HOSTILE 32: what the kernel may answer.
    #[test]
    fn hostile_32_a_call_goes_on_until_it_is_whole_or_fails() {
        let ram = GuestRam::new(vec![RamRange { start: 0, len: 1 << 20 }]).unwrap();
        let ram = std::sync::Arc::new(ram);
        let of = |kind: io::ErrorKind| io::Error::from(kind);
        type Answers<'a> = &'a [Result<usize, io::ErrorKind>];
        let play = |answers: Answers| {
            let mut pieces = Pieces::new(ram.clone());
            pieces.push(0, 1024).unwrap();
            let mut left = answers.iter();
            let left = std::cell::RefCell::new(&mut left);
            wholly(&mut pieces, 4096, |pieces, offset| {
                assert_eq!(offset, 4096 + 1024 - pieces.len() as u64);
                let count = left.borrow_mut().next().expect("no more calls").map_err(of)?;
                pieces.skip(count);
                Ok(count)
            })
            .map_err(|error| error.kind())
        };
        use io::ErrorKind::{Interrupted, Other, StorageFull, UnexpectedEof};
        assert_eq!(play(&[Ok(1024)]), Ok(()));
        assert_eq!(play(&[Err(Interrupted), Ok(1), Err(Interrupted), Ok(1023)]), Ok(()));
        assert_eq!(play(&[Ok(1000), Ok(0)]), Err(UnexpectedEof));
        assert_eq!(play(&[Ok(512), Err(StorageFull)]), Err(StorageFull));
        assert_eq!(play(&[Err(Other)]), Err(Other));
    }
}
