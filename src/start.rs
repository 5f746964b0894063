//! C's `main`: the process's first function, and what Rust's own start would have done.

use std::ffi::{CStr, OsString, c_char, c_int};
use std::fs::File;
use std::mem;
use std::os::unix::ffi::OsStringExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bivisor::outcome::status;

/// Whether standard output was closed when the program began.
static STDOUT_CLOSED: AtomicBool = AtomicBool::new(false);

/// When the program began.
static BEGAN: OnceLock<Instant> = OnceLock::new();

/// When the program began, or else now.
pub fn began() -> Instant {
    *BEGAN.get_or_init(Instant::now)
}

/// Whether standard output was closed when the program began.
pub fn stdout_was_closed() -> bool {
    STDOUT_CLOSED.load(Ordering::Relaxed)
}

/// Opens /dev/null in place of every standard stream that is closed: else the next file that is
/// opened would become one, and get the guest's output.
fn fill_standard_streams() -> std::io::Result<()> {
    let mut streams = [0, 1, 2].map(|fd| libc::pollfd { fd, events: 0, revents: 0 });
    // SAFETY: the pointer and the length are those of one array.
    unsafe { libc::poll(streams.as_mut_ptr(), streams.len() as libc::nfds_t, 0) };
    let closed = streams.map(|stream| stream.revents & libc::POLLNVAL != 0);
    STDOUT_CLOSED.store(closed[1], Ordering::Relaxed);
    for _ in closed.into_iter().filter(|closed| *closed) {
        // The lowest free number is that of the first stream that is still closed. It stays open.
        mem::forget(File::options().read(true).write(true).open("/dev/null")?);
    }
    Ok(())
}

/// Has all threads share one heap. With one for each, which is its default, glibc looks at files of the
/// system when there are many or when one of them shrinks, and no thread in the sandbox may open any
/// (glibc 2.36, malloc/arena.c, `arena_get2`, and sysdeps/unix/sysv/linux/malloc-sysdep.h). Where it
/// would count, nothing is allocated.
#[cfg(target_env = "gnu")]
fn share_one_heap() {
    // SAFETY: takes numbers, before there is a second thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

#[cfg(not(target_env = "gnu"))]
fn share_one_heap() {}

/// Called by the C library, which also ends the process with what it returns.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, allow(dead_code, reason = "the test harness has a main of its own"))]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    began();
    // A reader that is gone is an error of a write, not a death.
    // SAFETY: SIG_IGN is no handler that could do something unsafe.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    // So is a file that must not grow any more (setrlimit(2), RLIMIT_FSIZE).
    // SAFETY: as above.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    share_one_heap();
    crate::allocator::begin();
    if let Err(error) = fill_standard_streams() {
        crate::complain(&format!("open /dev/null for a closed standard stream: {error}"));
        return status::FAILURE.into();
    }
    // SAFETY: the C library passes `argc` pointers, which stay.
    let args = unsafe { std::slice::from_raw_parts(argv, argc as usize) };
    let args: Vec<_> = args
        .iter()
        .map(|arg| {
            // SAFETY: each of them points to a string that ends with a zero byte and stays.
            let arg = unsafe { CStr::from_ptr(*arg) };
            OsString::from_vec(arg.to_bytes().to_vec())
        })
        .collect();
    crate::main(&args).into()
}
