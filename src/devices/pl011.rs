//! Arm's serial port, a PL011 (Arm DDI 0183 G, "PrimeCell UART (PL011)"), beside the 16550 and on
//! the same console: what bare-metal code prints to.
//!
//! Registers of 32 bits; of a wider write the low bits count, and a narrow access gets its part.
//! Output needs no set-up, neither clocks nor an enabled transmitter: code that was written under
//! emulators relies on that. When bytes are taken from the host's input, and why the line is
//! silent after a set-up, is as in [`super::serial`].
//!
//! Its interrupt is high as long as an enabled cause is pending, and falls whenever the receiver
//! gets empty, though it may be filled again at once: so a guest that waits for it to rise, and
//! reads all that there is, misses nothing either.

mod registers;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use registers::*;

use super::{answer, value};
use crate::bus::Device;
use crate::console::{Input, Listener, Output};
use crate::exit::Stop;
use crate::irq::Level;

/// Bytes of its registers.
pub const LEN: u64 = 0x1000;

/// Bytes that the receiver's FIFO holds. Later revisions have more; nobody asks for it.
const FIFO_LEN: usize = 16;

/// Our choice: looks at the receiver that find nothing after a set-up. Linux drains twice the
/// FIFO, or until it is empty, before it enables the receive interrupt.
const SILENCE: u8 = 32;

/// All that the guest can see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The receiver's FIFO.
    pub fifo: VecDeque<u8>,
    /// UARTRSR.
    pub rsr: u16,
    /// UARTILPR.
    pub ilpr: u16,
    /// UARTIBRD.
    pub ibrd: u16,
    /// UARTFBRD.
    pub fbrd: u16,
    /// UARTLCR_H.
    pub lcr_h: u16,
    /// UARTCR.
    pub cr: u16,
    /// UARTIFLS.
    pub ifls: u16,
    /// UARTIMSC.
    pub imsc: u16,
    /// UARTRIS.
    pub ris: u16,
    /// UARTDMACR; there is no DMA.
    pub dmacr: u16,
    /// Looks at the receiver that still find nothing.
    pub silence: u8,
    /// The FIFO was emptied and filled again; the guest is to see it empty once.
    pub pause: bool,
}

/// The device.
pub struct Pl011 {
    output: Arc<Output>,
    port: Arc<Mutex<Port>>,
}

/// What the guest and the host's input both change.
struct Port {
    state: State,
    input: Arc<Input>,
    irq: Level,
}

