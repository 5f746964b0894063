//! A machine: built from a [`Config`] in one order, run once, with an [`Outcome`].
//!
//! The order matters: memory slots before anything else (one that is added later waits for a grace
//! period), interrupt chips before vCPUs, and what an architecture must do last after the last
//! vCPU. Fields are dropped in their order: vCPUs, devices, which hold the VM too, then the VM, then
//! the RAM that it maps. What is on its bus, and how, is [`devices`]' to say, and
//! [`virtio`]'s.

mod devices;
#[cfg(any(test, fuzzing))]
pub mod player;
mod virtio;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::{self, layout};
use crate::board::{Board, NoPci, Start};
use crate::bus::Bus;
use crate::config::{Config, ConsoleDevice, Memory};
use crate::console::watch::{Wanted, Watch};
use crate::console::{Input, Nature, Output};
use crate::devices::balloon::{Balloon, Figures};
use crate::devices::console::{Console as VirtioConsole, Screen};
use crate::gdb::Debugger;
use crate::kernel::{self, Given};
use crate::memory::{GuestRam, RamRange, check_ranges};
use crate::payload::cache::Cache;
use crate::payload::image::{Image, Unpacking};
use crate::payload::{Payload, load};
use crate::places::Places;
use crate::sandbox::Sandbox;
use crate::timeline::Timeline;
use crate::trace::Trace;
use crate::virtio::{Carrier, VirtioDevice};
use crate::{kick, sys};
use devices::Devices;

/// Why /dev/kvm can't be used, in one line with the mend.
pub fn open_kvm() -> Result<Kvm> {
    const PATH: &str = "/dev/kvm";
    let kvm = sys::open_kvm(PATH).map_err(|error| match error.raw_os_error() {
        libc::ENOENT => anyhow::anyhow!(
            "open {PATH}: no such file (is KVM switched on in the firmware, and its module loaded?)"
        ),
        libc::EACCES | libc::EPERM => {
            anyhow::anyhow!("open {PATH}: permission denied (is your user in group kvm?)")
        }
        _ => anyhow::anyhow!("open {PATH}: {}", io::Error::from(error)),
    })?;
    // The youngest of what is needed (Linux 4.13): where it is, the rest is too, the version of the API
    // that has been the only one since 2007 included. Whatever else has no such question.
    match kvm.check_extension_int(Cap::ImmediateExit) {
        1.. => Ok(kvm),
        0 => bail!("this host's KVM lacks KVM_CAP_IMMEDIATE_EXIT: update the kernel"),
        _ => bail!("{PATH} is not the KVM device (put it back: mknod {PATH} c 10 232)"),
    }
}

/// A machine, ready to run.
pub struct Machine {
    pub(crate) vcpus: Vec<arch::Vcpu>,
    _chips: arch::Chips,
    pub(crate) bus: Bus,
    pub(crate) vm: Arc<VmFd>,
    pub(crate) debugger: Option<Debugger>,
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) output: Arc<Output>,
    pub(crate) input: Arc<Input>,
    /// The terminal whose size the guest is told.
    pub(crate) screen: Option<Arc<Screen>>,
    /// What is known of its balloon.
    pub(crate) balloon: Option<Arc<Figures>>,
    /// Wakes the event loop.
    pub(crate) wake: Arc<EventFd>,
    /// Readable once the machine stops; never read.
    pub(crate) stopped: Arc<EventFd>,
    /// Set once something has ended the machine.
    pub(crate) stopping: Arc<AtomicBool>,
    pub(crate) trace: Option<Trace>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) no_progress: Option<Duration>,
    /// The guest must not end by itself: its console must show a certain text first.
    pub(crate) expects: bool,
    pub(crate) exit_limit: Option<(AtomicU64, u64)>,
    pub(crate) catch_signals: bool,
    /// Without virtio devices, in a process that ends with it.
    pub(crate) is_plain: bool,
    pub(crate) timeline: Timeline,
    pub(crate) sandbox: Option<Arc<Sandbox>>,
}

