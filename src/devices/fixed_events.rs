//! ACPI's status and enable registers for fixed events: no event ever happens.
//!
//! Source: ACPI 6.5, 4.8.3.1 "PM1 Event Grouping". A system reads back what it has enabled.

use std::ops::ControlFlow;

use super::{answer, value};
use crate::bus::Device;
use crate::exit::Stop;

/// Bytes: two of status, two of enable.
pub const LEN: u64 = 4;

/// Bits from the start to the enable register.
const ENABLE: u64 = 16;

/// The device.
#[derive(Default)]
pub struct FixedEvents {
    enabled: u64,
}

impl Device for FixedEvents {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        answer(data, self.enabled << ENABLE >> (8 * offset));
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> ControlFlow<Stop> {
        // The bits that this access covers, of both registers side by side.
        let covered = u32::MAX >> (32 - 8 * data.len().clamp(1, LEN as usize));
        let (covered, given) = (u64::from(covered) << (8 * offset), value(data) << (8 * offset));
        let before = self.enabled << ENABLE;
        self.enabled = (before & !covered | given & covered) >> ENABLE & 0xffff;
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_enabled_reads_back_and_no_event_happens() {
        let mut events = FixedEvents::default();
        let read = |events: &mut FixedEvents, offset, width: usize| {
            let mut data = [0xff; 8];
            events.read(offset, &mut data[..width]);
            value(&data[..width])
        };
        assert!(events.write(2, &[0x21, 0x43]).is_continue());
        assert_eq!((read(&mut events, 0, 4), read(&mut events, 2, 2)), (0x4321_0000, 0x4321));
        assert!(events.write(0, &[0xff, 0xff]).is_continue());
        assert!(events.write(3, &[0x50]).is_continue());
        assert_eq!(read(&mut events, 0, 4), 0x5021_0000);
        for offset in 0..LEN {
            for width in [1, 2, 4, 8] {
                assert!(events.write(offset, &[0xff; 8][..width]).is_continue());
                assert_eq!(read(&mut events, 0, 2), 0);
            }
        }
    }
}
