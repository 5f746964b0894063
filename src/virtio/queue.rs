//! One queue of a device that runs: chains out of it, used ones back, and interrupts where the
//! driver wants them. The rings are `virtio-queue`'s to read and write.
//!
//! How a worker empties it without a notification for each chain, and without missing one: it
//! [`Queue::pop`]s until nothing is left, which also asks for the next notification, and looks
//! again after that.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT,
};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::Interrupt;
use super::chain::{Chain, Malformed, Table};
use crate::memory::GuestRam;

/// Features of rings that are served here.
pub const FEATURES: u64 = 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A queue that its driver has set up.
pub struct Queue {
    index: usize,
    rings: virtio_queue::Queue,
    ram: Arc<GuestRam>,
    kick: EventFd,
    interrupt: Arc<dyn Interrupt>,
    /// The driver was told not to notify.
    quiet: bool,
    /// Chains given back since the driver was last considered for an interrupt.
    given_back: u16,
}

impl Queue {
    /// Queue number `index` in `rings`, which were checked to lie in RAM.
    pub fn new(
        index: usize,
        rings: virtio_queue::Queue,
        ram: Arc<GuestRam>,
        kick: &EventFd,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<Self> {
        let kick = kick.try_clone().context("copy an eventfd")?;
        Ok(Self { index, rings, ram, kick, interrupt, quiet: false, given_back: 0 })
    }

    /// Its number in the device.
    pub fn index(&self) -> usize {
        self.index
    }

    /// What becomes readable when the driver notifies.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// The RAM that its buffers lie in.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Where its rings are, for another program that serves them: `virtio-queue`'s view.
    pub fn rings(&self) -> &virtio_queue::Queue {
        &self.rings
    }

    /// What interrupts the driver when it is written to, if the transport has that.
    pub fn used_event(&self) -> Option<&EventFd> {
        self.interrupt.used_event(self.index)
    }

    /// Interrupts the driver: whoever serves the rings found that it wants to be.
    pub fn interrupt(&self) {
        self.interrupt.used(self.index);
    }

    /// Chains that it can hold.
    pub fn size(&self) -> u16 {
        self.rings.size()
    }

    /// Becomes the next available chain; `false` if there is none, and then the driver will notify
    /// when there is.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, Malformed> {
        loop {
            if let Some(head) = self.next_head()? {
                if !self.quiet {
                    self.quiet = true;
                    self.rings.disable_notification(self.ram.backend()).map_err(|_| self.lost())?;
                }
                let table = Table { guest_addr: self.rings.desc_table(), len: self.rings.size() };
                chain.walk(&self.ram, table, head)?;
                return Ok(true);
            }
            self.quiet = false;
            if !self.rings.enable_notification(self.ram.backend()).map_err(|_| self.lost())? {
                return Ok(false);
            }
        }
    }

    /// Gives the chain that was popped last back to the ring, as if it had not been.
    pub fn undo_pop(&mut self) {
        self.rings.go_to_previous_position();
    }

    /// The first descriptor of the next available chain, which counts as taken.
    fn next_head(&mut self) -> Result<Option<u16>, Malformed> {
        let memory = self.ram.backend();
        let index = self.rings.avail_idx(memory, Ordering::Acquire).map_err(|_| self.lost())?;
        let taken = self.rings.next_avail();
        let count = index.0.wrapping_sub(taken);
        match count {
            0 => return Ok(None),
            _ if count > self.rings.size() => return Err(Malformed::Available(count)),
            _ => {}
        }
        // virtio v1.3, 2.7.6 "The Virtqueue Available Ring": flags, idx, then the ring.
        let slot = taken % self.rings.size();
        let at = self.rings.avail_ring() + 4 + 2 * u64::from(slot);
        let head = memory.load(GuestAddress(at), Ordering::Relaxed);
        let head = head.map(u16::from_le).map_err(|_| Malformed::Address(at))?;
        self.rings.set_next_avail(taken.wrapping_add(1));
        Ok(Some(head))
    }

    /// Gives the chain that begins at `head` back to the driver, with `written` bytes in it.
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), Malformed> {
        self.given_back = self.given_back.wrapping_add(1);
        self.rings.add_used(self.ram.backend(), head, written).map_err(|_| self.lost())
    }

    /// Gives several chains back, heads and bytes written, of which the driver sees all or none.
    pub fn push_all(
        &mut self,
        chains: impl ExactSizeIterator<Item = (u16, u32)>,
    ) -> Result<(), Malformed> {
        let mut left = chains.len();
        for (head, written) in chains {
            left -= 1;
            if left == 0 {
                // Its index is the one that the driver reads.
                return self.push(head, written);
            }
            let next = self.rings.next_used();
            let slot = u64::from(next % self.rings.size());
            // virtio v1.3, 2.7.8 "The Virtqueue Used Ring": flags, idx, then the ring.
            let at = GuestAddress(self.rings.used_ring() + 4 + 8 * slot);
            let element = u64::from(head) | u64::from(written) << 32;
            self.ram.backend().write_obj(element.to_le(), at).map_err(|_| self.lost())?;
            self.rings.set_next_used(next.wrapping_add(1));
            self.given_back = self.given_back.wrapping_add(1);
        }
        Ok(())
    }

    /// Interrupts the driver, if it wants to be for what was pushed since the last time. Once for
    /// many chains is best.
    pub fn signal(&mut self) -> Result<(), Malformed> {
        let given_back = std::mem::take(&mut self.given_back);
        let memory = self.ram.backend();
        let available = self.rings.avail_ring();
        let word = |at: u64| {
            let word = memory.load(GuestAddress(at), Ordering::Relaxed);
            word.map(u16::from_le).map_err(|_| self.lost())
        };
        // Between the used index and what follows: 2.7.7.2 wants the order.
        std::sync::atomic::fence(Ordering::SeqCst);
        let wanted = match self.rings.event_idx_enabled() {
            true => {
                // 2.7.7.2: `used_event`, behind the ring, is among the chains just given back.
                let event = word(available + 4 + 2 * u64::from(self.rings.size()))?;
                let since = self.rings.next_used().wrapping_sub(event).wrapping_sub(1);
                since < given_back
            }
            false => u32::from(word(available)?) & VRING_AVAIL_F_NO_INTERRUPT == 0,
        };
        if wanted {
            self.interrupt.used(self.index);
        }
        Ok(())
    }

    fn lost(&self) -> Malformed {
        Malformed::Address(self.rings.used_ring())
    }
}
