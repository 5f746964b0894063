//! The balloon (virtio v1.3, 5.5): memory that the guest does not use goes back to the host.
//!
//! Pages come in two ways. The guest reports those that are free, by itself, some seconds after
//! they became so: an idle guest shrinks to what it uses. And it gives away as many as it is told
//! to, and knows that it does not have them. Either way they are dropped here, and read as zeros
//! (those of mapped images: as the file) when the guest uses them again, without asking.
//!
//! Statistics are asked for only when somebody wants to see them: an idle guest is left alone.

mod figures;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

pub use self::figures::Figures;
use crate::devices::value;
use crate::pieces::Pieces;
use crate::virtio::chain::Chain;
use crate::virtio::queue::Queue;
use crate::virtio::worker::{Watch, Work};
use crate::virtio::{ConfigChange, VirtioDevice, read_from};

/// Its number (5.5.1).
const ID: u32 = 5;

/// Queues that are always there (5.5.2). Those of statistics and of reports follow, each only if the
/// driver has accepted its feature.
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const FIRST_OPTIONAL: usize = 2;

/// Our choice: Linux wants room for 32 reported ranges, and fills 256 pages into one buffer.
const QUEUE_SIZE: u16 = 128;

/// Features (5.5.3): statistics; the guest takes pages back instead of running out of memory; it
/// reports free pages.
const F_STATS: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_REPORTING: u64 = 1 << 5;

/// Bytes of a page, in this device's terms (5.5.6).
pub const PAGE: u64 = 4096;

/// Pages that one request can give away; of more the rest stays. Our choice: far more than any
/// driver sends, and little enough work.
const PAGES_AT_ONCE: usize = 1 << 16;

/// Offset of `actual` in the configuration space (5.5.4).
const ACTUAL: u64 = 4;

/// The device.
pub struct Balloon {
    /// Pages that the guest should give away.
    target: u32,
    figures: Arc<Figures>,
}

impl Balloon {
    /// A balloon that is to take `size` bytes from the guest.
    pub fn new(size: u64) -> Result<Self> {
        let pages = u32::try_from(size / PAGE);
        let target = pages.with_context(|| format!("--balloon={size}: more than 16 TiB"))?;
        Ok(Self { target, figures: Arc::new(Figures::new(size)?) })
    }

    /// What becomes of it.
    pub fn figures(&self) -> &Arc<Figures> {
        &self.figures
    }
}

impl VirtioDevice for Balloon {
    fn name(&self) -> &'static str {
        "virtio-balloon"
    }

    fn id(&self) -> u32 {
        ID
    }

    fn features(&self) -> u64 {
        F_STATS | F_DEFLATE_ON_OOM | F_REPORTING
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; FIRST_OPTIONAL + 2]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let actual = self.figures.actual.load(Ordering::Relaxed);
        let both = u64::from(self.target) | u64::from(actual) << 32;
        read_from(&both.to_le_bytes(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // Whatever it says: only people read it.
        if offset == ACTUAL && data.len() == 4 {
            self.figures.actual.store(value(data) as u32, Ordering::Relaxed);
        }
    }

    fn start(
        &mut self,
        features: u64,
        queues: Vec<Queue>,
        _: ConfigChange,
    ) -> Result<Vec<Box<dyn Work>>> {
        let mut numbers = FIRST_OPTIONAL..;
        let mut number = |feature: u64| {
            (features & feature != 0).then(|| numbers.next()).flatten().unwrap_or(usize::MAX)
        };
        let (stats, reports) = (number(F_STATS), number(F_REPORTING));
        let Some(ram) = queues.first().map(|queue| queue.ram().clone()) else {
            bail!("the driver set up no queue");
        };
        self.figures.begin();
        let figures = self.figures.clone();
        let ask = figures.asked().try_clone().context("copy an eventfd")?;
        let (chain, pages) = (Chain::new(&ram), Pieces::new(ram));
        let worker = Worker {
            queues,
            stats,
            reports,
            held: None,
            wanted: false,
            figures,
            ask,
            chain,
            pages,
        };
        Ok(vec![Box::new(worker)])
    }

    fn stop(&mut self) {
        self.figures.end();
    }
}

