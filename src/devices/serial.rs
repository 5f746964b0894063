//! The console's serial port: a 16550 (vm-superio's state machine), eight byte-wide registers.
//!
//! Owns the wiring: output to [`Output`], input from [`Input`]. Of a wider access the low byte
//! counts, in either address space.
//!
//! Nothing is taken from the host before the guest can have it. A guest that polls is shown that a
//! byte waits, and gets it when it reads. A guest with the receive interrupt on gets as many bytes
//! as its FIFO takes, and an interrupt; when it has read them all, more follow with a new one. In
//! between it once finds the FIFO empty: else a handler that reads on until it is would be kept
//! busy for as long as the host has input.
//!
//! What surprises: drivers discard what the receiver holds when they open the port. On a wire that
//! is the noise since power-on, here it would be the first bytes of the input. So a FIFO that is
//! cleared goes back to where it came from, and then the line is silent for a moment.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::Serial as Uart;
use vm_superio::serial::NoEvents;

use super::answer;
use crate::bus::Device;
use crate::console::{Input, Listener, Output};
use crate::exit::Stop;
use crate::irq::Irq;

/// Registers that a 16550 has (PC16550D data sheet, "Registers", as is what follows).
pub const LEN: u64 = 8;

/// Receiver buffer; transmitter holding register when written. Divisor latch with `LCR_DLAB`.
const RBR: u8 = 0;
/// Interrupt enable, and its bits for received data and for an empty transmitter. Divisor latch with
/// `LCR_DLAB`.
const IER: u8 = 1;
const IER_RDI: u8 = 1 << 0;
const IER_THRI: u8 = 1 << 1;
/// Interrupt identification: nothing pending, the transmitter is empty, data were received, and
/// the bits that tell one from the other.
const IIR: u8 = 2;
const IIR_NONE: u8 = 0b0001;
const IIR_THRE: u8 = 0b0010;
const IIR_RDI: u8 = 0b0100;
const IIR_ID: u8 = 0b1111;
/// FIFO control when that is written.
const FCR: u8 = 2;
const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;
/// Line control, and its bit that puts the divisor latch in place of two registers.
const LCR: u8 = 3;
const LCR_DLAB: u8 = 1 << 7;
/// Modem control, and its bit that cuts the receiver off from the line.
const MCR: u8 = 4;
const MCR_LOOP: u8 = 1 << 4;
/// Line status, and its bit for received data.
const LSR: u8 = 5;
const LSR_DR: u8 = 1 << 0;

/// Bytes that the receiver's FIFO holds.
const FIFO_LEN: usize = 16;

/// Our choice: looks at the receiver that find nothing after it was cleared. Drivers look a few
/// times before they enable its interrupt; a guest that polls does not notice.
const SILENCE: u8 = 32;

/// Whether nothing depends on when a byte is sent, by what the registers hold: no interrupt waits for that, and
/// the transmitter is in its place and on the line.
pub fn is_polled(read: impl Fn(u8) -> u8) -> bool {
    read(LCR) & LCR_DLAB == 0 && read(IER) & IER_THRI == 0 && read(MCR) & MCR_LOOP == 0
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
    output: Arc<Output>,
    port: Arc<Mutex<Port>>,
}

/// What the guest and the host's input both change.
struct Port {
    uart: Uart<Irq, NoEvents, Sent>,
    /// Room in vm-superio's FIFO when it is empty.
    capacity: usize,
    fifo_on: bool,
    /// Looks at the receiver that still find nothing.
    silence: u8,
    /// The FIFO was emptied and filled again; the guest is to see it empty once.
    pause: bool,
    input: Arc<Input>,
}

impl Serial {
    /// A 16550 between `output` and `input`, with the interrupt line `irq`.
    pub fn new(output: Arc<Output>, input: Arc<Input>, irq: Irq) -> Self {
        let uart = Uart::new(irq, Sent::default());
        let capacity = uart.fifo_capacity();
        let input_side = input.clone();
        let port = Port { capacity, uart, fifo_on: false, silence: 0, pause: false, input };
        let port = Arc::new(Mutex::new(port));
        let listener: Arc<dyn Listener> = port.clone();
        input_side.listen(Arc::downgrade(&listener));
        Self { output, port }
    }

    fn lock(&self) -> MutexGuard<'_, Port> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener for Mutex<Port> {
    fn input_arrived(&self) {
        self.lock().unwrap_or_else(PoisonError::into_inner).receive();
    }
}

impl Port {
    /// How many bytes the FIFO holds.
    fn held(&self) -> usize {
        self.capacity - self.uart.fifo_capacity()
    }

    fn has(&mut self, register: u8, bit: u8) -> bool {
        self.uart.read(register) & bit != 0
    }

    /// The divisor latch is in place of the receiver and of the interrupt enable register.
    fn latched(&mut self) -> bool {
        self.has(LCR, LCR_DLAB)
    }

    /// The guest waits for an interrupt when data are received.
    fn interrupts(&mut self) -> bool {
        !self.latched() && self.has(IER, IER_RDI)
    }

    /// True if a byte can come over the line.
    fn connected(&mut self) -> bool {
        !self.has(MCR, MCR_LOOP) && self.silence == 0
    }

