//! One connection: a host's socket, what each side may still send (virtio v1.3, 5.10.6.3 "Buffer
//! Space Management"), and how it ends.
//!
//! From the guest at most [`BUFFER_LEN`] bytes are under way: what the host's program does not take
//! at once waits here, and the guest is told of room as the program takes it. To the guest bytes go
//! straight from the socket into its buffers, as many as it has room for. Either direction may end
//! before the other.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::buffer::Buffer;
use super::packet::*;
use crate::pieces::Pieces;
use crate::sys;
use crate::virtio::chain::Chain;

/// Bytes from the guest that one connection holds. Our choice: twice Linux's largest packet, so
/// that one can be on its way while the other is written.
pub const BUFFER_LEN: usize = 128 << 10;

/// How long a host's program has to say where it wants to. Our choice: a person can type it.
pub const GREETING_TIME: Duration = Duration::from_secs(30);

/// How long the guest has to answer a request, or the end of a connection, and how long what it
/// sent last may wait for the host's program. Our choice: longer than Linux's own eight seconds.
pub const ANSWER_TIME: Duration = Duration::from_secs(10);

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The host's program has not said yet where it wants to: the guest knows nothing of it.
    Greeting,
    /// The guest is to answer, or to get, a request.
    Requested,
    /// Both sides have agreed.
    Open,
    /// The guest is through with it. What it sent still waits for the host's program.
    Lingering,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Stays,
    /// The guest is told that it has ended, and it is forgotten.
    Reset,
    /// It is forgotten.
    Ends,
    /// The guest is told that it has ended; what it sent is still to be written.
    Lingers,
}

/// Packets without data that the guest is to get, as bits, in the order of their sending.
const REQUEST: u8 = 1 << 0;
const RESPONSE: u8 = 1 << 1;
const CREDIT_UPDATE: u8 = 1 << 2;
const SHUTDOWN: u8 = 1 << 3;
const CREDIT_REQUEST: u8 = 1 << 4;

const OPERATIONS: [(u8, u16); 5] = [
    (REQUEST, OP_REQUEST),
    (RESPONSE, OP_RESPONSE),
    (CREDIT_UPDATE, OP_CREDIT_UPDATE),
    (SHUTDOWN, OP_SHUTDOWN),
    (CREDIT_REQUEST, OP_CREDIT_REQUEST),
];

/// A connection.
pub struct Connection {
    pub stream: UnixStream,
    pub state: State,
    pub guest_port: u32,
    pub host_port: u32,
    /// When its time is over, if it has not come further by then.
    pub deadline: Option<Instant>,
    /// It waits for its turn to send to the guest.
    pub queued: bool,
    /// Packets without data for the guest.
    due: u8,
    /// The socket may have something to read.
    readable: bool,
    /// Bytes sent to the guest, modulo 2^32, and what the guest has said of its room.
    sent: u32,
    guest_room: u32,
    guest_forwarded: u32,
    /// The guest has no room, and was asked to tell when it has.
    asked: bool,
    /// Bytes from the guest that are written or dropped, modulo 2^32, and as the guest knows it.
    forwarded: u32,
    told: u32,
    buffer: Buffer,
    /// Flags of shutdowns: what the guest was told or is to be told, and what it has told.
    ours: u32,
    guests: u32,
}

impl Connection {
    fn new(stream: UnixStream, state: State) -> Self {
        Self {
            stream,
            state,
            guest_port: 0,
            host_port: 0,
            deadline: None,
            queued: false,
            due: 0,
            readable: true,
            sent: 0,
            guest_room: 0,
            guest_forwarded: 0,
            asked: false,
            forwarded: 0,
            told: 0,
            buffer: Buffer::default(),
            ours: 0,
            guests: 0,
        }
    }

    /// One that a program of the host has begun.
    pub fn from_host(stream: UnixStream) -> Self {
        let deadline = Some(Instant::now() + GREETING_TIME);
        Self { deadline, ..Self::new(stream, State::Greeting) }
    }

