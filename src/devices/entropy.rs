//! The entropy device (virtio v1.3, 5.4): the host's random bytes for the guest.

use std::fs::File;

use anyhow::{Context, Result};
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::chain::{Chain, Malformed};
use crate::virtio::queue::Queue;
use crate::virtio::worker::{Watch, Work};
use crate::virtio::{ConfigChange, VirtioDevice};

/// Its number (5.4.1).
pub(crate) const ID: u32 = 4;

/// Our choice: drivers ask for less than a page, one request at a time.
const QUEUE_SIZE: u16 = 8;

/// The most that one request gets, however large its buffers. Our choice: a guest can ask again,
/// but not make the host work for seconds. The kernel gives no more in a call that is not
/// interrupted either (random(4)).
const AT_ONCE: usize = 1 << 16;

/// The device.
pub struct Entropy {
    source: File,
}

impl Entropy {
    /// An entropy device with the host's random bytes.
    pub fn new() -> Result<Self> {
        const PATH: &str = "/dev/urandom";
        Ok(Self { source: File::open(PATH).with_context(|| format!("open {PATH}"))? })
    }
}

impl VirtioDevice for Entropy {
    fn name(&self) -> &'static str {
        "virtio-rng"
    }

    fn id(&self) -> u32 {
        ID
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn start(&mut self, _: u64, queues: Vec<Queue>, _: ConfigChange) -> Result<Vec<Box<dyn Work>>> {
        let source = self.source.try_clone().context("copy a descriptor")?;
        let fill = |queue: Queue| {
            let chain = Chain::new(queue.ram());
            Ok(Box::new(Fill { source: source.try_clone()?, queue, chain }) as Box<dyn Work>)
        };
        queues.into_iter().map(fill).collect()
    }
}

/// Its worker.
struct Fill {
    source: File,
    queue: Queue,
    chain: Chain,
}

impl Work for Fill {
    fn queues(&self) -> Vec<(usize, &EventFd)> {
        vec![(self.queue.index(), self.queue.kick())]
    }

    fn notified(&mut self, _: usize, _: &Watch) -> Result<()> {
        let mut used = false;
        while self.queue.pop(&mut self.chain)? {
            let buffer = &mut self.chain.writable;
            buffer.truncate(AT_ONCE);
            if buffer.is_empty() {
                Err(Malformed::Request("a request for random bytes has no room for any"))?;
            }
            let count = buffer.read_from(&self.source).context("read random bytes")?;
            self.queue.push(self.chain.head, count as u32)?;
            used = true;
        }
        if used {
            self.queue.signal()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::driver::{Buffer, Driver};

    #[test]
    fn each_request_is_filled_with_other_bytes() {
        let mut driver = Driver::new(Box::new(Entropy::new().unwrap()));
        driver.start(0);
        let mut seen = Vec::new();
        for _ in 0..20 {
            let written = driver.request(0, &[Buffer::Writable(0x5000, 64)]);
            assert_eq!(written, 64);
            let bytes = driver.ram.peek(0x5000, 64);
            assert!(!seen.contains(&bytes));
            seen.push(bytes);
        }
    }

    // HOSTILE 43: a request larger than all RAM gets some bytes, or the device needs a reset.
    #[test]
    fn a_large_request_gets_a_part_and_one_without_room_ends_the_device() {
        let mut driver = Driver::new(Box::new(Entropy::new().unwrap()));
        driver.start(0);
        let half = driver.ram_len() as u32 / 2;
        let written = driver.request(0, &[Buffer::Writable(0, half), Buffer::Writable(0, half)]);
        assert!((1..=AT_ONCE as u32).contains(&written), "{written}");
        driver.start(0);
        driver.send(0, &[Buffer::Readable(0x5000, 64)]);
        driver.wait_for_failure();
        driver.start(0);
        assert_eq!(driver.request(0, &[Buffer::Writable(0x5000, 1)]), 1);
    }
}
