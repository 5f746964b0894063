//! For tests and fuzzing: plays a guest that does anything whatever to a whole machine: accesses of every
//! width anywhere on its bus, and rings with any content, while the host does its part ([`host`]). No vCPU
//! runs, so KVM does nothing but keep the machine's parts.

mod host;
mod request;

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use anyhow::{Context, Result};
use virtio_bindings::virtio_mmio::*;

use self::host::Host;
use super::Machine;
use crate::arch::layout;
use crate::config::{Config, Memory};
use crate::console::Console;
use crate::devices::value;
use crate::exit::BusAddr;
use crate::guests;
use crate::payload::Payload;
use crate::virtio::Carrier;
use crate::virtio::driver::carried::place;

/// Bytes of RAM. Our choice: what is hit at random is mostly there.
const RAM_LEN: u64 = 4 << 20;

/// Where rings and buffers lie in it, behind the guest's image; each queue of each device has a page.
const RINGS: u64 = 1 << 20;
const POOL: u64 = 2 << 20;
const POOL_LEN: u64 = 0x4000;

/// Descriptors of a queue, and the queues of a device that are used: a network card's with two pairs has one
/// more to control them.
const SIZE: u16 = 16;
const QUEUES: usize = 5;

/// virtio v1.3, 2.1 "Device Status Field".
const READY: u32 = 1 | 2 | 4 | 8;
const NEEDS_RESET: u32 = 64;

/// A function's base address and command registers (PCI Local Bus 3.0, 6.1), and the command that has
/// its memory answer.
const BAR: u64 = 0x10;
const COMMAND: u64 = 4;
const MEMORY_AND_MASTER: u64 = 6;

/// What drivers accept: all; nothing but version 1 (virtio v1.3, 6); all but what 2.7 has to spare
/// interrupts; all that is not its device type's.
const FEATURES: [u64; 4] = [u64::MAX, 1 << 32, !(1 << 29), !0xff_ffff];

/// A machine whose guest is played.
pub struct Player {
    machine: Machine,
    host: Host,
    carrier: Carrier,
    /// Where the registers of each virtio device are.
    devices: Vec<BusAddr>,
    /// Chains that were made available, by device and queue.
    available: Vec<[u16; QUEUES]>,
}

/// A path for sockets and files that nobody else in this process or another one has.
pub fn own_path(what: &str) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("bivisor-{what}-{}-{number}", std::process::id()))
}

/// What is left of the bytes that say what to do; zeros behind them.
pub struct Script<'a>(pub &'a [u8]);

