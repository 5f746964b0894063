//! Runs a machine: starts its vCPU threads, then waits for whatever ends it.
//!
//! The main thread only ever waits in `poll`: for signals, the clock, output that no line end has
//! pushed out, and the news that a vCPU has stopped. The first reason to stop wins; then every vCPU
//! is kicked until its thread is gone.

mod wait;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::Context;
use vmm_sys_util::eventfd::EventFd;

use self::wait::{Stall, Wait};
use crate::arch::Vcpu;
use crate::debug::Trap;
use crate::exit::{Crash, Stop};
use crate::gdb::Session;
use crate::journal::{Counts, Journal};
use crate::kick::Kick;
use crate::machine::Machine;
use crate::outcome::{CpuReport, Outcome};
use crate::run::{Hold, Run, Shared, run_until_stop};
use crate::sandbox::{Crew, Kind, refused};
use crate::sys;
use crate::trace::Summary;

/// Signals that end a guest.
const ENDING_SIGNALS: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// Signals that stop the process and let it go on: the terminal must be as it was in between.
const PAUSING_SIGNALS: [libc::c_int; 2] = [libc::SIGTSTP, libc::SIGCONT];

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
        let shared = Shared {
            bus: &self.bus,
            stopping: &self.stopping,
            trace: self.trace.as_ref(),
            exit_limit: self.exit_limit.take(),
            progress: self.no_progress.is_some().then_some(&progress),
        };
        let crew = Crew::new(self.wake.clone());
        let prepared = self.sandbox.as_ref().map_or(Ok(false), |own| own.prepare(&self.wake));
        let heirs = prepared.unwrap_or_else(|error| {
            ending.end(Stop::Failed(error.context("make the sandbox")), None);
            false
        });
        let enter = |kind, crew| {
            let sandbox = self.sandbox.as_ref();
            let entered = sandbox.map_or(Ok(()), |sandbox| sandbox.enter(kind, heirs, crew));
            entered.map_err(|error| ending.end(Stop::Failed(error), None)).is_ok()
        };
        let mut journals = vec![Journal::new(self.bus.len()); self.vcpus.len()];
        let kicks: Vec<Kick> = self.vcpus.iter_mut().map(Vcpu::kick).collect();
        let running = AtomicUsize::new(0);
        let debugger = self.debugger.take();
        let (held, seats) =
            debugger.as_ref().map(|debugger| debugger.crew(&kicks, &self.stopping)).unzip();
        let mut seats = seats.unwrap_or_default().into_iter();
        thread::scope(|scope| {
            for (index, ((vcpu, journal), kick)) in
                self.vcpus.iter_mut().zip(&mut journals).zip(&kicks).enumerate()
            {
                running.fetch_add(1, Ordering::AcqRel);
                let (ending, shared, running, wake) = (&ending, &shared, &running, &self.wake);
                let (enter, crew) = (&enter, &crew);
                let seat = seats.next();
                let body = move || {
                    kick.enter();
                    let hold = |vcpu: &mut Vcpu, trap: Option<Trap>| {
                        if let Some(seat) = &seat {
                            seat.hold(vcpu, trap);
                        }
                    };
                    let hold: Hold<'_, Vcpu> = seat.is_some().then_some(&hold);
                    if enter(Kind::Vcpu, Some(crew))
                        && let Some(stop) = run_until_stop(vcpu, index, shared, journal, hold)
                    {
                        ending.end(stop, Some(index));
                    }
                    // Only then, so that the event loop never sees all threads gone for no reason.
                    running.fetch_sub(1, Ordering::AcqRel);
                    // A full counter (EAGAIN) is readable too.
                    let _ = wake.write(1);
                };
                let builder = thread::Builder::new().name(format!("vcpu {index}"));
                if let Err(error) = builder.spawn_scoped(scope, body) {
                    running.fetch_sub(1, Ordering::AcqRel);
                    let error = anyhow::Error::new(error);
                    ending.end(Stop::Failed(error.context(format!("start vCPU {index}"))), None);
                    break;
                }
            }
            if let Some((debugger, held)) = debugger.as_ref().zip(held) {
                let session = Session::new(debugger, held, &self.ram, &ending, &self.stopped);
                let builder = thread::Builder::new().name("gdb".into());
                let enter = &enter;
                let body = move || {
                    if enter(Kind::Debugger, None) {
                        session.run();
                    }
                };
                if let Err(error) = builder.spawn_scoped(scope, body) {
                    let error = anyhow::Error::new(error).context("start the debugger");
                    ending.end(Stop::Failed(error), None);
                }
            }
            // Those that were just started must not inherit what is left to this one.
            enter(Kind::EventLoop, None);
            let deadline = self.timeout.map(|timeout| (began + timeout, timeout));
            let stall = self.no_progress.map(|limit| Stall::new(limit, &progress, began));
            let wait = Wait {
                ending: &ending,
                kicks: &kicks,
                running: &running,
                crew: &crew,
                output: &self.output,
                wake: &self.wake,
                debugger: debugger.as_ref(),
                screen: self.screen.as_deref(),
                balloon: self.balloon.as_deref(),
            };
            wait.run(signals.as_ref(), deadline, stall);
            crew.close();
        });
        refused::forget();
        // It borrows what is taken apart below.
        drop(seats);
        self.input.stop();
        let run_time = began.elapsed();

        let mut exits = Counts::new(self.bus.len());
        journals.iter().for_each(|journal| exits.add(&journal.counts));
        let first = ending.first.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (mut stop, vcpu) =
            first.expect("the threads end only when something ended the machine");
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
            true => self.cpu_reports(&stop, vcpu, &journals),
            false => Vec::new(),
        };
        let last_line = self.output.last_line();
        let input = self.input.clone();
        Outcome { stop, vcpu, exits, cpu_exits, timeline, run_time, cpus, last_line, input }
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
