//! The header in front of each frame (virtio v1.3, 5.1.6 "Device Operation"): which checksum is
//! still to be made, and how a large frame is to be cut.
//!
//! What a driver sends is read once, checked against the frame's length and what was negotiated, and
//! passed on as we understood it: whoever gets it next may trust the offsets. Frames whose header
//! is wrong are not sent; the driver is not told, as with a frame that is lost on a wire.

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

/// Bytes of a header, since version 1 always with `num_buffers`.
pub const LEN: usize = 12;

/// Bytes of the shortest frame: two addresses and a type (IEEE 802.3, "MAC frame format"). Padding
/// to 60 bytes is for wires.
pub const MIN_FRAME: usize = 14;

/// Bytes of the longest frame: the longest packet, and 18 bytes of addresses, a VLAN tag and a type.
pub const MAX_FRAME: usize = 65_535 + 18;

/// Bytes of a checksum.
const CHECKSUM_LEN: usize = 2;

/// A header, field by field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Whether a checksum is to be made.
    pub flags: u8,
    /// What the frame is to be cut into.
    pub gso_type: u8,
    /// Bytes of the frame's own headers; a hint.
    pub hdr_len: u16,
    /// Bytes of each part.
    pub gso_size: u16,
    /// Where the bytes begin that a checksum is made of.
    pub csum_start: u16,
    /// Where the checksum goes, from there.
    pub csum_offset: u16,
    /// The buffers that a received frame has taken.
    pub num_buffers: u16,
}

/// Why a frame is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is shorter than a header with a frame behind it, or longer than any frame.
    Length,
    /// It asks for something that was not negotiated.
    Feature,
    /// The checksum would be made of or written to what is not in the frame.
    Checksum,
    /// It is to be cut into parts without a size, or without checksums.
    Parts,
}

impl Header {
    /// From its bytes.
    pub fn parse(bytes: &[u8; LEN]) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
            num_buffers: word(10),
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> [u8; LEN] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let words =
            [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, self.num_buffers];
        for (to, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// What of it is meant, in front of a frame of `len` bytes from a driver that accepted `features`
    /// (5.1.6.2.2 "Device Requirements: Packet Transmission").
    pub fn check(&self, len: usize, features: u64) -> Result<Self, Refused> {
        let accepted = |feature: u32| features & 1 << feature != 0;
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            return Err(Refused::Length);
        }
        // 5.1.6.2.2: flags that are not known are ignored.
        let needs_checksum = u32::from(self.flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
        let mut header = Self::default();
        if needs_checksum {
            if !accepted(VIRTIO_NET_F_CSUM) {
                return Err(Refused::Feature);
            }
            let at = usize::from(self.csum_start) + usize::from(self.csum_offset);
            if at + CHECKSUM_LEN > len {
                return Err(Refused::Checksum);
            }
            header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
            (header.csum_start, header.csum_offset) = (self.csum_start, self.csum_offset);
        }
        // ECN, as a bit beside the type, is never offered.
        let feature = match u32::from(self.gso_type) {
            VIRTIO_NET_HDR_GSO_NONE => return Ok(header),
            VIRTIO_NET_HDR_GSO_TCPV4 => VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_HDR_GSO_TCPV6 => VIRTIO_NET_F_HOST_TSO6,
            _ => return Err(Refused::Feature),
        };
        if !accepted(feature) {
            return Err(Refused::Feature);
        }
        if self.gso_size == 0 || !needs_checksum {
            return Err(Refused::Parts);
        }
        header.gso_type = self.gso_type;
        header.gso_size = self.gso_size;
        // A hint may be wrong, but not longer than the frame: tap would refuse it.
        header.hdr_len = self.hdr_len.min(len.min(usize::from(u16::MAX)) as u16);
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::effort;

    const ALL: u64 =
        1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4 | 1 << VIRTIO_NET_F_HOST_TSO6;

    // HOSTILE 41: headers.
    #[test]
    fn hostile_41_headers_are_refused_with_their_fault() {
        use Refused::*;
        let none = Header::default();
        let sum = |csum_start, csum_offset| Header { flags: 1, csum_start, csum_offset, ..none };
        let tcp = Header { gso_type: 1, gso_size: 1448, hdr_len: 54, ..sum(34, 16) };
        for (header, len, features, expected) in [
            (none, 14, 0, Ok(none)),
            (none, 13, 0, Err(Length)),
            (none, 0, 0, Err(Length)),
            (none, MAX_FRAME, 0, Ok(none)),
            (none, MAX_FRAME + 1, 0, Err(Length)),
            (none, usize::MAX, ALL, Err(Length)),
            // What is not known, and what is only for reception, is passed over.
            (Header { flags: 0xfe, num_buffers: 7, hdr_len: 9, ..none }, 60, ALL, Ok(none)),
            (sum(34, 16), 60, 0, Err(Feature)),
            (sum(34, 16), 60, ALL, Ok(sum(34, 16))),
            (sum(34, 24), 60, ALL, Ok(sum(34, 24))),
            (sum(34, 25), 60, ALL, Err(Checksum)),
            (sum(60, 0), 60, ALL, Err(Checksum)),
            (sum(0xffff, 0xffff), 60, ALL, Err(Checksum)),
            (sum(0xffff, 1), MAX_FRAME, ALL, Ok(sum(0xffff, 1))),
            (tcp, 9000, ALL, Ok(tcp)),
            (tcp, 9000, 1 << VIRTIO_NET_F_CSUM, Err(Feature)),
            (Header { gso_type: 4, ..tcp }, 9000, ALL, Ok(Header { gso_type: 4, ..tcp })),
            (Header { gso_type: 0x81, ..tcp }, 9000, ALL, Err(Feature)),
            (Header { gso_type: 3, ..tcp }, 9000, ALL, Err(Feature)),
            (Header { gso_type: 5, ..tcp }, 9000, ALL, Err(Feature)),
            (Header { gso_type: 2, ..tcp }, 9000, ALL, Err(Feature)),
            (Header { gso_size: 0, ..tcp }, 9000, ALL, Err(Parts)),
            (Header { flags: 0, ..tcp }, 9000, ALL, Err(Parts)),
            (Header { hdr_len: 0xffff, ..tcp }, 60, ALL, Ok(Header { hdr_len: 60, ..tcp })),
        ] {
            assert_eq!(header.check(len, features), expected, "{header:?} of {len}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: effort::rounds(4096) as u32, ..ProptestConfig::default() })]

        /// Any twelve bytes: what is passed on lies inside the frame, was negotiated, and stays the
        /// same when it is checked again.
        #[test]
        fn what_is_passed_on_lies_in_the_frame(
            bytes in proptest::array::uniform12(any::<u8>()),
            len in 0..MAX_FRAME + 100,
            features in any::<u64>(),
        ) {
            let header = Header::parse(&bytes);
            prop_assert_eq!(header.bytes(), bytes);
            if let Ok(meant) = header.check(len, features) {
                prop_assert!((MIN_FRAME..=MAX_FRAME).contains(&len));
                if meant.flags != 0 {
                    let at = usize::from(meant.csum_start) + usize::from(meant.csum_offset);
                    prop_assert!(at + 2 <= len && features & 1 << VIRTIO_NET_F_CSUM != 0);
                }
                prop_assert!(meant.gso_type == 0 || meant.gso_size > 0 && meant.flags == 1);
                prop_assert!(usize::from(meant.hdr_len) <= len);
                prop_assert_eq!(meant.check(len, features), Ok(meant));
            }
        }
    }
}
