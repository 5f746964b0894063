//! A frame of registers through which writes become edges on interrupt lines, for controllers that
//! know no messages (Arm Server Base System Architecture, DEN 0029, the appendix about MSI_TYPER).
//!
//! Devices of ours have KVM make the edges; what comes here is a CPU's own write.

use std::ops::ControlFlow;

use super::{answer, value};
use crate::bus::Device;
use crate::exit::Stop;

/// Bytes of its registers.
pub const LEN: u64 = 0x1000;

/// Which lines are its own: the first in bits 16 to 25, how many in bits 0 to 9.
const MSI_TYPER: u64 = 0x008;
/// Where a line's number is written.
const MSI_SETSPI_NS: u64 = 0x040;

/// The frame.
pub struct MessageFrame {
    base: u32,
    first: u32,
    count: u32,
    edge: Box<dyn FnMut(u32) + Send>,
}

impl MessageFrame {
    /// Makes edges on `count` lines from `first` on, whose numbers are larger by `base` for those who
    /// write them.
    pub fn new(base: u32, first: u32, count: u32, edge: impl FnMut(u32) + Send + 'static) -> Self {
        Self { base, first, count, edge: Box::new(edge) }
    }
}

impl Device for MessageFrame {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let register = match (offset, data.len()) {
            (MSI_TYPER, 4) => (self.base + self.first) << 16 | self.count,
            // Of no maker, MSI_IIDR among them.
            _ => 0,
        };
        answer(data, register.into());
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> ControlFlow<Stop> {
        // As wide as the register, or as the number that is in it.
        if offset == MSI_SETSPI_NS && matches!(data.len(), 2 | 4) {
            let line = (value(data) as u32).checked_sub(self.base);
            let own = self.first..self.first + self.count;
            if let Some(line) = line.filter(|line| own.contains(line)) {
                (self.edge)(line);
            }
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn what_is_written_is_an_edge_if_the_line_is_its_own() {
        let (told, heard) = channel();
        let mut frame = MessageFrame::new(32, 8, 4, move |line| told.send(line).unwrap());
        let mut data = [0xaa; 4];
        frame.read(MSI_TYPER, &mut data);
        assert_eq!(u32::from_le_bytes(data), 40 << 16 | 4);
        for (offset, number) in [
            (0x40, 40u32),
            (0x40, 43),
            (0x40, 39),
            (0x40, 44),
            (0x40, 0),
            (0x40, u32::MAX),
            (0x44, 41),
        ] {
            assert!(frame.write(offset, &number.to_le_bytes()).is_continue());
            frame.read(offset, &mut data);
            assert_eq!(data, [0; 4]);
        }
        assert!(frame.write(0x40, &42u16.to_le_bytes()).is_continue());
        assert!(frame.write(0x40, &[41]).is_continue());
        assert!(frame.write(0x40, &41u64.to_le_bytes()).is_continue());
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), [8, 11, 10]);
    }
}
