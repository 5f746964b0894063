//! Makes a vCPU leave the guest, from another thread.
//!
//! Two things are needed, and neither is enough: a signal ends a `KVM_RUN` that is under way, and
//! `immediate_exit` ends the one that the vCPU is just about to enter (KVM API, "The kvm_run
//! structure"). Set first, then signal: no moment is left in which both are missed.

use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};

use anyhow::{Context, Result};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::sys;

/// The way to kick one vCPU.
pub struct Kick {
    /// `immediate_exit` in the vCPU's `kvm_run` mapping.
    immediate_exit: *const AtomicU8,
    /// The vCPU's thread, once it runs; zero before.
    thread: AtomicI32,
}

// SAFETY: the pointer is only used for atomic stores, and whoever makes a `Kick` promises that it
// stays valid (see `Kick::new`).
unsafe impl Send for Kick {}
// SAFETY: as above; the other field is an atomic.
unsafe impl Sync for Kick {}

impl Kick {
    /// A kick through `immediate_exit`.
    ///
    /// # Safety
    ///
    /// `immediate_exit` must stay valid for as long as the `Kick` is used.
    pub unsafe fn new(immediate_exit: *mut u8) -> Self {
        Self { immediate_exit: immediate_exit.cast(), thread: AtomicI32::new(0) }
    }

    /// Says that the calling thread is the one that runs the vCPU.
    pub fn enter(&self) {
        self.thread.store(sys::thread_id(), Ordering::Release);
    }

    /// Makes the vCPU leave the guest, and any system call that waits. To be repeated until its
    /// thread has noticed: a signal that comes just before such a call is lost.
    pub fn kick(&self) {
        self.hold_off();
        self.nudge();
    }

    /// Makes the vCPU leave the guest if it is there, and enter it again. To be repeated if it matters.
    pub fn nudge(&self) {
        let thread = self.thread.load(Ordering::Acquire);
        if thread != 0 {
            sys::signal_thread(thread, SIGRTMIN());
        }
    }

    /// Has the vCPU's next entry of the guest end at once. All that a signal handler of its own thread has
    /// to do.
    pub fn hold_off(&self) {
        // SAFETY: valid by the promise of `new`, and only ever accessed atomically here.
        let immediate_exit = unsafe { &*self.immediate_exit };
        immediate_exit.store(1, Ordering::Release);
    }

    /// Lets the vCPU, which has noticed the kick, enter the guest again.
    pub fn settle(&self) {
        // SAFETY: valid by the promise of `new`, and only ever accessed atomically here.
        let immediate_exit = unsafe { &*self.immediate_exit };
        immediate_exit.store(0, Ordering::Release);
    }
}

/// Installs the handler of the signal that [`Kick::kick`] sends: it does nothing but interrupt.
pub fn install_handler() -> Result<()> {
    extern "C" fn interrupt(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), interrupt).context("install the kick signal's handler")
}
