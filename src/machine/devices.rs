//! Puts the devices of a machine on its bus, each where its architecture or the user has it, and ties
//! their interrupts to KVM. virtio devices are [`super::virtio`]'s.

use std::sync::Arc;

use anyhow::{Result, bail};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use crate::arch::{self, layout};
use crate::board::Extra;
use crate::bus::{Bus, Device};
use crate::config::Config;
use crate::console::{Input, Output};
use crate::devices::cmos::{self, Cmos};
use crate::devices::debug_console::DebugConsole;
use crate::devices::exit_register::ExitRegister;
use crate::devices::fixed_events::{self, FixedEvents};
use crate::devices::message_frame::{self, MessageFrame};
use crate::devices::panic_report::{self, PanicReport};
use crate::devices::pci_address::{self, PciAddress};
use crate::devices::pl011::{self, Pl011};
use crate::devices::redirected::Redirected;
use crate::devices::rtc::{self, Pl031};
use crate::devices::serial::{self, Serial};
use crate::exit::{BusAddr, Space};
use crate::irq::{Irq, Level, Redirection, Route};
use crate::layout_check::Region;
use crate::memory::GuestRam;
use crate::messages::Messages;

/// Bytes of the widest access that a guest can make to a device.
const WIDEST_ACCESS: u64 = 8;

/// The bus while devices are put on it.
pub struct Devices<'a> {
    pub bus: Bus,
    pub vm: &'a Arc<VmFd>,
    pub ram: &'a Arc<GuestRam>,
    /// Where their interrupts go, if anywhere.
    pub controller: Option<Controller>,
}

/// What an interrupt controller takes.
pub struct Controller {
    /// Interrupts that are messages.
    pub messages: Arc<Messages>,
    /// Lines that devices have asked for.
    lines: Lines,
}

/// Where lines lead.
enum Lines {
    /// To KVM, which has them wired at last.
    Kvm(Vec<(EventFd, u32)>),
    /// To registers of ours that say which messages they are.
    Redirected(Box<dyn Redirection>, Vec<(u32, Route)>),
}

impl<'a> Devices<'a> {
    /// None yet, of a machine of this kind.
    pub fn new(machine: arch::Machine, vm: &'a Arc<VmFd>, ram: &'a Arc<GuestRam>) -> Self {
        let controller = || Controller {
            messages: Messages::new(vm.clone(), machine),
            lines: match arch::redirection(machine) {
                Some(registers) => Lines::Redirected(registers, Vec::new()),
                None => Lines::Kvm(Vec::new()),
            },
        };
        let controller = machine.has_platform().then(controller);
        Self { bus: Bus::default(), vm, ram, controller }
    }

    /// Puts one device on the bus, unless RAM lies there: the guest would never reach it.
    pub fn insert(
        &mut self,
        at: BusAddr,
        len: u64,
        name: &'static str,
        device: Box<dyn Device>,
    ) -> Result<()> {
        let clash = (at.space == Space::Memory)
            .then(|| {
                self.ram.ranges().iter().find(|r| r.start < at.addr + len && at.addr < r.end())
            })
            .flatten();
        if let Some(range) = clash {
            bail!(
                "{name} at {at} lies in RAM ({:#x}..{:#x}): move one of them",
                range.start,
                range.end()
            );
        }
        self.bus.insert(at, len, name, device)
    }

    /// Puts a device where `option` asked for it: as wide as the widest access, but no wider than
    /// the room before the next device.
    fn insert_asked(
        &mut self,
        option: &str,
        at: BusAddr,
        name: &'static str,
        device: Box<dyn Device>,
    ) -> Result<()> {
        Config::check_address(option, at)?;
        let len = self.bus.room(at).min(WIDEST_ACCESS).min(Config::space_end(at.space) - at.addr);
        self.insert(at, len, name, device)
    }

    /// An interrupt on `line`; none where there is no controller.
    pub fn irq(&mut self, line: u32) -> Result<Irq> {
        let Some(controller) = &mut self.controller else { return Ok(Irq::none()) };
        match &mut controller.lines {
            Lines::Kvm(wires) => {
                let (irq, event) = Irq::with_event()?;
                wires.push((event, line));
                Ok(irq)
            }
            Lines::Redirected(_, lines) => {
                let (irq, route) = controller.messages.vector()?.into_parts();
                lines.push((line, route));
                Ok(irq)
            }
        }
    }