/// Its worker.
struct Worker {
    queues: Vec<Queue>,
    /// The numbers of the queues that may be there.
    stats: usize,
    reports: usize,
    /// The buffer of statistics, by its head: it goes back when new ones are wanted.
    held: Option<u16>,
    wanted: bool,
    figures: Arc<Figures>,
    ask: EventFd,
    chain: Chain,
    /// Scratch.
    pages: Pieces,
}

impl Worker {
    /// Serves all that is available in the queue in `slot`.
    fn serve(&mut self, slot: usize) -> Result<()> {
        let mut used = false;
        let mut left = QUEUE_SIZE;
        while left > 0 && self.queues[slot].pop(&mut self.chain)? {
            left -= 1;
            match self.queues[slot].index() {
                INFLATE => self.inflate(),
                DEFLATE => {}
                index if index == self.reports => {
                    let bytes = self.chain.writable.give_back();
                    self.figures.gave_back(bytes);
                }
                index if index == self.stats => {
                    let before = self.held.replace(self.chain.head);
                    self.figures.read(&mut self.chain.readable);
                    if std::mem::take(&mut self.wanted) {
                        self.figures.show();
                    }
                    // One buffer goes back and forth; a second one is of no use.
                    let Some(head) = before else { continue };
                    self.queues[slot].push(head, 0)?;
                    used = true;
                    continue;
                }
                // Not one that the driver has agreed to: nothing is done.
                _ => {}
            }
            self.queues[slot].push(self.chain.head, 0)?;
            used = true;
        }
        if used {
            self.queues[slot].signal()?;
        }
        if left == 0 {
            // The rest later, as if the guest had just notified.
            let _ = self.queues[slot].kick().write(1);
        }
        Ok(())
    }

    /// The guest gives pages away: their numbers, in 32 bits each. Those that are no RAM don't count.
    fn inflate(&mut self) {
        self.chain.readable.truncate(PAGES_AT_ONCE * 4);
        let mut bytes = [0; 1024];
        let mut run = 0..0;
        loop {
            let count = self.chain.readable.read(&mut bytes);
            for number in bytes[..count].chunks_exact(4) {
                let number = value(number);
                if number == run.end {
                    run.end += 1;
                } else {
                    self.drop_pages(std::mem::replace(&mut run, number..number + 1));
                }
            }
            if count < bytes.len() {
                break;
            }
        }
        self.drop_pages(run);
    }

    fn drop_pages(&mut self, run: std::ops::Range<u64>) {
        self.pages.clear();
        let len = (run.end - run.start) * PAGE;
        if self.pages.push(run.start * PAGE, len as usize).is_ok() {
            let bytes = self.pages.give_back();
            self.figures.gave_back(bytes);
        }
    }
}

impl Work for Worker {
    fn begin(&mut self, watch: &Watch) -> Result<()> {
        watch.add(&self.ask, 0, EventSet::IN)
    }

    fn queues(&self) -> Vec<(usize, &EventFd)> {
        self.queues.iter().map(|queue| (queue.index(), queue.kick())).collect()
    }

    fn notified(&mut self, index: usize, _: &Watch) -> Result<()> {
        let slot = self.queues.iter().position(|queue| queue.index() == index);
        slot.map_or(Ok(()), |slot| self.serve(slot))
    }

    fn ready(&mut self, _: u32, _: EventSet, _: &Watch) -> Result<()> {
        let _ = self.ask.read();
        let stats = self.queues.iter_mut().find(|queue| queue.index() == self.stats);
        match stats.zip(self.held.take()) {
            Some((queue, head)) => {
                self.wanted = true;
                queue.push(head, 0)?;
                queue.signal()?;
            }
            // It has no driver for them, or is at it.
            None => self.figures.show(),
        }
        Ok(())
    }
}