impl Pl011 {
    /// A PL011 between `output` and `input`, with the interrupt line `irq`.
    pub fn new(output: Arc<Output>, input: Arc<Input>, irq: Level) -> Self {
        let state = State { cr: CR_RESET, ifls: IFLS_RESET, ..State::default() };
        let port = Arc::new(Mutex::new(Port { state, input: input.clone(), irq }));
        let listener: Arc<dyn Listener> = port.clone();
        input.listen(Arc::downgrade(&listener));
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
    /// The guest waits for an interrupt when data are received.
    fn interrupts(&self) -> bool {
        self.state.imsc & (RX | RT) != 0
    }

    /// What is sent is received, and nothing else.
    fn looped(&self) -> bool {
        self.state.cr & CR_LBE != 0
    }

    /// True if a byte can come over the line.
    fn connected(&self) -> bool {
        !self.looped() && self.state.silence == 0
    }

    /// Bytes that the FIFO can hold now.
    fn depth(&self) -> usize {
        if self.state.lcr_h & LCR_H_FEN != 0 { FIFO_LEN } else { 1 }
    }

    /// Sets `causes`.
    fn raise(&mut self, causes: u16) {
        self.state.ris |= causes;
        self.update();
    }

    /// Clears `causes`.
    fn clear(&mut self, causes: u16) {
        self.state.ris &= !causes;
        self.update();
    }

    /// Has the line say what the registers say.
    fn update(&mut self) {
        self.irq.set(self.state.ris & self.state.imsc != 0);
    }

    /// Moves up to `count` bytes from the host's input into the FIFO.
    fn fill(&mut self, count: usize) {
        let mut bytes = [0; FIFO_LEN];
        let taken = self.input.take(&mut bytes[..count.min(FIFO_LEN)]);
        self.state.fifo.extend(&bytes[..taken]);
        if taken > 0 {
            // Whatever the level is that the guest chose: no more may come for a long time, and
            // then the other cause would be due.
            self.raise(RX | RT);
        }
    }

    /// Fills the FIFO of a guest that waits for an interrupt.
    fn receive(&mut self) {
        if !self.interrupts() {
            return;
        }
        // Who waits for an interrupt does not look.
        self.state.silence = 0;
        if self.connected() {
            self.fill(self.depth().saturating_sub(self.state.fifo.len()));
        }
    }

    /// What was received and not read goes back to where it came from.
    fn put_back(&mut self, looped: bool) {
        let held: Vec<u8> = self.state.fifo.drain(..).collect();
        self.clear(RX | RT);
        if !looped {
            self.input.put_back(&held);
        }
    }

    /// The set-up begins anew, and the line is silent for a moment.
    fn set_up(&mut self, looped: bool) {
        self.put_back(looped);
        self.state.silence = SILENCE;
        self.receive();
    }

    fn read_data(&mut self) -> u16 {
        self.state.silence = self.state.silence.saturating_sub(1);
        if !self.interrupts() && self.state.fifo.is_empty() && self.connected() {
            self.fill(1);
        }
        let byte = self.state.fifo.pop_front().unwrap_or(0);
        if self.state.fifo.is_empty() {
            self.clear(RX | RT);
            self.receive();
            self.state.pause = self.depth() > 1 && !self.state.fifo.is_empty();
        }
        u16::from(byte) | self.state.rsr << 8
    }

    fn read_flags(&mut self) -> u16 {
        self.state.silence = self.state.silence.saturating_sub(1);
        let mut flags = FR_MODEM | FR_TXFE;
        if std::mem::take(&mut self.state.pause) {
            // Whoever came for the new bytes already leaves again, and waits for the line to rise.
            self.irq.set(false);
            self.update();
            return flags | FR_RXFE;
        }
        if self.state.fifo.len() >= self.depth() {
            flags |= FR_RXFF;
        }
        if self.state.fifo.is_empty() {
            // Every look counts, the first one starts the reading.
            let waits = !self.interrupts() && self.input.look() && self.connected();
            flags |= if waits { 0 } else { FR_RXFE };
        }
        flags
    }

    /// RIS or MIS, whichever `mask` says.
    fn read_causes(&mut self, mask: u16) -> u16 {
        self.state.pause = false;
        self.state.ris & mask
    }

    fn read(&mut self, register: u64) -> u16 {
        match register {
            DR => self.read_data(),
            RSR => self.state.rsr,
            FR => self.read_flags(),
            ILPR => self.state.ilpr,
            IBRD => self.state.ibrd,
            FBRD => self.state.fbrd,
            LCR_H => self.state.lcr_h,
            CR => self.state.cr,
            IFLS => self.state.ifls,
            IMSC => self.state.imsc,
            RIS => self.read_causes(INTERRUPTS),
            MIS => self.read_causes(self.state.imsc),
            DMACR => self.state.dmacr,
            ID.. => IDS.get((register - ID) as usize / 4).map_or(0, |&id| id.into()),
            _ => 0,
        }
    }

    /// Gives the byte that the guest has sent, if it has.
    fn write(&mut self, register: u64, value: u16) -> Option<u8> {
        match register {
            DR => return self.send(value as u8),
            RSR => self.state.rsr = 0,
            ILPR => self.state.ilpr = value & 0xff,
            IBRD => self.state.ibrd = value,
            FBRD => self.state.fbrd = value & 0x3f,
            LCR_H => {
                let switched = (self.state.lcr_h ^ value) & LCR_H_FEN != 0;
                self.state.lcr_h = value & 0xff;
                if switched {
                    self.set_up(self.looped());
                }
            }
            CR => {
                let looped = self.looped();
                self.state.cr = value & CR_BITS;
                self.set_up(looped);
            }
            IFLS => self.state.ifls = value & 0x3f,
            IMSC => {
                self.state.imsc = value & INTERRUPTS;
                self.update();
                self.receive();
            }
            ICR => {
                self.clear(value);
                if !self.state.fifo.is_empty() {
                    // It is no longer a cause, but soon would be one again.
                    self.raise(RX | RT);
                }
                self.receive();
            }
            DMACR => self.state.dmacr = value & 0b111,
            _ => {}
        }
        None
    }

    fn send(&mut self, byte: u8) -> Option<u8> {
        // It is gone at once, so the FIFO passes its level at every byte.
        self.raise(TX);
        if !self.looped() {
            return Some(byte);
        }
        if self.state.fifo.len() < self.depth() {
            self.state.fifo.push_back(byte);
            self.raise(RX | RT);
        } else {
            self.state.rsr |= OVERRUN;
            self.raise(OE);
        }
        None
    }
}

impl Device for Pl011 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let register = self.lock().read(offset & !3);
        answer(data, u64::from(register) >> (8 * (offset & 3)));
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> ControlFlow<Stop> {
        // The middle of a register has no meaning.
        if offset & 3 != 0 {
            return ControlFlow::Continue(());
        }
        // The port is unlocked while a slow reader holds up its output: input still arrives.
        let sent = self.lock().write(offset, value(data) as u16);
        sent.map_or(ControlFlow::Continue(()), |byte| self.output.push(&[byte]))
    }
}

/// Ends its part in the machine, though the input's thread may hold the port for a moment longer.
/// What the guest has not read is another's, if there is one after a reset.
impl Drop for Pl011 {
    fn drop(&mut self) {
        let mut port = self.lock();
        let looped = port.looped();
        port.put_back(looped);
        port.state.imsc = 0;
        port.irq = Level::none();
    }
}
