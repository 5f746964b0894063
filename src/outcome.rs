//! How a run ended: what it is called, which process status it gives, and what a verdict needs.

use std::sync::Arc;
use std::time::Duration;

use crate::console::Input;
use crate::exit::{CpuState, Stop};
use crate::journal::{Access, Counts};
use crate::timeline::Timeline;

/// Process statuses that are no status of the guest's own.
pub mod status {
    /// The largest status that a guest can give itself; larger values become it.
    pub const GUEST_MAX: u8 = 119;
    /// The guest asked for a reset, and rebooting was not requested.
    pub const RESET: u8 = 120;
    /// The console showed a text that must not come, or never showed the one that must.
    pub const TEXT: u8 = 121;
    /// The guest reported a panic.
    pub const PANIC: u8 = 122;
    /// The guest crashed.
    pub const CRASH: u8 = 123;
    /// The guest's time, or its number of exits, was over, or it made no progress.
    pub const LIMIT: u8 = 124;
    /// bivisor or the host failed, usage included.
    pub const FAILURE: u8 = 125;
    /// The image can't be run here.
    pub const BAD_IMAGE: u8 = 126;
    /// Ended by signal n: this plus n.
    pub const SIGNAL: u8 = 128;
}

impl Stop {
    /// The cause in one word, as verdicts name it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::PowerOff => "power-off",
            Self::Halt => "halt",
            Self::Exit(_) => "exit",
            Self::Reset => "reset",
            Self::Panic => "panic",
            Self::Crash(_) => "crash",
            Self::TimeOut(_) => "time-out",
            Self::ExitLimit(_) => "exit-limit",
            Self::NoProgress(_) => "no-progress",
            Self::Expected => "expected",
            Self::FailOn(_) => "fail-on",
            Self::Unshown(_) => "unshown",
            Self::Signal(_) => "signal",
            Self::Refused(_) => "sandbox",
            Self::Failed(_) => "failure",
        }
    }

    /// The process status that it gives.
    pub fn status(&self) -> u8 {
        match self {
            Self::PowerOff | Self::Halt | Self::Expected => 0,
            Self::Exit(code) => (*code).min(status::GUEST_MAX.into()) as u8,
            Self::Reset => status::RESET,
            Self::Panic => status::PANIC,
            Self::Crash(_) => status::CRASH,
            Self::TimeOut(_) | Self::ExitLimit(_) | Self::NoProgress(_) => status::LIMIT,
            Self::FailOn(_) | Self::Unshown(_) => status::TEXT,
            Self::Refused(_) | Self::Failed(_) => status::FAILURE,
            // Signal numbers end at 64.
            Self::Signal(number) => status::SIGNAL + (*number as u8 & 0x7f),
        }
    }

    /// True if people will ask where the guest was.
    pub fn shows_cpus(&self) -> bool {
        match self {
            Self::Crash(_) | Self::Panic | Self::FailOn(_) => true,
            Self::TimeOut(_) | Self::ExitLimit(_) | Self::NoProgress(_) => true,
            Self::PowerOff | Self::Halt | Self::Exit(_) | Self::Reset => false,
            Self::Expected | Self::Unshown(_) | Self::Signal(_) => false,
            Self::Refused(_) | Self::Failed(_) => false,
        }
    }

    /// One line for people where the end was not the guest's own wish.
    pub fn explanation(&self) -> Option<String> {
        match self {
            Self::PowerOff | Self::Halt | Self::Exit(_) | Self::Expected | Self::Signal(_) => None,
            Self::Reset => Some("the guest asked for a reset".into()),
            Self::Panic => Some("the guest reported a panic".into()),
            Self::Crash(crash) => Some(format!("the guest crashed: {}", crash.reason)),
            Self::TimeOut(limit) => {
                Some(format!("the guest did not end within {limit:?} (--timeout)"))
            }
            Self::ExitLimit(limit) => {
                Some(format!("the guest did not end within {limit} exits (--max-exits)"))
            }
            Self::NoProgress(time) => Some(format!(
                "the guest neither made an exit nor printed for {time:?} (--no-progress)"
            )),
            Self::FailOn(text) => Some(format!("the console showed {text:?} (--fail-on)")),
            Self::Unshown(end) => Some(format!(
                "the guest ended ({end}) without showing what was waited for (--expect)"
            )),
            Self::Refused(call) => Some(format!("the sandbox refused the system call {call}")),
            Self::Failed(error) => Some(format!("{error:#}")),
        }
    }
}

/// What one vCPU looked like in the end.
#[derive(Clone, Debug)]
pub struct CpuReport {
    /// Its state.
    pub state: CpuState,
    /// Bytes at its pc, as far as they can be read.
    pub code: Vec<u8>,
    /// Its last device accesses, oldest first, each with how often it was made in a row.
    pub last: Vec<(Access, u64)>,
}

/// How a run ended.
pub struct Outcome {
    /// Why.
    pub stop: Stop,
    /// The vCPU that ended it, if one did.
    pub vcpu: Option<usize>,
    /// Exits of all vCPUs.
    pub exits: Counts,
    /// Exits of each vCPU.
    pub cpu_exits: Vec<u64>,
    /// What the time up to the guest's first instruction was spent on, and moments of its life.
    pub timeline: Timeline,
    /// From the guest's first instruction to its end.
    pub run_time: Duration,
    /// Every vCPU, where [`Stop::shows_cpus`].
    pub cpus: Vec<CpuReport>,
    /// The last line that the console showed and that was not blank, where it was watched.
    pub last_line: Option<String>,
    pub(crate) input: Arc<Input>,
}

impl Outcome {
    /// Input that was read for the guest and that it has not taken. Its reading has ended then.
    pub fn unread(&self) -> Vec<u8> {
        self.input.unread()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Crash;

    #[test]
    fn every_cause_has_its_status() {
        for (stop, status) in [
            (Stop::PowerOff, 0),
            (Stop::Halt, 0),
            (Stop::Exit(0), 0),
            (Stop::Exit(119), 119),
            (Stop::Exit(120), 119),
            (Stop::Exit(u64::MAX), 119),
            (Stop::Reset, 120),
            (Stop::Panic, 122),
            (Stop::Crash(Crash::new("x")), 123),
            (Stop::TimeOut(Duration::ZERO), 124),
            (Stop::ExitLimit(1), 124),
            (Stop::Failed(anyhow::anyhow!("x")), 125),
            (Stop::Refused("x".into()), 125),
            (Stop::NoProgress(Duration::ZERO), 124),
            (Stop::Expected, 0),
            (Stop::FailOn("x".into()), 121),
            (Stop::Unshown("halt"), 121),
            (Stop::Signal(2), 130),
            (Stop::Signal(15), 143),
            (Stop::Signal(64), 192),
        ] {
            assert_eq!(stop.status(), status, "{stop:?}");
        }
    }
}
