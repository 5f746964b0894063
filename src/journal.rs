//! What a vCPU did: counts of its exits, and the last ones in full.
//!
//! Kept by each vCPU's thread for itself, without locks or allocation, so that it costs a few
//! stores per exit and is there when a verdict needs it.

use std::fmt;

use crate::devices;
use crate::exit::{BusAddr, Space};

/// How many exits a verdict shows. Our choice: a screenful.
const LAST: usize = 16;

/// Kinds of exits that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A read from a port.
    PortRead,
    /// A write to a port.
    PortWrite,
    /// A read from memory that no slot backs.
    MmioRead,
    /// A write to memory that no slot backs.
    MmioWrite,
    /// A signal or a kick.
    Interrupted,
    /// The exit that ended the run.
    Stop,
}

impl Kind {
    /// All kinds, in the order of their counters.
    pub const ALL: [Self; 6] = [
        Self::PortRead,
        Self::PortWrite,
        Self::MmioRead,
        Self::MmioWrite,
        Self::Interrupted,
        Self::Stop,
    ];

    /// The kind of a device access.
    pub fn of(space: Space, write: bool) -> Self {
        match (space, write) {
            (Space::Port, false) => Self::PortRead,
            (Space::Port, true) => Self::PortWrite,
            (Space::Memory, false) => Self::MmioRead,
            (Space::Memory, true) => Self::MmioWrite,
        }
    }

    /// The name in verdicts and traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::PortRead => "port-read",
            Self::PortWrite => "port-write",
            Self::MmioRead => "mmio-read",
            Self::MmioWrite => "mmio-write",
            Self::Interrupted => "interrupted",
            Self::Stop => "stop",
        }
    }
}

/// One device access, as traces and verdicts show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Which kind.
    pub kind: Kind,
    /// Where.
    pub at: BusAddr,
    /// Bytes of one item.
    pub width: usize,
    /// Items (more than one for string I/O).
    pub items: usize,
    /// The first item's value.
    pub value: u64,
}

impl Access {
    /// The access that moved `data`, `width` bytes an item.
    pub fn new(kind: Kind, at: BusAddr, width: usize, data: &[u8]) -> Self {
        let value = devices::value(&data[..width.min(data.len())]);
        Self { kind, at, width, items: data.len() / width.max(1), value }
    }
}

/// In words: `out 0x10  <- 48 'H'`, `mmio read 0x9000018  -> 90 (4 bytes)`.
impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (words, arrow) = match self.kind {
            Kind::PortRead => ("in", "->"),
            Kind::PortWrite => ("out", "<-"),
            Kind::MmioRead => ("mmio read", "->"),
            Kind::MmioWrite => ("mmio write", "<-"),
            Kind::Interrupted | Kind::Stop => return f.write_str(self.kind.name()),
        };
        write!(f, "{words} {:#x}  {arrow} {:02x}", self.at.addr, self.value)?;
        match u8::try_from(self.value) {
            Ok(b'\n') => f.write_str(" '\\n'")?,
            Ok(byte) if byte.is_ascii_graphic() || byte == b' ' => {
                write!(f, " '{}'", byte as char)?
            }
            _ => {}
        }
        if self.width > 1 {
            write!(f, " ({} bytes)", self.width)?;
        }
        if self.items > 1 {
            write!(f, " and {} more", self.items - 1)?;
        }
        Ok(())
    }
}

/// Counts of exits, by kind and by device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    kinds: [u64; Kind::ALL.len()],
    /// By the device's index on the bus; the last one counts accesses where nothing is.
    devices: Vec<u64>,
}

impl Counts {
    /// Zeros, for a bus of `devices` devices.
    pub fn new(devices: usize) -> Self {
        Self { kinds: Default::default(), devices: vec![0; devices + 1] }
    }

    /// Exits of `kind`.
    pub fn kind(&self, kind: Kind) -> u64 {
        self.kinds[kind as usize]
    }

    /// All exits.
    pub fn total(&self) -> u64 {
        self.kinds.iter().sum()
    }

    /// Accesses by the device's index; the last one: where nothing is.
    pub fn devices(&self) -> &[u64] {
        &self.devices
    }

