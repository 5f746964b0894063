//! What a network device is connected to: the two directions of a link, and how each ends.

use std::any::Any;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::header::Header;
use super::room::Room;
use super::tap::Tap;
use crate::notice;
use crate::pieces::Pieces;
use crate::virtio::ConfigChange;
use crate::virtio::chain::Malformed;

/// Where frames for the guest come from.
pub trait Source: Send {
    /// What becomes readable when there are some.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Reads on at a frame, into `room`. Never waits.
    fn receive(&mut self, room: &mut Room) -> Result<Received, Trouble>;

    /// A driver that accepted `features` begins anew: what the last one had of a frame is lost.
    fn restart(&mut self, features: u64);
}

/// Where the guest's frames go.
pub trait Sink: Send {
    /// What becomes writable when it takes more.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Sends `frame`, whose header was checked. With `Ok(false)` it takes none now, and has taken
    /// nothing of this one. Never waits.
    fn send(&mut self, header: &Header, frame: &mut Pieces) -> io::Result<bool>;

    /// Sends what is left of frames that it has taken; false if it must wait with that.
    fn flush(&mut self) -> io::Result<bool> {
        Ok(true)
    }
}

/// What became of an attempt to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A frame is in the guest's buffers.
    Frame,
    /// A frame was passed over.
    Dropped,
    /// There is nothing to read now.
    Nothing,
    /// The guest has too few buffers.
    NoRoom,
}

/// Why receiving goes no further.
#[derive(Debug)]
pub enum Trouble {
    /// The link is gone.
    Link(io::Error),
    /// The guest broke the rules of its queue.
    Guest(Malformed),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Link(error)
    }
}

impl From<Malformed> for Trouble {
    fn from(malformed: Malformed) -> Self {
        Self::Guest(malformed)
    }
}

/// The two directions for one pair of queues. Locked only by the worker that uses it, so that what
/// is known of a half-read or half-written frame outlives a reset of the device.
pub struct Pair {
    /// To the guest.
    pub source: Arc<Mutex<dyn Source>>,
    /// From the guest.
    pub sink: Arc<Mutex<dyn Sink>>,
}

impl Pair {
    /// Of these two.
    pub fn new(source: impl Source + 'static, sink: impl Sink + 'static) -> Self {
        Self { source: Arc::new(Mutex::new(source)), sink: Arc::new(Mutex::new(sink)) }
    }
}

/// A link.
pub struct Link {
    /// What it is, for messages.
    pub name: String,
    /// One for each pair of queues, one at least.
    pub pairs: Vec<Pair>,
    /// The largest packet that it takes, where that is known.
    pub mtu: Option<u16>,
    /// The tap device that it is, if its frames have headers.
    pub tap: Option<Arc<Tap>>,
    /// What lives as long as the link, such as a process.
    pub keeps: Option<Box<dyn Any + Send>>,
}

/// What the link carries: whether it is there, which the guest is told, and for how many pairs of
/// queues, which the guest says.
#[derive(Clone)]
pub struct Carrier(Arc<State>);

struct State {
    name: String,
    up: AtomicBool,
    pairs: AtomicUsize,
}

impl Carrier {
    /// Of the link `name`, which is there, for the first pair.
    pub fn new(name: String) -> Self {
        Self(Arc::new(State { name, up: AtomicBool::new(true), pairs: AtomicUsize::new(1) }))
    }

    /// True while it is there.
    pub fn is_up(&self) -> bool {
        self.0.up.load(Ordering::Acquire)
    }

    /// True while it carries frames for pair number `pair`.
    pub fn carries(&self, pair: usize) -> bool {
        self.is_up() && pair < self.pairs()
    }

    /// Pairs that it carries frames for.
    pub fn pairs(&self) -> usize {
        self.0.pairs.load(Ordering::Acquire)
    }

    /// From now on it is for the first `count` pairs. To be called before a queue of a tap device is
    /// switched off, and after one is switched on.
    pub fn set_pairs(&self, count: usize) {
        self.0.pairs.store(count, Ordering::Release);
    }

    /// The worker of pair number `pair` found that the link is gone; the first to find out tells user
    /// and guest. A queue that was switched off meanwhile looks the same.
    pub fn lost(&self, pair: usize, error: &io::Error, config: &ConfigChange) {
        if pair < self.pairs() && self.0.up.swap(false, Ordering::AcqRel) {
            notice::say(&format!("{}: {error}: the guest's network is down", self.0.name));
            config.tell();
        }
    }
}

/// True if the call that failed with `error` would have had to wait.
pub fn would_wait(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// The error of a peer that has closed its end.
pub fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the other end has closed the connection")
}
