//! A debugger at the guest: gdb's remote protocol, spoken by the `gdbstub` crate.
//!
//! - [`listen`]: where gdb connects
//! - [`hold`]: how vCPUs wait while the debugger works with them
//! - [`patches`]: breakpoints in the guest's code
//! - [`target`]: what gdb asks for, done
//! - [`session`]: the thread that serves it
//! - `player`: a gdb that says anything, for tests
//!
//! A vCPU is a thread of gdb's, number n being thread n + 1. All stop together and go on together.
//! Each vCPU's own thread carries out what is asked of it, so nothing here shares a vCPU. Without a
//! debugger none of this costs a machine anything: the run loop comes here only when the guest is
//! left for no device.

mod hold;
mod listen;
mod patches;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod player;
mod session;
mod target;

use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use vmm_sys_util::eventfd::EventFd;

use crate::debug::Slots;
use crate::kick::Kick;
use hold::{Crew, Flags, Seat};
pub use listen::{Address, Listener};
pub(crate) use session::Session;

/// What a machine that is debugged has for it.
pub(crate) struct Debugger {
    listener: Listener,
    slots: Slots,
    /// vCPUs wake the debugger with it.
    bell: EventFd,
    flags: Flags,
}

impl Debugger {
    /// A debugger that will connect to `listener` and can have `slots`.
    pub(crate) fn new(listener: Listener, slots: Slots) -> Result<Self> {
        let bell = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let bell = bell.context("create an eventfd")?;
        Ok(Self { listener, slots, bell, flags: Flags::new() })
    }

    /// The vCPUs that these are the kicks of, for the debugger, and a seat for each. `stopping` is
    /// set once the machine ends.
    pub(crate) fn crew<'a>(
        &'a self,
        kicks: &'a [Kick],
        stopping: &'a AtomicBool,
    ) -> (Crew<'a>, Vec<Seat<'a>>) {
        Crew::new(kicks, &self.bell, &self.flags, stopping)
    }

    /// True while the guest stands still for its debugger.
    pub(crate) fn holds(&self) -> bool {
        self.flags.held()
    }
}
