//! Devices: state machines that see offsets and bytes, never addresses, interrupts' numbers or an
//! architecture.

pub mod balloon;
pub mod block;
pub mod cmos;
pub mod console;
pub mod debug_console;
pub mod entropy;
pub mod exit_register;
pub mod fixed_events;
pub mod message_frame;
pub mod net;
pub mod panic_report;
pub mod pci_address;
pub mod pl011;
pub mod redirected;
#[cfg(test)]
mod rig;
pub mod rtc;
pub mod serial;
pub mod stop_register;
pub mod vhost_user;
pub mod vsock;

/// The value of an access of up to eight bytes, little-endian.
pub fn value(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// Answers a read of up to eight bytes with `value`, little-endian.
pub fn answer(data: &mut [u8], value: u64) {
    let bytes = value.to_le_bytes();
    for (to, from) in data.iter_mut().zip(bytes) {
        *to = from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_answers_are_little_endian_at_every_width() {
        for (width, expected) in
            [(1, 0x88), (2, 0x7788), (4, 0x5566_7788), (8, 0x1122_3344_5566_7788)]
        {
            let mut data = [0; 8];
            answer(&mut data[..width], 0x1122_3344_5566_7788);
            assert_eq!(value(&data[..width]), expected);
        }
    }
}
