//! The program's allocator: large buffers are mappings of their own, which are gone when they are
//! freed; what is small comes from an ordinary heap.
//!
//! A kernel is read and unpacked in buffers of tens of megabytes. A heap would keep them for the
//! guest's whole life, since something small that lives on always lies behind them. And musl's own
//! heap maps and unmaps a page or two for every table of some kilobytes: that was two thirds of all
//! system calls of a start, so the static program has another one, which maps 64 KiB at a time, and
//! what any start takes at once.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::null_mut;

#[cfg(target_env = "musl")]
type Heap = dlmalloc::GlobalDlmalloc;
#[cfg(target_env = "musl")]
const HEAP: Heap = dlmalloc::GlobalDlmalloc;
#[cfg(not(target_env = "musl"))]
type Heap = std::alloc::System;
#[cfg(not(target_env = "musl"))]
const HEAP: Heap = std::alloc::System;

/// Bytes from which on a buffer is a mapping. Our choice: what only images need.
const LARGE: usize = 1 << 20;
/// Mappings are aligned to this at least, on every host.
const PAGE: usize = 4096;

struct Allocator {
    heap: Heap,
}

#[global_allocator]
static ALLOCATOR: Allocator = Allocator { heap: HEAP };

/// Bytes that a start takes.
#[cfg(target_env = "musl")]
const FIRST: usize = 100 << 10;

/// Has the heap map what a start takes in one piece. Of what it does not use, nothing is in memory.
pub fn begin() {
    #[cfg(target_env = "musl")]
    {
        let layout = Layout::new::<[u8; FIRST]>();
        // SAFETY: its size is not zero.
        let block = unsafe { HEAP.alloc(layout) };
        // SAFETY: it was allocated like that just now, unless it is null, which frees nothing.
        unsafe { HEAP.dealloc(block, layout) };
    }
}

fn is_mapping(size: usize, align: usize) -> bool {
    size >= LARGE && align <= PAGE
}

/// A null pointer where the system refused.
fn unless_failed(address: *mut libc::c_void) -> *mut u8 {
    if address == libc::MAP_FAILED { null_mut() } else { address.cast() }
}

fn map(size: usize) -> *mut u8 {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: without MAP_FIXED a new mapping harms no other.
    unless_failed(unsafe { libc::mmap(null_mut(), size, prot, flags, -1, 0) })
}

// SAFETY: a block's size and alignment alone say who has made it, and whoever has made it also
// frees it; a block that changes sides is copied.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_mapping(layout.size(), layout.align()) {
            return map(layout.size());
        }
        // SAFETY: the caller's promise.
        unsafe { self.heap.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_mapping(layout.size(), layout.align()) {
            return map(layout.size());
        }
        // SAFETY: the caller's promise.
        unsafe { self.heap.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if is_mapping(layout.size(), layout.align()) {
            // SAFETY: a block of this size is a mapping, and the caller's to give up.
            unsafe { libc::munmap(block.cast(), layout.size()) };
            return;
        }
        // SAFETY: the caller's promise.
        unsafe { self.heap.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let (is, becomes) =
            (is_mapping(layout.size(), layout.align()), is_mapping(size, layout.align()));
        match (is, becomes) {
            // SAFETY: the caller's promise.
            (false, false) => unsafe { self.heap.realloc(block, layout, size) },
            (true, true) => {
                let flags = libc::MREMAP_MAYMOVE;
                // SAFETY: the mapping is the caller's to give up.
                unless_failed(unsafe { libc::mremap(block.cast(), layout.size(), size, flags) })
            }
            _ => {
                // SAFETY: the caller promises that the new size is as good as the old one.
                let layout_now = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
                // SAFETY: its size is not zero, by the caller's promise.
                let moved = unsafe { self.alloc(layout_now) };
                if !moved.is_null() {
                    let len = layout.size().min(size);
                    // SAFETY: both blocks have `len` bytes, and a new one overlaps no other.
                    unsafe { block.copy_to_nonoverlapping(moved, len) };
                    // SAFETY: the caller gives it up.
                    unsafe { self.dealloc(block, layout) };
                }
                moved
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_buffer_keeps_its_content_across_every_border() {
        let mut buffer: Vec<u32> = Vec::new();
        for n in 0..3 * super::LARGE as u32 / 4 {
            buffer.push(n);
        }
        buffer.truncate(1000);
        buffer.shrink_to_fit();
        assert!(buffer.iter().copied().eq(0..1000));
        buffer.resize(super::LARGE, 7);
        assert!(
            buffer[..1000].iter().copied().eq(0..1000) && buffer[1000..].iter().all(|&n| n == 7)
        );
        assert!(vec![0u8; 4 * super::LARGE].iter().all(|&byte| byte == 0));
    }
}
