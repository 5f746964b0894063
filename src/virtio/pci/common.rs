//! The common configuration (virtio v1.3, 4.1.4.3 "Common configuration structure layout"): the
//! transport's registers as fields, each to be accessed as it is wide; those of 64 bits also by
//! halves.

use std::sync::atomic::{AtomicU16, Ordering};

use super::{NO_VECTOR, Vectors};
use crate::devices::{answer, value};
use crate::virtio::transport::{Area, Half, Transport};

/// Bytes of it, without fields of features that are not offered.
pub const LEN: u64 = 0x38;

pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
pub const DEVICE_FEATURE: u64 = 0x04;
pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
pub const DRIVER_FEATURE: u64 = 0x0c;
pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
pub const NUM_QUEUES: u64 = 0x12;
pub const DEVICE_STATUS: u64 = 0x14;
pub const CONFIG_GENERATION: u64 = 0x15;
pub const QUEUE_SELECT: u64 = 0x16;
pub const QUEUE_SIZE: u64 = 0x18;
pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
pub const QUEUE_ENABLE: u64 = 0x1c;
pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
pub const QUEUE_DESC: u64 = 0x20;
pub const QUEUE_DRIVER: u64 = 0x28;
pub const QUEUE_DEVICE: u64 = 0x30;

/// What the fields are about.
pub struct Common<'a> {
    pub transport: &'a mut Transport,
    pub vectors: &'a Vectors,
    pub vector_count: usize,
}

/// The queue's area whose address is at `offset`, and which half of it.
fn area(offset: u64) -> Option<(Area, Half)> {
    let area = match offset & !7 {
        QUEUE_DESC => Area::Descriptors,
        QUEUE_DRIVER => Area::Driver,
        QUEUE_DEVICE => Area::Device,
        _ => return None,
    };
    match offset & 7 {
        0 => Some((area, Half::Low)),
        4 => Some((area, Half::High)),
        _ => None,
    }
}

impl Common<'_> {
    /// The vector of the selected queue.
    fn queue_vector(&self) -> Option<&AtomicU16> {
        self.vectors.used.get(self.transport.selected_queue() as usize)
    }

    /// Reads a field; what is none reads as zeros, which `data` holds.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        let transport = &mut *self.transport;
        let (device_select, driver_select, accepted) = transport.selected_features();
        let vector = |vector: &AtomicU16| u64::from(vector.load(Ordering::Acquire));
        let field: u64 = match (offset, data.len()) {
            (DEVICE_FEATURE_SELECT, 4) => device_select.into(),
            (DEVICE_FEATURE, 4) => transport.device_features().into(),
            (DRIVER_FEATURE_SELECT, 4) => driver_select.into(),
            (DRIVER_FEATURE, 4) => accepted.into(),
            (CONFIG_MSIX_VECTOR, 2) => vector(&self.vectors.changed),
            (NUM_QUEUES, 2) => transport.queue_count() as u64,
            (DEVICE_STATUS, 1) => transport.status().into(),
            (CONFIG_GENERATION, 1) => transport.generation().into(),
            (QUEUE_SELECT, 2) => transport.selected_queue().into(),
            (QUEUE_SIZE, 2) => transport.queue_sizes().1.into(),
            (QUEUE_MSIX_VECTOR, 2) => self.queue_vector().map_or(NO_VECTOR.into(), vector),
            (QUEUE_ENABLE, 2) => transport.queue_ready().into(),
            // Those of queues that are not there are nowhere.
            (QUEUE_NOTIFY_OFF, 2) if transport.queue_sizes().0 > 0 => {
                transport.selected_queue().into()
            }
            (offset, len) => match (area(offset), len) {
                (Some((area, Half::High)), 4) => transport.queue_address(area) >> 32,
                (Some((area, Half::Low)), 4 | 8) => transport.queue_address(area),
                _ => return,
            },
        };
        answer(data, field);
    }

    /// Writes a field.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let value = value(data);
        let (word, short) = (value as u32, value as u16);
        let transport = &mut *self.transport;
        match (offset, data.len()) {
            (DEVICE_FEATURE_SELECT, 4) => transport.select_device_features(word),
            (DRIVER_FEATURE_SELECT, 4) => transport.select_driver_features(word),
            (DRIVER_FEATURE, 4) => transport.accept_features(word),
            (CONFIG_MSIX_VECTOR, 2) => self.set_vector(Some(&self.vectors.changed), short),
            (DEVICE_STATUS, 1) => {
                transport.set_status(word);
                if word == 0 {
                    self.vectors.reset();
                }
            }
            (QUEUE_SELECT, 2) => transport.select_queue(word),
            (QUEUE_SIZE, 2) => transport.set_queue_size(word),
            (QUEUE_MSIX_VECTOR, 2) => self.set_vector(self.queue_vector(), short),
            (QUEUE_ENABLE, 2) => transport.set_queue_ready(word == 1),
            (offset, len) => match (area(offset), len) {
                (Some((area, half)), 4) => transport.set_queue_address(area, half, word),
                (Some((area, Half::Low)), 8) => {
                    transport.set_queue_address(area, Half::Low, word);
                    transport.set_queue_address(area, Half::High, (value >> 32) as u32);
                }
                _ => {}
            },
        }
    }

    /// One that is not there becomes none, as the driver reads back (4.1.5.1.2.1).
    fn set_vector(&self, vector: Option<&AtomicU16>, number: u16) {
        let there = usize::from(number) < self.vector_count;
        if let Some(vector) = vector {
            vector.store(if there { number } else { NO_VECTOR }, Ordering::Release);
        }
    }
}
