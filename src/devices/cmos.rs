//! The CMOS of a PC: a real-time clock and battery-backed bytes behind an index and a data port.
//!
//! The clock shows the host's time in UTC and can't be set; its alarm never rings. The bytes keep
//! what is written until the machine ends; those that tell the size of RAM are as a BIOS leaves
//! them. The update flag is set shortly before each full second, which a guest may wait for.
//!
//! Source: Motorola MC146818A data sheet; IBM PC/AT Technical Reference, "Real-Time Clock/CMOS RAM
//! Information"; for the sizes above 16 MiB, SeaBIOS src/hw/rtc.h.

use std::ops::ControlFlow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::bus::Device;
use crate::exit::Stop;
use crate::memory::RamRange;

/// Bytes: the index and the data port.
pub const LEN: u64 = 2;

const BYTES: usize = 128;
/// Indices are seven bits; on the eighth hangs the mask of the non-maskable interrupt.
const INDEX: u8 = 0x7f;

/// Registers of the clock. Those of the alarm, between them, are bytes like any other.
const SECONDS: usize = 0x00;
const MINUTES: usize = 0x02;
const HOURS: usize = 0x04;
const WEEKDAY: usize = 0x06;
const DAY: usize = 0x07;
const MONTH: usize = 0x08;
const YEAR: usize = 0x09;
const CENTURY: usize = 0x32;
const STATUS_A: usize = 0x0a;
const STATUS_B: usize = 0x0b;
const STATUS_C: usize = 0x0c;
const STATUS_D: usize = 0x0d;

/// Status A: an update is going on.
const UPDATING: u8 = 0x80;
/// How long an update takes, with the warning before it (MC146818A, "Update Cycle").
const UPDATE: Duration = Duration::from_micros(244 + 1984);
/// Status A as every BIOS sets it: 32768 Hz, a rate of 1024 Hz.
const RATE: u8 = 0x26;
/// Status B: BCD, 24 hours, no interrupts.
const HOURS_24: u8 = 0x02;
/// Status B: numbers are binary.
const BINARY: u8 = 0x04;
/// Status D: the battery is good.
const VALID: u8 = 0x80;

/// Sizes of RAM: index of the low byte (the high one follows), what is counted, from where.
const SIZES: [(usize, u64, u64); 4] = [
    (0x15, 1 << 10, 0),
    (0x17, 1 << 10, 1 << 20),
    (0x30, 1 << 10, 1 << 20),
    (0x34, 64 << 10, 16 << 20),
];
/// Where low memory ends, as the first of these sizes counts it.
const LOW_END: u64 = 640 << 10;
/// Index of the three bytes that count RAM above 4 GiB in units of 64 KiB.
const HIGH_SIZE: usize = 0x5b;

/// The device.
pub struct Cmos {
    index: u8,
    bytes: [u8; BYTES],
}

impl Cmos {
    /// The CMOS of a machine with this RAM.
    pub fn new(ram: &[RamRange]) -> Self {
        let mut bytes = [0; BYTES];
        bytes[STATUS_A] = RATE;
        bytes[STATUS_B] = HOURS_24;
        // RAM that lies in one piece from `start`, as far as `limit`.
        let piece = |start: u64, limit: u64| {
            let range = ram.iter().find(|range| range.start <= start && start < range.end());
            range.map_or(0, |range| range.end().min(limit) - start)
        };
        for (at, unit, start) in SIZES {
            let limit = if start == 0 { LOW_END } else { 1 << 32 };
            let units = (piece(start, limit) / unit).min(0xffff) as u16;
            bytes[at..at + 2].copy_from_slice(&units.to_le_bytes());
        }
        let above = piece(1 << 32, u64::MAX) / (64 << 10);
        bytes[HIGH_SIZE..HIGH_SIZE + 3].copy_from_slice(&above.min(0xff_ffff).to_le_bytes()[..3]);
        Self { index: 0, bytes }
    }

    /// The byte at the index, `now` after the epoch.
    fn get(&self, now: Duration) -> u8 {
        let index = usize::from(self.index);
        let number = |value: u64| match self.bytes[STATUS_B] & BINARY {
            0 => (value / 10 % 10 * 16 + value % 10) as u8,
            _ => value as u8,
        };
        let seconds = now.as_secs();
        let (year, month, day) = date(seconds / 86400);
        match index {
            SECONDS => number(seconds % 60),
            MINUTES => number(seconds / 60 % 60),
            HOURS => number(seconds / 3600 % 24),
            // 1 is Sunday; the epoch was a Thursday.
            WEEKDAY => number((seconds / 86400 + 4) % 7 + 1),
            DAY => number(day),
            MONTH => number(month),
            YEAR => number(year % 100),
            CENTURY => number(year / 100 % 100),
            STATUS_A => {
                let left = Duration::from_secs(1) - Duration::from_nanos(now.subsec_nanos().into());
                self.bytes[index] & !UPDATING | if left <= UPDATE { UPDATING } else { 0 }
            }
            STATUS_C => 0,
            STATUS_D => VALID,
            _ => self.bytes[index],
        }
    }

