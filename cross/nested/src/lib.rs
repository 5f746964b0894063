//! What passes between the program `nested` on the machine and the program
//! `agent` in the emulated host: frames on one byte stream.
//!
//! A frame is `length: u32, session: u16, kind: u8, body`, little endian. A
//! session is one job. The stream is shared by all sessions, so nothing may
//! block it: standard input, output and error are sent against credit, at most
//! [`WINDOW`] bytes ahead of their reader.

pub mod sys;

use std::io::{self, Read, Write};

/// Our choice: enough to keep a stream busy over a round trip of a millisecond.
pub const WINDOW: usize = 256 << 10;

/// Our choice: the size of a piece of a file or a stream in one frame.
pub const CHUNK: usize = 64 << 10;

/// The largest body that a peer may announce; a larger one means that the stream is damaged.
const MAX_BODY: usize = 16 << 20;

const HEADER: usize = 7;

/// The name of the virtio-serial port that carries the stream.
pub const PORT: &str = "bivisor.nested";

/// The session of frames that are about the emulated host itself.
pub const HOST: u16 = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// To the agent: a list of `key, path, mode, size` for each file of the job.
    Open = 1,
    /// From the agent: the indices of those files that it does not have yet.
    Need,
    /// To the agent: a piece of a file: `index: u32, offset: u64, bytes`.
    Data,
    /// To the agent: a file is complete: `index: u32, length: u64`.
    Stored,
    /// To the agent: start: a list of `working directory, count of arguments, arguments, variables`.
    Run,
    /// To the agent: bytes for standard input; none means end of file.
    Stdin,
    /// From the agent.
    Stdout,
    Stderr,
    /// Both ways: the reader of a stream took so many bytes: `kind of stream: u8, count: u32`.
    Credit,
    /// To the agent: send this signal to the job: `number: u8`.
    Signal,
    /// To the agent: the client is gone, kill what it started.
    Close,
    /// From the agent: the job ended: `status: u32`.
    Exit,
    /// From the agent: it serves, and later: it still does.
    Ready,
    Beat,
    /// From the host process to a client: the emulated host ended; why, as text.
    Lost,
    /// From a client to the host process: end the emulated host.
    Stop,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        use Kind::*;
        const ALL: [Kind; 16] = [
            Open, Need, Data, Stored, Run, Stdin, Stdout, Stderr, Credit, Signal, Close, Exit,
            Ready, Beat, Lost, Stop,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub session: u16,
    pub kind: Kind,
    pub body: Vec<u8>,
}

impl Frame {
    /// The little-endian `u32` at `at`; 0 where the body is too short.
    pub fn u32_at(&self, at: usize) -> u32 {
        let bytes = self.body.get(at..at + 4);
        bytes.map_or(0, |b| u32::from_le_bytes(b.try_into().expect("four bytes")))
    }

    /// The little-endian `u64` at `at`; 0 where the body is too short.
    pub fn u64_at(&self, at: usize) -> u64 {
        u64::from(self.u32_at(at)) | u64::from(self.u32_at(at + 4)) << 32
    }

    /// The bytes from `at` on.
    pub fn rest(&self, at: usize) -> &[u8] {
        self.body.get(at..).unwrap_or(&[])
    }
}

/// A non-blocking stream of frames, with what is not yet written and not yet understood.
pub struct Wire<S> {
    pub stream: S,
    inbox: Vec<u8>,
    taken: usize,
    outbox: Vec<u8>,
    written: usize,
}

impl<S: Read + Write> Wire<S> {
    pub fn new(stream: S) -> Wire<S> {
        Wire { stream, inbox: Vec::new(), taken: 0, outbox: Vec::new(), written: 0 }
    }

    /// Queues a frame whose body is the given parts in a row.
    pub fn send(&mut self, session: u16, kind: Kind, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.outbox.extend_from_slice(&(length as u32).to_le_bytes());
        self.outbox.extend_from_slice(&session.to_le_bytes());
        self.outbox.push(kind as u8);
        for part in parts {
            self.outbox.extend_from_slice(part);
        }
    }

    /// How many bytes are queued.
    pub fn queued(&self) -> usize {
        self.outbox.len() - self.written
    }

