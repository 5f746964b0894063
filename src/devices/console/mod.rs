//! The console device (virtio v1.3, 5.3): what the 16550 does a byte and an exit at a time, by the
//! buffer. There is one port; [`control`] is for what a driver says beside it.
//!
//! Input is taken from the host only when the guest has a buffer for it and says, if it can, that it
//! is ready. Output goes to
//! [`Output`], whose event loop writes it: a host's reader that is slow has the guest wait for its
//! buffers, and this thread sleeps meanwhile.

mod control;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use self::control::Control;
use crate::console::{Console as HostConsole, Input, Listener, Nature, Output};
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
const CONTROL_RECEIVE: usize = 2;
const CONTROL_TRANSMIT: usize = 3;

/// Our choice: Linux's driver puts a page into each place of the first queue.
const QUEUE_SIZE: u16 = 16;

/// Features (5.3.3): the terminal's size is known; there are control queues.
const F_SIZE: u64 = 1 << 0;
const F_MULTIPORT: u64 = 1 << 1;

/// Bytes that are copied at once.
const PART: usize = 512;

/// Chains before other events have their turn.
const AT_ONCE: usize = 64;

/// Event numbers.
const INPUT: u32 = 0;
const ROOM: u32 = 1;
const SIZE: u32 = 2;

/// The terminal that shows the guest's console, and its size.
pub struct Screen {
    terminal: File,
    /// Columns, and rows in the upper half.
    size: AtomicU32,
    /// Readable when it has changed.
    changed: EventFd,
}

impl Screen {
    /// The screen behind `terminal`; none if that is something else.
    pub fn new(terminal: File) -> Result<Option<Arc<Self>>> {
        let Some(size) = Self::measure(&terminal) else { return Ok(None) };
        let (size, changed) = (AtomicU32::new(size), event()?);
        Ok(Some(Arc::new(Self { terminal, size, changed })))
    }

    /// The screen that `console` is shown on, if it is the terminal that we were started from.
    pub fn of(console: &HostConsole) -> Result<Option<Arc<Self>>> {
        match console.nature {
            Nature::Standard => {
                Self::new(console.output.try_clone().context("copy the console's files")?)
            }
            _ => Ok(None),
        }
    }

    fn measure(terminal: &File) -> Option<u32> {
        let (columns, rows) = terminal::size(terminal.as_fd())?;
        Some(u32::from(columns) | u32::from(rows) << 16)
    }

    fn size(&self) -> u32 {
        self.size.load(Ordering::Acquire)
    }

    /// Looks at it again, and has the guest told of another size.
    pub fn look(&self) {
        let Some(size) = Self::measure(&self.terminal) else { return };
        if self.size.swap(size, Ordering::AcqRel) != size {
            // A full counter (EAGAIN) is readable too.
            let _ = self.changed.write(1);
        }
    }
}

fn event() -> Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).context("create an eventfd")
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
        F_MULTIPORT | if self.screen.is_some() { F_SIZE } else { 0 }
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 4]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let size = self.screen.as_ref().map_or(0, |screen| screen.size());
        // How many ports there are at the most comes behind the size (5.3.4).
        read_from(&(u64::from(size) | 1 << 32).to_le_bytes(), offset, data);
    }

    fn start(
        &mut self,
        features: u64,
        queues: Vec<Queue>,
        change: ConfigChange,
    ) -> Result<Vec<Box<dyn Work>>> {
        let mut queues: Vec<_> = queues.into_iter().map(Some).collect();
        let mut queue = |index| {
            let is_it = |queue: &&mut Option<Queue>| {
                queue.as_ref().is_some_and(|queue| queue.index() == index)
            };
            queues.iter_mut().find(is_it).and_then(Option::take)
        };
        let (Some(receive), Some(transmit)) = (queue(RECEIVE), queue(TRANSMIT)) else {
            bail!("the driver set up only some of the queues");
        };
        let control = match (queue(CONTROL_RECEIVE), queue(CONTROL_TRANSMIT)) {
            _ if features & F_MULTIPORT == 0 => None,
            (Some(to_driver), Some(from_driver)) => Some(Control::new(to_driver, from_driver)),
            _ => bail!("the driver set up only some of the control queues"),
        };
        let copy = |event: &EventFd| event.try_clone().context("copy an eventfd");
        Ok(vec![Box::new(Copier {
            output: self.output.clone(),
            input: self.input.clone(),
            screen: self.screen.clone(),
            change,
            arrival: copy(&self.arrival.0)?,
            room: copy(&self.room)?,
            printed: Chain::new(receive.ram()),
            part: [0; PART],
            held: 0..0,
            printing: false,
            typed: Chain::new(receive.ram()),
            receive,
            transmit,
            control,
        })])
    }
}

/// Its worker.
struct Copier {
    output: Arc<Output>,
    input: Arc<Input>,
    screen: Option<Arc<Screen>>,
    change: ConfigChange,
    arrival: EventFd,
    room: EventFd,
    receive: Queue,
    transmit: Queue,
    /// If the driver knows of it.
    control: Option<Control>,
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
        if self.control.as_ref().is_some_and(|control| !control.open) {
            return Ok(());
        }
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

impl Copier {
    /// Talks with the driver, if it does.
    fn control(&mut self) -> Result<()> {
        let Some(control) = &mut self.control else { return Ok(()) };
        let was_open = control.open;
        control.hear()?;
        control.tell(self.screen.as_ref().map(|screen| screen.size()))?;
        if control.open && !was_open { self.type_in() } else { Ok(()) }
    }
}

impl Work for Copier {
    fn begin(&mut self, watch: &Watch) -> Result<()> {
        watch.add(&self.arrival, INPUT, EventSet::IN)?;
        watch.add(&self.room, ROOM, EventSet::IN)?;
        self.screen.iter().try_for_each(|screen| watch.add(&screen.changed, SIZE, EventSet::IN))
    }

    fn queues(&self) -> Vec<(usize, &EventFd)> {
        let control = self.control.iter().flat_map(Control::queues);
        let all = [&self.receive, &self.transmit].into_iter().chain(control);
        all.map(|queue| (queue.index(), queue.kick())).collect()
    }

    fn notified(&mut self, index: usize, _: &Watch) -> Result<()> {
        match index {
            RECEIVE => self.type_in(),
            TRANSMIT => self.print(),
            _ => self.control(),
        }
    }

    fn ready(&mut self, token: u32, _: EventSet, _: &Watch) -> Result<()> {
        // Read before anything is looked at: what comes later is a new event.
        match token {
            INPUT => {
                let _ = self.arrival.read();
                self.type_in()
            }
            ROOM => {
                let _ = self.room.read();
                self.print()
            }
            _ => {
                self.screen.iter().for_each(|screen| drop(screen.changed.read()));
                self.change.tell();
                self.control.iter_mut().for_each(Control::resize);
                self.control()
            }
        }
    }
}
