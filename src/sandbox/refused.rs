//! What happens when a thread asks for a system call that is not on its list: the kernel sends it
//! SIGSYS instead, whose handler says which call that was, once, and has the event loop end the guest.
//! The call itself fails with EPERM.

use std::cell::Cell;
use std::fmt::{self, Write};
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

use syscalls::Sysno;
use vmm_sys_util::signal::register_signal_handler;

use super::Kind;
use crate::arch;
use crate::exit::Stop;

/// Where `si_syscall` lies in a `siginfo_t` (linux asm-generic/siginfo.h, 64 bits).
const NUMBER_AT: usize = 24;

/// `si_code` of a SIGSYS that a filter has sent (asm-generic/siginfo.h, SYS_SECCOMP).
const BY_A_FILTER: libc::c_int = 1;

/// Bytes of a line that a handler can write. Our choice: ours are shorter.
const LINE_LEN: usize = 240;

/// The descriptor that wakes the event loop.
static WAKE: AtomicI32 = AtomicI32::new(-1);
/// Somebody has been told.
static TOLD: AtomicBool = AtomicBool::new(false);
/// The first call that was refused.
static NUMBER: AtomicI64 = AtomicI64::new(-1);
/// Why a thread could not be confined.
static FAILURE: Mutex<Option<anyhow::Error>> = Mutex::new(None);

thread_local! {
    /// What this thread is for, once it is confined.
    static KIND: Cell<Option<Kind>> = const { Cell::new(None) };
}

/// What this thread is for from now on.
pub fn set_kind(kind: Kind) {
    KIND.set(Some(kind));
}

/// What this thread is for, if it is confined.
pub fn kind() -> Option<Kind> {
    KIND.get()
}

/// Installs the handler. `wake` is written to when a call was refused.
pub fn catch(wake: RawFd) -> io::Result<()> {
    if WAKE.swap(wake, Ordering::AcqRel) == -1 {
        register_signal_handler(libc::SIGSYS, refuse)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    }
    Ok(())
}

/// Why the guest is to end, if it is.
pub fn reason() -> Option<Stop> {
    let failure = FAILURE.lock().unwrap_or_else(PoisonError::into_inner).take();
    let number = NUMBER.load(Ordering::Acquire);
    let refused = || (number >= 0).then(|| Stop::Refused(Call(number).to_string()));
    failure.map(Stop::Failed).or_else(refused)
}

/// Has the guest end, as a thread could not be confined.
pub fn fail(error: anyhow::Error) {
    FAILURE.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    wake();
}

/// The event loop is over: there is nobody to wake.
pub fn forget() {
    WAKE.store(-1, Ordering::Release);
}

fn wake() {
    let one = 1u64.to_ne_bytes();
    // SAFETY: the pointer and the length are those of one array.
    unsafe { libc::write(WAKE.load(Ordering::Acquire), one.as_ptr().cast(), one.len()) };
}

/// A system call by its name and number.
struct Call(i64);

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match usize::try_from(self.0).ok().and_then(Sysno::new) {
            Some(call) => write!(f, "{} (number {})", call.name(), self.0),
            None => write!(f, "number {}", self.0),
        }
    }
}

/// A line that needs no heap.
struct Line {
    bytes: [u8; LINE_LEN],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.len..];
        let count = room.len().min(text.len());
        room[..count].copy_from_slice(&text.as_bytes()[..count]);
        self.len += count;
        Ok(())
    }
}

/// The handler of SIGSYS. It takes no lock and allocates nothing.
extern "C" fn refuse(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a handler that asks for it a `siginfo_t`.
    if unsafe { (*info).si_code } != BY_A_FILTER {
        return;
    }
    let number = info.wrapping_byte_add(NUMBER_AT).cast::<i32>();
    // SAFETY: as above; of a SIGSYS it has this member there, aligned.
    let number = unsafe { number.read() };
    if !TOLD.swap(true, Ordering::AcqRel) {
        NUMBER.store(number.into(), Ordering::Release);
        let kind = KIND.get().map_or("", Kind::name);
        let mut line = Line { bytes: [0; LINE_LEN], len: 0 };
        let call = Call(number.into());
        // It takes what fits.
        let _ = writeln!(
            line,
            "bivisor: the sandbox refused the {kind} thread the system call {call}: a fault of bivisor, or \
             an attack by its guest (--sandbox log lets it through)"
        );
        // SAFETY: the pointer and the length are those of one array's part.
        unsafe { libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len) };
        wake();
    }
    let result = context.wrapping_byte_add(arch::SIGNAL_RESULT).cast::<i64>();
    // SAFETY: the kernel passes a handler that asks for it the thread's context, which has the register
    // for a call's result there, aligned, and is loaded again when the handler returns.
    unsafe { result.write(-i64::from(libc::EPERM)) };
}
