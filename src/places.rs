//! What lies where in guest RAM while a machine is being built, and where there is still room.
//!
//! The loader reserves what the image says; an architecture then finds room for its tables. So
//! nothing that we place ever lies over something that the guest brought.

use anyhow::{Result, bail, ensure};

use crate::memory::RamRange;

/// A reserved piece of RAM.
#[derive(Clone, Debug)]
struct Piece {
    start: u64,
    end: u64,
    what: String,
}

/// RAM and the pieces of it that are taken.
#[derive(Clone, Debug)]
pub struct Places {
    ram: Vec<RamRange>,
    taken: Vec<Piece>,
    avoided: Vec<RamRange>,
}

impl Places {
    /// Nothing taken yet.
    pub fn new(ram: &[RamRange]) -> Self {
        Self { ram: ram.to_vec(), taken: Vec::new(), avoided: Vec::new() }
    }

    /// Keeps what is found from now on out of `range`; what is reserved may lie there.
    pub fn avoid(&mut self, range: RamRange) {
        self.avoided.push(range);
    }

    /// Where RAM begins.
    pub fn ram_start(&self) -> u64 {
        self.ram.first().map_or(0, |range| range.start)
    }

    /// True if `[start, start + len)` lies in one piece of RAM.
    pub fn in_ram(&self, start: u64, len: u64) -> bool {
        let Some(end) = start.checked_add(len) else { return false };
        self.ram.iter().any(|range| range.start <= start && end <= range.end())
    }

    /// Takes `[start, start + len)` for `what`. It must lie in one piece of RAM and be free.
    pub fn reserve(&mut self, start: u64, len: u64, what: &str) -> Result<()> {
        if !self.in_ram(start, len) {
            let ram: Vec<_> =
                self.ram.iter().map(|r| format!("{:#x}..{:#x}", r.start, r.end())).collect();
            bail!(
                "{what}: {len:#x} bytes at {start:#x} lie outside RAM ({}): \
                 load it elsewhere (--load), or give the guest more RAM",
                ram.join(", ")
            );
        }
        let end = start + len;
        if let Some(piece) = self.taken.iter().find(|p| p.start < end && start < p.end) {
            bail!(
                "{what} at {start:#x}..{end:#x} overlaps {} at {:#x}..{:#x}",
                piece.what,
                piece.start,
                piece.end
            );
        }
        self.taken.push(Piece { start, end, what: what.into() });
        Ok(())
    }

    /// The highest free place of `len` bytes, aligned to `align` (a power of two), that ends at or
    /// below `limit`.
    pub fn find_below(&self, limit: u64, len: u64, align: u64) -> Option<u64> {
        self.ram.iter().rev().find_map(|range| {
            let mut end = range.end().min(limit);
            loop {
                let start = end.checked_sub(len)? & !(align - 1);
                if start < range.start {
                    return None;
                }
                // Each round steps below one of these, so the loop ends.
                let taken = self.taken.iter().map(|piece| (piece.start, piece.end));
                let avoided = self.avoided.iter().map(|range| (range.start, range.end()));
                match taken.chain(avoided).find(|(from, to)| *from < start + len && start < *to) {
                    None => return Some(start),
                    Some((from, _)) => end = from,
                }
            }
        })
    }

    /// Finds and takes the highest free place; see [`Places::find_below`].
    pub fn take_below(&mut self, limit: u64, len: u64, align: u64, what: &str) -> Result<u64> {
        let start = self.find_below(limit, len, align);
        ensure!(start.is_some(), "RAM has no room for the {what} ({len:#x} bytes): give it more");
        let start = start.expect("checked above");
        self.reserve(start, len, what)?;
        Ok(start)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn places() -> Places {
        Places::new(&[
            RamRange { start: 0x1000, len: 0x9000 },
            RamRange { start: 0x10_0000, len: 0x1000 },
        ])
    }

    #[test]
    fn what_is_reserved_lies_in_one_piece_of_ram_and_overlaps_nothing() {
        let mut places = places();
        places.reserve(0x2000, 0x1000, "image").unwrap();
        for (start, len, message) in [
            (0, 0x1000, "lie outside RAM (0x1000..0xa000, 0x100000..0x101000)"),
            (0x9fff, 2, "lie outside RAM"),
            (u64::MAX, 2, "lie outside RAM"),
            (0x2fff, 1, "overlaps image at 0x2000..0x3000"),
            (0x1000, 0x9000, "overlaps image"),
        ] {
            let error = places.reserve(start, len, "table").unwrap_err().to_string();
            assert!(error.starts_with("table") && error.contains(message), "{error}");
        }
        places.reserve(0x1000, 0x1000, "below").unwrap();
        places.reserve(0x3000, 0x1000, "above").unwrap();
    }

    #[test]
    fn the_highest_free_place_below_the_limit_is_found() {
        let mut places = places();
        places.reserve(0x8000, 0x1000, "image").unwrap();
        for (limit, len, align, expected) in [
            (u64::MAX, 0x1000, 0x1000, Some(0x10_0000)),
            (0x10_0000, 0x1000, 0x1000, Some(0x9000)),
            (0xffff, 0x1001, 0x1000, Some(0x6000)),
            (0x9800, 0x1000, 8, Some(0x7000)),
            (0x9800, 0x800, 8, Some(0x9000)),
            (0x2000, 0x1000, 0x1000, Some(0x1000)),
            (0x1fff, 0x1000, 0x1000, None),
            (0x1fff, 0x1000, 0x2000, None),
            (u64::MAX, 0x1_0000, 0x1000, None),
            (0, 1, 1, None),
        ] {
            assert_eq!(places.find_below(limit, len, align), expected, "{limit:#x} {len:#x}");
        }
        places.avoid(RamRange { start: 0x10_0000, len: 0x1000 });
        assert_eq!(places.find_below(u64::MAX, 0x1000, 0x1000), Some(0x9000));
        places.reserve(0x10_0000, 0x10, "image").expect("what says where it goes may go there");
        assert!(places.take_below(0x900, 1, 1, "table").unwrap_err().to_string().contains("table"));
    }

    proptest! {
        #[test]
        fn a_found_place_can_always_be_reserved(
            pieces in prop::collection::vec((0u64..0x10_2000, 1u64..0x3000), 0..12),
            limit in 0u64..0x11_0000,
            len in 1u64..0x4000,
            shift in 0u32..14,
        ) {
            let mut places = places();
            for (start, len) in pieces {
                let _ = places.reserve(start, len, "piece");
            }
            if let Some(start) = places.find_below(limit, len, 1 << shift) {
                prop_assert!(start + len <= limit && start % (1 << shift) == 0);
                prop_assert!(places.reserve(start, len, "found").is_ok());
            }
        }
    }
}
