//! The console device (virtio v1.3, 5.3): what the 16550 does a byte and an exit at a time, by the
//! buffer. One port, without the multiport feature.
//!
//! Input is taken from the host only when the guest has a buffer for it. Output goes to
//! [`Output`], whose event loop writes it: a host's reader that is slow has the guest wait for its
//! buffers, and this thread sleeps meanwhile.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::console::{Input, Listener, Output};
use crate::terminal;
use crate::virtio::chain::{Chain, Malformed};
use crate::virtio::queue::Queue;
use crate::virtio::worker::{Watch, Work};
use crate::virtio::{ConfigChange, VirtioDevice, read_from};

/// Its number (5.3.1).
const ID: u32 = 3;

/// Its queues, as the driver sees them (5.3.2).
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Our choice: Linux's driver puts a page into each place of the first queue.
const QUEUE_SIZE: u16 = 16;

/// VIRTIO_CONSOLE_F_SIZE (5.3.3): the terminal's size is known.
const F_SIZE: u64 = 1 << 0;

/// Bytes that are copied at once.
const PART: usize = 512;

/// Chains before other events have their turn.
const AT_ONCE: usize = 64;

/// Event numbers.
const INPUT: u32 = 0;
const ROOM: u32 = 1;

/// The terminal that shows the guest's console, and its size.
pub struct Screen {
    terminal: File,
    /// Columns, and rows in the upper half.
    size: AtomicU32,
    /// How a driver is told, while there is one.
    change: Mutex<Option<ConfigChange>>,
}

impl Screen {
    /// The screen behind `terminal`; none if that is something else.
    pub fn new(terminal: File) -> Option<Arc<Self>> {
        let size = AtomicU32::new(Self::measure(&terminal)?);
        Some(Arc::new(Self { terminal, size, change: Mutex::default() }))
    }

    fn measure(terminal: &File) -> Option<u32> {
        let (columns, rows) = terminal::size(terminal.as_fd())?;
        Some(u32::from(columns) | u32::from(rows) << 16)
    }

    /// Looks at it again, and tells the guest of another size.
    pub fn look(&self) {
        let Some(size) = Self::measure(&self.terminal) else { return };
        if self.size.swap(size, Ordering::AcqRel) != size {
            let change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
            change.iter().for_each(ConfigChange::tell);
        }
    }

    fn tell_by(&self, change: Option<ConfigChange>) {
        *self.change.lock().unwrap_or_else(PoisonError::into_inner) = change;
    }
}

/// Passes on that the host's input has something.
struct Arrival(EventFd);

impl Listener for Arrival {
    fn input_arrived(&self) {
        // A full counter (EAGAIN) is readable too.
        let _ = self.0.write(1);
    }
}

/// The device.
pub struct Console {
    output: Arc<Output>,
    input: Arc<Input>,
    screen: Option<Arc<Screen>>,
    arrival: Arc<Arrival>,
    /// Readable when the output has room again.
    room: EventFd,
}

impl Console {
    /// A console between `output` and `input`, shown on `screen` if that is one.
    pub fn new(
        output: Arc<Output>,
        input: Arc<Input>,
        screen: Option<Arc<Screen>>,
    ) -> Result<Self> {
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let event = || event().context("create an eventfd");
        let (arrival, room) = (Arc::new(Arrival(event()?)), event()?);
        let listener: Arc<dyn Listener> = arrival.clone();
        input.listen(Arc::downgrade(&listener));
        output.tell_of_room(room.try_clone().context("copy an eventfd")?);
        Ok(Self { output, input, screen, arrival, room })
    }
}

