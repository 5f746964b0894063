//! The walk through a chain of descriptors (virtio v1.3, 2.7.5 "The Virtqueue Descriptor Table" and
//! 2.7.5.3 "Indirect Descriptors"): from an index that the driver gave to pieces of guest RAM.
//!
//! The table is the guest's memory and may change while it is read: every descriptor is read once,
//! and whatever it says is checked after that. No chain is longer than its queue.

use std::fmt;
use std::sync::Arc;

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestRam;
use crate::pieces::{NotRam, Pieces};

/// Bytes of a descriptor.
const DESCRIPTOR_LEN: u32 = 16;

/// A driver broke the rules of a ring. The device that is told needs a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// A descriptor or a part of the ring lies at an address that is not RAM.
    Address(u64),
    /// A descriptor's index is not below the length of its table.
    Index(u16),
    /// The chain has more descriptors than its queue: it may have no end.
    Endless,
    /// The buffers of a chain have more than 2^32 bytes together (2.7.5.2).
    Long,
    /// A descriptor that the device may read follows one that it may write (2.7.4.2).
    Order,
    /// An indirect table is empty, not made of whole descriptors, in another one, or continued.
    Indirect,
    /// The driver made more chains available than the queue has room for.
    Available(u16),
    /// The buffers of a request don't fit what the device expects.
    Request(&'static str),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(at) => write!(f, "a ring or buffer at {at:#x} is not in RAM"),
            Self::Index(index) => write!(f, "descriptor {index} is past the end of its table"),
            Self::Endless => write!(f, "a chain has more descriptors than its queue"),
            Self::Long => write!(f, "a chain's buffers have more than 4 GiB"),
            Self::Order => write!(f, "a readable buffer follows a writable one"),
            Self::Indirect => write!(f, "an indirect descriptor is malformed"),
            Self::Available(count) => write!(f, "{count} chains are available, more than fit"),
            Self::Request(what) => write!(f, "{what}"),
        }
    }
}

impl std::error::Error for Malformed {}

impl From<NotRam> for Malformed {
    fn from(not_ram: NotRam) -> Self {
        Self::Address(not_ram.guest_addr)
    }
}

/// One buffer of a driver. Made once and filled for each chain, so that nothing is allocated then.
pub struct Chain {
    /// Index of its first descriptor; what it is given back by.
    pub head: u16,
    /// What the device may read.
    pub readable: Pieces,
    /// What it may write.
    pub writable: Pieces,
}

/// Where a queue's descriptors lie.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Its guest-physical address.
    pub guest_addr: u64,
    /// Descriptors in it.
    pub len: u16,
}

impl Chain {
    /// An empty one.
    pub fn new(ram: &Arc<GuestRam>) -> Self {
        let pieces = || Pieces::new(ram.clone());
        Self { head: 0, readable: pieces(), writable: pieces() }
    }

