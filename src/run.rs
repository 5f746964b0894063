//! The run loop of one vCPU: enter the guest, act on its exit, repeat until something ends it.
//!
//! Knows no architecture and no KVM: a vCPU is anything that implements [`Run`], the scripted one
//! of the tests included.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use std::time::Instant;

use anyhow::{Context, Result};

use crate::bell;
use crate::bus::Bus;
use crate::coalesced::Coalesced;
use crate::debug::Trap;
use crate::exit::{BusAddr, CpuState, Exit, Stop};
use crate::journal::{Access, Journal, Kind};
use crate::trace::Trace;

/// What the run loop needs of a vCPU; each architecture's vCPU is one, a script in a test another.
pub trait Run {
    /// Enters the guest until it wants something. An error is the host's; whatever a guest does
    /// is an [`Exit`].
    fn run(&mut self) -> Result<Exit<'_>>;

    /// What the vCPU looks like now; for verdicts.
    fn state(&self) -> Result<CpuState>;
}

/// What all vCPUs of a machine share.
pub struct Shared<'a> {
    /// The devices.
    pub bus: &'a Bus,
    /// Set once something has ended the machine.
    pub stopping: &'a AtomicBool,
    /// Where exits are shown, if anywhere.
    pub trace: Option<&'a Trace>,
    /// Device accesses that the guest may still make, and how many it had.
    pub exit_limit: Option<(AtomicU64, u64)>,
    /// Device accesses so far, where somebody watches for progress.
    pub progress: Option<&'a AtomicU64>,
    /// Writes that don't leave the guest, where there can be some.
    pub coalesced: Option<&'a Coalesced<'a>>,
}

impl Shared<'_> {
    /// Notes and shows one access that has been carried out.
    fn done(
        &self,
        vcpu: usize,
        access: Access,
        index: Option<usize>,
        since: Option<Instant>,
        journal: &mut Journal,
    ) -> ControlFlow<Stop> {
        journal.note(access, index);
        if let Some(trace) = self.trace {
            let name = index.map(|index| self.bus.name(index));
            let written = trace.access(vcpu, &access, name, since);
            if let Err(error) = written.context("write the trace") {
                return ControlFlow::Break(Stop::Failed(error));
            }
        }
        if let Some(progress) = self.progress {
            progress.fetch_add(1, Ordering::Relaxed);
        }
        if self.coalesced.is_some_and(|coalesced| coalesced.see(&access, self.bus)) {
            self.take_coalesced(journal)?;
        }
        if let Some((left, limit)) = &self.exit_limit {
            // The last one that is allowed is carried out and then ends the guest.
            if left.fetch_sub(1, Ordering::Relaxed) <= 1 {
                return ControlFlow::Break(Stop::ExitLimit(*limit));
            }
        }
        ControlFlow::Continue(())
    }

    /// Carries out what the guest had written before it left.
    fn take_coalesced(&self, journal: &mut Journal) -> ControlFlow<Stop> {
        let Some(coalesced) = self.coalesced else { return ControlFlow::Continue(()) };
        let count = coalesced.take(self.bus, journal)?;
        if let Some(progress) = self.progress {
            progress.fetch_add(count as u64, Ordering::Relaxed);
        }
        ControlFlow::Continue(())
    }

    fn write(
        &self,
        vcpu: usize,
        at: BusAddr,
        width: usize,
        data: &[u8],
        journal: &mut Journal,
    ) -> ControlFlow<Stop> {
        let since = self.trace.and_then(Trace::clock);
        let place = self.bus.find(at, width);
        let mut stop = ControlFlow::Continue(());
        if let Some(place) = place {
            for item in data.chunks_exact(width) {
                stop = self.bus.write(place, item);
                if stop.is_break() {
                    break;
                }
            }
        }
        let access = Access::new(Kind::of(at.space, true), at, width, data);
        // The device's own reason to stop comes before a limit's.
        let limit = self.done(vcpu, access, place.map(|place| place.index), since, journal);
        stop?;
        limit
    }

    fn read(
        &self,
        vcpu: usize,
        at: BusAddr,
        width: usize,
        data: &mut [u8],
        journal: &mut Journal,
    ) -> ControlFlow<Stop> {
        let since = self.trace.and_then(Trace::clock);
        let place = self.bus.find(at, width);
        match place {
            Some(place) => data.chunks_exact_mut(width).for_each(|item| self.bus.read(place, item)),
            // Nobody drives the bus.
            None => data.fill(0xff),
        }
        let access = Access::new(Kind::of(at.space, false), at, width, data);
        self.done(vcpu, access, place.map(|place| place.index), since, journal)
    }
}

