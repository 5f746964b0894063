//! The control queue (virtio v1.3, 5.1.6.5 "Control Virtqueue"): how many pairs of queues the driver
//! uses.

use std::sync::Arc;

use anyhow::Result;
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};
use vmm_sys_util::eventfd::EventFd;

use super::link::Carrier;
use super::tap::Tap;
use crate::virtio::chain::{Chain, Malformed};
use crate::virtio::queue::Queue;
use crate::virtio::worker::{Watch, Work};

/// Its worker.
pub struct Control {
    /// The queue.
    pub queue: Queue,
    /// Room for the request at hand.
    pub chain: Chain,
    /// The device whose queues requests switch.
    pub tap: Arc<Tap>,
    /// Who has to know.
    pub carrier: Carrier,
    /// What wakes the workers that look for frames.
    pub receivers: Vec<EventFd>,
    /// Pairs of queues that there are.
    pub pairs: usize,
}

impl Work for Control {
    fn queues(&self) -> Vec<(usize, &EventFd)> {
        vec![(self.queue.index(), self.queue.kick())]
    }

    fn notified(&mut self, _: usize, _: &Watch) -> Result<()> {
        while self.queue.pop(&mut self.chain)? {
            let done = self.carry_out();
            let answer = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
            if self.chain.writable.write(&[answer as u8]) == 0 {
                Err(Malformed::Request("a control request has no room for an answer"))?;
            }
            self.queue.push(self.chain.head, 1)?;
        }
        Ok(self.queue.signal()?)
    }
}

impl Control {
    /// Carries a request out; false if it can't be.
    fn carry_out(&mut self) -> bool {
        let mut bytes = [0; 4];
        let whole = self.chain.readable.read(&mut bytes) == bytes.len();
        let count = if whole { pairs_asked_for(bytes, self.pairs) } else { None };
        count.is_some_and(|count| self.set_pairs(count))
    }

    fn set_pairs(&self, count: usize) -> bool {
        self.carrier.set_pairs(count.min(self.carrier.pairs()));
        if self.tap.set_pairs(count).is_err() {
            return false;
        }
        self.carrier.set_pairs(count);
        for receiver in &self.receivers {
            // A full counter (EAGAIN) is readable too.
            let _ = receiver.write(1);
        }
        true
    }
}

/// What a request asks for: its class, the command, and a count for the only one that there is.
fn pairs_asked_for(bytes: [u8; 4], pairs: usize) -> Option<usize> {
    let count = usize::from(u16::from_le_bytes([bytes[2], bytes[3]]));
    let known = u32::from(bytes[0]) == VIRTIO_NET_CTRL_MQ
        && u32::from(bytes[1]) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET;
    (known && (1..=pairs).contains(&count)).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pairs_of_queues_that_there_are_can_be_asked_for() {
        for (bytes, expected) in [
            ([4, 0, 1, 0], Some(1)),
            ([4, 0, 4, 0], Some(4)),
            ([4, 0, 0, 0], None),
            ([4, 0, 5, 0], None),
            ([4, 0, 1, 1], None),
            ([4, 1, 1, 0], None),
            ([0, 0, 1, 0], None),
        ] {
            assert_eq!(pairs_asked_for(bytes, 4), expected, "{bytes:?}");
        }
    }
}
