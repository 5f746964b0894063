//! pvpanic: a guest reports that it panicked.
//!
//! Source: QEMU docs/specs/pvpanic.rst (one byte: read it for the events that are understood,
//! write one to report it). The same register in either address space.

use std::ops::ControlFlow;

use super::{answer, value};
use crate::bus::Device;
use crate::exit::Stop;

/// Bytes of the register.
pub const LEN: u64 = 1;

/// Event: the guest panicked and is going down.
const PANICKED: u64 = 1 << 0;

/// The device.
pub struct PanicReport;

impl Device for PanicReport {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        answer(data, PANICKED);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> ControlFlow<Stop> {
        if value(data) & PANICKED != 0 {
            return ControlFlow::Break(Stop::Panic);
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_announced_event_stops_the_machine() {
        let mut data = [0];
        PanicReport.read(0, &mut data);
        assert_eq!(u64::from(data[0]), PANICKED);
        assert!(matches!(PanicReport.write(0, &[1]).break_value(), Some(Stop::Panic)));
        assert!(PanicReport.write(0, &[2]).is_continue());
    }
}
