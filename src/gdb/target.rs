//! What gdb asks for, done: registers, memory, breakpoints, stepping.

use anyhow::{Error, Result};
use gdbstub::arch::Arch;
use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{TargetError, TargetResult};

use super::hold::{Crew, News};
use super::patches::{Memory, Patches};
use crate::arch::{self, GdbArch};
use crate::debug::{Access, Hardware, Slots, Trap};
use crate::memory::GuestRam;
use crate::run::Run;

/// Bytes within which neighbours in virtual memory are neighbours in RAM. Our choice: no page
/// anywhere is smaller.
const PAGE: u64 = 4096;

/// What a vCPU does when the guest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// What all do that nothing was said about.
    Default,
    Continue,
    Step,
}

/// The guest, as gdb sees it.
pub struct Target<'a> {
    pub crew: Crew<'a>,
    ram: &'a GuestRam,
    slots: Slots,
    patches: Patches,
    hardware: Vec<Hardware>,
    actions: Vec<Action>,
    /// Those that nothing was said about stay where they are.
    locked: bool,
}

impl Memory for &GuestRam {
    fn read(&self, bytes: &mut [u8], guest_addr: u64) -> Result<()> {
        GuestRam::read(self, bytes, guest_addr)
    }

    fn write(&self, bytes: &[u8], guest_addr: u64) -> Result<()> {
        GuestRam::write(self, bytes, guest_addr)?;
        arch::code_written(self, guest_addr, bytes.len());
        Ok(())
    }
}

/// gdb's number of a vCPU, and back: its threads count from one.
fn tid(vcpu: usize) -> Tid {
    Tid::new(vcpu + 1).expect("not zero")
}

fn vcpu(tid: Tid) -> usize {
    tid.get() - 1
}

/// An error that only this request has.
fn refused(_: Error) -> TargetError<Error> {
    TargetError::NonFatal
}

/// There is no memory.
const NO_MEMORY: TargetError<Error> = TargetError::Errno(libc::EFAULT as u8);

impl<'a> Target<'a> {
    /// A guest without breakpoints.
    pub fn new(crew: Crew<'a>, ram: &'a GuestRam, slots: Slots) -> Self {
        let actions = vec![Action::Default; crew.len()];
        let patches = Patches::new(arch::BREAKPOINT);
        Self { crew, ram, slots, patches, hardware: Vec::new(), actions, locked: false }
    }

    fn translate(&self, vcpu: usize, virtual_addr: u64) -> Result<Option<u64>> {
        let ram = self.ram;
        self.crew.ask(vcpu, move |vcpu| vcpu.translate(ram, virtual_addr))?
    }

    /// Where `virtual_addr` is, seen from any vCPU: a breakpoint is for all of them.
    fn find(&self, virtual_addr: u64) -> Option<u64> {
        (0..self.crew.len()).find_map(|vcpu| self.translate(vcpu, virtual_addr).ok().flatten())
    }

    /// The parts of a range that lie within one page each: offset and length.
    fn pieces(start: u64, len: usize) -> impl Iterator<Item = (usize, usize)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let room = (PAGE - (start + done as u64) % PAGE) as usize;
            let piece = (done, room.min(len - done));
            done += piece.1;
            (piece.1 > 0).then_some(piece)
        })
    }

    /// What gdb is told of `news`; nothing if that was the guest's own business, which then goes
    /// on.
    pub fn stop_reason(&mut self, news: &News) -> Result<Option<MultiThreadStopReason<u64>>> {
        let tid = tid(news.vcpu);
        let reason = match news.trap {
            Some(Trap::Step) if self.actions[news.vcpu] == Action::Step => {
                Some(MultiThreadStopReason::SignalWithThread { tid, signal: Signal::SIGTRAP })
            }
            Some(Trap::Software) => {
                let pc = self.crew.ask(news.vcpu, |vcpu| vcpu.code_address())??;
                let at = self.translate(news.vcpu, pc)?;
                self.patches.has(pc, at).then_some(MultiThreadStopReason::SwBreak(tid))
            }
            Some(Trap::Hardware) => Some(MultiThreadStopReason::HwBreak(tid)),
            Some(Trap::Watch(at)) => self.watched(tid, at),
            _ => None,
        };
        if reason.is_none() {
            if let Some(trap) = news.trap {
                self.crew.ask(news.vcpu, move |vcpu| vcpu.give_back(trap))??;
            }
            self.crew.release(&[news.vcpu]);
        }
        Ok(reason)
    }

    /// A watchpoint was hit at or near `at`.
    fn watched(&self, tid: Tid, at: u64) -> Option<MultiThreadStopReason<u64>> {
        let all = || self.hardware.iter().filter(|hardware| hardware.access != Access::Execute);
        let here = |hardware: &&Hardware| at.wrapping_sub(hardware.address) < hardware.len;
        let hit = all().find(here).or_else(|| all().next())?;
        let kind = match hit.access {
            Access::Write => WatchKind::Write,
            Access::Read => WatchKind::Read,
            Access::Any | Access::Execute => WatchKind::ReadWrite,
        };
        Some(MultiThreadStopReason::Watch { tid, kind, addr: hit.address })
    }

    /// All that wait go on as if there had never been a debugger.
    pub fn let_go(&mut self) -> Result<()> {
        self.patches.clear(&self.ram);
        self.hardware.clear();
        self.clear_resume_actions()?;
        self.resume()
    }

    fn add(&mut self, hardware: Hardware) -> bool {
        self.hardware.push(hardware);
        let fits = arch::debug_registers(&self.hardware, self.slots).is_some();
        if !fits {
            self.hardware.pop();
        }
        fits
    }

    fn remove(&mut self, access: Access, address: u64) -> bool {
        let is_it = |h: &Hardware| h.access == access && h.address == address;
        let found = self.hardware.iter().position(is_it);
        found.map(|index| self.hardware.remove(index)).is_some()
    }
}

