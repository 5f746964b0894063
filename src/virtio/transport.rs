//! A device's life as its driver sees it, whatever carries the registers: feature negotiation, the
//! set-up of queues, start, failure and reset (virtio v1.3, 2.1 "Device Status Field", 2.2 "Feature
//! Bits" and 3.1 "Device Initialization").
//!
//! Whatever the order in which a driver writes, a queue that is ready does not change, nothing
//! starts twice, and a reset leaves nothing behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

use super::queue::Queue;
use super::worker::Worker;
use super::{ConfigChange, Interrupt, VirtioDevice};
use crate::memory::GuestRam;
use crate::notice;

const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;
const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;

/// Bytes of the largest configuration space. Our choice: as many as virtio-mmio's registers leave of
/// a device's place.
pub const CONFIG_LEN: usize = 0x100;

/// A part of a queue whose address the driver gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// The descriptor table.
    Descriptors,
    /// The available ring.
    Driver,
    /// The used ring.
    Device,
}

/// Half of a 64-bit register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Bits 0 to 31.
    Low,
    /// Bits 32 to 63.
    High,
}

/// What the driver has written, but for the status.
#[derive(Debug, Default)]
struct State {
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    queues: Vec<virtio_queue::Queue>,
}

/// A device with its registers' meaning.
pub struct Transport {
    device: Box<dyn VirtioDevice>,
    ram: Arc<GuestRam>,
    interrupt: Arc<dyn Interrupt>,
    kicks: Vec<EventFd>,
    sizes: Vec<u16>,
    state: State,
    /// Also a failing worker's to change.
    status: Arc<AtomicU32>,
    generation: u32,
    /// The configuration space as it was when `generation` was last asked for.
    seen: [u8; CONFIG_LEN],
    workers: Vec<Worker>,
}

fn fresh(sizes: &[u16]) -> State {
    let queue = |size: &u16| virtio_queue::Queue::new(*size).expect("checked when it was made");
    State { queues: sizes.iter().map(queue).collect(), ..State::default() }
}

