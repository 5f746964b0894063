//! For tests: a device whose workers' allocations are counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::queue::Queue;
use super::worker::{Watch, Work};
use super::{ConfigChange, VirtioDevice};

thread_local! {
    /// Blocks that this thread has asked for.
    static BLOCKS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: the system's allocator does all of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends has no such variable any more.
        let _ = BLOCKS.try_with(|blocks| blocks.set(blocks.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
}

/// A device, with a count of its workers' allocations while they work.
pub struct Counted {
    device: Box<dyn VirtioDevice>,
    count: Arc<AtomicU64>,
}

impl Counted {
    /// `device`, and the count, which grows.
    pub fn new(device: Box<dyn VirtioDevice>) -> (Self, Arc<AtomicU64>) {
        let count = Arc::new(AtomicU64::new(0));
        (Self { device, count: count.clone() }, count)
    }
}

impl VirtioDevice for Counted {
    fn name(&self) -> &'static str {
        self.device.name()
    }

    fn id(&self) -> u32 {
        self.device.id()
    }

    fn features(&self) -> u64 {
        self.device.features()
    }

    fn queues(&self) -> Vec<u16> {
        self.device.queues()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    fn start(
        &mut self,
        features: u64,
        queues: Vec<Queue>,
        config: ConfigChange,
    ) -> Result<Vec<Box<dyn Work>>> {
        let works = self.device.start(features, queues, config)?;
        let counted =
            |work| Box::new(CountedWork { work, count: self.count.clone() }) as Box<dyn Work>;
        Ok(works.into_iter().map(counted).collect())
    }
}

struct CountedWork {
    work: Box<dyn Work>,
    count: Arc<AtomicU64>,
}

impl CountedWork {
    fn count<T>(&mut self, work: impl FnOnce(&mut dyn Work) -> T) -> T {
        let before = BLOCKS.get();
        let result = work(self.work.as_mut());
        self.count.fetch_add(BLOCKS.get() - before, Ordering::AcqRel);
        result
    }
}

impl Work for CountedWork {
    fn begin(&mut self, watch: &Watch) -> Result<()> {
        self.work.begin(watch)
    }

    fn queues(&self) -> Vec<(usize, &EventFd)> {
        self.work.queues()
    }

    fn notified(&mut self, index: usize, watch: &Watch) -> Result<()> {
        self.count(|work| work.notified(index, watch))
    }

    fn ready(&mut self, token: u32, events: EventSet, watch: &Watch) -> Result<()> {
        self.count(|work| work.ready(token, events, watch))
    }
}