    /// Moves up to `count` bytes from the host's input into the FIFO. vm-superio makes the
    /// interrupt if it is enabled.
    fn fill(&mut self, count: usize) {
        let mut bytes = [0; FIFO_LEN];
        let taken = self.input.take(&mut bytes[..count.min(FIFO_LEN)]);
        // There is room and the line is not looped, so all are taken; the line never fails.
        let _ = self.uart.enqueue_raw_bytes(&bytes[..taken]);
    }

    /// Fills the FIFO of a guest that waits for an interrupt.
    fn receive(&mut self) {
        if !self.interrupts() {
            return;
        }
        // Who waits for an interrupt does not look.
        self.silence = 0;
        if self.connected() {
            let room = if self.fifo_on { FIFO_LEN } else { 1 };
            self.fill(room.saturating_sub(self.held()));
        }
    }

    /// Gives what the FIFO holds back to the host's input.
    fn put_back(&mut self) {
        let lcr = self.uart.read(LCR);
        // Else this would read the divisor latch. Neither line control nor receiver can fail.
        let _ = self.uart.write(LCR, lcr & !LCR_DLAB);
        // vm-superio's FIFO is larger than the one that we fill: the line may have been looped.
        let held: Vec<u8> = (0..self.held()).map(|_| self.uart.read(RBR)).collect();
        let _ = self.uart.write(LCR, lcr);
        if !self.has(MCR, MCR_LOOP) {
            self.input.put_back(&held);
        }
    }

    fn read(&mut self, register: u8) -> u8 {
        match register {
            RBR if !self.latched() => self.read_data(),
            LSR => self.read_line_status(),
            IIR => self.read_interrupt(),
            _ => self.uart.read(register),
        }
    }

    fn read_data(&mut self) -> u8 {
        self.silence = self.silence.saturating_sub(1);
        let interrupts = self.interrupts();
        if !interrupts && self.held() == 0 && self.connected() {
            self.fill(1);
        }
        let byte = self.uart.read(RBR);
        if !interrupts {
            return byte;
        }
        if self.held() > 0 {
            // A handler that takes one byte and returns is owed another interrupt: on a wire it
            // would be the one for characters that nobody has read for a while.
            self.uart.interrupt_evt().trigger();
        } else {
            self.receive();
            self.pause = self.fifo_on && self.held() > 0;
        }
        byte
    }

    fn read_line_status(&mut self) -> u8 {
        self.silence = self.silence.saturating_sub(1);
        let status = self.uart.read(LSR);
        if std::mem::take(&mut self.pause) {
            // For a handler that came for the new bytes already.
            self.uart.interrupt_evt().trigger();
            return status & !LSR_DR;
        }
        let polls = self.held() == 0 && !self.interrupts();
        // Every look counts, the first one starts the reading.
        if polls && self.input.look() && self.connected() { status | LSR_DR } else { status }
    }

    /// vm-superio tells both causes at once, which reads as a third one, and then forgets them;
    /// here one is told at a time, and received data are a cause until they are read (data sheet,
    /// "Interrupt Control Functions").
    fn read_interrupt(&mut self) -> u8 {
        self.pause = false;
        let told = self.uart.read(IIR);
        let sent = told & IIR_NONE == 0 && told & IIR_THRE != 0;
        let cause = if self.held() > 0 && self.interrupts() {
            if sent {
                // To be told next time; enabling it again says so.
                let ier = self.uart.read(IER);
                let _ = self.uart.write(IER, ier);
            }
            IIR_RDI
        } else if sent {
            IIR_THRE
        } else {
            IIR_NONE
        };
        told & !IIR_ID | cause
    }

    /// Gives the byte that the guest has sent, if it has.
    fn write(&mut self, register: u8, value: u8) -> Option<u8> {
        if register == FCR {
            let fifo_on = value & FCR_ENABLE != 0;
            let clears = fifo_on && value & FCR_CLEAR_RECEIVER != 0;
            // Switching the FIFOs on or off clears them too.
            if clears || fifo_on != self.fifo_on {
                self.put_back();
            }
            self.fifo_on = fifo_on;
            if clears {
                self.silence = SILENCE;
            }
        }
        // The sink takes every byte and the line never fails, so neither can this.
        let _ = self.uart.write(register, value);
        if matches!(register, IER | FCR | LCR | MCR) {
            self.receive();
        }
        if register == IER && self.interrupts() && self.held() > 0 {
            // vm-superio makes no edge for a cause that it has told once, but an edge that came
            // while this was off may have been for nothing.
            self.uart.interrupt_evt().trigger();
        }
        self.uart.writer_mut().0.take()
    }
}

impl Device for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        answer(data, self.lock().read(offset as u8).into());
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> ControlFlow<Stop> {
        // The port is unlocked while a slow reader holds up its output: input still arrives.
        let sent = self.lock().write(offset as u8, data[0]);
        sent.map_or(ControlFlow::Continue(()), |byte| self.output.push(&[byte]))
    }
}

/// What the guest has not read is another's, if there is one after a reset.
impl Drop for Port {
    fn drop(&mut self) {
        self.put_back();
    }
}

#[cfg(test)]
mod tests;
