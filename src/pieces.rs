//! Pieces of guest RAM in a row, for system calls that scatter and gather: what a virtio driver's
//! buffer is made of.
//!
//! Each piece was checked against the guest's RAM when it was added and split where two ranges of
//! it meet, so nobody has to look at addresses again. Bytes are taken from the front.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use crate::memory::GuestRam;
use crate::sys;

/// Pieces that one system call takes at the most (readv(2), IOV_MAX).
const PIECES_AT_ONCE: usize = 1024;

/// Points nowhere: there is always a free place before the first piece, for what a system call
/// is to read or write in front of them.
const FREE: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// Pieces of one guest's RAM.
pub struct Pieces {
    ram: Arc<GuestRam>,
    /// Each lies in one range of `ram`, but for those before `first`.
    list: Vec<libc::iovec>,
    /// Those before it are used up, or [`FREE`]: one at least.
    first: usize,
    len: usize,
}

// SAFETY: the pointers are into guest RAM, which `ram` keeps and any thread may access.
unsafe impl Send for Pieces {}

/// A part of guest-physical memory is not RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotRam {
    /// Where the part begins.
    pub guest_addr: u64,
    /// Its bytes.
    pub len: usize,
}

impl Pieces {
    /// None yet, of `ram`.
    pub fn new(ram: Arc<GuestRam>) -> Self {
        Self { ram, list: vec![FREE], first: 1, len: 0 }
    }

    /// Bytes that are left.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True without any.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all; room for as many stays.
    pub fn clear(&mut self) {
        self.list.truncate(1);
        (self.first, self.len) = (1, 0);
    }

    /// Adds `len` bytes at `guest_addr`, all of which must be RAM.
    pub fn push(&mut self, guest_addr: u64, len: usize) -> Result<(), NotRam> {
        let not_ram = NotRam { guest_addr, len };
        let (mut at, mut left) = (guest_addr, len);
        while left > 0 {
            let memory = self.ram.backend();
            let (region, offset) = memory.to_region_addr(GuestAddress(at)).ok_or(not_ram)?;
            let room = vm_memory::GuestMemoryRegion::len(region) - offset.0;
            let count = left.min(room as usize);
            let slice = memory.get_slice(GuestAddress(at), count).map_err(|_| not_ram)?;
            let base = slice.ptr_guard_mut().as_ptr();
            self.list.push(libc::iovec { iov_base: base.cast(), iov_len: count });
            self.len += count;
            left -= count;
            // No RAM ends at 2^64.
            at = at.wrapping_add(count as u64);
        }
        Ok(())
    }

    /// Adds all of `more`, which lies in the same RAM and is empty then.
    pub fn append(&mut self, more: &mut Pieces) {
        debug_assert!(Arc::ptr_eq(&self.ram, &more.ram));
        // Our choice: what is used up is worth its room until there is more of it than anything.
        if self.first > PIECES_AT_ONCE {
            self.list.drain(1..self.first);
            self.first = 1;
        }
        self.list.extend_from_slice(&more.list[more.first..]);
        self.len += more.len;
        more.clear();
    }

    /// Passes over `count` bytes, or all.
    pub fn skip(&mut self, count: usize) {
        self.each(count, |_| ());
    }

    /// Fills `bytes` from the front; gives how many there were.
    pub fn read(&mut self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        self.each(bytes.len(), |piece| {
            piece.copy_to(&mut bytes[done..]);
            done += piece.len();
        });
        done
    }