    /// The bus, with all that belongs on it, and what is to be wired to KVM's lines.
    pub fn finish(mut self) -> Result<(Bus, Vec<(EventFd, u32)>)> {
        match self.controller.take().map(|controller| controller.lines) {
            None => Ok((self.bus, Vec::new())),
            Some(Lines::Kvm(wires)) => Ok((self.bus, wires)),
            Some(Lines::Redirected(registers, lines)) => {
                let Region { name, start, len } = registers.place();
                let device = Box::new(Redirected::new(registers, lines));
                self.insert(BusAddr::memory(start), len, name, device)?;
                Ok((self.bus, Vec::new()))
            }
        }
    }

    /// The interrupt line with this number, to be held.
    fn level(&self, line: u32) -> Level {
        let vm = self.vm.clone();
        Level::new(move |high| {
            // The guest runs, so the line's controller is there.
            let _ = arch::set_line(&vm, line, high);
        })
    }

    /// The devices that every machine has, and a debug console if wanted.
    pub fn insert_all(
        &mut self,
        machine: arch::Machine,
        exit_register: BusAddr,
        debug: Option<crate::config::DebugConsole>,
        output: &Arc<Output>,
        input: &Arc<Input>,
    ) -> Result<()> {
        let irq = self.irq(layout::CONSOLE_LINE)?;
        let serial = Serial::new(output.clone(), input.clone(), irq);
        self.insert(layout::CONSOLE, serial::LEN, "console", Box::new(serial))?;
        self.insert(layout::PANIC_REPORT, panic_report::LEN, "pvpanic", Box::new(PanicReport))?;
        self.insert_extras(layout::extras(machine), output, input)?;
        for register in layout::STOP_REGISTERS {
            if self.bus.find(register.at, register.len as usize).is_some() {
                // Within the ports of another device, which knows it.
                continue;
            }
            self.insert(register.at, register.len, register.name, Box::new(*register))?;
        }
        self.insert_asked(
            "--exit-register",
            exit_register,
            "exit register",
            Box::new(ExitRegister),
        )?;
        if let Some(debug) = debug {
            self.insert_debug_console(debug, output, input)?;
        }
        Ok(())
    }

    /// Devices of this kind of machine.
    pub fn insert_extras(
        &mut self,
        extras: &[(Extra, BusAddr)],
        output: &Arc<Output>,
        input: &Arc<Input>,
    ) -> Result<()> {
        for (extra, at) in extras {
            match extra {
                Extra::Pl011 { line } => {
                    let uart = Pl011::new(output.clone(), input.clone(), self.level(*line));
                    self.insert(*at, pl011::LEN, "PL011", Box::new(uart))?;
                }
                Extra::Pl031 => {
                    self.insert(*at, rtc::LEN, "PL031", Box::new(Pl031::default()))?;
                }
                Extra::Cmos => {
                    let cmos = Cmos::new(self.ram.ranges());
                    self.insert(*at, cmos::LEN, "CMOS", Box::new(cmos))?;
                }
                Extra::FixedEvents => {
                    let events = Box::new(FixedEvents::default());
                    self.insert(*at, fixed_events::LEN, "ACPI events", events)?;
                }
                Extra::PciAddress { within } => {
                    let address = Box::new(PciAddress::new(*within, *at));
                    self.insert(*at, pci_address::LEN, "PCI address", address)?;
                }
                Extra::MessageFrame { base, first, count } => {
                    let vm = self.vm.clone();
                    let frame = MessageFrame::new(*base, *first, *count, move |line| {
                        for high in [true, false] {
                            let _ = arch::set_line(&vm, line, high);
                        }
                    });
                    self.insert(*at, message_frame::LEN, "message frame", Box::new(frame))?;
                }
            }
        }
        Ok(())
    }

    fn insert_debug_console(
        &mut self,
        debug: crate::config::DebugConsole,
        output: &Arc<Output>,
        input: &Arc<Input>,
    ) -> Result<()> {
        let at = debug.output;
        let source = debug.input.map(|addr| BusAddr { addr, ..at });
        // What is not in the same place is a device of its own, put there first.
        if let Some(source) = source.filter(|source| *source != at) {
            let device = DebugConsole::new(None, Some(input.clone()), debug.shown);
            self.insert_asked("--debug-console", source, "debug console input", Box::new(device))?;
        }
        let input_here = source.filter(|source| *source == at).map(|_| input.clone());
        let device = DebugConsole::new(Some(output.clone()), input_here, debug.shown);
        self.insert_asked("--debug-console", at, "debug console", Box::new(device))?;
        Ok(())
    }
}