    /// Writes as much of the queue as the stream takes now.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.queued() > 0 {
            match self.stream.write(&self.outbox[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if self.written > self.outbox.len() / 2 {
                        self.outbox.drain(..self.written);
                        self.written = 0;
                    }
                    return Ok(());
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.outbox.clear();
        self.written = 0;
        Ok(())
    }

    /// Reads what is there, at most about a mebibyte. `false`: the other end is closed.
    pub fn fill(&mut self) -> io::Result<bool> {
        self.inbox.drain(..self.taken);
        self.taken = 0;
        let mut piece = vec![0; CHUNK];
        for _ in 0..16 {
            match self.stream.read(&mut piece) {
                Ok(0) => return Ok(false),
                Ok(count) => self.inbox.extend_from_slice(&piece[..count]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// The next whole frame of what was read. An unknown kind or an absurd length is an error.
    pub fn take_frame(&mut self) -> io::Result<Option<Frame>> {
        let bytes = &self.inbox[self.taken..];
        if bytes.len() < HEADER {
            return Ok(None);
        }
        let length = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes")) as usize;
        let session = u16::from_le_bytes(bytes[4..6].try_into().expect("two bytes"));
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "damaged stream of frames");
        let kind = Kind::from_byte(bytes[6]).ok_or_else(damaged)?;
        if length > MAX_BODY {
            return Err(damaged());
        }
        if bytes.len() < HEADER + length {
            return Ok(None);
        }
        let body = bytes[HEADER..HEADER + length].to_vec();
        self.taken += HEADER + length;
        Ok(Some(Frame { session, kind, body }))
    }
}

/// Byte strings in a row, each behind its length.
pub fn pack<T: AsRef<[u8]>>(items: impl IntoIterator<Item = T>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for item in items {
        let item = item.as_ref();
        bytes.extend_from_slice(&(item.len() as u32).to_le_bytes());
        bytes.extend_from_slice(item);
    }
    bytes
}

/// The byte strings that [`pack`] put in a row; a damaged end is left out.
pub fn unpack(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut items = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some(item) = rest.get(..length) else {
            break;
        };
        items.push(item.to_vec());
        bytes = &rest[length..];
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn frames_come_out_as_they_went_in_however_the_stream_is_cut() {
        let mut out = Wire::new(Cursor::new(Vec::new()));
        out.send(7, Kind::Stdout, &[b"one", b"two"]);
        out.send(HOST, Kind::Beat, &[]);
        out.flush().unwrap();
        let bytes = out.stream.into_inner();
        for cut in 0..bytes.len() {
            let mut wire = Wire::new(Cursor::new(Vec::new()));
            let mut frames = Vec::new();
            for half in [&bytes[..cut], &bytes[cut..]] {
                wire.stream = Cursor::new(half.to_vec());
                assert!(!wire.fill().unwrap());
                while let Some(frame) = wire.take_frame().unwrap() {
                    frames.push(frame);
                }
            }
            assert_eq!(frames.len(), 2);
            assert_eq!(
                frames[0],
                Frame { session: 7, kind: Kind::Stdout, body: b"onetwo".to_vec() }
            );
        }
    }

    #[test]
    fn an_unknown_kind_or_an_absurd_length_is_an_error() {
        for bytes in [[0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0, 99], [0, 0, 0, 99, 1, 0, 1]] {
            let mut wire = Wire::new(Cursor::new(bytes.to_vec()));
            wire.fill().unwrap();
            assert!(wire.take_frame().is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn lists_survive_and_a_damaged_end_is_dropped() {
        let bytes = pack(["", "a", "bc"]);
        assert_eq!(unpack(&bytes), [b"".to_vec(), b"a".to_vec(), b"bc".to_vec()]);
        assert_eq!(unpack(&bytes[..bytes.len() - 1]).len(), 2);
        assert!(unpack(&[1]).is_empty());
    }

    #[test]
    fn numbers_past_the_end_of_a_body_read_as_zero() {
        let frame = Frame { session: 0, kind: Kind::Data, body: vec![1, 0, 0, 0, 2] };
        assert_eq!((frame.u32_at(0), frame.u32_at(2), frame.u64_at(0)), (1, 0, 1));
        assert_eq!(frame.rest(4), [2]);
        assert!(frame.rest(6).is_empty());
    }
}
