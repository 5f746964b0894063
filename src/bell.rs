//! A bell for a thread that is alone: once it has rung, a vCPU's thread leaves the guest, and gives up
//! what it waits for in a write. A guest that is done before that needs no second thread, which would
//! take a tenth of the time that it is there.
//!
//! One for the process: it is the process's timer that rings (setitimer(2)).

use std::io;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::time::Duration;

use vmm_sys_util::signal::register_signal_handler;

use crate::kick::Kick;

/// It has rung.
static RUNG: AtomicBool = AtomicBool::new(false);
/// Whom it makes leave the guest.
static KICK: AtomicPtr<Kick> = AtomicPtr::new(null_mut());

/// A bell that is to ring, or has rung, until it is dropped.
pub struct Bell<'a> {
    kick: &'a Kick,
}

impl<'a> Bell<'a> {
    /// Rings after `time`, for the vCPU of `kick`, which this thread runs.
    pub fn set(kick: &'a Kick, time: Duration) -> io::Result<Self> {
        KICK.store((&raw const *kick).cast_mut(), Ordering::Release);
        let bell = Self { kick };
        register_signal_handler(libc::SIGALRM, ring)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        let micros = time.as_micros().clamp(1, 999_999);
        let once = libc::itimerval {
            it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
            it_value: libc::timeval { tv_sec: 0, tv_usec: micros as _ },
        };
        // SAFETY: the new value outlives the call, and the old one is not asked for.
        match unsafe { libc::setitimer(libc::ITIMER_REAL, &once, null_mut()) } {
            0 => Ok(bell),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Bell<'_> {
    fn drop(&mut self) {
        // Should it ring from now on, nobody is there.
        KICK.store(null_mut(), Ordering::Release);
        RUNG.store(false, Ordering::Release);
        self.kick.settle();
    }
}

/// Whether it has rung.
pub fn has_rung() -> bool {
    RUNG.load(Ordering::Acquire)
}

/// The handler.
extern "C" fn ring(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: null, or a reference of a bell that is not dropped: that is done by the thread whose
    // signal this is, or once there are others that would not find it.
    if let Some(kick) = unsafe { KICK.load(Ordering::Acquire).as_ref() } {
        RUNG.store(true, Ordering::Release);
        kick.hold_off();
    }
}