impl gdbstub::target::Target for Target<'_> {
    type Arch = GdbArch;
    type Error = Error;

    fn base_ops(&mut self) -> BaseOps<'_, Self::Arch, Self::Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Target<'_> {
    fn read_registers(
        &mut self,
        registers: &mut <GdbArch as Arch>::Registers,
        tid: Tid,
    ) -> TargetResult<(), Self> {
        let read = self.crew.ask(vcpu(tid), |vcpu| vcpu.gdb_registers());
        *registers = read.flatten().map_err(refused)?;
        Ok(())
    }

    fn write_registers(
        &mut self,
        registers: &<GdbArch as Arch>::Registers,
        tid: Tid,
    ) -> TargetResult<(), Self> {
        let registers = registers.clone();
        let written = self.crew.ask(vcpu(tid), move |vcpu| vcpu.set_gdb_registers(&registers));
        written.flatten().map_err(refused)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        start.checked_add(data.len() as u64).ok_or(NO_MEMORY)?;
        let mut done = 0;
        for (offset, len) in Self::pieces(start, data.len()) {
            let at = self.translate(vcpu(tid), start + offset as u64).map_err(refused)?;
            let piece = &mut data[offset..offset + len];
            if at.is_none_or(|at| self.patches.read(&self.ram, piece, at).is_err()) {
                break;
            }
            done = offset + len;
        }
        if done == 0 && !data.is_empty() { Err(NO_MEMORY) } else { Ok(done) }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        start.checked_add(data.len() as u64).ok_or(NO_MEMORY)?;
        for (offset, len) in Self::pieces(start, data.len()) {
            let at = self.translate(vcpu(tid), start + offset as u64).map_err(refused)?;
            let piece = &data[offset..offset + len];
            self.patches.write(&self.ram, piece, at.ok_or(NO_MEMORY)?).map_err(|_| NO_MEMORY)?;
        }
        Ok(())
    }

    fn list_active_threads(&mut self, is_active: &mut dyn FnMut(Tid)) -> Result<()> {
        (0..self.crew.len()).for_each(|vcpu| is_active(tid(vcpu)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Target<'_> {
    fn thread_extra_info(&self, tid: Tid, buffer: &mut [u8]) -> Result<usize> {
        let state = self.crew.ask(vcpu(tid), |vcpu| vcpu.state()).flatten();
        let mode = state.map_or("unknown".into(), |state| state.mode);
        let text = format!("vCPU {}: {mode}", vcpu(tid));
        let len = text.len().min(buffer.len());
        buffer[..len].copy_from_slice(&text.as_bytes()[..len]);
        Ok(len)
    }
}

impl MultiThreadResume for Target<'_> {
    /// Those that run, since gdb says this out of turn, go on as they do.
    fn resume(&mut self) -> Result<()> {
        let software = self.patches.any();
        // What did not fit was refused when it was added.
        let registers = arch::debug_registers(&self.hardware, self.slots).unwrap_or_default();
        let stays = |vcpu: usize| self.locked && self.actions[vcpu] == Action::Default;
        let going: Vec<usize> =
            (0..self.crew.len()).filter(|vcpu| self.crew.waits(*vcpu) && !stays(*vcpu)).collect();
        for &vcpu in &going {
            let step = self.actions[vcpu] == Action::Step;
            self.crew.ask(vcpu, move |vcpu| vcpu.debug(step, software, &registers))??;
        }
        self.crew.release(&going);
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<()> {
        for vcpu in 0..self.crew.len() {
            if self.crew.waits(vcpu) {
                self.actions[vcpu] = Action::Default;
            }
        }
        self.locked = false;
        Ok(())
    }

    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<()> {
        self.set_action(tid, Action::Continue);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl Target<'_> {
    fn set_action(&mut self, tid: Tid, action: Action) {
        // gdb may name a thread that there is not, or that runs. The first action for one counts.
        let vcpu = vcpu(tid);
        if self.crew.waits(vcpu) && self.actions[vcpu] == Action::Default {
            self.actions[vcpu] = action;
        }
    }
}

impl MultiThreadSingleStep for Target<'_> {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<()> {
        self.set_action(tid, Action::Step);
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Target<'_> {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<()> {
        self.locked = true;
        Ok(())
    }
}

impl Breakpoints for Target<'_> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Target<'_> {
    fn add_sw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        let Some(at) = self.find(addr) else { return Ok(false) };
        Ok(self.patches.insert(&self.ram, addr, at).is_ok())
    }

    fn remove_sw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        self.patches.remove(&self.ram, addr).map_err(refused)
    }
}

impl HwBreakpoint for Target<'_> {
    fn add_hw_breakpoint(&mut self, addr: u64, kind: usize) -> TargetResult<bool, Self> {
        let (access, len) = (Access::Execute, kind as u64);
        Ok(self.add(Hardware { access, address: addr, len }))
    }

    fn remove_hw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.remove(Access::Execute, addr))
    }
}

/// What a watchpoint of gdb's waits for.
fn access(kind: WatchKind) -> Access {
    match kind {
        WatchKind::Write => Access::Write,
        WatchKind::Read => Access::Read,
        WatchKind::ReadWrite => Access::Any,
    }
}

impl HwWatchpoint for Target<'_> {
    fn add_hw_watchpoint(
        &mut self,
        addr: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(self.add(Hardware { access: access(kind), address: addr, len }))
    }

    fn remove_hw_watchpoint(
        &mut self,
        addr: u64,
        _: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(self.remove(access(kind), addr))
    }
}
