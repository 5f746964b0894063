//! For tests and fuzzing: a driver of any device, by either carrier and with rings that it controls, in this
//! process.

pub mod carried;

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio::*;
use vmm_sys_util::eventfd::EventFd;

use self::carried::Carried;
use super::{Carrier, VirtioDevice};
use crate::devices::value;
use crate::memory::{GuestRam, RamRange};
use crate::sys;

/// How long a device has to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Descriptors of each queue, or as many as it can have.
const SIZE: u32 = 16;

/// Bytes of RAM, from 0. The rings lie at its end.
const RAM_LEN: u64 = 1 << 20;

/// Bytes that the rings of one queue take, and where those of queue 0 lie.
const RINGS_LEN: u64 = 0x1000;
const RINGS: u64 = RAM_LEN - 16 * RINGS_LEN;

const ACKNOWLEDGE_AND_DRIVER: u32 = 1 | 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;

/// A buffer of a request: its guest-physical address and its bytes.
#[derive(Clone, Copy, Debug)]
pub enum Buffer {
    /// The device may read it.
    Readable(u64, u32),
    /// The device may write it.
    Writable(u64, u32),
}

/// A driver, its device, and RAM.
pub struct Driver {
    pub device: Carried,
    pub ram: Arc<GuestRam>,
    pub edges: EventFd,
    queues: Vec<Ring>,
}

/// What the driver knows of a queue.
#[derive(Clone, Debug, Default)]
struct Ring {
    size: u16,
    /// Chains made available, and used ones seen.
    available: u16,
    used: u16,
    /// The next free descriptor.
    next: u16,
}

