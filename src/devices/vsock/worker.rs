//! The thread that moves everything: packets of the guest to sockets, what comes from sockets to
//! the guest, new connections from both sides, and the end of those whose time is over.
//!
//! Sockets are watched for edges: one call when a connection is made, and none while bytes flow. A
//! connection that has something for the guest waits for its turn; without buffers of the guest all
//! of them wait, and so do the host's programs.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::connection::{Connection, Fate, State};
use super::greeting::{self, Greeting};
use super::packet::{HEADER_LEN, HOST_CID, Header, OP_REQUEST, OP_RST, STREAM};
use super::table::Table;
use super::{RX, TX};
use crate::bound_socket::BoundSocket;
use crate::pieces::Pieces;
use crate::virtio::chain::{Chain, Malformed};
use crate::virtio::queue::Queue;
use crate::virtio::worker::{Watch, Work};

/// Whose event it is; connections follow, by slot.
const LISTENER: u32 = 0;
const TIMER: u32 = 1;
const CONNECTIONS: u32 = 2;

/// Resets that may wait for buffers of the guest. With as many, its packets are not looked at
/// (5.10.6.1: a device that can't answer stops); what the host's side adds is dropped at twice that.
const RESETS: usize = 128;

/// Packets in one direction before the other has its turn. Our choice: a queue full.
const AT_ONCE: usize = super::QUEUE_SIZE as usize;

/// Our choice: how long until a new attempt when the process has no descriptor left.
const RETRY: Duration = Duration::from_secs(1);

/// The worker.
pub struct Mover {
    guest_cid: u64,
    host: Arc<BoundSocket>,
    rx: Queue,
    tx: Queue,
    table: Table,
    resets: VecDeque<Header>,
    timer: TimerFd,
    /// When the timer is set to.
    alarm: Option<Instant>,
    /// When to look again for connections of the host.
    accept_at: Option<Instant>,
    // Scratch, so that nothing is made for a packet.
    from_guest: Chain,
    to_guest: Chain,
    room: Pieces,
}

impl Mover {
    /// Moves between the guest's queues and the sockets at, and beside, `host`.
    pub fn new(guest_cid: u64, host: Arc<BoundSocket>, rx: Queue, tx: Queue) -> Result<Self> {
        Ok(Self {
            guest_cid,
            host,
            table: Table::new(),
            resets: VecDeque::with_capacity(2 * RESETS),
            timer: TimerFd::new().map_err(io::Error::from).context("create a timer")?,
            alarm: None,
            accept_at: None,
            from_guest: Chain::new(rx.ram()),
            to_guest: Chain::new(rx.ram()),
            room: Pieces::new(rx.ram().clone()),
            rx,
            tx,
        })
    }

    /// Moves what can be moved.
    fn turn(&mut self, watch: &Watch) -> Result<()> {
        self.take_packets(watch)?;
        self.give_packets()
    }

    // ------------------------------------------------------------ from the guest

    fn take_packets(&mut self, watch: &Watch) -> Result<()> {
        let mut taken = 0;
        while taken < AT_ONCE && self.resets.len() < RESETS && self.tx.pop(&mut self.from_guest)? {
            taken += 1;
            self.take_packet(watch)?;
            self.tx.push(self.from_guest.head, 0)?;
        }
        if taken > 0 {
            self.tx.signal()?;
        }
        if taken == AT_ONCE {
            // The rest later, as if the guest had just notified.
            let _ = self.tx.kick().write(1);
        }
        Ok(())
    }

