//! The worker that sends the guest's frames. What the link does not take stays in the queue until
//! it does; what is no frame, and all of it when the link is gone, is given back unsent.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::header::{self, Header};
use super::link::{Carrier, Sink};
use crate::virtio::ConfigChange;
use crate::virtio::chain::Chain;
use crate::virtio::limit::Gate;
use crate::virtio::queue::Queue;
use crate::virtio::worker::{Watch, Work};

/// Frames between two looks at what else there is to do. Our choice: a reset waits no longer.
const AT_ONCE: usize = 256;

/// The worker of one transmit queue.
pub struct Transmit {
    /// Where frames go.
    pub sink: Arc<Mutex<dyn Sink>>,
    /// Where they come from.
    pub queue: Queue,
    /// Room for the one at hand.
    pub chain: Chain,
    /// Whether they go.
    pub carrier: Carrier,
    /// How the driver is told that it is not.
    pub config: ConfigChange,
    /// Features that the driver has accepted.
    pub features: u64,
    /// How much may go in a second.
    pub gate: Gate,
    /// The link is watched for room.
    pub watched: bool,
}

impl Work for Transmit {
    fn begin(&mut self, watch: &Watch) -> Result<()> {
        self.gate.watch(watch, self.queue.index())
    }

    fn queues(&self) -> Vec<(usize, &EventFd)> {
        vec![(self.queue.index(), self.queue.kick())]
    }

    fn notified(&mut self, _: usize, watch: &Watch) -> Result<()> {
        if self.watched { Ok(()) } else { self.transmit(watch) }
    }

    fn ready(&mut self, _: u32, _: EventSet, watch: &Watch) -> Result<()> {
        self.transmit(watch)
    }
}

impl Transmit {
    fn transmit(&mut self, watch: &Watch) -> Result<()> {
        let sink = self.sink.clone();
        let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut count, mut full) = (0, false);
        let pair = self.queue.index() / 2;
        while count < AT_ONCE {
            if !self.gate.is_open()? || !self.queue.pop(&mut self.chain)? {
                break;
            }
            let len = self.chain.readable.len();
            match self.send(&mut *sink) {
                Ok(true) => {}
                Ok(false) => {
                    self.queue.undo_pop();
                    full = true;
                    break;
                }
                Err(error) => self.carrier.lost(pair, &error, &self.config),
            }
            self.gate.pass(len.saturating_sub(header::LEN));
            self.queue.push(self.chain.head, 0)?;
            count += 1;
        }
        let flushed = if self.carrier.carries(pair) { sink.flush() } else { Ok(true) };
        let waits = match flushed {
            Ok(flushed) => full || !flushed,
            Err(error) => {
                self.carrier.lost(pair, &error, &self.config);
                false
            }
        };
        if waits != self.watched {
            match waits {
                true => watch.add(&sink.fd(), 0, EventSet::OUT)?,
                false => watch.remove(&sink.fd())?,
            }
            self.watched = waits;
        }
        if count == AT_ONCE {
            // There may be more, which the driver will not tell. A full counter (EAGAIN) is
            // readable too.
            let _ = self.queue.kick().write(1);
        }
        Ok(self.queue.signal()?)
    }

    /// Sends the frame at hand, or drops it; `Ok(false)` if it has to wait.
    fn send(&mut self, sink: &mut dyn Sink) -> io::Result<bool> {
        let frame = &mut self.chain.readable;
        let mut bytes = [0; header::LEN];
        let whole = frame.read(&mut bytes) == bytes.len();
        if !whole || !self.carrier.carries(self.queue.index() / 2) {
            return Ok(true);
        }
        match Header::parse(&bytes).check(frame.len(), self.features) {
            Ok(header) => sink.send(&header, frame),
            Err(_) => Ok(true),
        }
    }
}
