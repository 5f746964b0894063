//! virtio over PCI (virtio v1.3, 4.1 "Virtio Over PCI Bus"): a function with one piece of memory,
//! which capabilities describe. Modern only: no I/O ports, no pin.
//!
//! ```text
//! 0x0000  common configuration       0x3000  notifications, 4 bytes for each queue
//! 0x1000  interrupt status           0x4000  MSI-X table
//! 0x2000  device configuration       0x5000  MSI-X pending bits
//! ```
//!
//! Each queue has an address of its own, so that KVM knows it without looking at what is written.
//! Where that is changes when the guest moves the memory: `moved` is told.

pub(super) mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use anyhow::{Result, ensure};

use self::common::Common;
use super::transport::{CONFIG_LEN, Transport};
use super::{Interrupt, VirtioDevice};
use crate::irq::Vector;
use crate::layout_check::Region;
use crate::memory::GuestRam;
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::msix::{self, MsiX, Sender};
use crate::pci::{Function, VENDOR_VIRTIO};

/// Bytes of its memory. Our choice: each structure in a page of its own.
pub const LEN: u64 = 0x8000;

pub(super) const COMMON: u64 = 0;
pub(super) const STATUS: u64 = 0x1000;
pub(super) const DEVICE: u64 = 0x2000;
pub(super) const NOTIFY: u64 = 0x3000;
pub(super) const TABLE: u64 = 0x4000;
pub(super) const PENDING: u64 = 0x5000;
/// Bytes of each of them.
const PAGE: u64 = 0x1000;

/// Bytes between the addresses of two queues' notifications, or more.
pub const NOTIFY_STEP: u64 = 4;

/// Our choice: the entries of an MSI-X table that fit its page.
const MOST_VECTORS: usize = 256;

/// 4.1.2.1: the type is added to it.
const MODERN: u16 = 0x1040;
/// 4.1.2.1 "Device Requirements: PCI Device Discovery": modern, and no transitional one.
const REVISION: u8 = 1;
const SUBSYSTEM: u16 = 0x40;

/// 4.1.4: the capability's number (vendor-specific), and the kinds of structures.
const VENDOR_SPECIFIC: u8 = 0x09;
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_STATUS: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_ACCESS: u8 = 5;
/// Fields of `virtio_pci_cap` from the capability's begin on.
const CAP_BAR: usize = 4;
const CAP_OFFSET: usize = 8;
const CAP_LENGTH: usize = 12;
/// `pci_cfg_data` and `notify_off_multiplier`, behind it.
const CAP_DATA: usize = 16;

/// 4.1.5.1.2: the vector that is none.
const NO_VECTOR: u16 = 0xffff;

/// 4.1.4.5: bits of the interrupt status.
const USED: u8 = 1;
const CHANGED: u8 = 2;

/// The classes of device types (PCI Code and ID Assignment Specification 1.15); for others none fits.
fn class(id: u32) -> u32 {
    match id {
        1 => 0x02_0000,
        2 | 26 => 0x01_8000,
        3 | 19 => 0x07_8000,
        _ => 0xff_0000,
    }
}

/// Which vectors tell what.
pub(super) struct Vectors {
    sender: Sender,
    changed: AtomicU16,
    used: Vec<AtomicU16>,
    /// For drivers that use no vectors: they poll, since there is no pin.
    status: AtomicU8,
}

impl Vectors {
    fn reset(&self) {
        let all = self.used.iter().chain([&self.changed]);
        all.for_each(|vector| vector.store(NO_VECTOR, Ordering::Release));
        self.status.store(0, Ordering::Release);
    }
}

impl Interrupt for Vectors {
    fn used(&self, queue: usize) {
        self.status.fetch_or(USED, Ordering::AcqRel);
        self.sender.send(self.used[queue].load(Ordering::Acquire));
    }

    fn changed(&self) {
        self.status.fetch_or(CHANGED, Ordering::AcqRel);
        self.sender.send(self.changed.load(Ordering::Acquire));
    }
}

/// Told where notifications go from now on: the first queue's address.
pub type Moved = Box<dyn FnMut(Option<u64>) + Send>;

/// A device as a function.
pub struct VirtioPci {
    transport: Transport,
    vectors: Arc<Vectors>,
    config: ConfigSpace,
    /// Where the capabilities lie that do something.
    msix_at: usize,
    access_at: usize,
    msix: MsiX,
    window: Region,
    memory: Option<Region>,
    moved: Moved,
}

/// How many vectors `device` can use: one for each queue, and one for changes.
pub fn vector_count(device: &dyn VirtioDevice) -> usize {
    device.queues().len() + 1
}

