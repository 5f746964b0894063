//! The socket device (virtio v1.3, 5.10): streams between programs in the guest and programs on the
//! host, by a Unix socket and a convention that other monitors have too.
//!
//! ```text
//! host to guest   connect to PATH, write "CONNECT port\n", read "OK port of this end\n", then bytes
//! guest to host   connect to CID 2, port P: whoever listens at PATH_P, else nobody
//! ```
//!
//! [`packet`]: what goes through the queues; [`connection`]: one stream, its credit and its end;
//! [`buffer`]: what a host's program has not taken yet; [`greeting`]: the first line; [`table`]: all
//! connections; [`worker`]: the thread that moves bytes. The host's side needs no privileges and no
//! module of the host's kernel.

mod buffer;
mod connection;
mod greeting;
mod packet;
mod table;
#[cfg(test)]
mod tests;
mod worker;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};

use self::packet::HOST_CID;
use self::worker::Mover;
use crate::bound_socket::BoundSocket;
use crate::sandbox::Kind;
use crate::virtio::queue::Queue;
use crate::virtio::worker::Work;
use crate::virtio::{ConfigChange, VirtioDevice, read_from};

/// Its number (5.10.1).
const ID: u32 = 19;

/// Its queues (5.10.2). The third is for events of a kind that never happens here: a guest that is
/// moved to another host.
const RX: usize = 0;
const TX: usize = 1;

/// Our choice: what other monitors have, and Linux's driver fills with buffers of 4 KiB.
const QUEUE_SIZE: u16 = 256;

/// VIRTIO_VSOCK_F_STREAM (5.10.3).
const F_STREAM: u64 = 1 << 0;

/// Addresses that guests can have: lower ones are taken, and the last one means any (5.10.4).
const CIDS: std::ops::Range<u32> = HOST_CID as u32 + 1..u32::MAX;

/// The device.
pub struct Vsock {
    guest_cid: u64,
    host: Arc<BoundSocket>,
}

impl Vsock {
    /// A guest with the address `guest_cid`, whose programs the host's reach by a socket at `path`.
    pub fn new(guest_cid: u32, path: &Path) -> Result<Self> {
        ensure!(
            CIDS.contains(&guest_cid),
            "a guest's CID is at least {} and less than {}",
            CIDS.start,
            CIDS.end
        );
        let host = Arc::new(BoundSocket::new(path)?);
        Ok(Self { guest_cid: guest_cid.into(), host })
    }
}

impl VirtioDevice for Vsock {
    fn name(&self) -> &'static str {
        "virtio-vsock"
    }

    fn id(&self) -> u32 {
        ID
    }

    fn kind(&self) -> Kind {
        Kind::Vsock
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn start(&mut self, _: u64, queues: Vec<Queue>, _: ConfigChange) -> Result<Vec<Box<dyn Work>>> {
        let mut queues = queues.into_iter().filter(|queue| [RX, TX].contains(&queue.index()));
        let (Some(rx), Some(tx)) = (queues.next(), queues.next()) else {
            anyhow::bail!("the driver set up only some of the queues");
        };
        Ok(vec![Box::new(Mover::new(self.guest_cid, self.host.clone(), rx, tx)?)])
    }
}