    fn take_packet(&mut self, watch: &Watch) -> Result<()> {
        let mut bytes = [0; HEADER_LEN];
        if self.from_guest.readable.read(&mut bytes) < HEADER_LEN {
            Err(Malformed::Request("a packet is shorter than its header"))?;
        }
        let header = Header::parse(&bytes);
        if header.src_cid != self.guest_cid {
            // 5.10.6.2: nobody would get the answer.
            return Ok(());
        }
        let ours = header.dst_cid == HOST_CID && header.kind == STREAM;
        let known = self.table.find((header.src_port, header.dst_port)).filter(|_| ours);
        match known.and_then(|slot| Some((slot, self.table.get(slot)?))) {
            Some((slot, connection)) => {
                let fate = connection.receive(&header, &mut self.from_guest.readable);
                self.decide(slot, fate, watch);
            }
            None if header.op == OP_RST => {}
            None if ours && header.op == OP_REQUEST => self.connect(&header, watch),
            None => self.refuse(header.reset()),
        }
        Ok(())
    }

    /// The guest wants a connection: to the socket beside ours that has the port in its name.
    fn connect(&mut self, header: &Header, watch: &Watch) {
        let stream = (!self.table.is_full()).then(|| self.open(header.dst_port));
        match stream {
            Some(Ok(stream)) => self.add(Connection::from_guest(stream, header), watch),
            // Nobody listens, or nobody takes it, or it has no name that fits.
            Some(Err(_)) | None => self.refuse(header.reset()),
        }
    }

    fn open(&self, port: u32) -> rustix::io::Result<UnixStream> {
        let mut path = self.host.path().as_os_str().to_owned();
        path.push(format!("_{port}"));
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // It is made at once, or not: a queue that is full is an error (EAGAIN).
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(UnixStream::from(socket))
    }

    // ------------------------------------------------------------ to the guest

    fn give_packets(&mut self) -> Result<()> {
        let (mut given, mut turns) = (0, 0);
        while turns < AT_ONCE && (!self.resets.is_empty() || self.table.has_waiting()) {
            if !self.rx.pop(&mut self.to_guest)? {
                break;
            }
            turns += 1;
            if self.to_guest.writable.len() <= HEADER_LEN {
                Err(Malformed::Request("a buffer for packets has no room for data"))?;
            }
            match self.give_packet() {
                0 => self.rx.undo_pop(),
                written => {
                    self.rx.push(self.to_guest.head, written as u32)?;
                    given += 1;
                }
            }
        }
        if given > 0 {
            self.rx.signal()?;
        }
        if turns == AT_ONCE {
            let _ = self.rx.kick().write(1);
        }
        if given > 0 && self.resets.len() < RESETS {
            // It may have waited for room.
            let _ = self.tx.kick().write(1);
        }
        Ok(())
    }

    /// Fills `to_guest` with the next packet, and gives its bytes; none if nothing is to be sent.
    fn give_packet(&mut self) -> usize {
        if let Some(reset) = self.resets.pop_front() {
            return self.to_guest.writable.write(&reset.bytes());
        }
        let Some(slot) = self.table.next() else { return 0 };
        let Some(connection) = self.table.get(slot) else { return 0 };
        let written = connection.send(self.guest_cid, &mut self.to_guest, &mut self.room);
        let deadline = connection.deadline;
        self.table.enqueue(slot);
        self.wake_by(deadline);
        written
    }

    /// Tells the guest that there is no such connection.
    fn refuse(&mut self, reset: Header) {
        if self.resets.len() < 2 * RESETS {
            self.resets.push_back(reset);
        }
    }

    // ------------------------------------------------------------ connections

