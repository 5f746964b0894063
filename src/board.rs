//! What the core and an architecture tell each other about a machine: plain data, no behaviour.

use crate::exit::BusAddr;
use crate::layout_check::Region;
use crate::memory::RamRange;

/// What a machine consists of, as far as tables for the guest describe it.
#[derive(Clone, Debug)]
pub struct Board {
    /// vCPUs.
    pub cpus: usize,
    /// RAM, lowest first.
    pub ram: Vec<RamRange>,
    /// The exit register.
    pub exit_register: BusAddr,
    /// virtio devices behind registers in memory.
    pub virtio: Vec<Seat>,
    /// There is a PCI host bridge, where the architecture has it.
    pub pci: bool,
}

/// A PCI host bridge with one bus, number 0 of segment 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pci {
    /// The configuration space of the bus, 4 KiB for each function.
    pub config: Region,
    /// Addresses that reach the memory of functions.
    pub window: Region,
}

/// What Linux finds where a machine has no PCI bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoPci {
    /// What its command line says of it.
    pub cmdline: &'static str,
    /// What belongs to that.
    pub extras: &'static [(Extra, BusAddr)],
}

/// An interrupt that is a message: a write of `data` by `sender`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Guest-physical address.
    pub guest_addr: u64,
    /// What is written there.
    pub data: u32,
    /// The function on its bus: the device's number times 8.
    pub sender: u32,
}

/// Where a device lies, and its interrupt line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its registers.
    pub at: BusAddr,
    /// Their bytes.
    pub len: u64,
    /// Its line, as the interrupt controller counts them.
    pub line: u32,
}

/// How the first vCPU starts. `M` is the architecture's mode, `R` its names of registers.
#[derive(Clone, Debug)]
pub struct Start<M, R> {
    /// The mode.
    pub mode: M,
    /// Guest-physical address of the first instruction.
    pub entry: u64,
    /// Registers that the user set, in order; a later one wins.
    pub registers: Vec<(R, u64)>,
    /// What the image is given, if it knows a boot protocol.
    pub kernel: Kernel,
}

/// What a kernel with a boot protocol is given.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// The command line, without a zero byte.
    pub cmdline: Vec<u8>,
    /// Where the initial RAM disk lies.
    pub initrd: Option<RamRange>,
    /// Modules, where the protocol has those instead.
    pub modules: Vec<Module>,
    /// A part of the image that its protocol wants handed back: a bzImage's setup header.
    pub header: Vec<u8>,
}

/// A file that a kernel is given as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Where it lies.
    pub place: RamRange,
    /// Its name, without a zero byte.
    pub name: Vec<u8>,
}

/// What an image takes besides its first registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Nothing: it knows no boot protocol.
    Nothing,
    /// A command line, and all initial RAM disks in one piece.
    Ramdisk {
        /// It is Linux, which is told where its console is and to end when it panics.
        is_linux: bool,
        /// Bytes of the command line at the most, without its zero byte.
        cmdline: usize,
        /// Past the highest address of the initial RAM disk.
        below: u64,
    },
    /// A command line that begins with the image's name, and each initial RAM disk as a module.
    Modules {
        /// Past the highest address of a module.
        below: u64,
    },
}

/// What a [`StopRegister`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    /// Switches the machine off.
    PowerOff,
    /// Resets it.
    Reset,
}

/// A register of the platform that ends the machine: a write whose bits under `mask` equal `value`
/// does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopRegister {
    /// For messages and traces.
    pub name: &'static str,
    /// Where it lies.
    pub at: BusAddr,
    /// Bytes.
    pub len: u64,
    /// The bits that count.
    pub mask: u64,
    /// What they must be.
    pub value: u64,
    /// What happens then.
    pub does: Does,
    /// What every read gives.
    pub reads: u64,
}

/// A device that a platform is known for, beside those that every machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// A PL011 UART, on the same console.
    Pl011 {
        /// Its interrupt line.
        line: u32,
    },
    /// A PL031 real-time clock.
    Pl031,
    /// A CMOS with a real-time clock.
    Cmos,
    /// ACPI's status and enable register for fixed events.
    FixedEvents,
    /// A PCI configuration address, on a bus without devices, with a register within its ports.
    PciAddress {
        /// The register.
        within: StopRegister,
    },
    /// A frame of registers that makes edges on interrupt lines of what is written there: interrupts
    /// that are messages, for controllers that know none.
    MessageFrame {
        /// Added to a line's number by those who write it.
        base: u32,
        /// The first line that is its own.
        first: u32,
        /// How many there are.
        count: u32,
    },
}

/// One line of what a host can do: a machine-readable key, and the value in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Lower case, words joined by `-`.
    pub key: &'static str,
    /// For people and scripts alike.
    pub value: String,
}

impl Finding {
    /// The finding that `key` is `value`.
    pub fn new(key: &'static str, value: impl Into<String>) -> Self {
        Self { key, value: value.into() }
    }
}
