//! The vocabulary that the run loop speaks: what a vCPU wants when it leaves the guest, and why
//! a machine stops.
//!
//! Owns the words only. Decoding KVM's exits into them is each architecture's; acting on them is
//! [`crate::run`]'s. No member here exists on one architecture only: a space may be empty, and a
//! crash carries its reason as text.

use std::fmt;
use std::time::Duration;

use crate::debug::Trap;

/// Which of KVM's two device address spaces an access names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// Guest-physical memory that no memory slot backs.
    Memory,
    /// Port space; empty on machines that have none.
    Port,
}

/// A device address: the space, and the address in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BusAddr {
    /// The space.
    pub space: Space,
    /// The address in it.
    pub addr: u64,
}

impl BusAddr {
    /// The memory address `addr`.
    pub const fn memory(addr: u64) -> Self {
        Self { space: Space::Memory, addr }
    }

    /// The port `addr`.
    pub const fn port(addr: u64) -> Self {
        Self { space: Space::Port, addr }
    }
}

/// As the command line writes it: `port:0x10`, `mmio:0x8000`.
impl fmt::Display for BusAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = match self.space {
            Space::Memory => "mmio",
            Space::Port => "port",
        };
        write!(f, "{space}:{:#x}", self.addr)
    }
}

/// One exit, already decoded.
#[derive(Debug)]
pub enum Exit<'a> {
    /// The guest reads: fill `data`, `width` bytes at a time, all from the same address.
    Read {
        /// Where.
        at: BusAddr,
        /// Bytes of one access: 1, 2, 4 or 8.
        width: usize,
        /// Filled before the next run; its length is a multiple of `width` (string I/O).
        data: &'a mut [u8],
    },
    /// The guest writes `data`, `width` bytes at a time, all to the same address.
    Write {
        /// Where.
        at: BusAddr,
        /// Bytes of one access: 1, 2, 4 or 8.
        width: usize,
        /// What was written; its length is a multiple of `width` (string I/O).
        data: &'a [u8],
    },
    /// The machine is done.
    Stop(Stop),
    /// A signal or a kick arrived: look at the flags and run again.
    Interrupted,
    /// The debugger's.
    Trap(Trap),
}

/// Why a machine stopped.
#[derive(Debug)]
pub enum Stop {
    /// The guest switched the machine off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest halted with nothing that could wake it: as good as switched off.
    Halt,
    /// The guest wrote this value to the exit register.
    Exit(u64),
    /// The guest reported that it panicked.
    Panic,
    /// The guest can't go on.
    Crash(Crash),
    /// The guest made as many exits as it was allowed.
    ExitLimit(u64),
    /// The guest's time is over.
    TimeOut(Duration),
    /// The guest made no exit and printed nothing for so long.
    NoProgress(Duration),
    /// The console showed a text that was waited for.
    Expected,
    /// The console showed this text, which must not come.
    FailOn(String),
    /// The guest ended well, which is this word, but never showed a text that was waited for.
    Unshown(&'static str),
    /// This signal asked for the end.
    Signal(i32),
    /// A thread of ours asked for this system call, which the sandbox refuses. The user has been told.
    Refused(String),
    /// The host failed, not the guest: output that could not be written, an ioctl refused.
    Failed(anyhow::Error),
}

/// How a guest crashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crash {
    /// In words: `triple fault`, `KVM could not emulate an instruction`.
    pub reason: String,
    /// The instruction's bytes, where KVM tells them.
    pub code: Vec<u8>,
}

impl Crash {
    /// A crash whose instruction bytes KVM does not tell.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), code: Vec::new() }
    }
}

/// What a vCPU looks like from outside: for verdicts, never for decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuState {
    /// The program counter as the guest sees it: a virtual address.
    pub pc: u64,
    /// The guest-physical address of `pc`, where it can be known.
    pub pc_guest_addr: Option<u64>,
    /// The mode in words: `real mode`, `powered off`.
    pub mode: String,
    /// Registers in the order in which people read them.
    pub registers: Vec<(&'static str, u64)>,
}