    /// Takes the connections that the host's programs have begun.
    fn accept(&mut self, watch: &Watch) {
        self.accept_at = None;
        loop {
            match self.host.accept() {
                Ok(None) => return,
                // Dropped, and so closed.
                Ok(Some(_)) if self.table.is_full() => {}
                Ok(Some(stream)) if stream.set_nonblocking(true).is_ok() => {
                    self.add(Connection::from_host(stream), watch);
                }
                Ok(Some(_)) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.accept_at = Some(Instant::now() + RETRY);
                    return self.wake_by(self.accept_at);
                }
            }
        }
    }

    /// Adds a connection, for which there is room.
    fn add(&mut self, connection: Connection, watch: &Watch) {
        let slot = self.table.insert(connection);
        let Some(connection) = self.table.get(slot) else { return };
        let edges = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        // Whatever is there already is the first edge.
        let fate = match watch.add(&connection.stream, CONNECTIONS + slot, edges) {
            Ok(()) => Fate::Stays,
            Err(_) => Fate::Reset,
        };
        self.decide(slot, fate, watch);
    }

    /// What became of the connection in `slot`.
    fn decide(&mut self, slot: u32, fate: Fate, watch: &Watch) {
        if let Fate::Reset | Fate::Lingers = fate
            && let Some(connection) = self.table.get(slot)
            && (connection.is_known() && !connection.is_secret() || fate == Fate::Lingers)
        {
            let header = connection.header(self.guest_cid, OP_RST);
            self.refuse(header);
        }
        let deadline = self.table.get(slot).and_then(|connection| connection.deadline);
        self.wake_by(deadline);
        match fate {
            Fate::Stays => self.table.enqueue(slot),
            Fate::Lingers => self.table.forget(slot),
            Fate::Reset | Fate::Ends => {
                if let Some(connection) = self.table.remove(slot) {
                    // One that could not be watched isn't.
                    let _ = watch.remove(&connection.stream);
                }
            }
        }
    }

    /// The socket in `slot` may be readable or writable.
    fn awake(&mut self, slot: u32, watch: &Watch) {
        // What is meant for a connection that is no more is without effect on the next.
        let Some(connection) = self.table.get(slot) else { return };
        if connection.state != State::Greeting {
            let fate = connection.awake();
            self.decide(slot, fate, watch);
            return;
        }
        match greeting::read(&connection.stream) {
            Greeting::Unfinished => {}
            Greeting::Port(port) => {
                self.table.request(slot, port);
                self.decide(slot, Fate::Stays, watch);
            }
            Greeting::Wrong => self.decide(slot, Fate::Ends, watch),
        }
    }

    // ------------------------------------------------------------ time

    /// Has the timer wake this thread at `at`, or earlier.
    fn wake_by(&mut self, at: Option<Instant>) {
        let Some(at) = at else { return };
        if self.alarm.is_none_or(|alarm| at < alarm) {
            // Zero would be never.
            let left = at.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            // It fails for times that there are not.
            let _ = self.timer.reset(left, None);
            self.alarm = Some(at);
        }
    }

    /// Ends what has had its time.
    fn expire(&mut self, watch: &Watch) {
        // It is readable, so this does not wait.
        let _ = self.timer.wait();
        self.alarm = None;
        let now = Instant::now();
        while let Some(slot) = self.table.late(now) {
            self.decide(slot, Fate::Reset, watch);
        }
        if self.accept_at.is_some_and(|at| at <= now) {
            self.accept(watch);
        }
        self.wake_by(self.accept_at);
        self.wake_by(self.table.next_deadline());
    }
}

impl Work for Mover {
    fn begin(&mut self, watch: &Watch) -> Result<()> {
        watch.add(&self.timer, TIMER, EventSet::IN)?;
        // Programs that came before are the first edge.
        watch.add(&*self.host, LISTENER, EventSet::IN | EventSet::EDGE_TRIGGERED)
    }

    fn queues(&self) -> Vec<(usize, &EventFd)> {
        vec![(RX, self.rx.kick()), (TX, self.tx.kick())]
    }

    fn notified(&mut self, _: usize, watch: &Watch) -> Result<()> {
        self.turn(watch)
    }

    fn ready(&mut self, token: u32, _: EventSet, watch: &Watch) -> Result<()> {
        match token {
            LISTENER => self.accept(watch),
            TIMER => self.expire(watch),
            _ => self.awake(token - CONNECTIONS, watch),
        }
        self.turn(watch)
    }
}