    fn set(&mut self, value: u8) {
        match usize::from(self.index) {
            // Always 24 hours, and no interrupts.
            STATUS_B => self.bytes[STATUS_B] = value & BINARY | HOURS_24,
            index => self.bytes[index] = value,
        }
    }
}

/// Year, month and day of the `days`th day after 1 January 1970, in the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    // Counted in years that begin in March, so that a leap day is a year's last one, and in eras of
    // 400 years, all of which have as many days. 1 March 0000 is 719468 days before the epoch.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Five months from March on have 153 days, always in the same pattern.
    let month = (5 * day + 2) / 153;
    let first = (153 * month + 2) / 5;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (400 * era + year + next, month, day - first + 1)
}

impl Device for Cmos {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // A clock before the epoch shows the epoch.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for (at, byte) in (offset..).zip(data) {
            *byte = if at == 1 { self.get(now) } else { 0xff };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> ControlFlow<Stop> {
        for (at, byte) in (offset..).zip(data) {
            match at {
                0 => self.index = byte & INDEX,
                1 => self.set(*byte),
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(cmos: &mut Cmos, index: usize, now: Duration) -> u8 {
        cmos.index = index as u8;
        cmos.get(now)
    }

    fn clock(cmos: &mut Cmos, now: u64) -> [u8; 8] {
        [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS]
            .map(|index| at(cmos, index, Duration::from_secs(now)))
    }

    #[test]
    fn the_clock_shows_the_date_in_bcd_or_binary() {
        let mut cmos = Cmos::new(&[]);
        for (now, shown) in [
            (0, [0x19, 0x70, 0x01, 0x01, 5, 0, 0, 0]),
            (951_782_399, [0x20, 0x00, 0x02, 0x28, 2, 0x23, 0x59, 0x59]),
            (951_868_799, [0x20, 0x00, 0x02, 0x29, 3, 0x23, 0x59, 0x59]),
            (951_868_800, [0x20, 0x00, 0x03, 0x01, 4, 0, 0, 0]),
            (1_735_689_599, [0x20, 0x24, 0x12, 0x31, 3, 0x23, 0x59, 0x59]),
            (4_107_542_400, [0x21, 0x00, 0x03, 0x01, 2, 0, 0, 0]),
        ] {
            assert_eq!(clock(&mut cmos, now), shown, "{now}");
        }
        assert!(cmos.write(0, &[STATUS_B as u8, 0xff]).is_continue());
        assert_eq!(at(&mut cmos, STATUS_B, Duration::ZERO), HOURS_24 | BINARY);
        assert_eq!(clock(&mut cmos, 1_735_689_599), [20, 24, 12, 31, 3, 23, 59, 59]);
    }

    #[test]
    fn the_update_flag_is_set_before_each_second() {
        let mut cmos = Cmos::new(&[]);
        for (micros, updating) in [(0, false), (997_000, false), (997_800, true), (999_999, true)] {
            let status = at(&mut cmos, STATUS_A, Duration::from_micros(5_000_000 + micros));
            assert_eq!(status & UPDATING != 0, updating, "{micros}");
        }
    }

    #[test]
    fn the_sizes_of_ram_are_told() {
        let range = |start, len| RamRange { start, len };
        for (ram, expected) in [
            (vec![], [0, 0, 0, 0, 0]),
            (vec![range(0, 0x8_0000)], [512, 0, 0, 0, 0]),
            (vec![range(0, 128 << 20)], [640, 0xffff, 0xffff, 0x700, 0]),
            (
                vec![range(0, 0xc000_0000), range(1 << 32, 1 << 30)],
                [640, 0xffff, 0xffff, 0xbf00, 0x4000],
            ),
            (vec![range(0, 0x40_0000)], [640, 0xc00, 0xc00, 0, 0]),
            (
                vec![range(0, 0xc000_0000), range(1 << 32, 1 << 50)],
                [640, 0xffff, 0xffff, 0xbf00, 0xffff],
            ),
        ] {
            let cmos = Cmos::new(&ram);
            let word = |at: usize| u16::from_le_bytes([cmos.bytes[at], cmos.bytes[at + 1]]);
            assert_eq!([0x15, 0x17, 0x30, 0x34, 0x5b].map(word), expected, "{ram:?}");
        }
    }

    #[test]
    fn every_access_is_answered_and_bytes_are_kept() {
        let mut cmos = Cmos::new(&[]);
        for index in 0..=255 {
            for width in [1, 2, 4, 8] {
                let mut data = [0; 8];
                assert!(cmos.write(0, &[index, 0x5a, 1, 2, 3, 4, 5, 6][..width]).is_continue());
                assert!(cmos.write(1, &[0xa5; 8][..width]).is_continue());
                cmos.read(0, &mut data[..width]);
                cmos.read(1, &mut data[..width]);
            }
        }
        for (index, kept) in [(0x0f, 0xa5), (0x8f, 0xa5), (STATUS_C, 0), (STATUS_D, VALID)] {
            let mut data = [0];
            assert!(cmos.write(0, &[index as u8]).is_continue());
            cmos.read(1, &mut data);
            assert_eq!(data[0], kept, "{index:#x}");
        }
    }
}
