//! Writes to the console's transmitter that don't leave the guest: KVM keeps them in a ring, from which the
//! next exit takes them.
//!
//! An exit costs ten times what such a write does, so a guest that prints byte after byte is ten times as
//! fast, and a kernel that looks at the port's state before each byte makes half the exits. A burst of
//! writes to the transmitter begins it; silence ends it, and so does a driver that wants an interrupt for
//! each. What is in the ring is written before anything that the guest did later; the event loop looks
//! after it every few milliseconds, and has a vCPU leave the guest if there is something. Only vCPUs
//! write, since a slow reader may hold that up.
//!
//! Not where each access is shown or counted, or while a debugger may stop the guest. Nor for a guest that
//! is not there for long: in its VM's first 40 ms such a zone makes the end wait for 15.
//!
//! Source: KVM API, 4.116 "KVM_(UN)REGISTER_COALESCED_MMIO".

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::{Cap, IoEventAddress, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::Ring;
use crate::bus::Bus;
use crate::devices::serial;
use crate::exit::{BusAddr, Space, Stop};
use crate::journal::{Access, Journal, Kind};
use crate::kick::Kick;

/// Writes that are a burst, with no other device used in between. Our choice: more than a line, less than a
/// screen.
const BURST: u32 = 512;

/// How long a guest must have run.
const SETTLED: Duration = Duration::from_millis(60);

/// How often the event loop looks. Our choice: with its patience for unfinished lines, which begins then,
/// less than 10 ms.
pub const LOOK: Duration = Duration::from_millis(4);

/// Looks in a row that find nothing before it ends.
const QUIET: u32 = 25;

/// The console's writes of one machine.
pub struct Coalesced<'a> {
    vm: &'a VmFd,
    ring: Mutex<Ring>,
    at: BusAddr,
    began: Instant,
    /// Wakes the event loop.
    wake: &'a EventFd,
    /// KVM may have something.
    on: AtomicBool,
    /// It is to end.
    over: AtomicBool,
    /// KVM can't.
    refused: AtomicBool,
    /// Writes to the transmitter since another device was used.
    burst: AtomicU32,
    /// Looks that found nothing in a row.
    quiet: AtomicU32,
}

impl<'a> Coalesced<'a> {
    /// Nothing yet: those to `at`, in the machine of `vm`, whose vCPUs share `ring`.
    pub fn new(vm: &'a VmFd, ring: Ring, at: BusAddr, wake: &'a EventFd) -> Self {
        Self {
            vm,
            ring: Mutex::new(ring),
            at,
            began: Instant::now(),
            wake,
            on: AtomicBool::new(false),
            over: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            burst: AtomicU32::new(0),
            quiet: AtomicU32::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn zone(&self) -> IoEventAddress {
        match self.at.space {
            Space::Port => IoEventAddress::Pio(self.at.addr),
            Space::Memory => IoEventAddress::Mmio(self.at.addr),
        }
    }

    /// Whether the event loop is to look.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Notes an access that left the guest, once it has been carried out. True if KVM is to keep no more.
    pub fn see(&self, access: &Access, bus: &Bus) -> bool {
        let register = access.at.addr.wrapping_sub(self.at.addr);
        if access.at.space != self.at.space || register >= serial::LEN {
            // All vCPUs read this at each exit, and nobody writes it while nobody prints.
            if self.burst.load(Ordering::Relaxed) != 0 {
                self.burst.store(0, Ordering::Relaxed);
            }
            return false;
        }
        let is_write = access.kind == Kind::of(self.at.space, true);
        if self.is_on() {
            let ends = is_write && register != 0 && !self.is_polled(bus);
            self.over.fetch_or(ends, Ordering::AcqRel);
            return ends;
        }
        if is_write && register == 0 && access.width == 1 {
            let burst = self.burst.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            let is_due = burst.is_multiple_of(BURST) && self.began.elapsed() >= SETTLED;
            if is_due && !self.refused.load(Ordering::Relaxed) {
                self.begin(bus);
            }
        }
        false
    }

    /// Whether nothing depends on when the bytes arrive.
    fn is_polled(&self, bus: &Bus) -> bool {
        serial::is_polled(|register| {
            let mut value = [0];
            let at = BusAddr { addr: self.at.addr + u64::from(register), ..self.at };
            if let Some(place) = bus.find(at, 1) {
                bus.read(place, &mut value);
            }
            value[0]
        })
    }

    /// From now on KVM keeps them, if that may be.
    fn begin(&self, bus: &Bus) {
        let _ring = self.lock();
        if self.is_on() || !self.is_polled(bus) {
            return;
        }
        let capability = match self.at.space {
            Space::Port => Cap::CoalescedPio,
            Space::Memory => Cap::CoalescedMmio,
        };
        // Before it is so: vCPUs that leave the guest meanwhile wait for the lock, and find what others
        // have written.
        self.on.store(true, Ordering::Release);
        let can = self.vm.check_extension(capability);
        if !can || self.vm.register_coalesced_mmio(self.zone(), 1).is_err() {
            self.refused.store(true, Ordering::Relaxed);
            self.on.store(false, Ordering::Release);
            return;
        }
        self.quiet.store(0, Ordering::Relaxed);
        self.over.store(false, Ordering::Release);
        // A full counter (EAGAIN) wakes as well as a write to it.
        let _ = self.wake.write(1);
    }

    /// Writes what KVM has kept, once a vCPU has left the guest and before it does anything else. Gives how
    /// much that was.
    pub fn take(&self, bus: &Bus, journal: &mut Journal) -> ControlFlow<Stop, usize> {
        if !self.is_on() {
            return ControlFlow::Continue(0);
        }
        let mut ring = self.lock();
        let mut count = self.write(&mut ring, bus, journal)?;
        if self.over.swap(false, Ordering::AcqRel) {
            // A zone that was never there is none now either.
            let _ = self.vm.unregister_coalesced_mmio(self.zone(), 1);
            count += self.write(&mut ring, bus, journal)?;
            self.on.store(false, Ordering::Release);
        }
        ControlFlow::Continue(count)
    }

    /// At most what the ring holds: another vCPU may be as fast.
    fn write(&self, ring: &mut Ring, bus: &Bus, journal: &mut Journal) -> ControlFlow<Stop, usize> {
        for count in 0..ring.capacity() {
            let Some(byte) = ring.pop() else { return ControlFlow::Continue(count) };
            self.quiet.store(0, Ordering::Relaxed);
            journal.keep(Access::new(Kind::of(self.at.space, true), self.at, 1, &[byte]));
            if let Some(place) = bus.find(self.at, 1) {
                bus.write(place, &[byte])?;
            }
        }
        ControlFlow::Continue(ring.capacity())
    }

    /// Has the vCPU of `kick` take what there is; or end it, when there has been nothing for long. Every
    /// [`LOOK`].
    pub fn look(&self, kick: &Kick) {
        // A vCPU that holds the lock is about to take it all.
        let Ok(ring) = self.ring.try_lock() else { return };
        if !self.is_on() {
            return;
        }
        if ring.is_empty() {
            if self.quiet.fetch_add(1, Ordering::Relaxed) < QUIET {
                return;
            }
            self.over.store(true, Ordering::Release);
        }
        kick.nudge();
    }
}
