//! virtio 1.x (Virtual I/O Device specification, version 1.3): what every device has in common,
//! behind a transport that devices don't know.
//!
//! ```text
//! vCPU ── registers ──▶ mmio or pci ──▶ transport: status, features, queues ──▶ VirtioDevice::start
//! vCPU ── notification ──▶ eventfd in KVM ──▶ worker: its thread ──▶ Work ──▶ queue, chain
//! guest ◀── interrupt ── eventfd in KVM ◀── Interrupt ◀───────────────────────┘
//! ```
//!
//! [`chain`]: buffers out of descriptors; [`queue`]: the rings; [`worker`]: the threads that serve
//! them; [`transport`]: a device's life as its driver sees it; [`mmio`]: that behind registers in
//! memory; [`pci`]: that as a function of a PCI bus. Device types lie in [`crate::devices`].

pub mod chain;
#[cfg(test)]
pub(crate) mod counted;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod driver;
pub mod limit;
pub mod mmio;
pub mod pci;
pub mod queue;
#[cfg(test)]
mod tests;
pub mod transport;
pub mod worker;

use anyhow::Result;
use vmm_sys_util::eventfd::EventFd;

use self::queue::Queue;
use self::worker::Work;
use crate::sandbox::Kind;

/// What carries the virtio devices of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// Registers in memory: [`mmio`].
    Mmio,
    /// A PCI bus: [`pci`].
    Pci,
}

/// A type of virtio device: what it offers, and what its queues do.
///
/// It is driven under a lock: nothing here may take long, but for what a guest's own reset waits
/// for. What its workers and its registers share is its own to keep.
pub trait VirtioDevice: Send {
    /// For messages and traces.
    fn name(&self) -> &'static str;

    /// Its number (section 5 "Device Types").
    fn id(&self) -> u32;

    /// What its workers do, for the sandbox.
    fn kind(&self) -> Kind {
        Kind::Device
    }

    /// Feature bits of this type. Those of rings and transports are added to them.
    fn features(&self) -> u64 {
        0
    }

    /// Features of rings that it offers. A device that leaves its rings to another program has those
    /// that this one knows.
    fn ring_features(&self) -> u64 {
        queue::FEATURES
    }

    /// True if another program serves its queues, and so must have the guest's RAM too.
    fn shares_ram(&self) -> bool {
        false
    }

    /// Its queues: the largest size of each, a power of two.
    fn queues(&self) -> Vec<u16>;

    /// Reads the configuration space at `offset`; what it does not have reads as zeros, which
    /// `data` holds already.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    /// Writes to it. What can't be written stays.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready: gives the workers that serve `queues`, of which those are missing that
    /// it did not set up. `features` are what it accepted.
    fn start(
        &mut self,
        features: u64,
        queues: Vec<Queue>,
        config: ConfigChange,
    ) -> Result<Vec<Box<dyn Work>>>;

    /// The workers have ended: the driver has reset the device, or the machine ends.
    fn stop(&mut self) {}
}

/// How a device interrupts its driver. Both transports are one.
pub trait Interrupt: Send + Sync {
    /// There are used buffers in a queue.
    fn used(&self, queue: usize);

    /// The configuration space or the status has changed.
    fn changed(&self);

    /// What does the same as [`Self::used`] when it is written to, where there is nothing else to do:
    /// another program that serves the queue then interrupts the driver by itself.
    fn used_event(&self, _queue: usize) -> Option<&EventFd> {
        None
    }
}

/// The way to tell a driver that the configuration space has changed.
#[derive(Clone)]
pub struct ConfigChange(std::sync::Arc<dyn Interrupt>);

impl ConfigChange {
    /// Tells it; called after the change.
    pub fn tell(&self) {
        self.0.changed();
    }
}

/// Copies a read of a configuration space whose bytes are `all`; what lies behind stays zero.
pub fn read_from(all: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(all.len());
    let len = data.len().min(all.len() - from);
    data[..len].copy_from_slice(&all[from..from + len]);
}
