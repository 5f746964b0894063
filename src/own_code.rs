//! What of the process is only there to start a guest, and is given back once that is done.
//!
//! Most is the program's own code: what the guest's life needs of it comes again from the page cache, some
//! tens of kilobytes at a time, and half of two mebibytes is left. The rest is what reading the command
//! line took of stack and heap.

use std::alloc::{Layout, alloc, dealloc};

unsafe extern "C" {
    /// The first byte of the program, and the one behind its code: linkers define them (ld(1), "etext").
    static __executable_start: u8;
    static etext: u8;
}

/// Gives back code and constants, and what the heap does not use.
pub fn give_back() {
    // A debugger's breakpoints are in there too, and a build with assertions is one to be debugged.
    if cfg!(debug_assertions) {
        return;
    }
    let page = crate::sys::page_size() as usize;
    // First, as it takes code that nothing else does.
    give_back_heap(page);
    let (start, end) = (&raw const __executable_start, &raw const etext);
    let start = start.with_addr(start.addr() & !(page - 1));
    let len = (end.addr() & !(page - 1)).saturating_sub(start.addr());
    // SAFETY: nobody writes to these pages, so what comes again from the file is what was there. It is
    // only advice.
    unsafe { libc::madvise(start.cast_mut().cast(), len, libc::MADV_DONTNEED) };
}

/// Gives back pages of free blocks. Which those are only the heap knows, so it is asked for some: their content is
/// nobody's.
fn give_back_heap(page: usize) {
    /// Our choice: in all what a start leaves behind.
    const SIZES: [usize; 5] = [32 << 10, 16 << 10, 16 << 10, 8 << 10, 8 << 10];
    let blocks = SIZES.map(|size| {
        let layout = Layout::from_size_align(size, 16).expect("a power of two");
        // SAFETY: its size is not zero.
        let block = unsafe { alloc(layout) };
        let start = block.map_addr(|addr| addr.next_multiple_of(page));
        let end = block.addr().saturating_add(size) & !(page - 1);
        if !block.is_null() && start.addr() < end {
            // SAFETY: these pages lie in the block whole, which holds nothing yet; zeros will do.
            unsafe { libc::madvise(start.cast(), end - start.addr(), libc::MADV_DONTNEED) };
        }
        (block, layout)
    });
    for (block, layout) in blocks.into_iter().filter(|(block, _)| !block.is_null()) {
        // SAFETY: it was allocated with this layout just now.
        unsafe { dealloc(block, layout) };
    }
}

/// Gives back what the main thread's stack held, if this runs on it.
#[inline(never)]
pub fn give_back_stack() {
    /// Our choice: room for this function and for madvise(2), of which the C library's part is a few words.
    const KEPT: usize = 2 << 10;
    /// Our choice: more than a start takes.
    const GIVEN: usize = 256 << 10;
    /// So far below the first byte of that stack nothing else is ever mapped (Linux v6.12 mm/util.c,
    /// `mmap_base`: 128 MiB), less what is given back.
    const OWN: usize = 64 << 20;
    if cfg!(debug_assertions) {
        return;
    }
    let page = crate::sys::page_size() as usize;
    let here = 0u8;
    let here = &raw const here;
    // SAFETY: asks for a number that the kernel has given the process.
    let top = unsafe { libc::getauxval(libc::AT_RANDOM) } as usize;
    // The kernel put those bytes above the stack (getauxval(3)).
    if top.checked_sub(here.addr()).is_none_or(|depth| depth >= OWN) {
        return;
    }
    let start = here.map_addr(|addr| (addr - KEPT - GIVEN) & !(page - 1));
    // SAFETY: this is the main thread's stack, below whose pointer there is nothing alive, and so near to it
    // nothing else mapped. It is only advice, also for what is not mapped.
    unsafe { libc::madvise(start.cast_mut().cast(), GIVEN, libc::MADV_DONTNEED) };
}