    /// Becomes the chain of `table` that begins at `head`.
    pub fn walk(&mut self, ram: &GuestRam, table: Table, head: u16) -> Result<(), Malformed> {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        let (mut at, mut len, mut index) = (table.guest_addr, u32::from(table.len), head);
        let mut left = table.len;
        let mut total = 0u64;
        let mut indirect = false;
        loop {
            if u32::from(index) >= len {
                return Err(Malformed::Index(index));
            }
            // The address wraps at most to one that is no RAM, or is checked like any other.
            let place = at.wrapping_add(u64::from(DESCRIPTOR_LEN) * u64::from(index));
            let descriptor: Descriptor = ram
                .backend()
                .read_obj(GuestAddress(place))
                .map_err(|_| Malformed::Address(place))?;
            let has = |flag: u32| u32::from(descriptor.flags()) & flag != 0;
            if has(VRING_DESC_F_INDIRECT) {
                let bytes = descriptor.len();
                let whole = bytes > 0 && bytes.is_multiple_of(DESCRIPTOR_LEN);
                if indirect || !whole || has(VRING_DESC_F_NEXT) {
                    return Err(Malformed::Indirect);
                }
                indirect = true;
                (at, len, index) = (descriptor.addr().0, bytes / DESCRIPTOR_LEN, 0);
                continue;
            }
            left = left.checked_sub(1).ok_or(Malformed::Endless)?;
            total += u64::from(descriptor.len());
            if total > u64::from(u32::MAX) {
                return Err(Malformed::Long);
            }
            let (guest_addr, bytes) = (descriptor.addr().0, descriptor.len() as usize);
            if has(VRING_DESC_F_WRITE) {
                self.writable.push(guest_addr, bytes)?;
            } else if self.writable.is_empty() {
                self.readable.push(guest_addr, bytes)?;
            } else {
                return Err(Malformed::Order);
            }
            if !has(VRING_DESC_F_NEXT) {
                return Ok(());
            }
            index = descriptor.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::effort;
    use crate::memory::RamRange;

    const TABLE: Table = Table { guest_addr: 0x1000, len: 8 };
    const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    const WRITE: u16 = VRING_DESC_F_WRITE as u16;
    const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

    fn ram() -> Arc<GuestRam> {
        let range = RamRange { start: 0x1000, len: 0x1_0000 };
        Arc::new(GuestRam::new(vec![range]).unwrap())
    }

    type Raw = (u64, u32, u16, u16);

    fn put(ram: &GuestRam, at: u64, descriptors: &[Raw]) {
        for (index, (addr, len, flags, next)) in descriptors.iter().enumerate() {
            let bytes = [
                &addr.to_le_bytes()[..],
                &len.to_le_bytes(),
                &flags.to_le_bytes(),
                &next.to_le_bytes(),
            ];
            ram.write(&bytes.concat(), at + 16 * index as u64).unwrap();
        }
    }

    fn walk(direct: &[Raw], indirect: &[Raw], head: u16) -> Result<(usize, usize), Malformed> {
        let ram = ram();
        put(&ram, TABLE.guest_addr, direct);
        put(&ram, 0x2000, indirect);
        let mut chain = Chain::new(&ram);
        chain.walk(&ram, TABLE, head)?;
        Ok((chain.readable.len(), chain.writable.len()))
    }

    #[test]
    fn good_chains_become_what_they_say() {
        for (direct, indirect, expected) in [
            (&[(0x3000, 4, 0, 0)][..], &[][..], (4, 0)),
            (&[(0x3000, 4, NEXT, 7), (0, 0, 0, 0)], &[], (4, 0)),
            (&[(0x3000, 4, NEXT, 1), (0x4000, 9, WRITE, 0)], &[], (4, 9)),
            (&[(0x3000, 0, NEXT, 1), (0x4000, 0, WRITE, 0)], &[], (0, 0)),
            (&[(0x2000, 16, INDIRECT, 0)], &[(0x3000, 5, WRITE, 9)], (0, 5)),
            (
                &[(0x2fff, 1, NEXT, 1), (0x2000, 32, INDIRECT, 0)],
                &[(0x3000, 5, NEXT, 1), (0x3000, 6, WRITE, 0)],
                (6, 6),
            ),
        ] {
            assert_eq!(walk(direct, indirect, 0), Ok(expected), "{direct:x?} {indirect:x?}");
        }
    }

    // HOSTILE 38 and 39: chains.
    #[test]
    fn each_bad_chain_is_refused_with_its_fault() {
        use Malformed::*;
        let long = [(0x1_0000, 0x1000, NEXT, 0)];
        for (direct, indirect, head, expected) in [
            (&[(0x3000, 1, NEXT, 0)][..], &[][..], 0, Endless),
            (&[(0x3000, 1, NEXT, 1), (0x3000, 1, NEXT, 0)], &[], 0, Endless),
            (&[(0x3000, 1, NEXT, 8)], &[], 0, Index(8)),
            (&[], &[], 8, Index(8)),
            (&[], &[], u16::MAX, Index(u16::MAX)),
            (&[(0, 1, 0, 0)], &[], 0, Address(0)),
            (&[(0x1_0fff, 2, WRITE, 0)], &[], 0, Address(0x1_0fff)),
            (&[(u64::MAX, 2, 0, 0)], &[], 0, Address(u64::MAX)),
            (&[(0x3000, 1, WRITE | NEXT, 1), (0x3000, 1, 0, 0)], &[], 0, Order),
            (&[(0x2000, 15, INDIRECT, 0)], &[], 0, Indirect),
            (&[(0x2000, 0, INDIRECT, 0)], &[], 0, Indirect),
            (&[(0x2000, 16, INDIRECT | NEXT, 1)], &[], 0, Indirect),
            (&[(0x2000, 16, INDIRECT, 0)], &[(0x2000, 16, INDIRECT, 0)], 0, Indirect),
            (&[(0x2000, 16, INDIRECT, 0)], &[(0x3000, 1, NEXT, 1)], 0, Index(1)),
            (&[(u64::MAX - 7, 32, INDIRECT, 0)], &[], 0, Address(u64::MAX - 7)),
            (&[(0x2000, 0xffff_fff0, INDIRECT, 0)], &[(0x3000, 1, NEXT, 0)], 0, Endless),
            (&long, &[], 0, Endless),
        ] {
            assert_eq!(walk(direct, indirect, head), Err(expected), "{direct:x?} {indirect:x?}");
        }
        // 2.7.5.2: no buffer of 2^32 bytes, which no RAM could hold here anyhow.
        let huge = (0x1000, u32::MAX, 0, 0);
        assert_eq!(walk(&[huge], &[], 0), Err(Address(0x1000)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: effort::rounds(4096) as u32, ..ProptestConfig::default() })]

        /// Any table whatsoever: the walk ends, and what it gives is RAM.
        #[test]
        fn any_table_is_walked_or_refused(
            raw in proptest::collection::vec(
                (0x0800u64..0x1_2000, 0u32..0x1_1000, 0u16..8, 0u16..10), 8),
            inner in proptest::collection::vec(
                (0x0800u64..0x1_2000, 0u32..0x1_1000, 0u16..8, 0u16..10), 8),
            head: u16,
        ) {
            if let Ok((readable, writable)) = walk(&raw, &inner, head % 10) {
                prop_assert!(readable + writable <= u32::MAX as usize);
            }
        }

        #[test]
        fn any_bytes_are_walked_or_refused(bytes in proptest::array::uniform32(any::<u8>()), head in 0u16..9) {
            let ram = ram();
            for at in (0x1000..0x1080).step_by(32) {
                ram.write(&bytes, at).unwrap();
            }
            let _ = Chain::new(&ram).walk(&ram, TABLE, head);
        }
    }
}