impl Machine {
    /// Builds the machine that `config` describes.
    pub fn build(config: Config) -> Result<Self> {
        let mut timeline = Timeline::new(config.began);
        timeline.reached("options");
        // What can be refused without KVM comes first.
        config.check_features()?;
        let mode = config.arch_mode()?;
        let machine = config.arch_machine()?;
        let registers = config.arch_registers()?;
        let kvm = open_kvm()?;
        check_capabilities(&kvm, config.cpus)?;
        let ranges = ram_ranges(&config.memory, arch::address_limit(&kvm))?;
        timeline.reached("KVM");
        let protocol = config.wish.protocol.as_deref();
        let image = read_image(config.payload, config.cache, protocol, &ranges)?;
        timeline.reached("image");
        let ram_start = ranges.first().map_or(0, |range| range.start);
        let way = load::choose(&image, ram_start, protocol, mode, &arch::RULES)?;
        let machine = way.mode.machine(machine, way.takes);
        let vm = Arc::new(arch::create_vm(&kvm, ranges.last().map_or(0, |range| range.end()))?);
        let shared = config.devices.iter().any(|device| device.shares_ram());
        let ram = if shared { GuestRam::shared(ranges)? } else { GuestRam::new(ranges)? };
        let ram = Arc::new(ram.with_images(config.image_memory));
        ram.add_slots(&vm)?;
        timeline.reached("VM and RAM");
        let chips = arch::before_vcpus(&kvm, &vm, config.cpus, machine)?;
        timeline.reached("interrupt chips");

        let event = |flags| EventFd::new(flags).context("create an eventfd");
        let wake = Arc::new(event(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let stopped = Arc::new(event(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let stopping = Arc::new(AtomicBool::new(false));
        let console = config.console;
        let virtio_console = crate::FULL && config.console_device == ConsoleDevice::Virtio;
        let screen = if virtio_console { Screen::of(&console)? } else { None };
        let to = (console.output, console.name, console.nature);
        let watch = Watch::new(&Wanted {
            expect: &config.expect,
            fail_on: &config.fail_on,
            marks: config.marks.as_deref().unwrap_or_default(),
            line: config.no_progress.is_some(),
            timed: config.marks.is_some(),
        });
        let output = Arc::new(Output::new(to, wake.clone(), stopping.clone(), watch));
        let input = Input::new(console.before, console.input, console.nature, stopped.clone());
        let serial_input = match virtio_console {
            true => Input::new(Vec::new(), None, Nature::Files, stopped.clone()),
            false => input.clone(),
        };
        let exit_register = config.exit_register.unwrap_or(layout::EXIT_REGISTER);
        let mut devices = Devices::new(machine, &vm, &ram);
        let debug = config.debug_console;
        let mut virtio = config.devices;
        if virtio_console {
            let console = VirtioConsole::new(output.clone(), input.clone(), screen.clone())?;
            virtio.push(Box::new(console));
        }
        let balloon = config.balloon.filter(|_| crate::FULL).map(Balloon::new).transpose()?;
        let figures = balloon.as_ref().map(|balloon| balloon.figures().clone());
        virtio.extend(balloon.map(|balloon| Box::new(balloon) as Box<dyn VirtioDevice>));
        // A bus costs a kernel no more time than registers, and an interrupt by it two exits less.
        let by_image = if way.is_bare() { Carrier::Mmio } else { Carrier::Pci };
        let is_plain = config.is_only && virtio.is_empty();
        let pci = config.transport.unwrap_or(by_image) == Carrier::Pci && !virtio.is_empty();
        let without_pci = match !pci && kernel::linux_is_told_of_pci(way.takes, &config.cmdline) {
            true => layout::WITHOUT_PCI,
            false => NoPci::default(),
        };
        devices.insert_extras(without_pci.extras, &output, &serial_input)?;
        devices.insert_all(machine, exit_register, debug, &output, &serial_input)?;
        let virtio = if !crate::FULL {
            Vec::new()
        } else if pci {
            devices.insert_pci(virtio)?;
            devices.insert_extras(arch::pci_extras(&chips), &output, &serial_input)?;
            Vec::new()
        } else {
            devices.insert_virtio(virtio)?
        };
        let (bus, wires) = devices.finish()?;
        timeline.reached("devices");

        let mut places = Places::new(ram.ranges());
        let entry = load::load(&image, &ram, &mut places, &config.wish, &way, &arch::RULES)?;
        way.mode.avoids().iter().for_each(|range| places.avoid(*range));
        let ranges = ram.ranges().to_vec();
        let board = Board { cpus: config.cpus, ram: ranges, exit_register, virtio, pci };
        let (cmdline, files) = (&config.cmdline, &config.initrds);
        let console = config.console_device;
        let words = without_pci.cmdline;
        let given = Given { image: &config.name, console, bus: words, cmdline, files };
        let mut kernel = given.place(way.takes, &ram, &mut places)?;
        timeline.reached("load");
        kernel.header = way.header;
        let start = Start { mode: way.mode, entry, registers, kernel };
        let entry = arch::prepare(&ram, &mut places, &board, &start, &chips)?;
        ram.leave_out_of_dumps();
        timeline.reached("tables");
        let vcpus: Vec<_> = (0..config.cpus)
            .map(|index| {
                arch::Vcpu::new(&vm, &chips, index, &entry)
                    .with_context(|| format!("create vCPU {index}"))
            })
            .collect::<Result<_>>()?;
        arch::after_vcpus(&chips, &vcpus)?;
        for (event, line) in &wires {
            arch::wire(&vm, event, *line)?;
        }
        kick::install_handler()?;
        let debugger = |listener| Debugger::new(listener, arch::debug_slots(&kvm, &vm));
        let debugger = config.gdb.filter(|_| crate::FULL).map(debugger).transpose()?;
        timeline.reached("vCPUs");
        Ok(Self {
            vcpus,
            _chips: chips,
            vm,
            debugger,
            ram,
            bus,
            output,
            input,
            screen,
            balloon: figures,
            wake,
            stopped,
            stopping,
            trace: config.trace,
            timeout: config.timeout,
            no_progress: config.no_progress,
            expects: !config.expect.is_empty(),
            exit_limit: config.max_exits.map(|limit| (AtomicU64::new(limit), limit)),
            catch_signals: config.catch_signals,
            is_plain,
            timeline,
            sandbox: config.sandbox,
        })
    }
}

/// Recognises the image and unpacks it where that has to be done to enter it by `protocol`; nothing
/// that could not lie in `ram` is unpacked to its end.
fn read_image(
    payload: Payload,
    cache: bool,
    protocol: Option<&str>,
    ram: &[RamRange],
) -> Result<Image> {
    // Our choice: what is smaller is unpacked sooner than it is looked up.
    const WORTH_KEEPING: u64 = 1 << 20;
    let limit = ram.iter().map(|range| range.len).sum();
    let cache = (cache && payload.len() > WORTH_KEEPING).then(Cache::of_user).flatten();
    let kernels = crate::FULL && arch::RULES.unpacks(protocol);
    Image::read(payload, &Unpacking { limit, cache: cache.as_ref(), kernels })
}

/// What every machine needs of KVM, by the name of the capability.
fn check_capabilities(kvm: &Kvm, cpus: usize) -> Result<()> {
    ensure!(cpus > 0, "--cpus 0: a machine needs at least one");
    if cpus > 1 {
        let max = kvm.get_max_vcpus();
        ensure!(cpus <= max, "--cpus {cpus}: this host's KVM runs at most {max} in a machine");
    }
    Ok(())
}

/// The ranges of RAM that `memory` asks for, below `limit`, if a machine on this host can have them.
fn ram_ranges(memory: &Memory, limit: u64) -> Result<Vec<RamRange>> {
    let page = sys::page_size();
    match memory {
        Memory::Size(size) => {
            let option = || format!("--memory {size}");
            ensure!(*size > 0, "{}: give the guest some RAM, for example 128M", option());
            ensure!(
                size.is_multiple_of(page),
                "{}: not a multiple of {page} bytes, the size of a page \
                 (did you forget a unit, as in 128M?)",
                option()
            );
            check_host(*size).with_context(option)?;
            check_ranges(layout::ram(*size), page, limit, layout::WINDOWS).with_context(option)
        }
        Memory::Ranges(ranges) => {
            let ranges = check_ranges(ranges.clone(), page, limit, layout::WINDOWS);
            let ranges = ranges.context("--ram")?;
            // Disjoint and below the limit, so the sum does not overflow.
            check_host(ranges.iter().map(|range| range.len).sum()).context("--ram")?;
            Ok(ranges)
        }
    }
}

/// Refuses RAM that this host could never back. Less than that is the kernel's to grant.
fn check_host(total: u64) -> Result<()> {
    /// Any host has so much that runs a kernel with KVM and this program.
    const LITTLE: u64 = 128 << 20;
    if total <= LITTLE {
        return Ok(());
    }
    let host = sys::host_memory();
    ensure!(
        total <= host,
        "{} MiB are more than this host has ({} MiB), ask for less",
        total >> 20,
        host >> 20
    );
    Ok(())
}