/// Where a debugger holds a vCPU: called before its first entry and whenever it has left the guest
/// for no device, with the trap if there was one.
pub type Hold<'a, V> = Option<&'a dyn Fn(&mut V, Option<Trap>)>;

/// Runs `vcpu`, number `index`, until it ends the machine (then with its reason), something else
/// does, or the bell rings.
pub fn run_until_stop<V: Run>(
    vcpu: &mut V,
    index: usize,
    shared: &Shared<'_>,
    journal: &mut Journal,
    hold: Hold<'_, V>,
) -> Option<Stop> {
    if let Some(hold) = hold {
        hold(vcpu, None);
    }
    while !shared.stopping.load(Ordering::Acquire) && !bell::has_rung() {
        let exit = vcpu.run();
        let before = shared.take_coalesced(journal);
        let flow = match exit {
            _ if before.is_break() => before,
            Ok(Exit::Write { at, width, data }) => shared.write(index, at, width, data, journal),
            Ok(Exit::Read { at, width, data }) => shared.read(index, at, width, data, journal),
            Ok(left @ (Exit::Interrupted | Exit::Trap(_))) => {
                // The bell is our own doing.
                if !bell::has_rung() {
                    journal.count(Kind::Interrupted);
                }
                let trap = if let Exit::Trap(trap) = left { Some(trap) } else { None };
                drop(left);
                if let Some(hold) = hold {
                    hold(vcpu, trap);
                }
                ControlFlow::Continue(())
            }
            Ok(Exit::Stop(stop)) => {
                journal.count(Kind::Stop);
                ControlFlow::Break(stop)
            }
            Err(error) => ControlFlow::Break(Stop::Failed(error)),
        };
        if let ControlFlow::Break(stop) = flow {
            if let Some(trace) = shared.trace {
                // The stop matters more than a trace that can't be written.
                let _ = trace.event(index, &format!("stop: {}", stop.word()));
            }
            return Some(stop);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::bus::Device;

    /// What one step of a script does; reads leave what they got in the log.
    enum Step {
        Write(BusAddr, usize, &'static [u8]),
        Read(BusAddr, usize, usize),
        Interrupted,
        Trap,
        PowerOff,
        Fail,
    }

    /// A vCPU that plays back exits: no /dev/kvm needed.
    struct Script {
        steps: VecDeque<Step>,
        buffer: Vec<u8>,
        log: Arc<Mutex<Vec<u8>>>,
    }

    impl Run for Script {
        fn run(&mut self) -> Result<Exit<'_>> {
            self.log.lock().unwrap().append(&mut self.buffer);
            Ok(match self.steps.pop_front().expect("a script ends with a stop") {
                Step::Write(at, width, data) => Exit::Write { at, width, data },
                Step::Read(at, width, len) => {
                    self.buffer = vec![0; len];
                    Exit::Read { at, width, data: &mut self.buffer }
                }
                Step::Interrupted => Exit::Interrupted,
                Step::Trap => Exit::Trap(Trap::Step),
                Step::PowerOff => Exit::Stop(Stop::PowerOff),
                Step::Fail => anyhow::bail!("no such vCPU"),
            })
        }

        fn state(&self) -> Result<CpuState> {
            Ok(CpuState::default())
        }
    }

    /// Logs writes with their widths, reads count up, writing 0xee stops.
    struct Probe(Arc<Mutex<Vec<u8>>>, u8);
    impl Device for Probe {
        fn read(&mut self, _: u64, data: &mut [u8]) {
            self.1 += 1;
            data.fill(self.1);
        }
        fn write(&mut self, offset: u64, data: &[u8]) -> ControlFlow<Stop> {
            let mut log = self.0.lock().unwrap();
            log.extend([offset as u8, data.len() as u8]);
            log.extend(data);
            if data == [0xee] {
                ControlFlow::Break(Stop::Exit(0xee))
            } else {
                ControlFlow::Continue(())
            }
        }
    }

    const AT: BusAddr = BusAddr::memory(0x1000);
    const NOWHERE: BusAddr = BusAddr::port(0x1000);

    /// What vCPUs share of a machine that nobody watches.
    fn shared<'a>(bus: &'a Bus, stopping: &'a AtomicBool) -> Shared<'a> {
        Shared { bus, stopping, trace: None, exit_limit: None, progress: None, coalesced: None }
    }

    fn play(steps: Vec<Step>, limit: Option<u64>) -> (Option<Stop>, Vec<u8>, Journal) {
        let log = Arc::new(Mutex::new(vec![]));
        let mut bus = Bus::default();
        bus.insert(AT, 8, "probe", Box::new(Probe(log.clone(), 0))).unwrap();
        let mut vcpu = Script { steps: steps.into(), buffer: vec![], log: log.clone() };
        let mut journal = Journal::new(bus.len());
        let stopping = AtomicBool::new(false);
        let exit_limit = limit.map(|limit| (AtomicU64::new(limit), limit));
        let shared = Shared { exit_limit, ..shared(&bus, &stopping) };
        let stop = run_until_stop(&mut vcpu, 0, &shared, &mut journal, None);
        let log = log.lock().unwrap().clone();
        (stop, log, journal)
    }

    #[test]
    fn string_write_reaches_the_device_item_by_item() {
        let steps = vec![Step::Write(BusAddr::memory(0x1002), 2, b"abcd"), Step::PowerOff];
        let (stop, log, _) = play(steps, None);
        assert!(matches!(stop, Some(Stop::PowerOff)));
        assert_eq!(log, b"\x02\x02ab\x02\x02cd");
    }

    #[test]
    fn string_read_reaches_the_device_item_by_item_and_where_nothing_is_reads_ones() {
        let steps = vec![
            Step::Read(AT, 2, 6),
            Step::Read(NOWHERE, 4, 8),
            Step::Read(BusAddr::memory(0x1007), 2, 2),
            Step::PowerOff,
        ];
        let (_, log, journal) = play(steps, None);
        assert_eq!(log, [1, 1, 2, 2, 3, 3, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255]);
        assert_eq!(journal.counts.devices(), [1, 2]);
    }

    #[test]
    fn a_device_can_stop_the_machine_in_the_middle_of_a_string() {
        let steps = vec![Step::Write(NOWHERE, 1, b"x"), Step::Write(AT, 1, b"a\xeeb")];
        let (stop, log, _) = play(steps, None);
        assert!(matches!(stop, Some(Stop::Exit(0xee))));
        assert_eq!(log, b"\0\x01a\0\x01\xee");
    }

    #[test]
    fn the_exit_limit_counts_accesses_only_and_carries_out_the_last_one() {
        let write = |byte| Step::Write(AT, 1, byte);
        let steps = vec![write(b"a"), Step::Interrupted, write(b"b"), write(b"c")];
        let (stop, log, _) = play(steps, Some(2));
        assert!(matches!(stop, Some(Stop::ExitLimit(2))));
        assert_eq!(log, b"\0\x01a\0\x01b");
        let (stop, ..) = play(vec![write(b"\xee")], Some(1));
        assert!(matches!(stop, Some(Stop::Exit(0xee))), "the device's reason comes first");
    }

    #[test]
    fn an_error_of_the_host_ends_the_run_with_its_words() {
        let (stop, ..) = play(vec![Step::Fail], None);
        assert!(matches!(stop, Some(Stop::Failed(e)) if e.to_string() == "no such vCPU"));
    }

    #[test]
    fn a_debugger_holds_a_vcpu_before_its_first_entry_and_whenever_no_device_is_meant() {
        let steps = [Step::Trap, Step::Write(NOWHERE, 1, b"x"), Step::Interrupted, Step::PowerOff];
        let mut vcpu = Script { steps: steps.into(), buffer: vec![], log: Arc::default() };
        let bus = Bus::default();
        let stopping = AtomicBool::new(false);
        let shared = shared(&bus, &stopping);
        let held = Mutex::new(Vec::new());
        let hold = |vcpu: &mut Script, trap| held.lock().unwrap().push((vcpu.steps.len(), trap));
        let stop = run_until_stop(&mut vcpu, 0, &shared, &mut Journal::new(0), Some(&hold));
        assert!(matches!(stop, Some(Stop::PowerOff)));
        assert_eq!(*held.lock().unwrap(), [(4, None), (3, Some(Trap::Step)), (1, None)]);
    }

    #[test]
    fn a_vcpu_that_is_told_to_stop_does_not_enter_the_guest_again() {
        let bus = Bus::default();
        let mut vcpu = Script { steps: VecDeque::new(), buffer: vec![], log: Arc::default() };
        let stopping = AtomicBool::new(true);
        let shared = shared(&bus, &stopping);
        assert!(run_until_stop(&mut vcpu, 0, &shared, &mut Journal::new(0), None).is_none());
    }
}
