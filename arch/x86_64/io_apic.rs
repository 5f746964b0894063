//! The I/O APIC's registers, for machines in which KVM has local APICs alone: what a guest writes there
//! says which message each input stands for.
//!
//! All inputs are edges, as our devices make them; one that the guest takes for a level ends with its
//! edge, so that there is no end of an interrupt to wait for.
//!
//! Source: Intel 82093AA data sheet, 3.1 "Memory Mapped Registers for Accessing IOAPIC Registers", 3.2
//! "IOAPIC Registers"; SDM vol. 3A, "Message Signalled Interrupts".

use super::layout;
use crate::board::Message;
use crate::irq::Redirection;
use crate::layout_check::Region;

/// Offsets of what is mapped: which register, and its content.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;

/// Registers. From the last one on there are two for each input, low half first.
const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
const ARBITRATION: u8 = 0x02;
const FIRST_INPUT: u8 = 0x10;

/// The version of the 82093AA, and its number of inputs less one.
const VERSION_IS: u32 = 0x11 | (layout::MESSAGES - 1) << 16;
/// Bits of an id.
const ID_BITS: u32 = 0xf << 24;

/// An input's bits: vector and delivery mode; the destination is logical; what only hardware sets (it
/// is being delivered, the end of a level's interrupt is awaited); it is masked.
const DELIVERY: u64 = 0x7ff;
const LOGICAL: u64 = 1 << 11;
const READ_ONLY: u64 = 1 << 12 | 1 << 14;
const MASKED: u64 = 1 << 16;
/// Where the destination begins.
const DESTINATION: u32 = 56;

/// The registers.
pub struct IoApic {
    selected: u8,
    id: u32,
    inputs: [u64; layout::MESSAGES as usize],
}

impl Default for IoApic {
    /// As after a reset: all inputs are masked.
    fn default() -> Self {
        Self { selected: 0, id: 0, inputs: [MASKED; layout::MESSAGES as usize] }
    }
}

/// The input whose half a register is, and the half's place.
fn half(register: u8) -> Option<(usize, u32)> {
    let half = register.checked_sub(FIRST_INPUT)?;
    let input = usize::from(half / 2);
    (input < layout::MESSAGES as usize).then_some((input, 32 * u32::from(half % 2)))
}

impl Redirection for IoApic {
    fn place(&self) -> Region {
        layout::IO_APIC
    }

    fn read(&self, offset: u64) -> u32 {
        match (offset, self.selected) {
            (SELECT, register) => register.into(),
            (WINDOW, ID | ARBITRATION) => self.id,
            (WINDOW, VERSION) => VERSION_IS,
            (WINDOW, register) => {
                half(register).map_or(0, |(input, shift)| (self.inputs[input] >> shift) as u32)
            }
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u32) -> Option<u32> {
        match (offset, self.selected) {
            (SELECT, _) => self.selected = value as u8,
            (WINDOW, ID) => self.id = value & ID_BITS,
            (WINDOW, register) => {
                let (input, shift) = half(register)?;
                let kept = self.inputs[input] & !(0xffff_ffff << shift);
                self.inputs[input] = (kept | u64::from(value) << shift) & !READ_ONLY;
                return Some(input as u32);
            }
            _ => {}
        }
        None
    }

    fn message(&self, line: u32) -> Option<Message> {
        let input = self.inputs.get(line as usize)?;
        // What a message's address and data have in their own places; its edge is bit 15 as zero.
        let logical = u64::from(input & LOGICAL != 0) << 2;
        let guest_addr = layout::LOCAL_APIC | input >> DESTINATION << 12 | logical;
        let data = (input & DELIVERY) as u32;
        (input & MASKED == 0).then_some(Message { guest_addr, data, sender: 0 })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(io_apic: &mut IoApic, register: u32, value: u32) -> Option<u32> {
        assert_eq!(io_apic.write(SELECT, register), None);
        io_apic.write(WINDOW, value)
    }

    fn get(io_apic: &mut IoApic, register: u32) -> u32 {
        assert_eq!(io_apic.write(SELECT, register), None);
        assert_eq!(io_apic.read(SELECT), register & 0xff);
        io_apic.read(WINDOW)
    }

    #[test]
    fn it_says_what_it_is() {
        let mut io_apic = IoApic::default();
        assert_eq!(get(&mut io_apic, 1), 0x17_0011);
        assert_eq!(set(&mut io_apic, 0, 0xffff_ffff), None);
        assert_eq!(set(&mut io_apic, 1, 0xffff_ffff), None);
        let registers = [0, 1, 2, 3, 0xf, 0x40, 0xff, 0x100];
        let values = registers.map(|register| get(&mut io_apic, register));
        assert_eq!(values, [0xf00_0000, 0x17_0011, 0xf00_0000, 0, 0, 0, 0, 0xf00_0000]);
        assert_eq!((io_apic.read(4), io_apic.write(4, 1), io_apic.write(0x40, 1)), (0, None, None));
    }

    #[test]
    fn an_input_stands_for_a_message_unless_it_is_masked() {
        let mut io_apic = IoApic::default();
        assert!((0..25).all(|line| io_apic.message(line).is_none()));
        assert_eq!(get(&mut io_apic, 0x18), 0x1_0000);
        // Input 4, to the CPU with APIC id 3: vector 0x31, fixed.
        assert_eq!(set(&mut io_apic, 0x19, 0x0300_0000), Some(4));
        assert_eq!(io_apic.message(4), None);
        assert_eq!(set(&mut io_apic, 0x18, 0x31), Some(4));
        let says = |guest_addr, data| Some(Message { guest_addr, data, sender: 0 });
        assert_eq!(io_apic.message(4), says(0xfee0_3000, 0x31));
        // Logical, lowest priority, a level that is active when low: its edge all the same.
        assert_eq!(set(&mut io_apic, 0x18, 0xffff_e931 & !0x1_0000), Some(4));
        assert_eq!(io_apic.message(4), says(0xfee0_3004, 0x131));
        assert_eq!(get(&mut io_apic, 0x18), 0xfffe_a931);
        assert_eq!(set(&mut io_apic, 0x18, 0x1_0931), Some(4));
        assert_eq!(io_apic.message(4), None);
        assert_eq!(set(&mut io_apic, 0x3f, 0xff00_0000), Some(23));
        assert_eq!(set(&mut io_apic, 0x3e, 0x400), Some(23));
        assert_eq!(io_apic.message(23), says(0xfeef_f000, 0x400));
        assert_eq!(set(&mut io_apic, 0x40, 0), None);
    }

    proptest! {
        #[test]
        fn whatever_is_written_a_message_is_for_a_local_apic(
            writes in prop::collection::vec((0u64..0x30, any::<u32>()), 0..200)
        ) {
            let mut io_apic = IoApic::default();
            for (offset, value) in writes {
                let changed = io_apic.write(offset & !0xf, value);
                prop_assert!(changed.is_none_or(|line| line < layout::MESSAGES));
                io_apic.read(offset);
            }
            for message in (0..64).filter_map(|line| io_apic.message(line)) {
                prop_assert_eq!(message.guest_addr & !0xf_f004, layout::LOCAL_APIC);
                prop_assert_eq!(message.data & !0x7ff, 0);
            }
        }
    }
}
