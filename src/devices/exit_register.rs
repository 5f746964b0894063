//! The exit register: a guest writes its status and the machine stops.
//!
//! Writes of 8, 16 and 32 bits count (64 too, where an architecture has them); reads give zero.
//! What the value means as a process status is [`crate::outcome`]'s to say.

use std::ops::ControlFlow;

use super::{answer, value};
use crate::bus::Device;
use crate::exit::Stop;

/// The device.
pub struct ExitRegister;

impl Device for ExitRegister {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        answer(data, 0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> ControlFlow<Stop> {
        match offset {
            0 => ControlFlow::Break(Stop::Exit(value(data))),
            _ => ControlFlow::Continue(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_of_any_width_stops_with_its_value_and_one_beside_it_does_not() {
        for (data, expected) in [
            (&[7u8][..], 7),
            (&[0x34, 0x12], 0x1234),
            (&[1, 0, 0, 0x80], 0x8000_0001),
            (&[0, 0, 0, 0, 1, 0, 0, 0], 1 << 32),
        ] {
            let stop = ExitRegister.write(0, data).break_value();
            assert!(matches!(stop, Some(Stop::Exit(code)) if code == expected), "{stop:?}");
        }
        assert!(ExitRegister.write(1, &[7]).is_continue());
    }
}
