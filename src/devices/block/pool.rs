//! Threads that carry requests out, so that one that waits for the file does not hold up the next.
//!
//! The worker takes what is available from the queue, hands all but the last over, and does that
//! one itself: a driver that sends one at a time never waits for another thread to wake up. Each
//! request is made once and goes round.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::request::{Request, Server};
use crate::sandbox::{self, Kind};
use crate::virtio::chain::Malformed;
use crate::virtio::limit::Gate;
use crate::virtio::queue::Queue;
use crate::virtio::worker::{Watch, Work};

/// Threads beside the worker. Our choice: the page cache answers most requests at once, and what
/// waits longer than four of them do waits for the disk.
const HELPERS: usize = 3;

/// Requests that may be under way, most of them waiting for a thread.
const REQUESTS: usize = 64;

/// The worker of one queue.
pub struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    gate: Gate,
    // A second one, for what the worker's frame wants to know without a lock.
    queue_index: usize,
    kick: EventFd,
}

struct Shared {
    server: Arc<Server>,
    queue: Mutex<Queue>,
    desk: Mutex<Desk>,
    /// There is something on the desk.
    work: Condvar,
    /// Readable when a request is free again, or all is over; the worker reads it.
    free: EventFd,
}

/// What the threads hand to each other.
#[derive(Default)]
struct Desk {
    free: Vec<Request>,
    waiting: VecDeque<Request>,
    /// The worker left requests in the queue for want of a free one.
    starved: bool,
    over: bool,
    failure: Option<Malformed>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Carries one request out and gives it back.
    fn finish(&self, mut request: Request) -> Result<(), Malformed> {
        let served = self.server.serve(&mut request);
        let result = served.and_then(|written| {
            let mut queue = lock(&self.queue);
            queue.push(request.chain.head, written)?;
            queue.signal()
        });
        let mut desk = lock(&self.desk);
        desk.free.push(request);
        if std::mem::take(&mut desk.starved) {
            // A full counter (EAGAIN) is readable too.
            let _ = self.free.write(1);
        }
        result
    }

    /// A helper's life.
    fn help(&self) {
        loop {
            let mut desk = lock(&self.desk);
            let request = loop {
                if desk.over {
                    return;
                }
                match desk.waiting.pop_front() {
                    Some(request) => break request,
                    None => desk = self.work.wait(desk).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(desk);
            if let Err(malformed) = self.finish(request) {
                lock(&self.desk).failure.get_or_insert(malformed);
                let _ = self.free.write(1);
            }
        }
    }

    /// The next request of the queue, if there is one and a place for it.
    fn take(&self) -> Result<Option<Request>, Malformed> {
        let mut desk = lock(&self.desk);
        if let Some(failure) = desk.failure {
            return Err(failure);
        }
        let Some(mut request) = desk.free.pop() else {
            desk.starved = true;
            return Ok(None);
        };
        drop(desk);
        let popped = lock(&self.queue).pop(&mut request.chain);
        match popped {
            Ok(true) => Ok(Some(request)),
            other => {
                lock(&self.desk).free.push(request);
                other.map(|_| None)
            }
        }
    }
}

impl Pool {
    /// The worker of `queue`.
    pub fn new(queue: Queue, server: Arc<Server>, gate: Gate) -> Result<Self> {
        let free = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let free = free.context("create an eventfd")?;
        let count = REQUESTS.min(usize::from(queue.size()));
        let request = |_| Request::new(queue.ram());
        let desk = Desk {
            free: (0..count).map(request).collect(),
            waiting: VecDeque::with_capacity(count),
            ..Desk::default()
        };
        let queue_index = queue.index();
        let kick = queue.kick().try_clone().context("copy an eventfd")?;
        let (queue, desk) = (Mutex::new(queue), Mutex::new(desk));
        let shared = Arc::new(Shared { server, queue, desk, work: Condvar::new(), free });
        let mut pool = Self { shared, helpers: Vec::new(), gate, queue_index, kick };
        for number in 0..HELPERS {
            let shared = pool.shared.clone();
            let name = format!("disk {queue_index}.{number}");
            let helper = sandbox::spawn(Kind::Block, name, move || shared.help());
            pool.helpers.push(helper.context("start a thread")?);
        }
        Ok(pool)
    }

    /// The next request, if there is one that may go on.
    fn take(&mut self) -> Result<Option<Request>> {
        if !self.gate.is_open()? {
            return Ok(None);
        }
        let request = self.shared.take()?;
        request.iter().for_each(|request| self.gate.pass(request.data_len()));
        Ok(request)
    }

    /// Carries out what is available.
    fn serve(&mut self) -> Result<()> {
        let Some(mut last) = self.take()? else { return Ok(()) };
        loop {
            match self.take()? {
                Some(next) => {
                    let earlier = std::mem::replace(&mut last, next);
                    lock(&self.shared.desk).waiting.push_back(earlier);
                    self.shared.work.notify_one();
                }
                None => {
                    self.shared.finish(last)?;
                    // More may have come meanwhile without a notification.
                    match self.take()? {
                        Some(next) => last = next,
                        None => return Ok(()),
                    }
                }
            }
        }
    }
}

impl Work for Pool {
    fn begin(&mut self, watch: &Watch) -> Result<()> {
        self.gate.watch(watch, self.queue_index)?;
        watch.add(&self.shared.free, 0, EventSet::IN)
    }

    fn queues(&self) -> Vec<(usize, &EventFd)> {
        vec![(self.queue_index, &self.kick)]
    }

    fn notified(&mut self, _: usize, _: &Watch) -> Result<()> {
        self.serve()
    }

    fn ready(&mut self, _: u32, _: EventSet, _: &Watch) -> Result<()> {
        let _ = self.shared.free.read();
        self.serve()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.desk).over = true;
        self.shared.work.notify_all();
        for helper in self.helpers.drain(..) {
            // A panic was told when it happened; there is nothing to do about it here.
            let _ = helper.join();
        }
    }
}