impl<'a> Script<'a> {
    /// The next bytes, so many or all that there are.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(len.min(self.0.len()));
        self.0 = later;
        now
    }

    /// The number in the next `width` bytes, big-endian.
    pub fn number(&mut self, width: usize) -> u64 {
        self.bytes(width).iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

impl Player {
    /// A machine with a device of every type. What needs a privilege is there where we have it; programs of
    /// the host serve some of them where `BIVISOR_PLAYED_PROGRAMS` is set, since each start takes long.
    pub fn new(carrier: Carrier) -> Result<Self> {
        let console = Console::new(File::create("/dev/null")?, None);
        let guest = guests::find("spin").context("an embedded guest")?;
        let mut config = Config::new(Payload::Bytes(guest.image), console);
        let host = Host::equip(&mut config, carrier)?;
        // The console and the balloon besides.
        let count = config.devices.len() as u64 + 2;
        config.memory = Memory::Size(RAM_LEN);
        config.transport = Some(carrier);
        let mut machine = Machine::build(config)?;
        host::add_others(&mut machine)?;
        let virtio = |index: &usize| machine.bus.name(*index).starts_with("virtio-");
        let devices: Vec<BusAddr> = match carrier {
            Carrier::Mmio => {
                let found = (0..machine.bus.len()).filter(virtio);
                found.map(|index| machine.bus.range(index).0).collect()
            }
            // Behind the bridge; the addresses are given when they are started.
            Carrier::Pci => {
                let window = layout::PCI.window.start;
                (1..=count).map(|number| BusAddr::memory(window + number * 0x8_0000)).collect()
            }
        };
        let available = vec![[0; QUEUES]; devices.len()];
        Ok(Self { machine, host, carrier, devices, available })
    }

    /// The places of all devices on the bus: where each begins, and its bytes.
    pub fn places(&self) -> Vec<(BusAddr, u64)> {
        (0..self.machine.bus.len()).map(|index| self.machine.bus.range(index)).collect()
    }

    /// Writes the lowest `width` bytes of `value`. Where nothing is, it is lost.
    pub fn write(&self, at: BusAddr, width: usize, value: u64) {
        if let Some(place) = self.machine.bus.find(at, width) {
            // What ends the machine would; this one goes on.
            let _ = self.machine.bus.write(place, &value.to_le_bytes()[..width]);
        }
    }

    /// Reads `width` bytes; all ones where nothing is.
    pub fn read(&self, at: BusAddr, width: usize) -> u64 {
        let mut bytes = [0xff; 8];
        if let Some(place) = self.machine.bus.find(at, width) {
            self.machine.bus.read(place, &mut bytes[..width]);
        }
        value(&bytes[..width])
    }

    fn set(&self, device: usize, register: u32, value: u32) {
        let Some((offset, width)) = place(self.carrier, register) else { return };
        let at = self.devices[device];
        self.write(BusAddr { addr: at.addr + offset, ..at }, width, value.into());
    }

    fn get(&self, device: usize, register: u32) -> u32 {
        let Some((offset, width)) = place(self.carrier, register) else { return 0 };
        let at = self.devices[device];
        self.read(BusAddr { addr: at.addr + offset, ..at }, width) as u32
    }

    fn ram(&self) -> u64 {
        self.machine.ram.ranges()[0].start
    }

    /// The rings of a queue: descriptors, available and used.
    fn rings(&self, device: usize, queue: usize) -> [u64; 3] {
        let page = self.ram() + RINGS + ((device * QUEUES + queue) as u64) * 0x1000;
        [page, page + 0x400, page + 0x800]
    }

    /// Resets a device and starts it as a driver does, with all features that it offers.
    pub fn start(&mut self, device: usize) {
        self.start_with(device, u64::MAX);
    }

    /// The same with only those of `features`.
    fn start_with(&mut self, device: usize, features: u64) {
        if self.carrier == Carrier::Pci {
            let config = layout::PCI.config.start + ((device as u64 + 1) << 15);
            let bar = self.devices[device].addr;
            self.write(BusAddr::memory(config + BAR), 4, bar);
            self.write(BusAddr::memory(config + BAR + 4), 4, bar >> 32);
            self.write(BusAddr::memory(config + COMMAND), 2, MEMORY_AND_MASTER);
        }
        self.set(device, VIRTIO_MMIO_STATUS, 0);
        self.set(device, VIRTIO_MMIO_STATUS, 1 | 2);
        for half in 0..2 {
            self.set(device, VIRTIO_MMIO_DEVICE_FEATURES_SEL, half);
            let offered = self.get(device, VIRTIO_MMIO_DEVICE_FEATURES);
            let features = offered & (features >> (32 * half)) as u32;
            self.set(device, VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.set(device, VIRTIO_MMIO_DRIVER_FEATURES, features);
        }
        self.set(device, VIRTIO_MMIO_STATUS, 1 | 2 | 8);
        for queue in 0..QUEUES {
            self.set(device, VIRTIO_MMIO_QUEUE_SEL, queue as u32);
            self.set(device, VIRTIO_MMIO_QUEUE_NUM, SIZE.into());
            let [table, available, used] = self.rings(device, queue);
            for (low, high, at) in [
                (VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, table),
                (VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, available),
                (VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_QUEUE_USED_HIGH, used),
            ] {
                self.set(device, low, at as u32);
                self.set(device, high, (at >> 32) as u32);
            }
            // Nothing is available or used yet.
            let _ = self.machine.ram.write(&[0; 4], available);
            let _ = self.machine.ram.write(&[0; 4], used);
            self.set(device, VIRTIO_MMIO_QUEUE_READY, 1);
        }
        self.available[device] = [0; QUEUES];
        self.set(device, VIRTIO_MMIO_STATUS, READY);
    }

    /// Puts a descriptor into a queue's table.
    fn describe(&self, table: u64, index: u64, at: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        let _ = self.machine.ram.write(&bytes, table + 16 * index);
    }

    /// Makes the chain that begins with descriptor `head` available, and notifies.
    fn send(&mut self, device: usize, queue: usize, head: u16) {
        let [_, available, _] = self.rings(device, queue);
        let next = &mut self.available[device][queue];
        let slot = u64::from(*next % SIZE);
        *next = next.wrapping_add(1);
        let next = *next;
        let _ = self.machine.ram.write(&head.to_le_bytes(), available + 4 + 2 * slot);
        fence(Ordering::SeqCst);
        let _ = self.machine.ram.write(&next.to_le_bytes(), available + 2);
        self.notify(device, queue);
    }

    fn notify(&self, device: usize, queue: usize) {
        let at = self.devices[device];
        match (self.carrier, place(self.carrier, VIRTIO_MMIO_QUEUE_NOTIFY)) {
            (Carrier::Pci, Some((offset, width))) => {
                let addr = at.addr + offset + queue as u64 * crate::virtio::pci::NOTIFY_STEP;
                self.write(BusAddr { addr, ..at }, width, queue as u64);
            }
            _ => self.set(device, VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32),
        }
    }

    /// Does what `bytes` say, whatever they are.
    pub fn play(&mut self, bytes: &[u8]) {
        let mut script = Script(bytes);
        while !script.0.is_empty() {
            let how = script.number(1);
            let device = script.number(1) as usize % self.devices.len();
            let queue = (how >> 3) as usize % QUEUES;
            match how % 8 {
                0 | 1 => {
                    let index = script.number(1) as usize % self.machine.bus.len();
                    let (at, len) = self.machine.bus.range(index);
                    // Most registers are at the beginning.
                    let offset = script.number(if how & 0x40 == 0 { 1 } else { 4 }) % len;
                    let at = BusAddr { addr: at.addr + offset, ..at };
                    let width = 1 << (how >> 4 & 3);
                    match how % 8 {
                        0 => self.write(at, width, script.number(width)),
                        _ => drop(self.read(at, width)),
                    }
                }
                // A register of a device that has some state.
                2 => {
                    self.set(device, (script.number(1) as u32 & 0x3f) * 4, script.number(4) as u32)
                }
                3 => self.start_with(device, FEATURES[(how >> 3) as usize % FEATURES.len()]),
                // Anything into rings and buffers.
                4 => {
                    let at = match how & 0x40 {
                        0 => self.rings(device, queue)[0] + script.number(2) % 0x1000,
                        _ => self.ram() + POOL + script.number(2) % POOL_LEN,
                    };
                    let content = script.number(8).to_be_bytes();
                    let _ = self.machine.ram.write(&content, at);
                }
                6 => self.request(device, queue, &mut script),
                7 => self.host.act(&self.machine, &mut script),
                // A chain of up to four buffers.
                _ => {
                    let [table, ..] = self.rings(device, queue);
                    let count = 1 + (how >> 6);
                    for index in 0..count {
                        let kind = script.number(1);
                        let at = match kind & 0x1f {
                            0x1f => script.number(8),
                            _ => self.ram() + POOL + script.number(2) % POOL_LEN,
                        };
                        let len = script.number(if kind & 0x20 == 0 { 1 } else { 2 }) as u32;
                        let more = u16::from(index + 1 < count);
                        let write = u16::from(kind & 0x80 != 0) << 1;
                        let indirect = u16::from(kind & 0x5f == 0x40) << 2;
                        let flags = more | write | indirect;
                        self.describe(table, index, at, len, flags, index as u16 + 1);
                    }
                    self.send(device, queue, 0);
                }
            }
        }
    }

    /// True if a driver that begins anew finds this device as it should be.
    pub fn recovers(&mut self, device: usize) -> bool {
        self.start(device);
        let status = self.get(device, VIRTIO_MMIO_STATUS);
        status & (READY | NEEDS_RESET) == READY || self.host.foreign == Some(device)
    }

    /// How many virtio devices there are.
    pub fn devices(&self) -> usize {
        self.devices.len()
    }
}

#[cfg(test)]
mod tests;
