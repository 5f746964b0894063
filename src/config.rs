//! What a machine is to be: the meaning of a command line, or what a library's user writes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::arch;
use crate::console::Console;
use crate::devices::debug_console::Shown;
use crate::exit::{BusAddr, Space};
use crate::gdb::Listener;
use crate::kernel::File;
use crate::memory::{ImageMemory, RamRange};
use crate::payload::Payload;
use crate::payload::load::Wish;
use crate::sandbox::Sandbox;
use crate::trace::Trace;
use crate::virtio::{Carrier, VirtioDevice};

/// Where the debug console lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugConsole {
    /// Where the guest writes.
    pub output: BusAddr,
    /// Where it reads, in the same space, if it may.
    pub input: Option<u64>,
    /// How its writes are shown.
    pub shown: Shown,
}

/// How much RAM, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Memory {
    /// So many bytes, where the architecture puts them.
    Size(u64),
    /// Exactly these ranges.
    Ranges(Vec<RamRange>),
}

impl Memory {
    /// Bytes in all.
    pub fn total(&self) -> u64 {
        match self {
            Self::Size(size) => *size,
            Self::Ranges(ranges) => {
                ranges.iter().fold(0, |sum, range| range.len.saturating_add(sum))
            }
        }
    }
}

/// The device that a guest finds behind its console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConsoleDevice {
    /// The serial port.
    #[default]
    Serial,
    /// A virtio console. The serial port prints there too, for what has no driver yet, and has no
    /// input.
    Virtio,
}

/// A machine to be built.
pub struct Config {
    /// The image.
    pub payload: Payload,
    /// Its name, for a guest that is told it.
    pub name: String,
    /// Keeps what has to be unpacked in the user's cache, and looks there first.
    pub cache: bool,
    /// Where it goes, if it leaves the choice.
    pub wish: Wish,
    /// The mode to start in, by name; by the image when not given.
    pub mode: Option<String>,
    /// The kind of machine, by name; by the image when not given.
    pub machine: Option<String>,
    /// Registers of the first vCPU by name, and their values.
    pub registers: Vec<(String, u64)>,
    /// What the kernel's command line is, beside ours.
    pub cmdline: String,
    /// Initial RAM disks, one behind the other, or modules.
    pub initrds: Vec<File>,
    /// RAM.
    pub memory: Memory,
    /// How files come into it.
    pub image_memory: ImageMemory,
    /// vCPUs.
    pub cpus: usize,
    /// The host's side of the console.
    pub console: Console,
    /// The guest's side of it.
    pub console_device: ConsoleDevice,
    /// Texts that end the guest well, any one of them, when the console shows it. A guest that
    /// ends by itself without one has failed.
    pub expect: Vec<String>,
    /// Texts that end the guest as a failure when the console shows one.
    pub fail_on: Vec<String>,
    /// How long the guest may go without an exit.
    pub no_progress: Option<Duration>,
    /// virtio devices: disks, networks and so on, in the order in which the guest finds them.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// What carries them; by the image when not given.
    pub transport: Option<Carrier>,
    /// A balloon that is to take so many bytes from the guest, if it has one.
    pub balloon: Option<u64>,
    /// A debug console, if wanted.
    pub debug_console: Option<DebugConsole>,
    /// Where the exit register is, instead of its usual place.
    pub exit_register: Option<BusAddr>,
    /// The guest's time.
    pub timeout: Option<Duration>,
    /// The device accesses that the guest may make.
    pub max_exits: Option<u64>,
    /// Where each exit is shown, if anywhere.
    pub trace: Option<Trace>,
    /// When the time before the guest's first instruction began.
    pub began: Instant,
    /// Tells when the guest first printed something, and first showed each of these texts.
    pub marks: Option<Vec<String>>,
    /// Where a debugger connects. The guest waits for it before its first instruction.
    pub gdb: Option<Listener>,
    /// Ends the guest on SIGINT, SIGTERM, SIGHUP and SIGQUIT, with that signal as its cause.
    pub catch_signals: bool,
    /// The process has this machine alone, and ends with it: its timer (setitimer(2)) is the machine's, and
    /// a small guest may begin without an event loop, which then sees signals only once the guest stays.
    pub is_only: bool,
    /// What is left to the threads of the machine, the one that runs it included, for good; if it is
    /// not all.
    pub sandbox: Option<Arc<Sandbox>>,
}

