//! Room for received frames: the driver's buffers in the order in which it gave them, several of
//! them as one where a frame may be spread over many (virtio v1.3, 5.1.6.3 "Setting Up Receive
//! Buffers" and 5.1.6.4 "Processing of Incoming Packets").
//!
//! Buffers are taken ahead of frames, so that a frame can be read straight into them before its
//! length is known. Those that no frame came for go back to the queue as if they had never been
//! taken.

use std::collections::VecDeque;

use super::header::{self, Header};
use crate::pieces::Pieces;
use crate::virtio::chain::{Chain, Malformed};
use crate::virtio::queue::Queue;

/// Buffers that are taken ahead. Our choice: with the smallest that drivers use (1526 bytes) the
/// longest frame fits.
const AHEAD: usize = 64;

/// Whether something fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// There is room.
    Now,
    /// There will be when the driver gives more buffers.
    Later,
    /// There never will be.
    Never,
}

/// The room in one queue.
pub struct Room {
    queue: Queue,
    chain: Chain,
    /// Buffers taken: the head and the bytes of each.
    held: VecDeque<(u16, usize)>,
    /// What is left of them.
    pieces: Pieces,
    /// Where the header goes of the frame that comes next or is under way.
    header: Pieces,
    /// A frame may take several buffers.
    mergeable: bool,
    /// The driver is to be told of frames.
    unsaid: bool,
    given: usize,
}

impl Room {
    /// The room in `queue`, empty so far.
    pub fn new(queue: Queue, mergeable: bool) -> Self {
        let (chain, ram) = (Chain::new(queue.ram()), queue.ram().clone());
        let held = VecDeque::with_capacity(queue.size().into());
        let (pieces, header) = (Pieces::new(ram.clone()), Pieces::new(ram));
        Self { queue, chain, held, pieces, header, mergeable, unsaid: false, given: 0 }
    }

    /// The queue that it is in.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Bytes of frames that the driver has been given so far. It wraps.
    pub fn given(&self) -> usize {
        self.given
    }

    /// Makes room for `bytes` of a frame, beside its header.
    pub fn make(&mut self, bytes: usize) -> Result<Fit, Malformed> {
        let most = if self.mergeable { self.queue.size().into() } else { 1 };
        while self.held.is_empty() || self.pieces.len() < bytes {
            if self.held.len() >= most {
                return Ok(Fit::Never);
            }
            if !self.take_one()? {
                return Ok(Fit::Later);
            }
        }
        Ok(Fit::Now)
    }

    /// Makes room for a frame of at most `bytes` as far as the driver's buffers go; false without
    /// any.
    pub fn make_any(&mut self, bytes: usize) -> Result<bool, Malformed> {
        let most = if self.mergeable { AHEAD } else { 1 };
        while self.held.len() < most && self.pieces.len() < bytes && self.take_one()? {}
        Ok(!self.held.is_empty())
    }

    /// Takes one more buffer, if there is one.
    fn take_one(&mut self) -> Result<bool, Malformed> {
        if !self.queue.pop(&mut self.chain)? {
            return Ok(false);
        }
        let buffer = &mut self.chain.writable;
        // 5.1.6.3.1: a driver gives no smaller ones.
        if buffer.len() < header::LEN {
            return Err(Malformed::Request("a buffer for frames has no room for a header"));
        }
        self.held.push_back((self.chain.head, buffer.len()));
        let first = self.held.len() == 1;
        if first {
            buffer.take_front(header::LEN, &mut self.header);
        }
        self.pieces.append(buffer);
        Ok(true)
    }

    /// Where the bytes of a frame go, one behind the other.
    pub fn frame(&mut self) -> &mut Pieces {
        &mut self.pieces
    }

    /// All `len` bytes of a frame are there: gives its buffers to the driver.
    pub fn finish(&mut self, mut header: Header, len: usize) -> Result<(), Malformed> {
        let total = header::LEN + len;
        let mut count = 0;
        let mut sum = 0;
        while sum < total {
            let (_, bytes) = self.held.get(count).expect("there was room for it");
            sum += bytes;
            count += 1;
        }
        header.num_buffers = count as u16;
        self.header.write(&header.bytes());
        // What is left in the last one belongs to it.
        self.pieces.skip(sum - total);
        let mut left = total;
        let used = self.held.drain(..count).map(|(head, bytes)| {
            let written = left.min(bytes);
            left -= written;
            // No frame comes near 4 GiB.
            (head, written as u32)
        });
        // 5.1.6.4.1: a driver that sees the first one finds them all.
        self.queue.push_all(used)?;
        if !self.held.is_empty() {
            self.pieces.take_front(header::LEN, &mut self.header);
        }
        self.unsaid = true;
        self.given = self.given.wrapping_add(len);
        Ok(())
    }

    /// Gives all buffers back to the queue, with what was written to them of a frame.
    pub fn give_back(&mut self) {
        for _ in self.held.drain(..) {
            self.queue.undo_pop();
        }
        self.pieces.clear();
    }

    /// Tells the driver of what came.
    pub fn signal(&mut self) -> Result<(), Malformed> {
        if std::mem::take(&mut self.unsaid) {
            self.queue.signal()?;
        }
        Ok(())
    }
}