impl Transport {
    /// `device`, whose buffers lie in `ram`.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram: Arc<GuestRam>,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<Self> {
        let sizes = device.queues();
        for size in &sizes {
            virtio_queue::Queue::new(*size).context("make a queue")?;
        }
        let kick = |_: &u16| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let kicks =
            sizes.iter().map(kick).collect::<Result<_, _>>().context("create an eventfd")?;
        let state = fresh(&sizes);
        Ok(Self {
            device,
            ram,
            interrupt,
            kicks,
            sizes,
            state,
            status: Arc::default(),
            generation: 0,
            seen: [0; CONFIG_LEN],
            workers: Vec::new(),
        })
    }

    /// The device's name.
    pub fn name(&self) -> &'static str {
        self.device.name()
    }

    /// The device's number.
    pub fn id(&self) -> u32 {
        self.device.id()
    }

    /// What each queue's notification becomes.
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// How many queues there are.
    pub fn queue_count(&self) -> usize {
        self.sizes.len()
    }

    fn offered(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | self.device.ring_features() | self.device.features()
    }

    /// Chooses which 32 feature bits [`Self::device_features`] gives.
    pub fn select_device_features(&mut self, select: u32) {
        self.state.device_features_select = select;
    }

    /// The selected 32 of the features that are offered.
    pub fn device_features(&self) -> u32 {
        match self.state.device_features_select {
            select @ 0..=1 => (self.offered() >> (32 * select)) as u32,
            _ => 0,
        }
    }

    /// Chooses which 32 feature bits [`Self::accept_features`] sets.
    pub fn select_driver_features(&mut self, select: u32) {
        self.state.driver_features_select = select;
    }

    /// The selectors, and the selected features that the driver has accepted.
    pub fn selected_features(&self) -> (u32, u32, u32) {
        let State { device_features_select, driver_features_select, driver_features, .. } =
            self.state;
        let accepted = match driver_features_select {
            select @ 0..=1 => (driver_features >> (32 * select)) as u32,
            _ => 0,
        };
        (device_features_select, driver_features_select, accepted)
    }

    /// Sets the selected 32 of the features that the driver accepts, until it says that it is done.
    pub fn accept_features(&mut self, bits: u32) {
        let select = self.state.driver_features_select;
        if select <= 1 && self.status() & FEATURES_OK == 0 {
            let shift = 32 * select;
            let others = self.state.driver_features & !(u64::from(u32::MAX) << shift);
            self.state.driver_features = others | u64::from(bits) << shift;
        }
    }

    /// The status.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// Writes the status: zero resets, and bits are only ever added.
    pub fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        const KNOWN: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
        let new = value & KNOWN & !self.status();
        if new & FEATURES_OK != 0 && !self.features_agree() {
            // 3.1.1, step 6: the driver reads it back and finds the bit missing.
            self.status.fetch_or(new & !(FEATURES_OK | DRIVER_OK), Ordering::AcqRel);
            return;
        }
        self.status.fetch_or(new, Ordering::AcqRel);
        if new & DRIVER_OK != 0
            && let Err(error) = self.start()
        {
            self.failure()(error);
        }
    }

    fn features_agree(&self) -> bool {
        let accepted = self.state.driver_features;
        accepted & !self.offered() == 0 && accepted & 1 << VIRTIO_F_VERSION_1 != 0
    }

    /// What tells the driver that the device needs a reset, and the user why.
    fn failure(&self) -> impl Fn(anyhow::Error) + Send + Sync + 'static {
        let (status, interrupt) = (self.status.clone(), self.interrupt.clone());
        let name = self.device.name();
        move |error| {
            notice::say(&format!("{name}: {error:#}: the device needs a reset"));
            status.fetch_or(NEEDS_RESET, Ordering::AcqRel);
            interrupt.changed();
        }
    }

    fn start(&mut self) -> Result<()> {
        anyhow::ensure!(
            self.status() & FEATURES_OK != 0,
            "the driver said that it is ready before it negotiated features"
        );
        let event_idx = self.state.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut queues = Vec::new();
        for (index, kick) in self.kicks.iter().enumerate() {
            let rings = &mut self.state.queues[index];
            if !rings.ready() {
                continue;
            }
            rings.set_event_idx(event_idx);
            let copy = virtio_queue::Queue::try_from(rings.state()).expect("a valid one");
            let interrupt = self.interrupt.clone();
            queues.push(Queue::new(index, copy, self.ram.clone(), kick, interrupt)?);
        }
        let config = ConfigChange(self.interrupt.clone());
        let works = self.device.start(self.state.driver_features, queues, config)?;
        let broken: Arc<dyn Fn(anyhow::Error) + Send + Sync> = Arc::new(self.failure());
        for (number, work) in works.into_iter().enumerate() {
            // A thread's name has 15 characters (prctl(2), PR_SET_NAME).
            let name = format!("{} {number}", self.device.name());
            self.workers.push(Worker::start(self.device.kind(), name, work, broken.clone())?);
        }
        Ok(())
    }

    /// Ends the workers and forgets what the driver has written.
    pub fn reset(&mut self) {
        let ran = !self.workers.is_empty();
        self.workers.clear();
        if ran {
            self.device.stop();
        }
        // Notifications for what is no more.
        self.kicks.iter().for_each(|kick| drop(kick.read()));
        self.state = fresh(&self.sizes);
        self.status.store(0, Ordering::Release);
    }

    /// Chooses the queue that the following are about. One that is not there has size zero.
    pub fn select_queue(&mut self, index: u32) {
        self.state.queue_select = index;
    }

    /// The number of the queue that is chosen.
    pub fn selected_queue(&self) -> u32 {
        self.state.queue_select
    }

    fn queue(&self) -> Option<&virtio_queue::Queue> {
        self.state.queues.get(self.state.queue_select as usize)
    }

    /// The chosen queue, while the driver may still change it.
    fn open_queue(&mut self) -> Option<&mut virtio_queue::Queue> {
        if self.status() & DRIVER_OK != 0 {
            return None;
        }
        let queue = self.state.queues.get_mut(self.state.queue_select as usize)?;
        Some(queue).filter(|queue| !queue.ready())
    }

    /// The largest size that the chosen queue can have, and the size that it has.
    pub fn queue_sizes(&self) -> (u16, u16) {
        self.queue().map_or((0, 0), |queue| (queue.max_size(), queue.size()))
    }

    /// Sets the size of the chosen queue; one that is no power of two, or too large, is ignored.
    pub fn set_queue_size(&mut self, size: u32) {
        if let Some(queue) = self.open_queue()
            && let Ok(size) = u16::try_from(size)
        {
            // What is wrong with it is visible to the driver: it reads back the old one.
            let _ = queue.try_set_size(size);
        }
    }

    /// The address of an area of the chosen queue.
    pub fn queue_address(&self, area: Area) -> u64 {
        self.queue().map_or(0, |queue| match area {
            Area::Descriptors => queue.desc_table(),
            Area::Driver => queue.avail_ring(),
            Area::Device => queue.used_ring(),
        })
    }

    /// Sets half of the address of an area of the chosen queue. One that is not aligned is ignored.
    pub fn set_queue_address(&mut self, area: Area, half: Half, value: u32) {
        let Some(queue) = self.open_queue() else { return };
        let (low, high) = match half {
            Half::Low => (Some(value), None),
            Half::High => (None, Some(value)),
        };
        match area {
            Area::Descriptors => queue.set_desc_table_address(low, high),
            Area::Driver => queue.set_avail_ring_address(low, high),
            Area::Device => queue.set_used_ring_address(low, high),
        }
    }

    /// True if the driver has finished the set-up of the chosen queue.
    pub fn queue_ready(&self) -> bool {
        self.queue().is_some_and(virtio_queue::Queue::ready)
    }

    /// Finishes the set-up of the chosen queue. Where its rings are not in RAM, the device needs a
    /// reset. Nothing but a reset undoes it.
    pub fn set_queue_ready(&mut self, ready: bool) {
        let (ram, index) = (self.ram.clone(), self.state.queue_select);
        let Some(queue) = self.open_queue().filter(|_| ready) else { return };
        queue.set_ready(true);
        if !queue.is_valid(ram.backend()) {
            queue.set_ready(false);
            self.failure()(anyhow::anyhow!("the rings of queue {index} are not in RAM"));
        }
    }

    /// A notification that did not come through KVM.
    pub fn notify(&self, index: u32) {
        if let Some(kick) = self.kicks.get(index as usize) {
            // A full counter (EAGAIN) is readable too.
            let _ = kick.write(1);
        }
    }

    /// Another number if the configuration space has changed since this was last called (2.5.2):
    /// what a driver has read between two calls that give the same number belongs together.
    pub fn generation(&mut self) -> u32 {
        let mut now = [0; CONFIG_LEN];
        self.device.read_config(0, &mut now);
        if now != self.seen {
            self.seen = now;
            self.generation = self.generation.wrapping_add(1);
        }
        self.generation
    }

    /// Reads the configuration space.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        self.device.read_config(offset, data);
    }

    /// Writes to the configuration space, once the driver knows the device.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        if self.status() & DRIVER != 0 {
            self.device.write_config(offset, data);
        }
    }
}
