//! The block device (virtio v1.3, 5.2): a disk of 512-byte sectors.
//!
//! [`request`]: what a driver asks for, and whether it may; [`disk`]: where the bytes are;
//! [`format`]: which of these a file has; [`raw`]: a file that is the disk, byte for byte;
//! [`qcow2`]: one that grows with it; [`buffer`]: what lies between where that has to be. Several requests are under way: by io_uring ([`ring`]) for a
//! raw disk where the kernel has it, else by threads that wait for the file ([`pool`]). What became
//! of a request is one byte at its end; only one that has no room for that byte ends the device.

mod buffer;
pub mod disk;
pub mod format;
mod pool;
pub mod qcow2;
pub mod raw;
mod request;
mod ring;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use anyhow::Result;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};

use self::disk::Disk;
use self::pool::Pool;
use self::request::{MAX_RANGES, Named, SECTOR, Server};
use self::ring::{Berth, Ring};
use crate::sandbox::Kind;
use crate::virtio::limit::{Gate, Limit, Rates};
use crate::virtio::queue::Queue;
use crate::virtio::worker::Work;
use crate::virtio::{ConfigChange, VirtioDevice, read_from};

/// Its number (5.2.1).
const ID: u32 = 2;

/// Our choice: what Linux's drivers use without being told otherwise.
const QUEUE_SIZE: u16 = 256;

/// Buffers of a request beside its header and its status. With indirect descriptors a chain may be
/// as long as its queue; without, two such requests fill it.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// The most queues. Our choice: more threads than that have no disk to wait for.
const MAX_QUEUES: usize = 4;

/// Bytes of the configuration space (5.2.4), up to `write_zeroes_may_unmap` and its padding.
const CONFIG_LEN: usize = 60;

/// How several requests are under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// io_uring for a disk that is a file, where the kernel has it.
    Best,
    /// Threads.
    Threads,
}

/// What [`Engine::Best`] is here, for people.
pub fn best_engine() -> String {
    match ring::open() {
        Ok(_) => "io_uring".into(),
        Err(error) => format!("threads (io_uring: {error})"),
    }
}

/// The device.
pub struct Block {
    disk: Arc<dyn Disk>,
    /// For each queue, if io_uring serves it.
    rings: Vec<Berth>,
    serial: [u8; request::SERIAL_LEN],
    named: Arc<Named>,
    config: [u8; CONFIG_LEN],
    queues: usize,
    limit: Option<Limit>,
}

impl Block {
    /// A block device for `disk`, with a queue for each of `cpus`, but not too many. Of `serial`
    /// the first 20 bytes are told.
    pub fn new(disk: Arc<dyn Disk>, serial: &str, cpus: usize, engine: Engine) -> Self {
        let queues = cpus.clamp(1, MAX_QUEUES);
        let mut told = [0; request::SERIAL_LEN];
        for (to, from) in told.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        let mut config = [0; CONFIG_LEN];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(disk.size() / SECTOR).to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(34, &(queues as u16).to_le_bytes());
        // Discard, then write zeroes: sectors, ranges; of discard also the alignment.
        put(36, &request::MAX_SECTORS.to_le_bytes());
        put(40, &(MAX_RANGES as u32).to_le_bytes());
        put(44, &(disk.granularity() / SECTOR as u32).to_le_bytes());
        put(48, &request::MAX_SECTORS.to_le_bytes());
        put(52, &(MAX_RANGES as u32).to_le_bytes());
        put(56, &[1]);
        let rings = if engine == Engine::Best && disk.file().is_some() { queues } else { 0 };
        // Threads do what a ring is missing for.
        let rings = (0..rings).map_while(|_| Some(Arc::new(Mutex::new(Some(ring::open().ok()?)))));
        let rings = rings.collect();
        let named = Arc::new(Named::new("a disk".into()));
        Self { disk, rings, serial: told, named, config, queues, limit: None }
    }

    /// With a name for messages.
    pub fn named(self, name: String) -> Self {
        Self { named: Arc::new(Named::new(name)), ..self }
    }

    /// With no more than this in a second, of all queues together.
    pub fn limited(self, rates: Rates) -> Self {
        Self { limit: Limit::new(rates), ..self }
    }
}

impl VirtioDevice for Block {
    fn name(&self) -> &'static str {
        "virtio-blk"
    }

    fn id(&self) -> u32 {
        ID
    }

    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_MQ;
        always
            | match self.disk.is_read_only() {
                true => 1 << VIRTIO_BLK_F_RO,
                false => 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
            }
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.queues]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.config, offset, data);
    }

    fn start(
        &mut self,
        features: u64,
        queues: Vec<Queue>,
        _: ConfigChange,
    ) -> Result<Vec<Box<dyn Work>>> {
        let server = Arc::new(Server {
            disk: self.disk.clone(),
            named: self.named.clone(),
            serial: self.serial,
            // 5.2.6.2: without the feature there is no flush, so each write must last.
            write_through: features & 1 << VIRTIO_BLK_F_FLUSH == 0,
        });
        let start = |queue: Queue| -> Result<Box<dyn Work>> {
            let gate = Gate::new(&self.limit)?;
            let ring = match self.rings.get(queue.index()) {
                Some(berth) => Ring::new(queue, server.clone(), gate, berth),
                None => Err((queue, gate)),
            };
            Ok(match ring {
                Ok(ring) => Box::new(ring),
                Err((queue, gate)) => Box::new(Pool::new(queue, server.clone(), gate)?),
            })
        };
        queues.into_iter().map(start).collect()
    }
}
