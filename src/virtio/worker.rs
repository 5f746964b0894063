//! The threads that serve queues. Each sleeps in `epoll` until a driver notifies, or something that
//! its work watches is ready; an idle one costs nothing.
//!
//! A worker ends when its device is reset or the machine ends: that waits for the call it is in.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::sandbox::{self, Kind};

/// What one worker does. All calls come from its thread.
pub trait Work: Send {
    /// Before the first of the others: the place to watch descriptors.
    fn begin(&mut self, _watch: &Watch) -> Result<()> {
        Ok(())
    }

    /// The queues whose notifications it wants: their numbers, and [`Queue::kick`] of each.
    ///
    /// [`Queue::kick`]: super::queue::Queue::kick
    fn queues(&self) -> Vec<(usize, &EventFd)>;

    /// The driver has notified queue number `index`, or may have. It is called once for each queue
    /// at the start too. An error means that the device needs a reset.
    fn notified(&mut self, index: usize, watch: &Watch) -> Result<()>;

    /// The descriptor that is watched under `token` is ready.
    fn ready(&mut self, _token: u32, _events: EventSet, _watch: &Watch) -> Result<()> {
        Ok(())
    }
}

/// Descriptors that a worker waits for.
pub struct Watch(Epoll);

/// Whose event it is, in the upper half of epoll's number.
const STOP: u64 = 1 << 32;
const QUEUE: u64 = 2 << 32;
const OWN: u64 = 3 << 32;

impl Watch {
    fn new() -> io::Result<Self> {
        Ok(Self(Epoll::new()?))
    }

    fn control(
        &self,
        what: ControlOperation,
        fd: RawFd,
        events: EventSet,
        data: u64,
    ) -> Result<()> {
        self.0.ctl(what, fd, EpollEvent::new(events, data)).context("watch a descriptor")
    }

    /// Begins to watch `fd`. It must be removed before it is closed.
    pub fn add(&self, fd: &impl AsRawFd, token: u32, events: EventSet) -> Result<()> {
        self.control(ControlOperation::Add, fd.as_raw_fd(), events, OWN | u64::from(token))
    }

    /// Watches it for other events.
    pub fn change(&self, fd: &impl AsRawFd, token: u32, events: EventSet) -> Result<()> {
        self.control(ControlOperation::Modify, fd.as_raw_fd(), events, OWN | u64::from(token))
    }

    /// Watches a timer, whose end is as good as a notification of queue number `queue`.
    pub fn add_wake_up(&self, timer: &impl AsRawFd, queue: usize) -> Result<()> {
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        self.control(ControlOperation::Add, timer.as_raw_fd(), edges, QUEUE | queue as u64)
    }

    /// No longer watches it.
    pub fn remove(&self, fd: &impl AsRawFd) -> Result<()> {
        self.control(ControlOperation::Delete, fd.as_raw_fd(), EventSet::empty(), 0)
    }
}

/// A worker's thread. Dropped, it is stopped and waited for.
pub struct Worker {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts `work` on a thread of this kind named `name`. `broken` is told, once, if it fails.
    pub fn start(
        kind: Kind,
        name: String,
        work: Box<dyn Work>,
        broken: Arc<dyn Fn(anyhow::Error) + Send + Sync>,
    ) -> Result<Self> {
        let stop = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
        let stop = stop.context("create an eventfd")?;
        let watch = Watch::new().context("create an epoll descriptor")?;
        watch.control(ControlOperation::Add, stop.as_raw_fd(), EventSet::IN, STOP)?;
        let mut queues = Vec::new();
        for (index, kick) in work.queues() {
            // Each notification is an edge, and nobody has to read how many there were.
            let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
            let data = QUEUE | index as u64;
            watch.control(ControlOperation::Add, kick.as_raw_fd(), edges, data)?;
            queues.push(index);
        }
        let body = move || {
            // What it watched is closed when it fails.
            if let Err(error) = serve(work, &queues, &watch) {
                broken(error);
            }
        };
        let thread = sandbox::spawn(kind, name, body).context("start a worker")?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Can't be full: nobody writes twice.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // A panic was told when it happened; there is nothing to do about it here.
            let _ = thread.join();
        }
    }
}

/// Works until it is told to stop.
fn serve(mut work: Box<dyn Work>, queues: &[usize], watch: &Watch) -> Result<()> {
    /// Our choice: what a busy network has ready at once.
    const EVENTS: usize = 32;
    work.begin(watch)?;
    for index in queues {
        work.notified(*index, watch)?;
    }
    let mut events = [EpollEvent::default(); EVENTS];
    loop {
        let count = match watch.0.wait(-1, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other.context("wait for events")?,
        };
        for event in &events[..count] {
            let (kind, low) = (event.data() & !u64::from(u32::MAX), event.data() as u32);
            match kind {
                STOP => return Ok(()),
                QUEUE => work.notified(low as usize, watch)?,
                _ => work.ready(low, event.event_set(), watch)?,
            }
        }
    }
}