    /// One that the guest has requested by `header`, with the socket that it led to.
    pub fn from_guest(stream: UnixStream, header: &Header) -> Self {
        Self {
            guest_port: header.src_port,
            host_port: header.dst_port,
            due: RESPONSE,
            guest_room: header.buf_alloc,
            guest_forwarded: header.fwd_cnt,
            ..Self::new(stream, State::Open)
        }
    }

    /// The host's program has said where it wants to.
    pub fn request(&mut self, guest_port: u32, host_port: u32) {
        (self.guest_port, self.host_port) = (guest_port, host_port);
        self.state = State::Requested;
        self.due = REQUEST;
        self.deadline = Some(Instant::now() + ANSWER_TIME);
    }

    /// The guest may know of it, by its ports.
    pub fn is_known(&self) -> bool {
        matches!(self.state, State::Requested | State::Open)
    }

    /// True as long as the guest was sent nothing of it.
    pub fn is_secret(&self) -> bool {
        self.due & REQUEST != 0
    }

    /// The header of a packet to the guest.
    pub fn header(&self, guest_cid: u64, op: u16) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.host_port,
            dst_port: self.guest_port,
            len: 0,
            kind: STREAM,
            op,
            flags: if op == OP_SHUTDOWN { self.ours } else { 0 },
            buf_alloc: BUFFER_LEN as u32,
            fwd_cnt: self.forwarded,
        }
    }

    /// Bytes that the guest has room for; none while what it says makes no sense.
    fn credit(&self) -> usize {
        let under_way = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_room.saturating_sub(under_way) as usize
    }

    /// A packet of the guest: its header, and its data as far as it has brought any.
    pub fn receive(&mut self, header: &Header, data: &mut Pieces) -> Fate {
        (self.guest_room, self.guest_forwarded) = (header.buf_alloc, header.fwd_cnt);
        self.asked &= self.credit() == 0;
        match (self.state, header.op) {
            (_, OP_RST) => Fate::Ends,
            (State::Requested, OP_RESPONSE) if !self.is_secret() => self.open(),
            (State::Open, OP_RW) => self.take(header.len as usize, data),
            (State::Open, OP_CREDIT_UPDATE) => Fate::Stays,
            (State::Open, OP_CREDIT_REQUEST) => {
                self.due |= CREDIT_UPDATE;
                Fate::Stays
            }
            (State::Open, OP_SHUTDOWN) => self.shut_down(header.flags),
            _ => Fate::Reset,
        }
    }

    /// The guest has accepted: the host's program is told its own port.
    fn open(&mut self) -> Fate {
        use std::io::Write;
        let line = format!("OK {}\n", self.host_port);
        // The first bytes for this socket: there is room, or the program is gone.
        match self.stream.write(line.as_bytes()) {
            Ok(count) if count == line.len() => {
                (self.state, self.deadline) = (State::Open, None);
                Fate::Stays
            }
            _ => Fate::Reset,
        }
    }

    /// `len` bytes from the guest, all of which must be in `data`.
    fn take(&mut self, len: usize, data: &mut Pieces) -> Fate {
        let lies = data.len() < len || self.guests & NO_SEND != 0;
        if lies || len > BUFFER_LEN - self.buffer.len() {
            return Fate::Reset;
        }
        data.truncate(len);
        while self.buffer.is_empty() && self.ours & NO_RECEIVE == 0 && !data.is_empty() {
            match data.write_to(&self.stream) {
                Ok(count) => self.forward(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.desert(),
            }
        }
        if self.ours & NO_RECEIVE != 0 {
            self.forward(data.len());
        } else {
            let fits = self.buffer.push(data, BUFFER_LEN);
            debug_assert!(fits, "looked at above");
        }
        Fate::Stays
    }

    /// So many more bytes from the guest are written or dropped.
    fn forward(&mut self, count: usize) {
        self.forwarded = self.forwarded.wrapping_add(count as u32);
        // Our choice: seldom, but long before the guest has to wait. Other packets tell it too.
        if self.forwarded.wrapping_sub(self.told) as usize >= BUFFER_LEN / 2 {
            self.due |= CREDIT_UPDATE;
        }
    }

    /// The host's program takes nothing any more.
    fn desert(&mut self) {
        self.forward(self.buffer.len());
        self.buffer.discard();
        self.end_ours(NO_RECEIVE);
    }

    /// Our side will not receive, or not send, any more.
    fn end_ours(&mut self, flags: u32) {
        self.ours |= flags;
        self.due |= SHUTDOWN;
        if self.ours == NEITHER {
            self.deadline = Some(Instant::now() + ANSWER_TIME);
        }
    }

    /// The guest will not receive, or not send, any more.
    fn shut_down(&mut self, flags: u32) -> Fate {
        self.guests |= flags & NEITHER;
        if self.guests == NEITHER {
            if self.buffer.is_empty() {
                return Fate::Reset;
            }
            self.state = State::Lingering;
            self.due = 0;
            self.deadline = Some(Instant::now() + ANSWER_TIME);
            return Fate::Lingers;
        }
        if self.guests & NO_RECEIVE != 0 {
            // A socket that is shut down already is as it should be.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        if self.guests & NO_SEND != 0 && self.buffer.is_empty() {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Fate::Stays
    }

    /// The socket may have become readable or writable.
    pub fn awake(&mut self) -> Fate {
        self.readable = true;
        while !self.buffer.is_empty() {
            match self.buffer.write_to(&self.stream) {
                Ok(count) => self.forward(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Fate::Stays,
                Err(_) => self.desert(),
            }
            if self.buffer.is_empty() && self.guests & NO_SEND != 0 {
                let _ = self.stream.shutdown(Shutdown::Write);
            }
        }
        if self.state == State::Lingering { Fate::Ends } else { Fate::Stays }
    }

    /// It may be read from, to send that to the guest.
    fn can_read(&self) -> bool {
        let over = self.ours & NO_SEND != 0 || self.guests & NO_RECEIVE != 0;
        self.state == State::Open && self.readable && !over
    }

    /// It may have something for the guest.
    pub fn wants_to_send(&self) -> bool {
        self.due != 0 || self.can_read() && (self.credit() > 0 || !self.asked)
    }

    /// Puts the next packet to the guest into `chain`, which has room for a header and more, and
    /// gives its bytes; none if there was nothing to send after all. `room` is scratch.
    pub fn send(&mut self, guest_cid: u64, chain: &mut Chain, room: &mut Pieces) -> usize {
        let mut len = 0;
        if self.due == 0 && self.can_read() {
            match self.credit() {
                0 if self.asked => {}
                0 => {
                    self.asked = true;
                    self.due |= CREDIT_REQUEST;
                }
                credit => {
                    chain.writable.split_off(HEADER_LEN, room);
                    room.truncate(credit);
                    len = self.read(room);
                }
            }
        }
        let op = match OPERATIONS.iter().find(|(bit, _)| self.due & bit != 0) {
            _ if len > 0 => OP_RW,
            None => return 0,
            Some((bit, op)) => {
                self.due &= !bit;
                *op
            }
        };
        // Every packet tells it.
        self.due &= !CREDIT_UPDATE;
        self.told = self.forwarded;
        self.sent = self.sent.wrapping_add(len as u32);
        let header = Header { len: len as u32, ..self.header(guest_cid, op) };
        chain.writable.write(&header.bytes());
        HEADER_LEN + len
    }

    /// Reads from the socket into `room`, and gives the bytes: none at the end or if none wait.
    fn read(&mut self, room: &mut Pieces) -> usize {
        loop {
            match room.read_from(&self.stream) {
                Ok(count) if count > 0 => return count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return 0;
                }
                // An error (ECONNRESET) comes behind the last byte, too.
                Ok(_) | Err(_) => {
                    let mut fds = [sys::poll_entry(&self.stream, 0)];
                    let polled = sys::poll(&mut fds, Some(Duration::ZERO));
                    if polled.is_err() || fds[0].revents & libc::POLLHUP != 0 {
                        // Closed, and not only shut down for sending.
                        self.desert();
                    }
                    self.end_ours(NO_SEND);
                    return 0;
                }
            }
        }
    }
}
