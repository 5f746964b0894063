//! The configuration space of one function, as bytes of which a mask says what a guest can change
//! (PCI Local Bus Specification 3.0, 6.1 "Configuration Space Organization").
//!
//! A guest sizes a base address register by writing ones to it: the mask alone answers that.

use crate::devices::value;

/// Bytes of the space that a conventional function has. What follows up to 4 KiB is PCI Express's,
/// and reads as zeros: no extended capabilities.
const LEN: usize = 256;

/// Registers of the header.
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// Where the header ends and capabilities may begin.
const HEADER_LEN: usize = 0x40;

/// Bits of the command register: answer to memory accesses, be a bus master, use no pin. Who sets
/// queues up wants them served, so nothing depends on the second one.
const MEMORY: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;
const NO_PIN: u16 = 1 << 10;
/// Bit of the status register: there are capabilities.
const HAS_CAPABILITIES: u16 = 1 << 4;
/// Low bits of a base address register: memory, of 64 bits.
const MEMORY_64: u32 = 0b100;

/// Who a function is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity {
    /// Its maker.
    pub vendor: u16,
    /// What it is there.
    pub device: u16,
    /// Which version of that.
    pub revision: u8,
    /// Base class, sub-class, programming interface: three bytes.
    pub class: u32,
    /// The same as vendor and device, of the board that it is on.
    pub subsystem: (u16, u16),
}

/// The space.
pub struct ConfigSpace {
    bytes: [u8; LEN],
    writable: [u8; LEN],
    /// Where the next capability goes, and the place of the pointer to it.
    free: usize,
    link: usize,
    /// Bytes behind the base address register.
    bar_len: u64,
}

impl ConfigSpace {
    /// A header of type 0 without anything else.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; LEN],
            writable: [0; LEN],
            free: HEADER_LEN,
            link: CAPABILITIES,
            bar_len: 0,
        };
        let Identity { vendor, device, revision, class, subsystem } = identity;
        space.put(0x00, &vendor.to_le_bytes());
        space.put(0x02, &device.to_le_bytes());
        space.put(0x08, &(class << 8 | u32::from(revision)).to_le_bytes());
        space.put(0x2c, &subsystem.0.to_le_bytes());
        space.put(0x2e, &subsystem.1.to_le_bytes());
        space.let_write(COMMAND, &(MEMORY | BUS_MASTER | NO_PIN).to_le_bytes());
        // Only notes of a guest for itself.
        space.let_write(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Sets bytes whatever a guest could change of them.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn let_write(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    /// Gives it memory of `len` bytes, a power of two, at `guest_addr`, in the first two base address
    /// registers. It answers once the guest has it do so.
    pub fn set_bar(&mut self, guest_addr: u64, len: u64) {
        debug_assert!(len.is_power_of_two() && guest_addr.is_multiple_of(len));
        self.put(BAR, &(guest_addr | u64::from(MEMORY_64)).to_le_bytes());
        self.let_write(BAR, &(!(len - 1)).to_le_bytes());
        self.bar_len = len;
    }

    /// Adds the capability `id`, with what follows its pointer to the next one, and the mask of what
    /// can be written there. Gives its place.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.free;
        let status = u16::from_le_bytes([self.bytes[STATUS], self.bytes[STATUS + 1]]);
        self.put(STATUS, &(status | HAS_CAPABILITIES).to_le_bytes());
        self.put(self.link, &[at as u8]);
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.let_write(at + 2, writable);
        self.link = at + 1;
        self.free = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Reads from `register` on.
    pub fn read(&self, register: usize, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(register..) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes what can be written.
    pub fn write(&mut self, register: usize, data: &[u8]) {
        for (new, at) in data.iter().zip(register..) {
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = *byte & !mask | new & mask;
            }
        }
    }

    /// The number of up to eight bytes at `register`.
    pub fn get(&self, register: usize, len: usize) -> u64 {
        value(&self.bytes[register..register + len])
    }

    /// Where its memory answers, and how much that is: nowhere until the guest has it answer.
    pub fn memory(&self) -> Option<(u64, u64)> {
        let answers = self.get(COMMAND, 2) as u16 & MEMORY != 0 && self.bar_len > 0;
        answers.then(|| (self.get(BAR, 8) & !(self.bar_len - 1), self.bar_len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let identity =
            Identity { vendor: 0x1234, device: 0x5678, class: 0x01_8000, ..<_>::default() };
        let mut space = ConfigSpace::new(identity);
        space.set_bar(0x1000_8000, 0x8000);
        space
    }

    #[test]
    fn only_what_may_change_changes_at_every_width() {
        let mut space = space();
        let before = space.bytes;
        for width in [1, 2, 4, 8] {
            for at in (0..0x1000).step_by(width) {
                space.write(at, &[0xff; 8][..width]);
            }
        }
        for (at, (now, before)) in space.bytes.iter().zip(before).enumerate() {
            let expected = match at {
                0x04 => 0b110,
                0x05 => 0b100,
                0x11 => before | 0x80,
                0x12..0x18 | 0x3c => 0xff,
                _ => before,
            };
            assert_eq!(*now, expected, "{at:#x}");
        }
        let mut data = [0xaa; 4];
        space.read(0x2, &mut data);
        assert_eq!(data, [0x78, 0x56, 6, 4], "across registers");
        space.read(254, &mut data);
        assert_eq!(data, [0; 4]);
    }

    #[test]
    fn a_guest_sizes_the_memory_moves_it_and_switches_it_on() {
        let mut space = space();
        assert_eq!(space.memory(), None);
        space.write(0x10, &[0xff; 4]);
        space.write(0x14, &[0xff; 4]);
        assert_eq!((space.get(0x10, 4), space.get(0x14, 4)), (0xffff_8004, 0xffff_ffff));
        space.write(0x10, &0x1234_5678u32.to_le_bytes());
        space.write(0x14, &1u32.to_le_bytes());
        space.write(0x04, &2u16.to_le_bytes());
        assert_eq!(space.memory(), Some((0x1_1234_0000, 0x8000)));
        // There is no other one, nor a ROM.
        for at in [0x18, 0x1c, 0x20, 0x24, 0x30] {
            space.write(at, &[0xff; 4]);
            assert_eq!(space.get(at, 4), 0, "{at:#x}");
        }
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut space = space();
        assert_eq!((space.get(0x34, 1), space.get(0x06, 2)), (0, 0));
        let first = space.add_capability(9, &[1, 2, 3], &[0; 3]);
        let second = space.add_capability(17, &[4; 10], &[0, 0xc0]);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!((space.get(0x34, 1), space.get(0x06, 2)), (0x40, 0x10));
        assert_eq!(space.get(0x40, 4), 0x0201_4809);
        assert_eq!(space.get(0x48, 4), 0x0404_0011);
        space.write(0x48, &[0xff; 8]);
        assert_eq!(space.get(0x48, 8), 0x0404_0404_c404_0011);
    }
}
