//! How vCPUs wait while the debugger works with them, and how it gets them to.
//!
//! A vCPU that stops tells so on one channel, which all share, and then carries out what comes
//! through another one of its own, until it is told to go on. When the debugger is gone the channel
//! ends, and that means the same.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::Vcpu;
use crate::debug::Trap;
use crate::kick::Kick;

/// How long a kicked vCPU has before it is kicked again: a kick that came just before it went to
/// sleep in a write to the host was lost.
const KICK_AGAIN: Duration = Duration::from_millis(5);

/// What a waiting vCPU is told.
enum Order<'a> {
    Do(Box<dyn FnOnce(&mut Vcpu) + Send + 'a>),
    Go,
}

/// A vCPU has stopped, and why if not because it was asked to.
pub struct News {
    pub vcpu: usize,
    pub trap: Option<Trap>,
}

/// What debugger and vCPUs look at together.
pub struct Flags {
    /// vCPUs are to stop.
    pausing: AtomicBool,
    /// The guest stands still, and that is nobody's fault.
    held: AtomicBool,
}

impl Flags {
    /// The guest waits for its debugger from the beginning.
    pub fn new() -> Self {
        Self { pausing: AtomicBool::new(true), held: AtomicBool::new(true) }
    }

    /// True while the guest stands still.
    pub fn held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }
}

/// Where one vCPU waits. Belongs to its thread.
pub struct Seat<'a> {
    vcpu: usize,
    orders: Receiver<Order<'a>>,
    news: Sender<News>,
    /// Wakes the debugger.
    bell: &'a EventFd,
    flags: &'a Flags,
}

impl Seat<'_> {
    /// Holds the vCPU, which has left the guest for no device, if it trapped or is asked to stop.
    /// Then no access of it is half done.
    pub fn hold(&self, vcpu: &mut Vcpu, trap: Option<Trap>) {
        if trap.is_none() && !self.flags.pausing.load(Ordering::Acquire) {
            return;
        }
        if self.news.send(News { vcpu: self.vcpu, trap }).is_err() {
            return;
        }
        // A full counter (EAGAIN) is readable too.
        let _ = self.bell.write(1);
        while let Ok(Order::Do(job)) = self.orders.recv() {
            job(vcpu);
        }
    }
}

/// All vCPUs, as the debugger sees them.
pub struct Crew<'a> {
    orders: Vec<Sender<Order<'a>>>,
    news: Receiver<News>,
    kicks: &'a [Kick],
    /// Which ones wait.
    waiting: Vec<bool>,
    pub bell: &'a EventFd,
    flags: &'a Flags,
    stopping: &'a AtomicBool,
}

impl<'a> Crew<'a> {
    /// A crew, and a seat for each of its vCPUs. `stopping` is set once the machine ends.
    pub fn new(
        kicks: &'a [Kick],
        bell: &'a EventFd,
        flags: &'a Flags,
        stopping: &'a AtomicBool,
    ) -> (Self, Vec<Seat<'a>>) {
        let (tell, news) = mpsc::channel();
        let (orders, seats) = (0..kicks.len())
            .map(|vcpu| {
                let (sender, orders) = mpsc::channel();
                (sender, Seat { vcpu, orders, news: tell.clone(), bell, flags })
            })
            .unzip();
        let waiting = vec![false; kicks.len()];
        (Self { orders, news, kicks, waiting, bell, flags, stopping }, seats)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The next vCPU that has stopped, if one has.
    pub fn news(&mut self) -> Option<News> {
        let news = self.news.try_recv().ok()?;
        self.waiting[news.vcpu] = true;
        Some(news)
    }

    /// Stops all of them. What stopped another one meanwhile is forgotten: it happens again when
    /// that one goes on. `false` once the machine ends.
    pub fn pause(&mut self) -> bool {
        self.flags.pausing.store(true, Ordering::Release);
        while self.waiting.contains(&false) {
            if self.stopping.load(Ordering::Acquire) {
                return false;
            }
            let running = self.kicks.iter().zip(&self.waiting).filter(|(_, waiting)| !**waiting);
            running.for_each(|(kick, _)| kick.kick());
            match self.news.recv_timeout(KICK_AGAIN) {
                Ok(news) => self.waiting[news.vcpu] = true,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        self.flags.held.store(true, Ordering::Release);
        true
    }

    /// Lets `vcpus` go on.
    pub fn release(&mut self, vcpus: &[usize]) {
        self.flags.pausing.store(false, Ordering::Release);
        self.flags.held.store(false, Ordering::Release);
        for &vcpu in vcpus {
            if std::mem::replace(&mut self.waiting[vcpu], false) {
                self.kicks[vcpu].settle();
                // A thread that is gone has ended the machine.
                let _ = self.orders[vcpu].send(Order::Go);
            }
        }
    }

    /// Whether `vcpu` is there and waits.
    pub fn waits(&self, vcpu: usize) -> bool {
        self.waiting.get(vcpu).is_some_and(|waiting| *waiting)
    }

    /// Has a waiting vCPU do `job` and gives its result.
    pub fn ask<R: Send + 'a>(
        &self,
        vcpu: usize,
        job: impl FnOnce(&mut Vcpu) -> R + Send + 'a,
    ) -> Result<R> {
        if !self.waits(vcpu) {
            bail!("vCPU {vcpu} is not stopped");
        }
        let (sender, result) = mpsc::channel();
        let job = move |vcpu: &mut Vcpu| {
            // Whoever asked waits for it.
            let _ = sender.send(job(vcpu));
        };
        let gone = || format!("vCPU {vcpu} is gone");
        self.orders[vcpu].send(Order::Do(Box::new(job))).ok().with_context(gone)?;
        result.recv().with_context(gone)
    }
}
