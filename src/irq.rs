//! Interrupts of devices: lines of two kinds, and messages.
//!
//! An [`Irq`] makes edges: an eventfd that KVM listens to (KVM API, KVM_IRQFD), or nothing. One
//! trigger is one edge; a device triggers when it has something new to tell.
//!
//! A [`Level`] is held for as long as there is a reason. It costs a system call (KVM API,
//! KVM_IRQ_LINE) when it changes and nothing else, so a guest that polls pays nothing for either.
//!
//! A [`Vector`] is a message (PCI's MSI-X): an edge as well, to whom the guest says while it runs. Where KVM
//! has no lines, each of them is one, and a [`Redirection`] says which.

use std::convert::Infallible;

use anyhow::{Context, Result};
use vmm_sys_util::eventfd::EventFd;

use crate::board::Message;
use crate::layout_check::Region;

/// A device's interrupt line.
#[derive(Debug, Default)]
pub struct Irq(Option<EventFd>);

impl Irq {
    /// No line: the guest polls.
    pub fn none() -> Self {
        Self(None)
    }

    /// A line to whoever reads `event`. It must not block (`EFD_NONBLOCK`).
    pub fn new(event: EventFd) -> Self {
        Self(Some(event))
    }

    /// A line to whoever reads the event that comes with it.
    pub fn with_event() -> Result<(Self, EventFd)> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let event = event.context("create an eventfd")?;
        Ok((Self::new(event.try_clone().context("copy an eventfd")?), event))
    }

    /// Makes one edge. Never blocks.
    pub fn trigger(&self) {
        if let Some(event) = &self.0 {
            // A full counter (EAGAIN) means that edges wait already.
            let _ = event.write(1);
        }
    }
}

/// A device's interrupt line that is held: high as long as it has a cause.
pub struct Level {
    high: bool,
    wire: Box<dyn Fn(bool) + Send>,
}

impl Level {
    /// No line: the guest polls.
    pub fn none() -> Self {
        Self::new(|_| {})
    }

    /// A line that is low; `wire` is told of every change, and must not block.
    pub fn new(wire: impl Fn(bool) + Send + 'static) -> Self {
        Self { high: false, wire: Box::new(wire) }
    }

    /// Makes it high or low.
    pub fn set(&mut self, high: bool) {
        if self.high != high {
            self.high = high;
            (self.wire)(high);
        }
    }
}

/// An interrupt that is a message.
pub struct Vector {
    irq: Irq,
    route: Route,
}

/// What tells a [`Vector`] which message it is: none has it wait. Gives whether it can be sent.
pub type Route = Box<dyn FnMut(Option<Message>) -> bool + Send>;

impl Vector {
    /// A message whenever `irq` is triggered: the one that `route` was told last.
    pub fn new(irq: Irq, route: impl FnMut(Option<Message>) -> bool + Send + 'static) -> Self {
        Self { irq, route: Box::new(route) }
    }

    /// What triggers it, and what tells whom.
    pub fn into_parts(self) -> (Irq, Route) {
        (self.irq, self.route)
    }
}

/// Registers by which a guest says what message each line stands for.
pub trait Redirection: Send {
    /// Where they lie in memory.
    fn place(&self) -> Region;

    /// The register at `offset`.
    fn read(&self, offset: u64) -> u32;

    /// Writes it. Gives the line that may stand for something else now.
    fn write(&mut self, offset: u64, value: u32) -> Option<u32>;

    /// What a line stands for; nothing while it is masked.
    fn message(&self, line: u32) -> Option<Message>;
}

impl vm_superio::Trigger for Irq {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Irq::trigger(self);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn each_trigger_is_an_edge_and_none_blocks() {
        Irq::none().trigger();
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let irq = Irq::new(event.try_clone().unwrap());
        irq.trigger();
        irq.trigger();
        assert_eq!(event.read().unwrap(), 2);
        // One less than the largest count is where a write would block (eventfd(2)).
        event.write(u64::MAX - 1).unwrap();
        irq.trigger();
    }

    #[test]
    fn a_level_tells_changes_alone() {
        Level::none().set(true);
        let (told, heard) = channel();
        let mut level = Level::new(move |high| told.send(high).unwrap());
        for high in [false, true, true, false, false, true] {
            level.set(high);
        }
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), [true, false, true]);
    }
}
