//! Bytes of one connection that the host's program has not taken yet, in a ring of a fixed size.
//! Most connections never have one: its room is taken when the first byte has to wait.

use std::io::{self, IoSlice, Write};

use crate::pieces::Pieces;

/// Bytes that wait, in order.
#[derive(Default)]
pub struct Buffer {
    ring: Box<[u8]>,
    first: usize,
    len: usize,
}

impl Buffer {
    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True without any.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds what is left of `pieces`; the buffer holds up to `capacity` bytes in all, which is the
    /// same in each call. `false` if it does not fit, and then nothing is added.
    pub fn push(&mut self, pieces: &mut Pieces, capacity: usize) -> bool {
        if pieces.len() > capacity - self.len {
            return false;
        }
        if pieces.is_empty() {
            return true;
        }
        if self.ring.is_empty() {
            self.ring = vec![0; capacity].into();
        }
        let end = (self.first + self.len) % capacity;
        self.len += pieces.read(&mut self.ring[end..]);
        if !pieces.is_empty() {
            self.len += pieces.read(&mut self.ring[..self.first]);
        }
        true
    }

    /// Writes to `to` what it takes at once, and gives how many bytes that were.
    pub fn write_to(&mut self, mut to: impl Write) -> io::Result<usize> {
        let end = self.first + self.len;
        let (front, back) = match end.checked_sub(self.ring.len()) {
            Some(over) => (&self.ring[self.first..], &self.ring[..over]),
            None => (&self.ring[self.first..end], &self.ring[..0]),
        };
        let count = to.write_vectored(&[IoSlice::new(front), IoSlice::new(back)])?;
        self.len -= count;
        self.first = if self.len == 0 { 0 } else { (self.first + count) % self.ring.len() };
        Ok(count)
    }

    /// Forgets what is in it, and gives its room back.
    pub fn discard(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::memory::{GuestRam, RamRange};

    /// Takes up to so many bytes.
    struct Taker(usize, Vec<u8>);

    impl Write for Taker {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.write_vectored(&[IoSlice::new(bytes)])
        }
        fn write_vectored(&mut self, all: &[IoSlice<'_>]) -> io::Result<usize> {
            let bytes = all.iter().flat_map(|slice| slice.iter().copied());
            let before = self.1.len();
            self.1.extend(bytes.take(self.0));
            Ok(self.1.len() - before)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(steps in proptest::collection::vec((any::<bool>(), 0usize..9), 0..60)) {
            const CAPACITY: usize = 8;
            let ram = Arc::new(GuestRam::new(vec![RamRange { start: 0, len: 0x1000 }]).unwrap());
            let (mut buffer, mut model, mut next) = (Buffer::default(), VecDeque::new(), 0u8);
            for (push, count) in steps {
                if push {
                    let bytes: Vec<u8> = (0..count).map(|at| next.wrapping_add(at as u8)).collect();
                    ram.write(&bytes, 0x100).unwrap();
                    let mut pieces = Pieces::new(ram.clone());
                    pieces.push(0x100, count).unwrap();
                    let fits = model.len() + count <= CAPACITY;
                    prop_assert_eq!(buffer.push(&mut pieces, CAPACITY), fits);
                    if fits {
                        model.extend(&bytes);
                        next = next.wrapping_add(count as u8);
                    }
                } else if !buffer.is_empty() {
                    let mut taker = Taker(count, Vec::new());
                    let taken = buffer.write_to(&mut taker).unwrap();
                    prop_assert_eq!(taken, count.min(model.len()));
                    let expected: Vec<u8> = model.drain(..taken).collect();
                    prop_assert_eq!(taker.1, expected);
                }
                prop_assert_eq!(buffer.len(), model.len());
            }
        }
    }
}
