//! The program's own code in memory. Most of it is only there to start a guest: once that is done it
//! is given back, and what the guest's life needs comes again from the page cache, some tens of
//! kilobytes at a time: half of two mebibytes is left.

unsafe extern "C" {
    /// The first byte of the program, and the one behind its code: linkers define them (ld(1), "etext").
    static __executable_start: u8;
    static etext: u8;
}

/// Gives back what is in memory of code and constants.
pub fn give_back() {
    // A debugger's breakpoints are in there too, and a build with assertions is one to be debugged.
    if cfg!(debug_assertions) {
        return;
    }
    let page = crate::sys::page_size() as usize;
    let (start, end) = (&raw const __executable_start, &raw const etext);
    let start = start.with_addr(start.addr() & !(page - 1));
    let len = (end.addr() & !(page - 1)).saturating_sub(start.addr());
    // SAFETY: nobody writes to these pages, so what comes again from the file is what was there. It is
    // only advice.
    unsafe { libc::madvise(start.cast_mut().cast(), len, libc::MADV_DONTNEED) };
}