impl Driver {
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self::with(Carrier::Mmio, device)
    }

    pub fn with(carrier: Carrier, device: Box<dyn VirtioDevice>) -> Self {
        let ranges = vec![RamRange { start: 0, len: RAM_LEN }];
        let make = if device.shares_ram() { GuestRam::shared } else { GuestRam::new };
        let ram = Arc::new(make(ranges).unwrap());
        let edges = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let device = Carried::new(carrier, device, ram.clone(), &edges);
        Self { device, ram, edges, queues: Vec::new() }
    }

    pub fn ram_len(&self) -> u64 {
        RAM_LEN
    }

    pub fn get(&mut self, register: u32) -> u32 {
        let mut data = [0xaa; 4];
        self.device.get(register, &mut data);
        value(&data) as u32
    }

    pub fn set(&mut self, register: u32, value: u32) {
        self.device.set(register, value);
    }

    /// `len` bytes of the configuration space from `offset`.
    pub fn config(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0xaa; len];
        self.device.read_config(offset, &mut data);
        data
    }

    /// All features that the device offers.
    pub fn offered(&mut self) -> u64 {
        [0, 1].into_iter().fold(0, |all, select| {
            self.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            all | u64::from(self.get(VIRTIO_MMIO_DEVICE_FEATURES)) << (32 * select)
        })
    }

    /// Where a queue's descriptors, available ring and used ring lie.
    pub fn rings(queue: usize) -> [u64; 3] {
        let at = RINGS + queue as u64 * RINGS_LEN;
        [at, at + 0x400, at + 0x800]
    }

    /// Resets the device and goes up to where features are agreed on: those of `features` that it
    /// offers, and version 1.
    pub fn negotiate(&mut self, features: u64) {
        self.set(VIRTIO_MMIO_STATUS, 0);
        self.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGE_AND_DRIVER);
        self.device.use_vectors();
        let features = features & self.offered() | 1 << VIRTIO_F_VERSION_1;
        for (select, bits) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.set(VIRTIO_MMIO_DRIVER_FEATURES, bits);
        }
        self.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGE_AND_DRIVER | FEATURES_OK);
        assert_eq!(self.get(VIRTIO_MMIO_STATUS) & FEATURES_OK, FEATURES_OK);
    }

    /// Sets a queue up, empty.
    pub fn set_up(&mut self, queue: usize) {
        self.set(VIRTIO_MMIO_QUEUE_SEL, queue as u32);
        let size = self.get(VIRTIO_MMIO_QUEUE_NUM_MAX).min(SIZE);
        self.set(VIRTIO_MMIO_QUEUE_NUM, size);
        let rings = Self::rings(queue);
        self.ram.write(&[0; RINGS_LEN as usize], rings[0]).unwrap();
        let registers =
            [VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_USED_LOW];
        for (low, at) in registers.into_iter().zip(rings) {
            self.set(low, at as u32);
            self.set(low + 4, (at >> 32) as u32);
        }
        self.device.use_queue_vector(queue);
        self.set(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(self.get(VIRTIO_MMIO_QUEUE_READY), 1);
        self.queues.resize(self.queues.len().max(queue + 1), Ring::default());
        self.queues[queue] = Ring { size: size as u16, ..Ring::default() };
    }

    /// Resets the device and starts it with all of its queues.
    pub fn start(&mut self, features: u64) {
        self.negotiate(features);
        for queue in 0..self.device.transport().queue_count() {
            self.set_up(queue);
        }
        self.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGE_AND_DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Makes a chain of `buffers` available, without a notification; gives its head.
    pub fn offer(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let [table, available, _] = Self::rings(queue);
        let ring = &mut self.queues[queue];
        let head = ring.next;
        for (index, buffer) in buffers.iter().enumerate() {
            let (addr, len, write) = match *buffer {
                Buffer::Readable(addr, len) => (addr, len, 0),
                Buffer::Writable(addr, len) => (addr, len, 2),
            };
            let more = u16::from(index + 1 < buffers.len());
            let here = ring.next;
            ring.next = (ring.next + 1) % ring.size;
            let mut bytes = addr.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend((write | more).to_le_bytes());
            bytes.extend(ring.next.to_le_bytes());
            self.ram.write(&bytes, table + 16 * u64::from(here)).unwrap();
        }
        let slot = u64::from(ring.available % ring.size);
        self.ram.write(&head.to_le_bytes(), available + 4 + 2 * slot).unwrap();
        ring.available = ring.available.wrapping_add(1);
        fence(Ordering::SeqCst);
        self.ram.write(&ring.available.to_le_bytes(), available + 2).unwrap();
        head
    }

    pub fn notify(&mut self, queue: usize) {
        self.set(VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
    }

    /// Makes a chain available and notifies; gives its head.
    pub fn send(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let head = self.offer(queue, buffers);
        self.notify(queue);
        head
    }

    /// The next used chain, if there is one: its head, and the bytes written.
    pub fn used(&mut self, queue: usize) -> Option<(u16, u32)> {
        let [_, available, used] = Self::rings(queue);
        let ring = &mut self.queues[queue];
        // `used_event`: the next one is to interrupt.
        let event = available + 4 + 2 * u64::from(ring.size);
        self.ram.write(&ring.used.to_le_bytes(), event).unwrap();
        fence(Ordering::SeqCst);
        let index = u16::from_le_bytes(self.ram.peek(used + 2, 2).try_into().unwrap());
        if index == ring.used {
            return None;
        }
        fence(Ordering::SeqCst);
        let slot = u64::from(ring.used % ring.size);
        let entry = self.ram.peek(used + 4 + 8 * slot, 8);
        ring.used = ring.used.wrapping_add(1);
        Some((value(&entry[..4]) as u16, value(&entry[4..]) as u32))
    }

    /// Waits for an interrupt until `done`.
    pub fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {what} within {PATIENCE:?}");
            let mut fds = [sys::poll_entry(&self.edges, libc::POLLIN)];
            sys::poll(&mut fds, Some(left)).unwrap();
            let _ = self.edges.read();
        }
    }

    /// Waits for an interrupt and the next used chain.
    pub fn wait_for_used(&mut self, queue: usize) -> (u16, u32) {
        let mut found = None;
        self.wait("used chain", |driver| {
            found = driver.used(queue);
            found.is_some()
        });
        found.expect("the wait is over")
    }

    /// Waits until the device says that it needs a reset.
    pub fn wait_for_failure(&mut self) {
        self.wait("failure", |driver| driver.get(VIRTIO_MMIO_STATUS) & NEEDS_RESET != 0);
    }

    /// One request from its notification to its end; gives the bytes that the device wrote.
    pub fn request(&mut self, queue: usize, buffers: &[Buffer]) -> u32 {
        let head = self.send(queue, buffers);
        let (used, written) = self.wait_for_used(queue);
        assert_eq!(used, head, "the chain that comes back");
        written
    }
}
