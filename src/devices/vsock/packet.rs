//! Packets (virtio v1.3, 5.10.6 "Device Operation"): a header of 44 bytes, then data.

/// Bytes of a header.
pub const HEADER_LEN: usize = 44;

/// The host's address, as guests know it (5.10.4).
pub const HOST_CID: u64 = 2;

/// The kind of a connection that is a stream of bytes, the only one that is offered.
pub const STREAM: u16 = 1;

/// Operations.
pub const OP_REQUEST: u16 = 1;
pub const OP_RESPONSE: u16 = 2;
pub const OP_RST: u16 = 3;
pub const OP_SHUTDOWN: u16 = 4;
pub const OP_RW: u16 = 5;
pub const OP_CREDIT_UPDATE: u16 = 6;
pub const OP_CREDIT_REQUEST: u16 = 7;

/// Flags of a shutdown: who sends it will not receive, or not send, any more.
pub const NO_RECEIVE: u32 = 1;
pub const NO_SEND: u32 = 2;
pub const NEITHER: u32 = NO_RECEIVE | NO_SEND;

/// A packet's header, whichever way it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    /// Bytes of data.
    pub len: u32,
    /// `type`.
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    /// Bytes that the sender has room for, in all.
    pub buf_alloc: u32,
    /// Bytes that it has received and handed on so far, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// The header in `bytes`.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        let eight = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
        let four = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        let two = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two"));
        Self {
            src_cid: eight(0),
            dst_cid: eight(8),
            src_port: four(16),
            dst_port: four(20),
            len: four(24),
            kind: two(28),
            op: two(30),
            flags: four(32),
            buf_alloc: four(36),
            fwd_cnt: four(40),
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
        put(0, &self.src_cid.to_le_bytes());
        put(8, &self.dst_cid.to_le_bytes());
        put(16, &self.src_port.to_le_bytes());
        put(20, &self.dst_port.to_le_bytes());
        put(24, &self.len.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &self.op.to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buf_alloc.to_le_bytes());
        put(40, &self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The answer that there is no such connection.
    pub fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: OP_RST,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_its_bytes() {
        let bytes: [u8; HEADER_LEN] = std::array::from_fn(|at| at as u8);
        let header = Header::parse(&bytes);
        assert_eq!(header.bytes(), bytes);
        assert_eq!((header.src_cid, header.op), (0x0706_0504_0302_0100, 0x1f1e));
        assert_eq!((header.len, header.fwd_cnt), (0x1b1a_1918, 0x2b2a_2928));
        let reset = header.reset();
        assert_eq!((reset.src_port, reset.dst_port), (header.dst_port, header.src_port));
    }
}
