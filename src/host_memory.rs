//! Host memory behind guest RAM: not yet there, and aligned so that huge pages fit. It is private,
//! or a file without a name that other processes can map too.
//!
//! A huge page of the host can only back a huge page of the guest when both addresses agree in
//! their lower bits; where they don't, a guest takes several times as many faults.
//!
//! Whoever has the file could make it shorter, and what is no longer there kills who touches it: so
//! it is sealed to keep its length (memfd_create(2), "File sealing").

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::MmapRegion;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};

/// Bytes of a huge page on both architectures, with pages of 4 KiB.
const HUGE_PAGE: usize = 2 << 20;

const PROT: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// No swap is set aside: a guest's RAM may be larger than what it ever uses.
const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
const SHARED_FLAGS: i32 = libc::MAP_SHARED | libc::MAP_NORESERVE;

/// One mapping, unmapped when dropped.
pub struct HostMemory {
    start: NonNull<u8>,
    len: usize,
    /// What is mapped, from its first byte, if it can be shared.
    file: Option<OwnedFd>,
}

// SAFETY: the mapping belongs to nobody else, whichever thread holds it.
unsafe impl Send for HostMemory {}
// SAFETY: through a shared reference only its address can be read.
unsafe impl Sync for HostMemory {}

fn map(len: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: without MAP_FIXED a new mapping harms no other.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), len, PROT, FLAGS, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(NonNull::new(start.cast()).expect("page zero is never mapped"))
}

/// # Safety
///
/// `[start, start + len)` must be mapped by [`map`], and nobody may use it any more.
unsafe fn unmap(start: *mut u8, len: usize) {
    if len > 0 {
        // SAFETY: the caller's promise.
        unsafe { libc::munmap(start.cast(), len) };
    }
}

impl HostMemory {
    /// `len` bytes, a multiple of the page size; aligned to a huge page if one fits in.
    pub fn new(len: usize) -> io::Result<Self> {
        let start = map(len)?;
        let memory = Self { start, len, file: None };
        // Linux 6.7 and newer align a large mapping by themselves.
        if len < HUGE_PAGE || memory.start.addr().get().is_multiple_of(HUGE_PAGE) {
            return Ok(memory);
        }
        drop(memory);
        let wide = len.checked_add(HUGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let start = map(wide)?;
        let skip = start.addr().get().next_multiple_of(HUGE_PAGE) - start.addr().get();
        // SAFETY: `skip` is less than HUGE_PAGE, so the result lies inside the mapping.
        let aligned = unsafe { start.add(skip) };
        // SAFETY: `len` more bytes lie inside it too.
        let end = unsafe { aligned.add(len) };
        // SAFETY: the part before, which nobody has seen.
        unsafe { unmap(start.as_ptr(), skip) };
        // SAFETY: the part behind, as well.
        unsafe { unmap(end.as_ptr(), HUGE_PAGE - skip) };
        Ok(Self { start: aligned, len, file: None })
    }

    /// The same of a file, [`Self::file`].
    pub fn shared(len: usize) -> io::Result<Self> {
        let file = memfd_create(c"guest RAM", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, len as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let mut memory = Self::new(len)?;
        let (start, flags) = (memory.start.as_ptr().cast(), SHARED_FLAGS | libc::MAP_FIXED);
        // SAFETY: it replaces all of `memory`, which nobody else has seen.
        let result = unsafe { libc::mmap(start, len, PROT, flags, file.as_raw_fd(), 0) };
        if result == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Where the host gives files huge pages to who asks (shmem_enabled: advise). Without is no
        // error.
        // SAFETY: the memory is `memory`'s, and the advice changes nothing that can be seen.
        unsafe { libc::madvise(start, len, libc::MADV_HUGEPAGE) };
        memory.file = Some(file);
        Ok(memory)
    }

    /// Leaves it out of core dumps; it is only advice.
    pub fn leave_out_of_dumps(&self) {
        // SAFETY: the memory is `self`'s, and the advice changes nothing in it.
        unsafe { libc::madvise(self.start.as_ptr().cast(), self.len, libc::MADV_DONTDUMP) };
    }

    /// What other processes map to share it, if they can.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// vm-memory's view of it, which does not own it.
    pub fn region(&self) -> Result<MmapRegion, MmapRegionError> {
        let flags = if self.file.is_some() { SHARED_FLAGS } else { FLAGS };
        let builder = MmapRegionBuilder::new(self.len).with_mmap_prot(PROT).with_mmap_flags(flags);
        // SAFETY: the mapping is as long as it says; whoever holds the region keeps `self` longer.
        unsafe { builder.with_raw_mmap_pointer(self.start.as_ptr()) }.build()
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is `self`'s, which is going.
        unsafe { unmap(self.start.as_ptr(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use vm_memory::VolatileMemory;

    use super::*;

    #[test]
    fn large_memory_is_aligned_and_all_of_it_can_be_used() {
        for len in [4096, HUGE_PAGE - 4096, HUGE_PAGE, 3 * HUGE_PAGE + 4096] {
            // The odd page in between makes it likely that the next mapping is not aligned.
            let _odd = HostMemory::new(4096).unwrap();
            for memory in [HostMemory::new(len).unwrap(), HostMemory::shared(len).unwrap()] {
                assert!(len < HUGE_PAGE || memory.start.addr().get().is_multiple_of(HUGE_PAGE));
                let region = memory.region().unwrap();
                for at in [0, len - 1] {
                    region.get_slice(at, 1).unwrap().copy_from(&[7u8]);
                }
                assert_eq!(region.size(), len);
            }
        }
        assert!(HostMemory::new(usize::MAX - 4095).is_err());
        assert!(HostMemory::shared(usize::MAX - 4095).is_err());
    }

    #[test]
    fn shared_memory_is_its_file_which_keeps_its_length() {
        assert!(HostMemory::new(HUGE_PAGE).unwrap().file().is_none());
        let memory = HostMemory::shared(HUGE_PAGE).unwrap();
        let file: File = memory.file().unwrap().try_clone_to_owned().unwrap().into();
        memory.region().unwrap().get_slice(5, 1).unwrap().copy_from(&[7u8]);
        let mut bytes = [0; 2];
        file.read_exact_at(&mut bytes, 5).unwrap();
        assert_eq!(bytes, [7, 0]);
        for len in [0, HUGE_PAGE as u64 - 4096, HUGE_PAGE as u64 + 4096] {
            assert!(file.set_len(len).is_err(), "{len}");
        }
    }
}
