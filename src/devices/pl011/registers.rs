//! The PL011's registers (Arm DDI 0183 G, "Summary of registers" and "Register descriptions"):
//! offsets, and the bits that matter here.

/// Data.
pub const DR: u64 = 0x000;
/// Receive status when read, error clear when written.
pub const RSR: u64 = 0x004;
/// Flags.
pub const FR: u64 = 0x018;
/// The divisor of a low-power infrared line.
pub const ILPR: u64 = 0x020;
/// The baud rate's divisor, its whole part.
pub const IBRD: u64 = 0x024;
/// The baud rate's divisor, its fraction.
pub const FBRD: u64 = 0x028;
/// Line control.
pub const LCR_H: u64 = 0x02c;
/// Control.
pub const CR: u64 = 0x030;
/// At which levels the FIFOs interrupt.
pub const IFLS: u64 = 0x034;
/// Interrupts that are enabled.
pub const IMSC: u64 = 0x038;
/// Interrupts that are pending.
pub const RIS: u64 = 0x03c;
/// Interrupts that are both.
pub const MIS: u64 = 0x040;
/// Clears interrupts.
pub const ICR: u64 = 0x044;
/// DMA control.
pub const DMACR: u64 = 0x048;
/// UARTPeriphID0 to 3, then UARTPCellID0 to 3, a byte each.
pub const ID: u64 = 0xfe0;
/// Part 0x011 by Arm (0x41), revision r1p5; then what every PrimeCell says.
pub const IDS: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// FR: clear to send, data set ready, carrier: somebody is at the other end.
pub const FR_MODEM: u16 = 0b111;
/// FR: the receiver's FIFO is empty.
pub const FR_RXFE: u16 = 1 << 4;
/// FR: the receiver's FIFO is full.
pub const FR_RXFF: u16 = 1 << 6;
/// FR: the transmitter's FIFO is empty.
pub const FR_TXFE: u16 = 1 << 7;
/// LCR_H: the FIFOs are on.
pub const LCR_H_FEN: u16 = 1 << 4;
/// CR: what is sent is received.
pub const CR_LBE: u16 = 1 << 7;
/// CR: all bits but the reserved ones.
pub const CR_BITS: u16 = 0xff87;
/// CR after a reset: transmitter and receiver enabled, the whole not.
pub const CR_RESET: u16 = 0x0300;
/// IFLS after a reset: both FIFOs at one half.
pub const IFLS_RESET: u16 = 0x12;

/// Interrupt bits: data received.
pub const RX: u16 = 1 << 4;
/// Room to send.
pub const TX: u16 = 1 << 5;
/// Data received, and then nothing for a while.
pub const RT: u16 = 1 << 6;
/// The overrun error, which only a looped line has.
pub const OE: u16 = 1 << 10;
/// All eleven.
pub const INTERRUPTS: u16 = 0x7ff;
/// DR and RSR: overrun.
pub const OVERRUN: u16 = 1 << 3;