impl VirtioDevice for Console {
    fn name(&self) -> &'static str {
        "virtio-console"
    }

    fn id(&self) -> u32 {
        ID
    }

    fn features(&self) -> u64 {
        if self.screen.is_some() { F_SIZE } else { 0 }
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let size = self.screen.as_ref().map_or(0, |screen| screen.size.load(Ordering::Acquire));
        read_from(&size.to_le_bytes(), offset, data);
    }

    fn start(
        &mut self,
        _: u64,
        queues: Vec<Queue>,
        change: ConfigChange,
    ) -> Result<Vec<Box<dyn Work>>> {
        let Ok([receive, transmit]) = <[Queue; 2]>::try_from(queues) else {
            bail!("the driver set up only some of the queues");
        };
        if let Some(screen) = &self.screen {
            screen.tell_by(Some(change));
        }
        let copy = |event: &EventFd| event.try_clone().context("copy an eventfd");
        Ok(vec![Box::new(Copier {
            output: self.output.clone(),
            input: self.input.clone(),
            arrival: copy(&self.arrival.0)?,
            room: copy(&self.room)?,
            printed: Chain::new(receive.ram()),
            part: [0; PART],
            held: 0..0,
            printing: false,
            typed: Chain::new(receive.ram()),
            receive,
            transmit,
        })])
    }

    fn stop(&mut self) {
        if let Some(screen) = &self.screen {
            screen.tell_by(None);
        }
    }
}

/// Its worker.
struct Copier {
    output: Arc<Output>,
    input: Arc<Input>,
    arrival: EventFd,
    room: EventFd,
    receive: Queue,
    transmit: Queue,
    /// A buffer of the guest's output, if `printing`, and those of its bytes that are taken out and
    /// have found no room yet.
    printed: Chain,
    part: [u8; PART],
    held: std::ops::Range<usize>,
    printing: bool,
    typed: Chain,
}

impl Copier {
    /// Prints what the guest has written, as far as there is room.
    fn print(&mut self) -> Result<()> {
        let mut done = 0;
        while done < AT_ONCE && self.print_one()? {
            done += 1;
        }
        if done > 0 {
            self.transmit.signal()?;
        }
        if done == AT_ONCE {
            // The rest later, as if the guest had just notified.
            let _ = self.transmit.kick().write(1);
        }
        Ok(())
    }

    /// Prints one buffer; `false` if there is none, or no room for all of it.
    fn print_one(&mut self) -> Result<bool> {
        if !self.printing {
            self.printing = self.transmit.pop(&mut self.printed)?;
        }
        if !self.printing {
            return Ok(false);
        }
        loop {
            if self.held.is_empty() {
                self.held = 0..self.printed.readable.read(&mut self.part);
                if self.held.is_empty() {
                    break;
                }
            }
            self.held.start += self.output.offer(&self.part[self.held.clone()]);
            if !self.held.is_empty() {
                return Ok(false);
            }
        }
        self.printing = false;
        self.transmit.push(self.printed.head, 0)?;
        Ok(true)
    }

    /// Gives the guest what there is of input, as far as it has buffers.
    fn type_in(&mut self) -> Result<()> {
        let mut bytes = [0; PART];
        let mut done = 0;
        while done < AT_ONCE && self.receive.pop(&mut self.typed)? {
            let room = self.typed.writable.len();
            if room == 0 {
                Err(Malformed::Request("a buffer for input has no room"))?;
            }
            let count = self.input.take(&mut bytes[..room.min(PART)]);
            if count == 0 {
                self.receive.undo_pop();
                break;
            }
            self.typed.writable.write(&bytes[..count]);
            self.receive.push(self.typed.head, count as u32)?;
            done += 1;
        }
        if done > 0 {
            self.receive.signal()?;
        }
        if done == AT_ONCE {
            let _ = self.receive.kick().write(1);
        }
        Ok(())
    }
}

impl Work for Copier {
    fn begin(&mut self, watch: &Watch) -> Result<()> {
        watch.add(&self.arrival, INPUT, EventSet::IN)?;
        watch.add(&self.room, ROOM, EventSet::IN)
    }

    fn queues(&self) -> Vec<(usize, &EventFd)> {
        vec![(RECEIVE, self.receive.kick()), (TRANSMIT, self.transmit.kick())]
    }

    fn notified(&mut self, index: usize, _: &Watch) -> Result<()> {
        if index == RECEIVE { self.type_in() } else { self.print() }
    }

    fn ready(&mut self, token: u32, _: EventSet, _: &Watch) -> Result<()> {
        // Read before anything is looked at: what comes later is a new event.
        if token == INPUT {
            let _ = self.arrival.read();
            self.type_in()
        } else {
            let _ = self.room.read();
            self.print()
        }
    }
}