impl VirtioPci {
    /// `device`, whose buffers lie in `ram`, as device `number` of a bus with `window`, in which its
    /// memory has its place by that number.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram: Arc<GuestRam>,
        vectors: Vec<Vector>,
        number: usize,
        window: Region,
    ) -> Result<Self> {
        ensure!(vectors.len() <= MOST_VECTORS, "{} interrupts are too many", vectors.len());
        let msix = MsiX::new(vectors, number as u32 * 8);
        let used = device.queues().iter().map(|_| NO_VECTOR.into()).collect();
        let changed = NO_VECTOR.into();
        let status = AtomicU8::new(0);
        let vectors = Arc::new(Vectors { sender: msix.sender(), changed, used, status });
        let transport = Transport::new(device, ram, vectors.clone())?;

        let id = transport.id();
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR_VIRTIO,
            device: MODERN + id as u16,
            revision: REVISION,
            class: class(id),
            subsystem: (VENDOR_VIRTIO, SUBSYSTEM),
        });
        config.set_bar(window.start + number as u64 * LEN, LEN);
        let (body, writable) = msix.capability(TABLE as u32, PENDING as u32);
        let msix_at = config.add_capability(msix::CAPABILITY, &body, &writable);
        let queues = transport.queue_count() as u64;
        for (kind, offset, len) in [
            (CAP_COMMON, COMMON, common::LEN),
            (CAP_STATUS, STATUS, 1),
            (CAP_DEVICE, DEVICE, CONFIG_LEN as u64),
        ] {
            add_structure(&mut config, kind, (offset, len), &[], &[]);
        }
        let step = (NOTIFY_STEP as u32).to_le_bytes();
        add_structure(&mut config, CAP_NOTIFY, (NOTIFY, NOTIFY_STEP * queues), &step, &[]);
        let mut writable = [0xff; CAP_DATA + 4 - 2];
        // Its own length and kind, and what is behind the number of the register.
        [0, 1, 3, 4, 5].iter().for_each(|at| writable[*at] = 0);
        let access_at = add_structure(&mut config, CAP_ACCESS, (0, 0), &[0; 4], &writable);

        let (memory, moved) = (None, Box::new(|_| {}));
        Ok(Self { transport, vectors, config, msix_at, access_at, msix, window, memory, moved })
    }

    /// Has `moved` told where notifications go.
    pub fn on_move(&mut self, moved: Moved) {
        self.moved = moved;
    }

    /// What it carries.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    fn common(&mut self) -> Common<'_> {
        Common {
            transport: &mut self.transport,
            vectors: &self.vectors,
            vector_count: self.msix.count(),
        }
    }

    /// Lies where the guest's registers say, if that is in the window.
    fn place(&mut self) {
        let window = self.window;
        let memory = self.config.memory().map(|(start, len)| Region { start, len, ..window });
        let memory = memory.filter(|memory| {
            let end = memory.start.checked_add(memory.len);
            window.start <= memory.start && end.is_some_and(|end| end <= window.end())
        });
        if memory != self.memory {
            self.memory = memory;
            (self.moved)(memory.map(|memory| memory.start + NOTIFY));
        }
    }

    /// The place and width of an access through the configuration space, as the driver has written
    /// them there, if it is a good one (4.1.4.9).
    fn accessed(&self) -> Option<(u64, usize)> {
        let field = |at, len| self.config.get(self.access_at + at, len);
        let (offset, len) = (field(CAP_OFFSET, 4), field(CAP_LENGTH, 4));
        let good = field(CAP_BAR, 1) == 0
            && matches!(len, 1 | 2 | 4)
            && offset.is_multiple_of(len)
            && offset < LEN;
        good.then_some((offset, len as usize))
    }
}

/// Adds a capability that says where a structure lies in the memory; gives its place.
fn add_structure(
    config: &mut ConfigSpace,
    kind: u8,
    (offset, len): (u64, u64),
    more: &[u8],
    writable: &[u8],
) -> usize {
    let mut body = vec![(CAP_DATA + more.len()) as u8, kind, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((len as u32).to_le_bytes());
    body.extend(more);
    config.add_capability(VENDOR_SPECIFIC, &body, writable)
}

impl Function for VirtioPci {
    fn read_config(&mut self, register: usize, data: &mut [u8]) {
        let at = self.access_at + CAP_DATA;
        if register == at
            && let Some((offset, len)) = self.accessed()
        {
            let mut read = [0; 4];
            Function::read(self, offset, &mut read[..len]);
            self.config.put(at, &read);
        }
        self.config.read(register, data);
    }

    fn write_config(&mut self, register: usize, data: &[u8]) {
        self.config.write(register, data);
        self.msix.set_control(self.config.get(self.msix_at + msix::CONTROL, 2) as u16);
        self.place();
        let at = self.access_at + CAP_DATA;
        if register == at
            && let Some((offset, len)) = self.accessed()
        {
            let written = self.config.get(at, 4).to_le_bytes();
            Function::write(self, offset, &written[..len]);
        }
    }

    fn memory(&self) -> Option<Region> {
        self.memory
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let inside = offset % PAGE;
        match offset - inside {
            COMMON => self.common().read(inside, data),
            STATUS if inside == 0 => data[0] = self.vectors.status.swap(0, Ordering::AcqRel),
            DEVICE => self.transport.read_config(inside, data),
            TABLE => self.msix.read_table(inside as usize, data),
            PENDING => self.msix.read_pending(inside as usize, data),
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let inside = offset % PAGE;
        match offset - inside {
            COMMON => self.common().write(inside, data),
            DEVICE => self.transport.write_config(inside, data),
            // Where KVM does not take it: through the configuration space, say.
            NOTIFY if inside.is_multiple_of(NOTIFY_STEP) => {
                self.transport.notify((inside / NOTIFY_STEP) as u32);
            }
            TABLE => self.msix.write_table(inside as usize, data),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
