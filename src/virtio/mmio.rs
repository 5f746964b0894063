//! virtio over registers in memory (virtio v1.3, 4.2 "Virtio Over MMIO", version 2 of the layout).
//!
//! Registers have 32 bits and take only whole, aligned accesses; the configuration space behind
//! them takes any.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use virtio_bindings::virtio_mmio::*;

use super::transport::{Area, Half, Transport};
use super::{Interrupt, VirtioDevice};
use crate::bus::Device;
use crate::devices::{answer, value};
use crate::exit::Stop;
use crate::irq::Irq;
use crate::memory::GuestRam;

/// Bytes of the registers and the configuration space. What QEMU's `virt` board has for each.
pub const LEN: u64 = 0x200;

/// Where the driver's notifications go: the queue's number, in 32 bits.
pub const NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// Our choice: there is no registry but PCI's, and there it is what virtio devices have.
const VENDOR: u32 = 0x1af4;

/// Interrupt status bits.
const USED: u32 = VIRTIO_MMIO_INT_VRING;
const CHANGED: u32 = VIRTIO_MMIO_INT_CONFIG;

/// One line for everything, and a register that tells why.
struct Line {
    status: AtomicU32,
    irq: Irq,
}

impl Line {
    fn raise(&self, why: u32) {
        self.status.fetch_or(why, Ordering::AcqRel);
        self.irq.trigger();
    }
}

impl Interrupt for Line {
    fn used(&self, _: usize) {
        self.raise(USED);
    }

    fn changed(&self) {
        self.raise(CHANGED);
    }
}

/// A device behind registers in memory.
pub struct Mmio {
    transport: Transport,
    line: Arc<Line>,
}

impl Mmio {
    /// `device`, whose buffers lie in `ram`, with the interrupt line `irq`.
    pub fn new(device: Box<dyn VirtioDevice>, ram: Arc<GuestRam>, irq: Irq) -> Result<Self> {
        let line = Arc::new(Line { status: AtomicU32::new(0), irq });
        Ok(Self { transport: Transport::new(device, ram, line.clone())?, line })
    }

    /// What it carries.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    fn read_register(&mut self, register: u32) -> u32 {
        let transport = &mut self.transport;
        let half = |area, half| match half {
            Half::Low => transport.queue_address(area) as u32,
            Half::High => (transport.queue_address(area) >> 32) as u32,
        };
        let (device_select, driver_select, accepted) = transport.selected_features();
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => transport.id(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => transport.device_features(),
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => device_select,
            VIRTIO_MMIO_DRIVER_FEATURES => accepted,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => driver_select,
            VIRTIO_MMIO_QUEUE_SEL => transport.selected_queue(),
            VIRTIO_MMIO_QUEUE_NUM_MAX => transport.queue_sizes().0.into(),
            VIRTIO_MMIO_QUEUE_NUM => transport.queue_sizes().1.into(),
            VIRTIO_MMIO_QUEUE_READY => transport.queue_ready().into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.line.status.load(Ordering::Acquire),
            VIRTIO_MMIO_STATUS => transport.status(),
            VIRTIO_MMIO_QUEUE_DESC_LOW => half(Area::Descriptors, Half::Low),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => half(Area::Descriptors, Half::High),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => half(Area::Driver, Half::Low),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => half(Area::Driver, Half::High),
            VIRTIO_MMIO_QUEUE_USED_LOW => half(Area::Device, Half::Low),
            VIRTIO_MMIO_QUEUE_USED_HIGH => half(Area::Device, Half::High),
            // 4.2.2: a region of shared memory that is not there has the length -1.
            VIRTIO_MMIO_SHM_LEN_LOW | VIRTIO_MMIO_SHM_LEN_HIGH => u32::MAX,
            VIRTIO_MMIO_SHM_BASE_LOW | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            VIRTIO_MMIO_CONFIG_GENERATION => transport.generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, register: u32, value: u32) {
        let transport = &mut self.transport;
        let mut address = |area, half| transport.set_queue_address(area, half, value);
        match register {
            VIRTIO_MMIO_QUEUE_DESC_LOW => address(Area::Descriptors, Half::Low),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => address(Area::Descriptors, Half::High),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => address(Area::Driver, Half::Low),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => address(Area::Driver, Half::High),
            VIRTIO_MMIO_QUEUE_USED_LOW => address(Area::Device, Half::Low),
            VIRTIO_MMIO_QUEUE_USED_HIGH => address(Area::Device, Half::High),
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => transport.select_device_features(value),
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => transport.select_driver_features(value),
            VIRTIO_MMIO_DRIVER_FEATURES => transport.accept_features(value),
            VIRTIO_MMIO_QUEUE_SEL => transport.select_queue(value),
            VIRTIO_MMIO_QUEUE_NUM => transport.set_queue_size(value),
            VIRTIO_MMIO_QUEUE_READY => transport.set_queue_ready(value & 1 != 0),
            VIRTIO_MMIO_QUEUE_NOTIFY => transport.notify(value),
            VIRTIO_MMIO_INTERRUPT_ACK => {
                self.line.status.fetch_and(!value, Ordering::AcqRel);
            }
            VIRTIO_MMIO_STATUS => {
                transport.set_status(value);
                if value == 0 {
                    self.line.status.store(0, Ordering::Release);
                }
            }
            _ => {}
        }
    }
}

impl Device for Mmio {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let config = u64::from(VIRTIO_MMIO_CONFIG);
        if offset >= config {
            self.transport.read_config(offset - config, data);
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            answer(data, self.read_register(offset as u32).into());
        } else {
            data.fill(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> ControlFlow<Stop> {
        let config = u64::from(VIRTIO_MMIO_CONFIG);
        if offset >= config {
            self.transport.write_config(offset - config, data);
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            self.write_register(offset as u32, value(data) as u32);
        }
        ControlFlow::Continue(())
    }
}
