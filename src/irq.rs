//! An interrupt line of a device: an eventfd that KVM listens to (KVM API, KVM_IRQFD), or nothing.
//!
//! One trigger is one edge. A device triggers when it has something new to tell; a guest that
//! polls has no use for a line.

use std::convert::Infallible;

use vmm_sys_util::eventfd::EventFd;

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

    /// Makes one edge. Never blocks.
    pub fn trigger(&self) {
        if let Some(event) = &self.0 {
            // A full counter (EAGAIN) means that edges wait already.
            let _ = event.write(1);
        }
    }
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
}
