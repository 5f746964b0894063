//! Routes device accesses to devices, in both address spaces.
//!
//! Owns which device lies where. Built once, read by every vCPU without a lock; each device has a
//! lock of its own, so that two vCPUs only meet when they use the same device.

use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};

use crate::exit::{BusAddr, Stop};

/// A device behind a range of addresses. It sees offsets, never addresses, so that the same state
/// machine serves either space.
pub trait Device: Send {
    /// One read of `data.len()` bytes (1, 2, 4 or 8) at `offset`.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// One write of `data.len()` bytes (1, 2, 4 or 8) at `offset`. Breaks to stop the machine.
    fn write(&mut self, offset: u64, data: &[u8]) -> ControlFlow<Stop>;
}

/// One device in its place.
struct Slot {
    at: BusAddr,
    len: u64,
    name: &'static str,
    device: Mutex<Box<dyn Device>>,
}

/// The map from addresses to devices.
#[derive(Default)]
pub struct Bus {
    /// Sorted by address, disjoint.
    slots: Vec<Slot>,
}

/// Where an access goes: an index for counters and names, and the offset into the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which device.
    pub index: usize,
    /// Offset of the access into it.
    pub offset: u64,
}

impl Bus {
    /// Puts `device` at `[at, at + len)`. An overlap with another device is an error that names both.
    pub fn insert(
        &mut self,
        at: BusAddr,
        len: u64,
        name: &'static str,
        device: Box<dyn Device>,
    ) -> Result<()> {
        ensure!(len > 0 && at.addr.checked_add(len).is_some(), "{name}: bad range at {at}");
        let index = self.slots.partition_point(|slot| slot.at < at);
        let before = index.checked_sub(1).map(|i| &self.slots[i]);
        let clash = before
            .filter(|slot| slot.at.space == at.space && at.addr - slot.at.addr < slot.len)
            .or_else(|| {
                self.slots
                    .get(index)
                    .filter(|slot| slot.at.space == at.space && slot.at.addr - at.addr < len)
            });
        if let Some(slot) = clash {
            anyhow::bail!(
                "{name} at {at} overlaps {} at {}: move one of them to a free address",
                slot.name,
                slot.at
            );
        }
        self.slots.insert(index, Slot { at, len, name, device: Mutex::new(device) });
        Ok(())
    }

    /// Where an access of `width` bytes at `at` goes, if it lies wholly in one device.
    pub fn find(&self, at: BusAddr, width: usize) -> Option<Place> {
        let index = self.slots.partition_point(|slot| slot.at <= at).checked_sub(1)?;
        let slot = &self.slots[index];
        if slot.at.space != at.space {
            return None;
        }
        let offset = at.addr - slot.at.addr;
        let fits = offset.checked_add(width as u64).is_some_and(|end| end <= slot.len);
        fits.then_some(Place { index, offset })
    }

    /// Bytes from `at` to the next device above it.
    pub fn room(&self, at: BusAddr) -> u64 {
        let above = self.slots.iter().find(|slot| slot.at > at && slot.at.space == at.space);
        above.map_or(u64::MAX, |slot| slot.at.addr - at.addr)
    }

    /// One read of `data.len()` bytes at `place`.
    pub fn read(&self, place: Place, data: &mut [u8]) {
        let slot = &self.slots[place.index];
        slot.device.lock().unwrap_or_else(PoisonError::into_inner).read(place.offset, data);
    }

    /// One write of `data` at `place`. Breaks to stop the machine.
    pub fn write(&self, place: Place, data: &[u8]) -> ControlFlow<Stop> {
        let slot = &self.slots[place.index];
        slot.device.lock().unwrap_or_else(PoisonError::into_inner).write(place.offset, data)
    }

    /// The name of device `index`.
    pub fn name(&self, index: usize) -> &'static str {
        self.slots[index].name
    }

    /// Where device `index` lies, and its bytes.
    #[cfg(any(test, fuzzing))]
    pub fn range(&self, index: usize) -> (BusAddr, u64) {
        (self.slots[index].at, self.slots[index].len)
    }

    /// How many devices there are; their indices are below it.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// True without any device.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Null;
    impl Device for Null {
        fn read(&mut self, _: u64, _: &mut [u8]) {}
        fn write(&mut self, _: u64, _: &[u8]) -> ControlFlow<Stop> {
            ControlFlow::Continue(())
        }
    }

    fn bus(ranges: &[(BusAddr, u64)]) -> Bus {
        let mut bus = Bus::default();
        for &(at, len) in ranges {
            bus.insert(at, len, "null", Box::new(Null)).unwrap();
        }
        bus
    }

    #[test]
    fn an_access_goes_to_the_device_that_holds_all_of_it_or_to_none() {
        let bus = bus(&[(BusAddr::port(8), 4), (BusAddr::memory(8), 8), (BusAddr::port(12), 1)]);
        for (at, width, expected) in [
            (BusAddr::memory(7), 1, None),
            (BusAddr::memory(8), 8, Some((0, 0))),
            (BusAddr::memory(15), 1, Some((0, 7))),
            (BusAddr::memory(15), 2, None),
            (BusAddr::memory(16), 1, None),
            (BusAddr::port(7), 1, None),
            (BusAddr::port(8), 4, Some((1, 0))),
            (BusAddr::port(11), 1, Some((1, 3))),
            (BusAddr::port(11), 2, None),
            (BusAddr::port(12), 1, Some((2, 0))),
            (BusAddr::port(u64::MAX), 8, None),
            (BusAddr::memory(u64::MAX), 8, None),
        ] {
            let found = bus.find(at, width).map(|place| (place.index, place.offset));
            assert_eq!(found, expected, "{at} width {width}");
        }
    }

    #[test]
    fn ranges_that_touch_are_fine_and_ranges_that_overlap_name_both_devices() {
        let mut bus = bus(&[(BusAddr::port(8), 4), (BusAddr::port(16), 4)]);
        for (at, len, ok) in [
            (BusAddr::port(12), 4, true),
            (BusAddr::port(7), 1, true),
            (BusAddr::memory(8), 4, true),
            (BusAddr::port(7), 2, false),
            (BusAddr::port(8), 1, false),
            (BusAddr::port(11), 1, false),
            (BusAddr::port(0), 64, false),
            (BusAddr::port(u64::MAX), 2, false),
            (BusAddr::port(99), 0, false),
        ] {
            assert_eq!(bus.insert(at, len, "new", Box::new(Null)).is_ok(), ok, "{at} len {len}");
        }
        let error = bus.insert(BusAddr::port(17), 1, "new", Box::new(Null)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "new at port:0x11 overlaps null at port:0x10: move one of them to a free address"
        );
    }
}
