//! For tests: a device behind either carrier, with registers by the names that virtio-mmio has for
//! them.

use std::sync::Arc;

use virtio_bindings::virtio_mmio::*;
use vmm_sys_util::eventfd::EventFd;

use crate::bus::Device;
use crate::irq::{Irq, Vector};
use crate::layout_check::Region;
use crate::memory::GuestRam;
use crate::pci::Function;
use crate::virtio::mmio::Mmio;
use crate::virtio::pci::common::*;
use crate::virtio::pci::{self, VirtioPci};
use crate::virtio::transport::Transport;
use crate::virtio::{Carrier, VirtioDevice};

/// Where the functions of the tests' bus lie.
pub const WINDOW: Region = Region { name: "PCI devices", start: 0x1000_0000, len: 0x10_0000 };

/// A device and its carrier.
pub enum Carried {
    Mmio(Box<Mmio>),
    Pci(Box<VirtioPci>),
}

/// The field of the common configuration that is such a register, and its bytes.
fn field(register: u32) -> Option<(u64, usize)> {
    Some(match register {
        VIRTIO_MMIO_DEVICE_FEATURES => (DEVICE_FEATURE, 4),
        VIRTIO_MMIO_DEVICE_FEATURES_SEL => (DEVICE_FEATURE_SELECT, 4),
        VIRTIO_MMIO_DRIVER_FEATURES => (DRIVER_FEATURE, 4),
        VIRTIO_MMIO_DRIVER_FEATURES_SEL => (DRIVER_FEATURE_SELECT, 4),
        VIRTIO_MMIO_QUEUE_SEL => (QUEUE_SELECT, 2),
        VIRTIO_MMIO_QUEUE_NUM_MAX | VIRTIO_MMIO_QUEUE_NUM => (QUEUE_SIZE, 2),
        VIRTIO_MMIO_QUEUE_READY => (QUEUE_ENABLE, 2),
        VIRTIO_MMIO_STATUS => (DEVICE_STATUS, 1),
        VIRTIO_MMIO_CONFIG_GENERATION => (CONFIG_GENERATION, 1),
        VIRTIO_MMIO_QUEUE_DESC_LOW => (QUEUE_DESC, 4),
        VIRTIO_MMIO_QUEUE_DESC_HIGH => (QUEUE_DESC + 4, 4),
        VIRTIO_MMIO_QUEUE_AVAIL_LOW => (QUEUE_DRIVER, 4),
        VIRTIO_MMIO_QUEUE_AVAIL_HIGH => (QUEUE_DRIVER + 4, 4),
        VIRTIO_MMIO_QUEUE_USED_LOW => (QUEUE_DEVICE, 4),
        VIRTIO_MMIO_QUEUE_USED_HIGH => (QUEUE_DEVICE + 4, 4),
        _ => return None,
    })
}

/// Where that register is in a device's memory by either carrier, and its bytes. Queue 0's, of notifications
/// on a bus.
pub fn place(carrier: Carrier, register: u32) -> Option<(u64, usize)> {
    match carrier {
        Carrier::Mmio => Some((register.into(), 4)),
        Carrier::Pci if register == VIRTIO_MMIO_QUEUE_NOTIFY => Some((pci::NOTIFY, 2)),
        Carrier::Pci if register == VIRTIO_MMIO_INTERRUPT_STATUS => Some((pci::STATUS, 1)),
        Carrier::Pci => field(register).map(|(field, len)| (pci::COMMON + field, len)),
    }
}

impl Carried {
    /// `device` with all of its interrupts at `edges`.
    pub fn new(
        carrier: Carrier,
        device: Box<dyn VirtioDevice>,
        ram: Arc<GuestRam>,
        edges: &EventFd,
    ) -> Self {
        let irq = || Irq::new(edges.try_clone().unwrap());
        match carrier {
            Carrier::Mmio => Self::Mmio(Box::new(Mmio::new(device, ram, irq()).unwrap())),
            Carrier::Pci => {
                let vector = |_| Vector::new(irq(), |_| true);
                let vectors = (0..pci::vector_count(&*device)).map(vector).collect();
                Self::Pci(Box::new(VirtioPci::new(device, ram, vectors, 1, WINDOW).unwrap()))
            }
        }
    }

    pub fn transport(&self) -> &Transport {
        match self {
            Self::Mmio(device) => device.transport(),
            Self::Pci(function) => function.transport(),
        }
    }

    pub fn get(&mut self, register: u32, data: &mut [u8; 4]) {
        match self {
            Self::Mmio(device) => device.read(register.into(), data),
            Self::Pci(function) => {
                let place = place(Carrier::Pci, register);
                let (offset, len) = place.unwrap_or_else(|| panic!("no field is {register:#x}"));
                data.fill(0);
                Function::read(&mut **function, offset, &mut data[..len]);
            }
        }
    }

    /// What does not fit a narrower field is its largest value there.
    pub fn set(&mut self, register: u32, value: u32) {
        match self {
            Self::Mmio(device) => {
                assert!(device.write(register.into(), &value.to_le_bytes()).is_continue());
            }
            Self::Pci(function) if register == VIRTIO_MMIO_QUEUE_NOTIFY => {
                let at = pci::NOTIFY + u64::from(value.min(0x3ff)) * pci::NOTIFY_STEP;
                Function::write(&mut **function, at, &(value as u16).to_le_bytes());
            }
            Self::Pci(function) => {
                let (field, len) = field(register).expect("a field");
                let value = value.min((1u64 << (8 * len)).wrapping_sub(1) as u32);
                Function::write(&mut **function, pci::COMMON + field, &value.to_le_bytes()[..len]);
            }
        }
    }

    pub fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        match self {
            Self::Mmio(device) => device.read(u64::from(VIRTIO_MMIO_CONFIG) + offset, data),
            Self::Pci(function) => Function::read(&mut **function, pci::DEVICE + offset, data),
        }
    }

    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        match self {
            Self::Mmio(device) => {
                let at = u64::from(VIRTIO_MMIO_CONFIG) + offset;
                assert!(device.write(at, data).is_continue());
            }
            Self::Pci(function) => Function::write(&mut **function, pci::DEVICE + offset, data),
        }
    }

    /// Has changes interrupt: vector 0 where there are vectors, all of which are put to use.
    pub fn use_vectors(&mut self) {
        let Self::Pci(function) = self else { return };
        let count = function.transport().queue_count() + 1;
        for vector in 0..count as u64 {
            let entry = pci::TABLE + 16 * vector;
            Function::write(&mut **function, entry, &0xfee0_0000u64.to_le_bytes());
            Function::write(&mut **function, entry + 8, &vector.to_le_bytes());
        }
        function.write_config(0x42, &0x8000u16.to_le_bytes());
        Function::write(&mut **function, pci::COMMON + CONFIG_MSIX_VECTOR, &[0, 0]);
    }

    /// Has the selected queue interrupt, which is number `queue`.
    pub fn use_queue_vector(&mut self, queue: usize) {
        let Self::Pci(function) = self else { return };
        let vector = (queue as u16 + 1).to_le_bytes();
        Function::write(&mut **function, pci::COMMON + QUEUE_MSIX_VECTOR, &vector);
    }
}
