//! Registers that switch a machine off or reset it when a certain value is written: an
//! architecture lists the ones that its platform is known for.

use std::ops::ControlFlow;

use super::{answer, value};
use crate::board::{Does, StopRegister};
use crate::bus::Device;
use crate::exit::Stop;

impl Device for StopRegister {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        answer(data, self.reads);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> ControlFlow<Stop> {
        if offset == 0 && value(data) & self.mask == self.value {
            return ControlFlow::Break(match self.does {
                Does::PowerOff => Stop::PowerOff,
                Does::Reset => Stop::Reset,
            });
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::BusAddr;

    #[test]
    fn only_the_value_under_the_mask_stops_the_machine() {
        let mut register = StopRegister {
            name: "test",
            at: BusAddr::memory(0),
            len: 2,
            mask: 0x3c00,
            value: 0x2000,
            does: Does::Reset,
            reads: 0x1c,
        };
        let mut data = [0xff; 2];
        register.read(0, &mut data);
        assert_eq!(data, [0x1c, 0]);
        assert!(register.write(0, &[0xff, 0xc3]).is_continue());
        assert!(register.write(1, &[0x20]).is_continue());
        assert!(matches!(register.write(0, &[0, 0x20]).break_value(), Some(Stop::Reset)));
    }
}