    /// Adds what another vCPU of the same machine did.
    pub fn add(&mut self, other: &Self) {
        let sum = |to: &mut [u64], from: &[u64]| to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
        sum(&mut self.kinds, &other.kinds);
        sum(&mut self.devices, &other.devices);
    }
}

/// What one vCPU did.
#[derive(Clone, Debug)]
pub struct Journal {
    /// Counts.
    pub counts: Counts,
    /// A ring: each access with how often it was made in a row.
    last: [Option<(Access, u64)>; LAST],
    next: usize,
}

impl Journal {
    /// Nothing yet, on a bus of `devices` devices.
    pub fn new(devices: usize) -> Self {
        Self { counts: Counts::new(devices), last: [None; LAST], next: 0 }
    }

    /// Counts an exit that accesses no device.
    pub fn count(&mut self, kind: Kind) {
        self.counts.kinds[kind as usize] += 1;
    }

    /// Notes an access to device `index`, or to none.
    pub fn note(&mut self, access: Access, index: Option<usize>) {
        self.count(access.kind);
        let nothing = self.counts.devices.len() - 1;
        self.counts.devices[index.unwrap_or(nothing)] += 1;
        self.keep(access);
    }

    /// Keeps an access among the last ones, be it an exit or not.
    pub fn keep(&mut self, access: Access) {
        // A guest that polls would push everything else out.
        match &mut self.last[self.next.wrapping_sub(1) % LAST] {
            Some((last, times)) if *last == access => *times += 1,
            _ => {
                self.last[self.next % LAST] = Some((access, 1));
                self.next = self.next.wrapping_add(1);
            }
        }
    }

    /// The last accesses, oldest first, each with how often it was made in a row.
    pub fn last(&self) -> impl Iterator<Item = (Access, u64)> + '_ {
        (0..LAST).filter_map(|i| self.last[self.next.wrapping_add(i) % LAST])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_read_like_words() {
        for (kind, at, width, data, words) in [
            (Kind::PortWrite, BusAddr::port(0x10), 1, &b"H"[..], "out 0x10  <- 48 'H'"),
            (Kind::PortWrite, BusAddr::port(0x10), 1, b"\n", "out 0x10  <- 0a '\\n'"),
            (Kind::PortRead, BusAddr::port(0x60), 1, b"abc", "in 0x60  -> 61 'a' and 2 more"),
            (
                Kind::MmioWrite,
                BusAddr::memory(0x2000),
                8,
                &[4, 0, 0, 0, 0, 0, 0, 0],
                "mmio write 0x2000  <- 04 (8 bytes)",
            ),
            (
                Kind::MmioRead,
                BusAddr::memory(0x10),
                2,
                &[0xff; 2],
                "mmio read 0x10  -> ffff (2 bytes)",
            ),
        ] {
            assert_eq!(Access::new(kind, at, width, data).to_string(), words);
        }
    }

    #[test]
    fn the_last_accesses_are_kept_oldest_first_and_all_are_counted() {
        let mut journal = Journal::new(1);
        for i in 0..40u8 {
            let access = Access::new(Kind::PortWrite, BusAddr::port(1), 1, &[i]);
            journal.note(access, (i % 2 == 0).then_some(0));
        }
        journal.count(Kind::Stop);
        let values: Vec<_> = journal.last().map(|(access, _)| access.value).collect();
        assert_eq!(values, (24..40).collect::<Vec<_>>());
        assert_eq!((journal.counts.total(), journal.counts.kind(Kind::PortWrite)), (41, 40));
        assert_eq!(journal.counts.devices(), [20, 20]);
    }

    #[test]
    fn what_is_repeated_takes_one_place() {
        let mut journal = Journal::new(0);
        for value in [1, 2, 2, 2, 1] {
            let access = Access::new(Kind::PortRead, BusAddr::port(1), 1, &[value]);
            journal.note(access, None);
        }
        let last: Vec<_> = journal.last().map(|(access, times)| (access.value, times)).collect();
        assert_eq!(last, [(1, 1), (2, 3), (1, 1)]);
        assert_eq!(journal.counts.total(), 5);
    }
}