/// RAM of a guest whose user did not say. Our choice: enough for every kernel that is not a
/// distribution's, and untouched RAM costs nothing.
pub const DEFAULT_MEMORY: u64 = 128 << 20;

/// The modes that a guest can start in here.
pub fn mode_names() -> Vec<&'static str> {
    arch::Mode::NAMED.iter().map(|(name, _)| *name).collect()
}

/// The kinds of machines that there are here.
pub fn machine_names() -> Vec<&'static str> {
    arch::Machine::NAMED.iter().map(|(name, _)| *name).collect()
}

impl Config {
    /// A machine for `payload`, with the defaults of `bivisor run`.
    pub fn new(payload: Payload, console: Console) -> Self {
        Self {
            payload,
            name: "guest".into(),
            cache: false,
            wish: Wish::default(),
            mode: None,
            machine: None,
            registers: Vec::new(),
            cmdline: String::new(),
            initrds: Vec::new(),
            memory: Memory::Size(DEFAULT_MEMORY),
            image_memory: ImageMemory::default(),
            cpus: 1,
            console,
            console_device: ConsoleDevice::default(),
            expect: Vec::new(),
            fail_on: Vec::new(),
            no_progress: None,
            devices: Vec::new(),
            transport: None,
            balloon: None,
            debug_console: None,
            exit_register: None,
            timeout: None,
            max_exits: None,
            trace: None,
            began: Instant::now(),
            marks: None,
            gdb: None,
            catch_signals: false,
            is_only: false,
            sandbox: None,
        }
    }

    /// The mode that was asked for.
    pub(crate) fn arch_mode(&self) -> Result<Option<arch::Mode>> {
        let Some(name) = &self.mode else { return Ok(None) };
        let found = arch::Mode::NAMED.iter().find(|(known, _)| known == name);
        let known = mode_names().join(", ");
        ensure!(found.is_some(), "--mode {name}: {} guests start in {known}", arch::NAME);
        Ok(found.map(|(_, mode)| *mode))
    }

    /// The kind of machine that was asked for.
    pub(crate) fn arch_machine(&self) -> Result<Option<arch::Machine>> {
        let Some(name) = &self.machine else { return Ok(None) };
        let found = arch::Machine::NAMED.iter().find(|(known, _)| known == name);
        let known = machine_names().join(", ");
        ensure!(found.is_some(), "--machine {name}: {} has {known}", arch::NAME);
        Ok(found.map(|(_, machine)| *machine))
    }

    /// The registers that were asked for.
    pub(crate) fn arch_registers(&self) -> Result<Vec<(arch::Register, u64)>> {
        self.registers
            .iter()
            .map(|(name, value)| {
                let Some((register, bits)) = arch::register(name) else {
                    bail!(
                        "--reg {name}: {} has no such register; it has {}",
                        arch::NAME,
                        arch::REGISTER_NAMES
                    );
                };
                ensure!(
                    bits == 64 || value >> bits == 0,
                    "--reg {name}={value:#x}: {name} has {bits} bits, use a smaller value"
                );
                Ok((register, *value))
            })
            .collect()
    }

    /// Past the last address of `space`.
    pub(crate) fn space_end(space: Space) -> u64 {
        match space {
            Space::Memory => u64::MAX,
            Space::Port => arch::layout::PORTS,
        }
    }

    /// Refuses what only a library with the feature `full` gives a machine.
    pub(crate) fn check_features(&self) -> Result<()> {
        let extras = [
            (!self.devices.is_empty(), "a virtio device"),
            (self.balloon.is_some(), "a balloon"),
            (self.console_device == ConsoleDevice::Virtio, "a virtio console"),
            (self.gdb.is_some(), "gdb"),
        ];
        if let Some((_, name)) = extras.iter().find(|(is_asked, _)| *is_asked && !crate::FULL) {
            bail!(
                "{name} is asked for: this bivisor was built without the feature `full`, build it with"
            );
        }
        Ok(())
    }

    /// Refuses an address that this architecture does not have; `option` named it.
    pub(crate) fn check_address(option: &str, at: BusAddr) -> Result<()> {
        let end = Self::space_end(at.space);
        ensure!(end > 0, "{option} {at}: {} has no ports, use mmio:ADDR", arch::NAME);
        ensure!(at.addr < end, "{option} {at}: the last one is {:#x}, use a lower one", end - 1);
        Ok(())
    }
}
