//! The real-time clock: a PL031 (vm-superio's state machine; Arm DDI 0224), registers of 32 bits.
//!
//! It counts the host's seconds. Its alarm never rings: no guest here needs to be woken.

use std::ops::ControlFlow;

use vm_superio::Rtc;
use vm_superio::rtc_pl031::NoEvents;

use super::{answer, value};
use crate::bus::Device;
use crate::exit::Stop;

/// Bytes of its registers (Arm DDI 0224, "Programmer's model").
pub const LEN: u64 = 0x1000;

/// The device.
pub struct Pl031(Rtc<NoEvents>);

impl Default for Pl031 {
    fn default() -> Self {
        Self(Rtc::new())
    }
}

impl Device for Pl031 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let mut register = [0; 4];
        self.0.read(offset as u16 & !3, &mut register);
        // A narrow access gets its part of the register.
        answer(data, value(&register) >> (8 * (offset & 3)));
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> ControlFlow<Stop> {
        // Part of a register has no meaning here.
        if offset & 3 == 0 && data.len() >= 4 {
            self.0.write(offset as u16, &[data[0], data[1], data[2], data[3]]);
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    /// Data and load register.
    const DR: u64 = 0;
    const LR: u64 = 8;
    /// The first of the registers that say what it is.
    const PERIPH_ID: u64 = 0xfe0;

    fn read(rtc: &mut Pl031, offset: u64, width: usize) -> u64 {
        let mut data = [0xff; 8];
        rtc.read(offset, &mut data[..width]);
        value(&data[..width])
    }

    #[test]
    fn it_tells_the_host_s_time_until_it_is_set() {
        let mut rtc = Pl031::default();
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let before = now();
        let told = read(&mut rtc, DR, 4);
        assert!((before..=now()).contains(&told), "{told}");
        assert!(rtc.write(LR, &1_000_000u32.to_le_bytes()).is_continue());
        let told = read(&mut rtc, DR, 4);
        assert!((1_000_000..1_000_100).contains(&told), "{told}");
    }

    #[test]
    fn every_access_is_answered() {
        let mut rtc = Pl031::default();
        assert_eq!(read(&mut rtc, PERIPH_ID, 4), 0x31);
        assert_eq!(read(&mut rtc, PERIPH_ID, 8), 0x31);
        for offset in 0..LEN {
            for width in [1, 2, 4, 8] {
                assert!(rtc.write(offset, &[0xff; 8][..width]).is_continue());
                read(&mut rtc, offset, width);
            }
        }
    }
}
