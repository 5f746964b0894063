//! Runs a machine: starts its vCPU threads, then waits for whatever ends it.
//!
//! The event loop only ever waits in `poll`: for signals, the clock, output that no line end has
//! pushed out, and the news that a vCPU has stopped. The first reason to stop wins; then every vCPU
//! is kicked until its thread is gone.
//!
//! It has the main thread, and each vCPU another. But a plain guest's only vCPU has the main thread, and
//! is alone at first: a guest that is done within a few milliseconds never needs an event loop, which
//! else gets a thread then ([`crate::bell`]).

mod wait;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use vmm_sys_util::eventfd::EventFd;

use self::wait::{Stall, Wait};
use crate::arch::{Vcpu, layout};
use crate::bell::Bell;
use crate::coalesced::Coalesced;
use crate::console::PATIENCE;
use crate::debug::Trap;
use crate::exit::{Crash, Stop};
use crate::gdb::Session;
use crate::journal::{Counts, Journal};
use crate::kick::Kick;
use crate::machine::Machine;
use crate::outcome::{CpuReport, Outcome};
use crate::run::{Hold, Run, Shared, run_until_stop};
use crate::sandbox::{Crew, Kind, Sandbox, refused};
use crate::trace::Summary;
use crate::{own_code, sys};

/// Signals that end a guest.
const ENDING_SIGNALS: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// Signals that stop the process and let it go on: the terminal must be as it was in between.
const PAUSING_SIGNALS: [libc::c_int; 2] = [libc::SIGTSTP, libc::SIGCONT];

/// Bytes of a thread's stack. Our choice: many times what is used, and less than a huge page, which a host
/// that gives them to everybody would else give to each stack.
const STACK: usize = 512 << 10;

/// Bytes at the pc that a verdict shows: the longest instruction that there is, and one more.
const CODE_LEN: usize = 16;

/// Who ended the machine and why; the first one counts.
pub(crate) struct Ending<'a> {
    /// The guest must not end by itself.
    expects: bool,
    first: Mutex<Option<(Stop, Option<usize>)>>,
    stopping: &'a AtomicBool,
    stopped: &'a EventFd,
}

impl<'a> Ending<'a> {
    /// Nothing has ended the machine yet.
    pub(crate) fn new(expects: bool, stopping: &'a AtomicBool, stopped: &'a EventFd) -> Self {
        Self { expects, first: Mutex::new(None), stopping, stopped }
    }

    /// Ends the machine, unless something else has.
    pub(crate) fn end(&self, stop: Stop, vcpu: Option<usize>) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            let unshown = self.expects && stop.status() == 0 && !matches!(stop, Stop::Expected);
            *first = Some((if unshown { Stop::Unshown(stop.word()) } else { stop }, vcpu));
            self.stopping.store(true, Ordering::Release);
            // A full counter (EAGAIN) is readable too.
            let _ = self.stopped.write(1);
        }
    }

    fn is_over(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// What failed, if that is the end.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn failure(&self) -> Option<String> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        match first.as_ref() {
            Some((Stop::Failed(error), _)) => Some(format!("{error:#}")),
            _ => None,
        }
    }

    /// The process status that the end gives, once there is one.
    pub(crate) fn status(&self) -> Option<u8> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.as_ref().map(|(stop, _)| stop.status())
    }
}

