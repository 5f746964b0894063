//! The worker of a device whose queues a back end serves: turns what that has to tell into
//! interrupts, and notices when it is gone.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::queue::Queue;
use crate::virtio::worker::{Watch, Work};

/// The token of the connection; smaller ones are those of queues.
const CONNECTION: u32 = u32::MAX;

/// The worker.
pub struct Calls {
    /// The queues whose interrupts take more than an eventfd, and what the back end writes to for
    /// one.
    pub calls: Vec<(Queue, EventFd)>,
    /// The connection to the back end.
    pub socket: UnixStream,
    /// What the back end is, for messages.
    pub title: String,
    /// The back end is to end, or that it has ended was told.
    pub over: Arc<AtomicBool>,
}

impl Work for Calls {
    fn begin(&mut self, watch: &Watch) -> Result<()> {
        for (token, (_, call)) in self.calls.iter().enumerate() {
            watch.add(call, token as u32, EventSet::IN)?;
        }
        // That it is closed altogether is always told.
        watch.add(&self.socket, CONNECTION, EventSet::READ_HANG_UP)
    }

    fn queues(&self) -> Vec<(usize, &EventFd)> {
        // The back end's to read.
        Vec::new()
    }

    fn notified(&mut self, _: usize, _: &Watch) -> Result<()> {
        Ok(())
    }

    fn ready(&mut self, token: u32, _: EventSet, watch: &Watch) -> Result<()> {
        if let Some((queue, call)) = self.calls.get(token as usize) {
            // Read before the driver looks: what comes later is a new event.
            let _ = call.read();
            queue.interrupt();
        } else if self.over.swap(true, Ordering::AcqRel) {
            watch.remove(&self.socket)?;
        } else {
            bail!("{}: the back end is gone", self.title);
        }
        Ok(())
    }
}
