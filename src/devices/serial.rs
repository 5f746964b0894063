//! The console's serial port: a 16550 (vm-superio's state machine), eight byte-wide registers.
//!
//! Owns the wiring: output to [`Output`], input from [`Input`]. Of a wider access the low byte
//! counts, in either address space.

use std::convert::Infallible;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::Arc;

use vm_superio::{Serial as Uart, Trigger};

use super::answer;
use crate::bus::Device;
use crate::console::{Input, Output};
use crate::exit::Stop;

/// Registers that a 16550 has (PC16550D data sheet, "Registers").
pub const LEN: u64 = 8;

/// Receiver buffer register; transmitter holding register when written.
const RBR: u64 = 0;
/// Modem control register, and its bit that cuts the receiver off from the line.
const MCR: u8 = 4;
const MCR_LOOP: u8 = 1 << 4;
/// Line status register.
const LSR: u64 = 5;

/// No interrupt line yet: guests poll.
struct NoLine;
impl Trigger for NoLine {
    type E = Infallible;
    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// Bytes that the guest has sent, on their way to [`Output`].
#[derive(Default)]
struct Sent(Option<u8>);
impl Write for Sent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = bytes.last().copied();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The device.
pub struct Serial {
    uart: Uart<NoLine, vm_superio::serial::NoEvents, Sent>,
    /// Room in the receiver's FIFO when it is empty.
    fifo_len: usize,
    output: Arc<Output>,
    input: Arc<Input>,
}

impl Serial {
    /// A 16550 between `output` and `input`.
    pub fn new(output: Arc<Output>, input: Arc<Input>) -> Self {
        let uart = Uart::new(NoLine, Sent::default());
        Self { fifo_len: uart.fifo_capacity(), uart, output, input }
    }
}

impl Device for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // The guest looks for input: fetch the next byte unless the last one is still unread.
        let looks = matches!(offset, RBR | LSR)
            && self.uart.fifo_capacity() == self.fifo_len
            && self.uart.read(MCR) & MCR_LOOP == 0;
        if let Some(byte) = looks.then(|| self.input.next()).flatten() {
            // The FIFO has room and the line is not looped, so it is taken.
            let _ = self.uart.enqueue_raw_bytes(&[byte]);
        }
        answer(data, self.uart.read(offset as u8).into());
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> ControlFlow<Stop> {
        // The sink takes every byte and the line never fails, so neither can this.
        let _ = self.uart.write(offset as u8, data[0]);
        match self.uart.writer_mut().0.take() {
            Some(byte) => self.output.push(&[byte]),
            None => ControlFlow::Continue(()),
        }
    }
}
