//! The worker that brings frames to the guest. While the guest has no room it does not look at the
//! link, so that what comes waits where it is, or is lost where such things are lost.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::link::{Carrier, Received, Source, Trouble};
use super::room::Room;
use crate::virtio::ConfigChange;
use crate::virtio::limit::Gate;
use crate::virtio::worker::{Watch, Work};

/// Frames between two looks at what else there is to do. Our choice: a reset waits no longer.
const AT_ONCE: usize = 256;

/// The worker of one receive queue.
pub struct Receive {
    /// Where frames come from.
    pub source: Arc<Mutex<dyn Source>>,
    /// Where they go.
    pub room: Room,
    /// Whether they come.
    pub carrier: Carrier,
    /// How the driver is told that it is not.
    pub config: ConfigChange,
    /// Features that the driver has accepted.
    pub features: u64,
    /// How much may come in a second.
    pub gate: Gate,
    /// The link is watched for input.
    pub watched: bool,
}

impl Work for Receive {
    fn begin(&mut self, watch: &Watch) -> Result<()> {
        self.gate.watch(watch, self.room.queue().index())?;
        self.source.lock().unwrap_or_else(PoisonError::into_inner).restart(self.features);
        Ok(())
    }

    fn queues(&self) -> Vec<(usize, &EventFd)> {
        vec![(self.room.queue().index(), self.room.queue().kick())]
    }

    fn notified(&mut self, _: usize, watch: &Watch) -> Result<()> {
        // While the link is watched there is room enough.
        if self.watched { Ok(()) } else { self.receive(watch) }
    }

    fn ready(&mut self, _: u32, _: EventSet, watch: &Watch) -> Result<()> {
        self.receive(watch)
    }
}

impl Receive {
    fn receive(&mut self, watch: &Watch) -> Result<()> {
        let source = self.source.clone();
        let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
        let pair = self.room.queue().index() / 2;
        let mut wanted = self.carrier.carries(pair);
        for _ in 0..AT_ONCE {
            if !wanted {
                break;
            }
            if !self.gate.is_open()? {
                wanted = false;
                break;
            }
            let had = self.room.given();
            match source.receive(&mut self.room) {
                Ok(Received::Frame | Received::Dropped) => {
                    let len = self.room.given().wrapping_sub(had);
                    self.gate.pass(len);
                }
                Ok(Received::Nothing) => break,
                Ok(Received::NoRoom) => wanted = false,
                Err(Trouble::Guest(malformed)) => Err(malformed)?,
                Err(Trouble::Link(error)) => {
                    self.room.give_back();
                    self.carrier.lost(pair, &error, &self.config);
                    wanted = false;
                }
            }
        }
        if wanted != self.watched {
            match wanted {
                true => watch.add(&source.fd(), 0, EventSet::IN)?,
                false => watch.remove(&source.fd())?,
            }
            self.watched = wanted;
        }
        Ok(self.room.signal()?)
    }
}