impl Machine {
    /// Runs the machine to its end.
    pub fn run(mut self) -> Outcome {
        let began = Instant::now();
        let mut caught = ENDING_SIGNALS.to_vec();
        if self.input.is_standard() {
            caught.extend(PAUSING_SIGNALS);
        }
        caught.extend(self.screen.iter().map(|_| libc::SIGWINCH));
        caught.extend(self.balloon.iter().map(|_| libc::SIGUSR1));
        let signals = self.catch_signals.then(|| sys::signal_fd(&caught)).transpose();
        let ending = Ending::new(self.expects, &self.stopping, &self.stopped);
        let signals = signals.context("watch for signals").unwrap_or_else(|error| {
            ending.end(Stop::Failed(error), None);
            None
        });
        let progress = AtomicU64::new(0);
        let kicks: Vec<Kick> = self.vcpus.iter_mut().map(Vcpu::kick).collect();
        let coalesced = self.may_coalesce().then(|| {
            let ring = self.vcpus[0].ring(sys::page_size() as usize);
            Coalesced::new(&self.vm, ring, layout::CONSOLE, &self.wake)
        });
        let shared = Shared {
            bus: &self.bus,
            stopping: &self.stopping,
            trace: self.trace.as_ref(),
            exit_limit: self.exit_limit.take(),
            progress: self.no_progress.is_some().then_some(&progress),
            coalesced: coalesced.as_ref(),
        };
        let crew = Crew::new(self.wake.clone());
        let alone = self.may_be_alone();
        let prepare = |own: &Arc<Sandbox>| own.prepare(&self.wake, alone);
        let heirs = self.sandbox.as_ref().map_or(Ok(false), prepare).unwrap_or_else(|error| {
            ending.end(Stop::Failed(error.context("make the sandbox")), None);
            false
        });
        let enter = |kind, crew| {
            let sandbox = self.sandbox.as_ref();
            let entered = sandbox.map_or(Ok(()), |sandbox| sandbox.enter(kind, heirs, crew));
            entered.map_err(|error| ending.end(Stop::Failed(error), None)).is_ok()
        };
        let mut journals = vec![Journal::new(self.bus.len()); self.vcpus.len()];
        let running = AtomicUsize::new(self.vcpus.len());
        let run_vcpu = |index, vcpu: &mut Vcpu, journal: &mut Journal, hold: Hold<'_, Vcpu>| {
            let stop = run_until_stop(vcpu, index, &shared, journal, hold);
            // A thread goes on when it is refused a system call, and its guest may end.
            refused::reason().into_iter().for_each(|stop| ending.end(stop, None));
            if let Some(stop) = stop {
                ending.end(stop, Some(index));
            }
        };
        let leave = || {
            // Only then, so that the event loop never sees all threads gone for no reason.
            running.fetch_sub(1, Ordering::AcqRel);
            // A full counter (EAGAIN) is readable too.
            let _ = self.wake.write(1);
        };
        let debugger = self.debugger.take().filter(|_| crate::FULL);
        let wait = Wait {
            ending: &ending,
            kicks: &kicks,
            running: &running,
            crew: &crew,
            output: &self.output,
            wake: &self.wake,
            debugger: debugger.as_ref(),
            screen: self.screen.as_deref().filter(|_| crate::FULL),
            balloon: self.balloon.as_deref().filter(|_| crate::FULL),
            coalesced: coalesced.as_ref(),
        };
        let look_after = || {
            let deadline = self.timeout.map(|timeout| (began + timeout, timeout));
            let stall = self.no_progress.map(|limit| Stall::new(limit, &progress, began));
            wait.run(signals.as_ref(), deadline, stall);
            crew.close();
        };
        let builder = |name: String| thread::Builder::new().name(name).stack_size(STACK);
        let unless_failed = |what: String, error: Option<io::Error>| {
            let failed =
                error.map(|error| anyhow::Error::new(error).context(format!("start {what}")));
            failed.map(|error| ending.end(Stop::Failed(error), None)).is_none()
        };
        if alone {
            kicks[0].enter();
            let time = self.timeout.map_or(PATIENCE, |timeout| timeout.min(PATIENCE));
            match Bell::set(&kicks[0], time) {
                Ok(_bell) if enter(Kind::Alone, None) => {
                    run_vcpu(0, &mut self.vcpus[0], &mut journals[0], None);
                }
                Ok(_) => {}
                Err(error) => {
                    let error = anyhow::Error::new(error).context("set a timer");
                    ending.end(Stop::Failed(error), None);
                }
            }
            if ending.is_over() {
                leave();
                look_after();
            } else {
                thread::scope(|scope| {
                    let body = || {
                        enter(Kind::EventLoop, None);
                        look_after();
                    };
                    let spawned = builder("event loop".into()).spawn_scoped(scope, body);
                    let is_looked_after = unless_failed("the event loop".into(), spawned.err());
                    if is_looked_after {
                        own_code::give_back_stack();
                        run_vcpu(0, &mut self.vcpus[0], &mut journals[0], None);
                    }
                    leave();
                    if !is_looked_after {
                        look_after();
                    }
                });
            }
        } else {
            let (held, seats) =
                debugger.as_ref().map(|debugger| debugger.crew(&kicks, &self.stopping)).unzip();
            let mut seats = seats.unwrap_or_default().into_iter();
            thread::scope(|scope| {
                for (index, ((vcpu, journal), kick)) in
                    self.vcpus.iter_mut().zip(&mut journals).zip(&kicks).enumerate()
                {
                    let seat = seats.next();
                    let (crew, enter, run_vcpu, leave) = (&crew, &enter, &run_vcpu, &leave);
                    let body = move || {
                        kick.enter();
                        let hold = |vcpu: &mut Vcpu, trap: Option<Trap>| {
                            if let Some(seat) = &seat {
                                seat.hold(vcpu, trap);
                            }
                        };
                        if enter(Kind::Vcpu, Some(crew)) {
                            run_vcpu(index, vcpu, journal, seat.is_some().then_some(&hold));
                        }
                        leave();
                    };
                    let spawned = builder(format!("vcpu {index}")).spawn_scoped(scope, body);
                    if !unless_failed(format!("vCPU {index}"), spawned.err()) {
                        // Nor are those behind it.
                        running.fetch_sub(kicks.len() - index, Ordering::AcqRel);
                        break;
                    }
                }
                if let Some((debugger, held)) = debugger.as_ref().zip(held) {
                    let session = Session::new(debugger, held, &self.ram, &ending, &self.stopped);
                    let body = || {
                        if enter(Kind::Debugger, None) {
                            session.run();
                        }
                    };
                    let spawned = builder("gdb".into()).spawn_scoped(scope, body);
                    unless_failed("the debugger".into(), spawned.err());
                }
                // Those that were just started must not inherit what is left to this one.
                enter(Kind::EventLoop, None);
                look_after();
            });
        }
        refused::forget();
        self.input.stop();
        let first = ending.first.into_inner().unwrap_or_else(PoisonError::into_inner);
        let first = first.expect("the threads end only when something ended the machine");
        self.outcome(first, &journals, (began, began.elapsed()))
    }

    /// What became of it: the first reason to stop, with the vCPU whose it was; when it began, and for how
    /// long it ran.
    fn outcome(
        &self,
        (mut stop, vcpu): (Stop, Option<usize>),
        journals: &[Journal],
        (began, run_time): (Instant, Duration),
    ) -> Outcome {
        let mut exits = Counts::new(self.bus.len());
        journals.iter().for_each(|journal| exits.add(&journal.counts));
        let mut timeline = self.timeline.clone();
        self.output.moments().into_iter().for_each(|(name, at)| timeline.seen(name, at));
        timeline.seen("end", began + run_time);
        let cpu_exits: Vec<_> = journals.iter().map(|journal| journal.counts.total()).collect();
        let (counts, bus) = (&exits, &self.bus);
        let summary = Summary { counts, per_cpu: &cpu_exits, bus, timeline: &timeline };
        let written = self.trace.as_ref().map_or(Ok(()), |trace| trace.summary(&summary));
        if let Err(error) = written.context("write the trace")
            && !matches!(stop, Stop::Failed(_))
        {
            stop = Stop::Failed(error);
        }
        if matches!(stop, Stop::Failed(_) | Stop::Crash(_))
            && let Some(loss) = self.ram.loss()
        {
            stop = Stop::Crash(Crash::new(loss));
        }
        let cpus = match stop.shows_cpus() {
            true => self.cpu_reports(&stop, vcpu, journals),
            false => Vec::new(),
        };
        let last_line = self.output.last_line();
        let input = self.input.clone();
        Outcome { stop, vcpu, exits, cpu_exits, timeline, run_time, cpus, last_line, input }
    }

    /// Whether the guest can do without an event loop as long as it is quick: nothing happens beside its
    /// only vCPU.
    fn may_be_alone(&self) -> bool {
        let beside = self.debugger.is_some() || self.trace.is_some() || self.screen.is_some();
        self.is_plain && self.vcpus.len() == 1 && !beside && self.catch_signals
    }

    /// Whether nobody minds when exactly the console's bytes leave the guest.
    fn may_coalesce(&self) -> bool {
        self.trace.is_none() && self.exit_limit.is_none() && self.debugger.is_none()
    }

    /// What every vCPU looks like; one whose state KVM does not tell is left out.
    fn cpu_reports(
        &self,
        stop: &Stop,
        ender: Option<usize>,
        journals: &[Journal],
    ) -> Vec<CpuReport> {
        let told = |index| match stop {
            Stop::Crash(crash) if ender == Some(index) && !crash.code.is_empty() => {
                Some(crash.code.clone())
            }
            _ => None,
        };
        let reports =
            self.vcpus.iter().zip(journals).enumerate().filter_map(|(index, (vcpu, journal))| {
                let state = vcpu.state().ok()?;
                let code = told(index).unwrap_or_else(|| {
                    state.pc_guest_addr.map_or(Vec::new(), |pc| self.ram.peek(pc, CODE_LEN))
                });
                Some(CpuReport { state, code, last: journal.last().collect() })
            });
        reports.collect()
    }
}
