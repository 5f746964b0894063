//! The address register of a PCI bus without devices, by which a system knows that there is such a register
//! at all: what it writes reads back. The data port behind it has no device, so every function is absent.
//!
//! Only accesses of all four bytes are for it; narrower ones go to what chipsets have within its ports.
//!
//! Source: PCI Local Bus Specification 3.0, 3.2.2.3.2 "Software Generation of Configuration Transactions".

use std::ops::ControlFlow;

use super::{answer, value};
use crate::board::StopRegister;
use crate::bus::Device;
use crate::exit::{BusAddr, Stop};

/// Bytes.
pub const LEN: u64 = 4;

/// Bits that keep what is written: the enable bit, bus, device, function and register.
const KEPT: u64 = 0x80ff_fffc;

/// The device.
pub struct PciAddress {
    address: u64,
    within: StopRegister,
    /// Where that is, from the first port on.
    offset: u64,
}

impl PciAddress {
    /// The register at `at`, with another one within its ports.
    pub fn new(within: StopRegister, at: BusAddr) -> Self {
        Self { address: 0, within, offset: within.at.addr - at.addr }
    }

    /// Whether an access is for the register within.
    fn is_within(&self, offset: u64, len: usize) -> bool {
        offset == self.offset && len as u64 <= self.within.len
    }
}

impl Device for PciAddress {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if self.is_within(offset, data.len()) {
            self.within.read(0, data);
        } else if data.len() as u64 == LEN {
            answer(data, self.address);
        } else {
            data.fill(0xff);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> ControlFlow<Stop> {
        if self.is_within(offset, data.len()) {
            return self.within.write(0, data);
        }
        if data.len() as u64 == LEN {
            self.address = value(data) & KEPT;
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Does;

    #[test]
    fn an_address_reads_back_and_a_byte_is_for_what_lies_within() {
        let within = StopRegister {
            name: "test",
            at: BusAddr::port(0xcf9),
            len: 1,
            mask: 4,
            value: 4,
            does: Does::Reset,
            reads: 0,
        };
        let mut ports = PciAddress::new(within, BusAddr::port(0xcf8));
        let read = |ports: &mut PciAddress, offset, width: usize| {
            let mut data = [0; 4];
            ports.read(offset, &mut data[..width]);
            value(&data[..width])
        };
        // As Linux looks for it, with a byte first that must not change it.
        assert!(ports.write(3, &[1]).is_continue());
        assert_eq!(read(&mut ports, 0, 4), 0);
        assert!(ports.write(0, &0x8000_0000u32.to_le_bytes()).is_continue());
        assert_eq!(read(&mut ports, 0, 4), 0x8000_0000);
        // All of its bits at once are no reset.
        assert!(ports.write(0, &[0xff; 4]).is_continue());
        assert_eq!((read(&mut ports, 0, 4), read(&mut ports, 1, 1)), (0x80ff_fffc, 0));
        assert_eq!((read(&mut ports, 0, 2), read(&mut ports, 2, 1)), (0xffff, 0xff));
        assert!(ports.write(1, &[2]).is_continue());
        assert!(ports.write(1, &[6, 0]).is_continue());
        assert!(matches!(ports.write(1, &[6]).break_value(), Some(Stop::Reset)));
    }
}
