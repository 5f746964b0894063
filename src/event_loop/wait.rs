//! The event loop proper: waits until every vCPU's thread is gone, and looks after what happens meanwhile.

use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::{Ending, PAUSING_SIGNALS};
use crate::coalesced::{Coalesced, LOOK};
use crate::console::{Output, PATIENCE};
use crate::devices::balloon::Figures;
use crate::devices::console::Screen;
use crate::exit::Stop;
use crate::gdb::Debugger;
use crate::kick::Kick;
use crate::sandbox::{Crew, refused};
use crate::{own_code, sys, terminal};

/// How long a kicked vCPU has before it is kicked again: a kick that came just before it went to
/// sleep in a write to the host was lost.
const KICK_AGAIN: Duration = Duration::from_millis(5);

/// How long after its start a guest is one that stays. Our choice: beyond the life of the smallest.
const SETTLING: Duration = Duration::from_millis(100);

/// Notices when the guest makes no exits. Its printing takes some, so it counts too.
pub struct Stall<'a> {
    limit: Duration,
    progress: &'a AtomicU64,
    /// The count when it last changed, and when that was seen.
    seen: (u64, Instant),
}

impl<'a> Stall<'a> {
    pub fn new(limit: Duration, progress: &'a AtomicU64, now: Instant) -> Self {
        Self { limit, progress, seen: (0, now) }
    }

    /// When to look again. Our choice: a tenth of the limit late at most, ten times a second at
    /// most, and never beyond the limit.
    fn next_look(&self, now: Instant) -> Instant {
        let step = (self.limit / 10).max(Duration::from_millis(100)).min(self.limit);
        (now + step).min(self.seen.1 + self.limit)
    }

    /// True if there has been no progress for too long.
    fn is_over(&mut self, now: Instant) -> bool {
        let count = self.progress.load(Ordering::Relaxed);
        if count != self.seen.0 {
            self.seen = (count, now);
        }
        now.saturating_duration_since(self.seen.1) >= self.limit
    }
}

/// What the event loop looks after.
pub struct Wait<'a> {
    pub ending: &'a Ending<'a>,
    pub kicks: &'a [Kick],
    /// vCPU threads that are not gone yet.
    pub running: &'a AtomicUsize,
    /// Starts threads for others.
    pub crew: &'a Crew,
    pub output: &'a Output,
    pub wake: &'a EventFd,
    pub debugger: Option<&'a Debugger>,
    pub screen: Option<&'a Screen>,
    pub balloon: Option<&'a Figures>,
    pub coalesced: Option<&'a Coalesced<'a>>,
}

impl Wait<'_> {
    /// Waits until every vCPU's thread is gone and the output is written. A signal or the deadline
    /// also ends the waiting for a reader that does not read.
    pub fn run(
        &self,
        signals: Option<&OwnedFd>,
        deadline: Option<(Instant, Duration)>,
        mut stall: Option<Stall<'_>>,
    ) {
        // When output that nothing has pushed out is to be written.
        // What a guest has printed alone has waited as long.
        let mut flush_at = self.output.waiting().map(|_| Instant::now());
        let mut impatient = false;
        let mut settled_at = Some(Instant::now() + SETTLING);
        let mut look_at = None;
        loop {
            let now = Instant::now();
            let alive = self.running.load(Ordering::Acquire) > 0;
            let over = self.ending.is_over();
            if over && alive {
                self.kicks.iter().for_each(Kick::kick);
            }
            let waiting = self.output.waiting();
            flush_at = waiting.and(flush_at.or(Some(now + PATIENCE)));
            let due = self.output.hurries() || flush_at.is_some_and(|at| at <= now);
            let flush = waiting.filter(|_| !alive || due);
            if !alive && waiting.is_none() {
                return;
            }
            let coalesced = self.coalesced.filter(|coalesced| coalesced.is_on());
            look_at = coalesced.and(look_at.or(Some(now + LOOK)));

            // poll(2) passes over negative descriptors.
            let entry = |fd: Option<RawFd>, events| libc::pollfd {
                fd: fd.unwrap_or(-1),
                events,
                revents: 0,
            };
            let mut fds = [
                entry(Some(self.wake.as_raw_fd()), libc::POLLIN),
                entry(signals.map(OwnedFd::as_raw_fd), libc::POLLIN),
                entry(flush.map(|fd| fd.as_raw_fd()), libc::POLLOUT),
            ];
            let until = [
                deadline.filter(|_| !over || !alive).map(|(at, _)| at),
                stall.as_ref().filter(|_| !over).map(|stall| stall.next_look(now)),
                flush_at.filter(|_| flush.is_none()),
                (over && alive).then_some(now + KICK_AGAIN),
                (impatient && !alive).then_some(now),
                settled_at.filter(|_| !over),
                look_at.filter(|_| !over),
            ];
            let timeout =
                until.into_iter().flatten().min().map(|at| at.saturating_duration_since(now));
            if let Err(error) = sys::poll(&mut fds, timeout) {
                let error = anyhow::Error::new(error).context("wait for events");
                self.ending.end(Stop::Failed(error), None);
                thread::sleep(KICK_AGAIN);
            }

            if settled_at.take_if(|at| *at <= Instant::now()).is_some() {
                own_code::give_back_stack();
                own_code::give_back();
            }
            if let Some(coalesced) = coalesced
                && look_at.take_if(|at| *at <= Instant::now()).is_some()
            {
                coalesced.look(&self.kicks[0]);
            }
            let [woken, signalled, writable] = fds.map(|fd| fd.revents != 0);
            if woken {
                let _ = self.wake.read();
                self.crew.serve();
                refused::reason().into_iter().for_each(|stop| self.ending.end(stop, None));
            }
            if let Some(number) = signals.filter(|_| signalled).and_then(sys::next_signal) {
                match number {
                    libc::SIGTSTP => terminal::suspend(),
                    libc::SIGCONT => terminal::resume(),
                    libc::SIGUSR1 => self.balloon.into_iter().for_each(Figures::ask),
                    libc::SIGWINCH => self.screen.into_iter().for_each(Screen::look),
                    _ => {
                        impatient = true;
                        self.ending.end(Stop::Signal(number), None);
                    }
                }
                if let Some(stall) = stall.as_mut().filter(|_| PAUSING_SIGNALS.contains(&number)) {
                    // Time that the guest did not have.
                    stall.seen.1 = Instant::now();
                }
            }
            if let Some(stall) = stall.as_mut()
                && self.debugger.is_some_and(Debugger::holds)
            {
                stall.seen.1 = Instant::now();
            }
            if let Some(stall) = stall.as_mut().filter(|_| !over)
                && stall.is_over(Instant::now())
            {
                impatient = true;
                self.ending.end(Stop::NoProgress(stall.limit), None);
            }
            if let Some((_, limit)) = deadline.filter(|(at, _)| *at <= Instant::now()) {
                impatient = true;
                self.ending.end(Stop::TimeOut(limit), None);
            }
            if writable {
                if let ControlFlow::Break(stop) = self.output.flush_ready() {
                    self.ending.end(stop, None);
                }
                flush_at = None;
            } else if impatient && !alive {
                return;
            }
        }
    }
}