    /// Writes `bytes` to the front; gives how many there was room for.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        self.each(bytes.len(), |piece| {
            piece.copy_from(&bytes[done..]);
            done += piece.len();
        });
        done
    }

    /// Writes `count` zeros to the front, or as many as there is room for.
    pub fn zero(&mut self, count: usize) {
        const ZEROS: [u8; 4096] = [0; 4096];
        self.each(count, |piece| {
            for at in (0..piece.len()).step_by(ZEROS.len()) {
                piece.offset(at).expect("inside").copy_from(&ZEROS[..]);
            }
        });
    }

    /// Uses up to `count` bytes at the front, piece by piece.
    fn each(&mut self, count: usize, mut use_it: impl FnMut(VolatileSlice<'_>)) {
        self.each_piece(count, |piece| {
            // SAFETY: the piece is a part of `ram`, which is mapped for as long as `self` is there.
            use_it(unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) });
        });
    }

    fn each_piece(&mut self, count: usize, mut use_it: impl FnMut(libc::iovec)) {
        let mut left = count.min(self.len);
        self.len -= left;
        while left > 0 {
            let piece = &mut self.list[self.first];
            let taken = piece.iov_len.min(left);
            use_it(libc::iovec { iov_base: piece.iov_base, iov_len: taken });
            left -= taken;
            if taken == piece.iov_len {
                self.first += 1;
            } else {
                piece.iov_base = piece.iov_base.wrapping_byte_add(taken);
                piece.iov_len -= taken;
            }
        }
    }

    /// Cuts off what is behind the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        let mut over = self.len.saturating_sub(len);
        self.len -= over;
        while over > 0 {
            let piece = self.list.last_mut().expect("as many bytes as `len` said");
            if piece.iov_len > over {
                piece.iov_len -= over;
                return;
            }
            over -= piece.iov_len;
            self.list.pop();
        }
    }

    /// Moves the first `len` bytes to `front`, which is emptied before.
    pub fn take_front(&mut self, len: usize, front: &mut Pieces) {
        front.clear();
        self.each_piece(len, |piece| {
            front.list.push(piece);
            front.len += piece.iov_len;
        });
    }

    /// Moves what is behind the first `len` bytes to `rest`, which is emptied before.
    pub fn split_off(&mut self, len: usize, rest: &mut Pieces) {
        rest.clear();
        rest.list.extend_from_slice(&self.list[self.first..]);
        rest.len = self.len;
        rest.skip(len);
        self.truncate(len);
    }

    /// What is left, for one system call; fewer where there are more pieces than one can take.
    pub fn as_iovecs(&self) -> &[libc::iovec] {
        let end = self.list.len().min(self.first + PIECES_AT_ONCE);
        &self.list[self.first..end]
    }

    /// Gives what is left back to the host, as far as it is whole pages of the host, and gives their
    /// bytes. Then these have no memory, and what they hold is lost.
    pub fn give_back(&mut self) -> u64 {
        let (page, advice) = (sys::page_size() as usize, self.ram.give_back_advice());
        let mut bytes = 0;
        for piece in &self.list[self.first..] {
            let start = piece.iov_base.addr().next_multiple_of(page);
            let end = (piece.iov_base.addr() + piece.iov_len) & !(page - 1);
            if let Some(len) = end.checked_sub(start).filter(|len| *len > 0) {
                let start = piece.iov_base.with_addr(start);
                // SAFETY: these pages are guest RAM, which is mapped for as long as `self` is there,
                // and whose content is the guest's to lose.
                let result = unsafe { libc::madvise(start, len, advice) };
                bytes += if result == 0 { len as u64 } else { 0 };
            }
        }
        self.skip(self.len);
        bytes
    }

    /// Reads once from `file` at `offset` into what is left, and gives the bytes; the rest stays.
    pub fn read_at(&mut self, file: &impl AsFd, offset: u64) -> io::Result<usize> {
        // SAFETY: the pieces are guest RAM, which the kernel may write to.
        let count = unsafe { sys::preadv(file, self.as_iovecs(), offset) }?;
        self.skip(count);
        Ok(count)
    }

    /// Writes once what is left to `file` at `offset`, and gives the bytes; the rest stays.
    pub fn write_at(&mut self, file: &impl AsFd, offset: u64) -> io::Result<usize> {
        let count = sys::pwritev(file, self.as_iovecs(), offset)?;
        self.skip(count);
        Ok(count)
    }

    /// Reads once from a stream into what is left, and gives the bytes; the rest stays.
    pub fn read_from(&mut self, stream: &impl AsFd) -> io::Result<usize> {
        // SAFETY: the pieces are guest RAM, which the kernel may write to.
        let count = unsafe { sys::readv(stream, self.as_iovecs()) }?;
        self.skip(count);
        Ok(count)
    }

    /// Reads once from a stream: into `front`, then into the first `limit` bytes that are left, then
    /// into `back`. Gives the bytes in all; what was not read into stays. Where there are more pieces
    /// than one call takes, nothing is read behind them.
    pub fn read_between(
        &mut self,
        front: &mut [u8],
        limit: usize,
        back: &mut [u8],
        stream: &impl AsFd,
    ) -> io::Result<usize> {
        let host = |bytes: &mut [u8]| libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        let (start, front_len) = (self.first - 1, front.len());
        self.list[start] = host(front);
        let most = self.list.len().min(start + PIECES_AT_ONCE - 1);
        // Past the last piece that is read into, and what of it is not.
        let (mut end, mut left) = (self.first, limit.min(self.len));
        while left > 0 && end < most {
            left = left.saturating_sub(self.list[end].iov_len);
            end += 1;
        }
        let limit = limit.min(self.len) - left;
        let taken: usize = self.list[self.first..end].iter().map(|piece| piece.iov_len).sum();
        self.list[end - 1].iov_len -= taken - limit;
        let back = if left == 0 { host(back) } else { FREE };
        let behind = self.list.get(end).copied();
        match behind {
            Some(_) => self.list[end] = back,
            None => self.list.push(back),
        }
        // SAFETY: the pieces are guest RAM, which the kernel may write to, and `front` and `back`,
        // which are borrowed for that.
        let result = unsafe { sys::readv(stream, &self.list[start..=end]) };
        match behind {
            Some(piece) => self.list[end] = piece,
            None => self.list.truncate(end),
        }
        self.list[end - 1].iov_len += taken - limit;
        self.list[start] = FREE;
        let count = result?;
        self.skip(count.saturating_sub(front_len).min(limit));
        Ok(count)
    }

    /// Writes once to a stream: `front`, then what is left. Gives the bytes in all; the rest stays.
    pub fn write_after(&mut self, front: &[u8], stream: &impl AsFd) -> io::Result<usize> {
        let start = self.first - 1;
        let iov_base = front.as_ptr().cast_mut().cast();
        self.list[start] = libc::iovec { iov_base, iov_len: front.len() };
        let end = self.list.len().min(start + PIECES_AT_ONCE);
        let result = sys::writev(stream, &self.list[start..end]);
        self.list[start] = FREE;
        let count = result?;
        self.skip(count.saturating_sub(front.len()));
        Ok(count)
    }

    /// Writes once what is left to a stream, and gives the bytes; the rest stays.
    pub fn write_to(&mut self, stream: &impl AsFd) -> io::Result<usize> {
        let count = sys::writev(stream, self.as_iovecs())?;
        self.skip(count);
        Ok(count)
    }
}
