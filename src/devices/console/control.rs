//! The control queues (virtio v1.3, 5.3.6.2 "Multiport Device Operation"). There is one port, and
//! these queues are for what a console without them can't tell: that the guest is ready for input,
//! which Linux drops before that, and the size of the terminal.

use anyhow::Result;

use crate::virtio::chain::{Chain, Malformed};
use crate::virtio::queue::Queue;

/// Bytes of a message: a port's number, an event, a value.
const LEN: usize = 8;

/// Events.
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const RESIZE: u16 = 5;
const PORT_OPEN: u16 = 6;

/// Messages from the driver before others have their turn.
const AT_ONCE: usize = 64;

/// What is between device and driver.
pub struct Control {
    to_driver: Queue,
    from_driver: Queue,
    chain: Chain,
    /// What the driver is to be told, as bits by event: each once, however often it is due.
    due: u16,
    /// The driver knows the port.
    ready: bool,
    /// It takes input.
    pub open: bool,
}

impl Control {
    /// Control over these queues.
    pub fn new(to_driver: Queue, from_driver: Queue) -> Self {
        let chain = Chain::new(to_driver.ram());
        Self { to_driver, from_driver, chain, due: 0, ready: false, open: false }
    }

    /// Its queues.
    pub fn queues(&self) -> [&Queue; 2] {
        [&self.to_driver, &self.from_driver]
    }

    /// Hears what the driver has to say.
    pub fn hear(&mut self) -> Result<()> {
        let mut heard = 0;
        while heard < AT_ONCE && self.from_driver.pop(&mut self.chain)? {
            heard += 1;
            let mut message = [0; LEN];
            // What is too short says nothing.
            if self.chain.readable.read(&mut message) == LEN {
                self.take(message);
            }
            self.from_driver.push(self.chain.head, 0)?;
        }
        if heard > 0 {
            self.from_driver.signal()?;
        }
        if heard == AT_ONCE {
            // The rest later, as if the driver had just notified.
            let _ = self.from_driver.kick().write(1);
        }
        Ok(())
    }

    fn take(&mut self, message: [u8; LEN]) {
        let [a, b, c, d, event @ .., e, f] = message;
        let (port, event) = (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes(event));
        let yes = u16::from_le_bytes([e, f]) != 0;
        match (event, port) {
            (DEVICE_READY, _) if yes => self.due |= 1 << PORT_ADD,
            (PORT_READY, 0) => {
                self.ready = yes;
                self.due |= 1 << CONSOLE_PORT | 1 << RESIZE;
            }
            (PORT_OPEN, 0) => self.open = yes,
            _ => {}
        }
    }

    /// The terminal has another size.
    pub fn resize(&mut self) {
        if self.ready {
            self.due |= 1 << RESIZE;
        }
    }

    /// Tells the driver what is due, as far as it has buffers. `size` is that of the terminal, if
    /// there is one: columns, and rows in the upper half.
    pub fn tell(&mut self, size: Option<u32>) -> Result<()> {
        if size.is_none() {
            self.due &= !(1 << RESIZE);
        }
        let mut told = false;
        while self.due != 0 && self.to_driver.pop(&mut self.chain)? {
            let event = self.due.trailing_zeros() as u16;
            self.due &= self.due - 1;
            let mut message = [0; LEN + 4];
            message[4..6].copy_from_slice(&event.to_le_bytes());
            let mut len = LEN;
            match size.filter(|_| event == RESIZE) {
                Some(size) => {
                    // Columns, then rows (5.3.6.2); older Linux took the first for rows.
                    message[LEN..].copy_from_slice(&size.to_le_bytes());
                    len += 4;
                }
                None => message[6] = 1,
            }
            if self.chain.writable.write(&message[..len]) < len {
                Err(Malformed::Request("a buffer for control messages has no room for one"))?;
            }
            self.to_driver.push(self.chain.head, len as u32)?;
            told = true;
        }
        if told {
            self.to_driver.signal()?;
        }
        Ok(())
    }
}
