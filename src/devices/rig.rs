//! For tests: a serial port between two pipes, driven as a guest's driver would do it.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::value;
use crate::bus::Device;
use crate::console::{Input, Nature, Output};
use crate::irq::{Irq, Level};
use crate::sys;

/// A port, the host's ends of its pipes, and its interrupts.
pub struct Rig<D> {
    pub device: D,
    /// What the host reads and writes; dropped to end the input.
    pub printed: PipeReader,
    pub typing: Option<PipeWriter>,
    pub edges: EventFd,
    /// Where the line is now, if it is held.
    pub high: Arc<AtomicBool>,
    pub input: Arc<Input>,
}

impl<D: Device> Rig<D> {
    /// A port whose line makes edges.
    pub fn new(device: impl FnOnce(Arc<Output>, Arc<Input>, Irq) -> D) -> Self {
        Self::wired(|output, input, edges, _| device(output, input, Irq::new(edges)))
    }

    /// A port whose line is held; where it rises is an edge.
    pub fn held(device: impl FnOnce(Arc<Output>, Arc<Input>, Level) -> D) -> Self {
        Self::wired(|output, input, edges, line| {
            let level = Level::new(move |high| {
                line.store(high, Ordering::Release);
                if high {
                    edges.write(1).unwrap();
                }
            });
            device(output, input, level)
        })
    }

    fn wired(device: impl FnOnce(Arc<Output>, Arc<Input>, EventFd, Arc<AtomicBool>) -> D) -> Self {
        let (printed, output) = io::pipe().unwrap();
        let (input, typing) = io::pipe().unwrap();
        let file = |fd: OwnedFd| File::from(fd);
        let event = || Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let stopping: Arc<AtomicBool> = Arc::default();
        let to = (file(output.into()), "test".into(), Nature::Files);
        let output = Arc::new(Output::new(to, event(), stopping, None));
        let input = Input::new(Vec::new(), Some(file(input.into())), Nature::Files, event());
        let edges = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let high: Arc<AtomicBool> = Arc::default();
        let device = device(output, input.clone(), edges.try_clone().unwrap(), high.clone());
        Self { device, printed, typing: Some(typing), edges, high, input }
    }

    pub fn get(&mut self, register: u64) -> u8 {
        let mut data = [0];
        self.device.read(register, &mut data);
        data[0]
    }

    /// A register of 32 bits, of which at most 16 are used.
    pub fn get16(&mut self, register: u64) -> u16 {
        let mut data = [0; 4];
        self.device.read(register, &mut data);
        value(&data).try_into().expect("16 bits")
    }

    pub fn set(&mut self, register: u64, value: impl Into<u32>) {
        assert!(self.device.write(register, &value.into().to_le_bytes()).is_continue());
    }

    /// Edges since the last time.
    pub fn edges(&self) -> u64 {
        self.edges.read().unwrap_or(0)
    }

    /// Waits for an edge; panics when none comes, which is what a lost one looks like.
    pub fn wait_for_edge(&self) {
        let mut fds = [sys::poll_entry(&self.edges, libc::POLLIN)];
        sys::poll(&mut fds, Some(Duration::from_secs(20))).unwrap();
        assert!(self.edges() > 0, "no interrupt within 20 seconds");
    }

    /// Waits until the line is high; panics when it stays low.
    pub fn wait_for_level(&self) {
        while !self.high.load(Ordering::Acquire) {
            self.wait_for_edge();
        }
    }

    /// Waits until the host's input has arrived, without looking as a guest.
    pub fn wait_for_input(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.input.look() {
            assert!(Instant::now() < deadline, "no input within 20 seconds");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Numbers to shake a driver with (xorshift, Marsaglia 2003).
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// A text whose every part looks different.
pub fn long_text(len: u32) -> Vec<u8> {
    (0..len).map(|i| (i * 7 % 251 + i / 251 % 3) as u8).collect()
}
