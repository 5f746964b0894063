//! Frames over a stream socket, each behind its length: 32 bits, big-endian. What QEMU's
//! `-netdev stream` and passt speak (passt(1); QEMU invocation, "-netdev stream").
//!
//! A frame is read straight into the guest's buffers, in one call with the length of the next one.
//! What the socket does not take of a frame at once is copied, so that the rest follows whatever
//! the guest does meanwhile: a half-sent frame would end the connection for good.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::header::{Header, MAX_FRAME, MIN_FRAME};
use super::link::{Pair, Received, Sink, Source, Trouble, closed, would_wait};
use super::room::{Fit, Room};
use crate::pieces::Pieces;

/// Bytes of a length.
const LENGTH: usize = 4;

/// The two directions of `socket`, which must not block.
pub fn pair(socket: OwnedFd) -> Pair {
    let socket = Arc::new(File::from(socket));
    let source = StreamSource { socket: socket.clone(), length: [0; LENGTH], at: At::Length(0) };
    let rest = Vec::with_capacity(LENGTH + MAX_FRAME);
    Pair::new(source, StreamSink { socket, rest, sent: 0 })
}

/// Where in the stream we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// So many bytes of a length are there.
    Length(usize),
    /// Of a frame of `len` bytes, `done` are in the guest's buffers.
    Frame { len: usize, done: usize },
    /// So many bytes are of no use to the guest.
    Skip(usize),
}

struct StreamSource {
    socket: Arc<File>,
    length: [u8; LENGTH],
    at: At,
}

impl Source for StreamSource {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn receive(&mut self, room: &mut Room) -> Result<Received, Trouble> {
        loop {
            let step = match self.at {
                At::Length(LENGTH) => self.begin(),
                At::Length(have) => self.read_length(have),
                At::Frame { len, done } => {
                    let fit = if done == 0 { room.make(len)? } else { Fit::Now };
                    match fit {
                        Fit::Now => match self.read_frame(room, len, done) {
                            Ok(true) => {
                                room.finish(Header::default(), len)?;
                                return Ok(Received::Frame);
                            }
                            other => other.map(drop),
                        },
                        Fit::Later => return Ok(Received::NoRoom),
                        Fit::Never => {
                            self.at = At::Skip(len);
                            Ok(())
                        }
                    }
                }
                At::Skip(0) => {
                    self.at = At::Length(0);
                    return Ok(Received::Dropped);
                }
                At::Skip(left) => self.skip(left),
            };
            match step {
                Ok(()) => {}
                Err(error) if would_wait(&error) => return Ok(Received::Nothing),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn restart(&mut self, _: u64) {
        match self.at {
            At::Frame { len, done } if done > 0 => self.at = At::Skip(len - done),
            _ => {}
        }
    }
}

impl StreamSource {
    /// A length is there.
    fn begin(&mut self) -> io::Result<()> {
        let len = u32::from_be_bytes(self.length) as usize;
        if len > MAX_FRAME {
            let what = format!("a frame of {len} bytes came: the other end speaks something else");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        self.at = if len < MIN_FRAME { At::Skip(len) } else { At::Frame { len, done: 0 } };
        Ok(())
    }

    fn read_length(&mut self, have: usize) -> io::Result<()> {
        let count = some((&*self.socket).read(&mut self.length[have..])?)?;
        self.at = At::Length(have + count);
        Ok(())
    }

    /// Reads once; true when the frame is whole.
    fn read_frame(&mut self, room: &mut Room, len: usize, done: usize) -> io::Result<bool> {
        let left = len - done;
        let frame = room.frame();
        let count = some(frame.read_between(&mut [], left, &mut self.length, &*self.socket)?)?;
        let whole = count >= left;
        self.at = match whole {
            true => At::Length(count - left),
            false => At::Frame { len, done: done + count },
        };
        Ok(whole)
    }

    fn skip(&mut self, left: usize) -> io::Result<()> {
        let mut bytes = [0; 4096];
        let at_once = left.min(bytes.len());
        let count = some((&*self.socket).read(&mut bytes[..at_once])?)?;
        self.at = At::Skip(left - count);
        Ok(())
    }
}

/// Nothing read is the end of the stream.
fn some(count: usize) -> io::Result<usize> {
    if count == 0 { Err(closed()) } else { Ok(count) }
}

struct StreamSink {
    socket: Arc<File>,
    /// What is still to be sent, behind the first `sent` bytes.
    rest: Vec<u8>,
    sent: usize,
}

impl Sink for StreamSink {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn send(&mut self, _: &Header, frame: &mut Pieces) -> io::Result<bool> {
        if !self.flush()? {
            return Ok(false);
        }
        // It was checked to be no longer than a frame.
        let length = (frame.len() as u32).to_be_bytes();
        let count = match frame.write_after(&length, &*self.socket) {
            Err(error) if would_wait(&error) => return Ok(false),
            other => other?,
        };
        self.rest.clear();
        self.sent = 0;
        self.rest.extend_from_slice(length.get(count..).unwrap_or_default());
        let at = self.rest.len();
        self.rest.resize(at + frame.len(), 0);
        frame.read(&mut self.rest[at..]);
        Ok(true)
    }

    fn flush(&mut self) -> io::Result<bool> {
        while self.sent < self.rest.len() {
            match (&*self.socket).write(&self.rest[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if would_wait(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
