//! The boundary between the core and the architectures. Exactly one architecture is live in a
//! build; the core sees only the names that `contract` lists, never which one it got.
//!
//! The pure halves (address maps, tables, register names and ids, exit decoding) build on every
//! host, so both architectures are tested everywhere; only the halves that issue ioctls are
//! selected. To add an architecture: a folder, a line in each of the two blocks below, and what
//! the pins then ask for.

// Both pure halves build under test, and for fuzzing, on any host; a normal build holds only its own.
#[cfg(any(test, fuzzing, target_arch = "aarch64"))]
#[cfg_attr(not(target_arch = "aarch64"), allow(dead_code, unused_imports))]
mod aarch64;
mod exits;
pub mod formats;
mod new_vm;
mod routes;
mod run_page;
pub use run_page::Ring;
#[cfg(any(test, fuzzing, target_arch = "x86_64"))]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_imports))]
mod x86_64;

cfg_if::cfg_if! {
    if #[cfg(target_arch = "x86_64")] {
        pub use x86_64::{gdb::*, kvm::*, layout, *};
        #[path = "../guests/x86_64/mod.rs"]
        pub mod guests;
    } else if #[cfg(target_arch = "aarch64")] {
        pub use aarch64::{gdb::*, kvm::*, layout, *};
        #[path = "../guests/aarch64/mod.rs"]
        pub mod guests;
    } else {
        compile_error!("no guest architecture for this host: see arch/mod.rs");
    }
}

/// What fuzz targets (`fuzz/`) call beside the library's own names, of both architectures.
#[cfg(any(test, fuzzing))]
pub mod fuzzing {
    pub use super::aarch64::{RULES as AARCH64, fdt, features};
    pub use super::x86_64::{Machine, Mode, RULES as X86_64, boot::first_state};
}

/// The contract, checked where it is read: each line names what every architecture defines, with
/// its type. A missing or mistyped name fails here and not in the core.
mod contract {
    use anyhow::Result;
    use gdbstub::arch::Arch;
    use kvm_ioctls::{Kvm, VmFd};
    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::board::{
        Board, Extra, Finding, Message, NoPci, Pci, Seat, Start, StopRegister, Takes,
    };
    use crate::debug::{Hardware, Slots, Trap};
    use crate::exit::BusAddr;
    use crate::irq::Redirection;
    use crate::kick::Kick;
    use crate::layout_check::Region;
    use crate::memory::{GuestRam, RamRange};
    use crate::payload::load::Rules;
    use crate::places::Places;
    use crate::run::Run;

    /// The name in verdicts, in `check` and in target triples.
    const _: &str = NAME;
    /// Where the devices that every machine has lie.
    const _: [BusAddr; 3] = [layout::CONSOLE, layout::EXIT_REGISTER, layout::PANIC_REPORT];
    /// Where virtio devices lie, the first one first.
    const _: fn(usize) -> Option<Seat> = layout::virtio;
    /// Where a PCI bus lies, if the machine has one.
    const _: Pci = layout::PCI;
    /// The first number of an interrupt that is a message; those below are lines.
    const _: u32 = layout::MESSAGES;
    /// Devices of this kind of machine alone.
    const _: fn(Machine) -> &'static [(Extra, BusAddr)] = layout::extras;
    /// The platform's own ways to be switched off or reset.
    const _: &[StopRegister] = layout::STOP_REGISTERS;
    /// Memory addresses that KVM or a device takes and RAM therefore may not cover.
    const _: &[Region] = layout::WINDOWS;
    /// Ports: the addresses of the port space are below it.
    const _: u64 = layout::PORTS;
    /// The RAM of a machine that has so many bytes of it.
    const _: fn(u64) -> Vec<RamRange> = layout::ram;
    /// Past the highest guest-physical address that this host can give a guest.
    const _: fn(&Kvm) -> u64 = address_limit;

    /// Bytes of a kernel's command line at the most, without its zero byte.
    const _: usize = layout::CMDLINE_MAX;
    /// What Linux is told and finds in a machine without a PCI bus.
    const _: NoPci = layout::WITHOUT_PCI;

    /// The kind of machine for a guest that starts so and takes this, if this one was asked for.
    const _: fn(Mode, Option<Machine>, Takes) -> Machine = Mode::machine;
    /// RAM in which such a guest finds nothing of ours but what has to be there.
    const _: fn(Mode) -> &'static [RamRange] = Mode::avoids;
    /// The kinds of machines that can be asked for, by name.
    const _: &[(&str, Machine)] = Machine::NAMED;
    /// True if such a machine has interrupt controllers and tables that tell what it has.
    const _: fn(Machine) -> bool = Machine::has_platform;
    /// The modes that a guest can start in, by name.
    const _: &[(&str, Mode)] = Mode::NAMED;
    /// How images start: which mode, and where flat ones go.
    const _: Rules<Mode> = RULES;
    /// The register with this name, and its width in bits.
    const _: fn(&str) -> Option<(Register, u32)> = register;
    /// Names of registers, for messages.
    const _: &str = REGISTER_NAMES;

    // In the order in which `Machine::build` calls them.
    /// Creates a VM whose guest-physical addresses end at the given one or above.
    const _: fn(&Kvm, u64) -> Result<VmFd> = create_vm;
    /// What must exist before any vCPU does, for so many CPUs of this kind of machine; called after
    /// the memory slots.
    const _: fn(&Kvm, &VmFd, usize, Machine) -> Result<Chips> = before_vcpus;
    /// Places the tables that a guest expects and works out its first registers.
    const _: Prepare = prepare;
    type Prepare =
        fn(&GuestRam, &mut Places, &Board, &Start<Mode, Register>, &Chips) -> Result<Entry>;
    /// Creates one vCPU; number 0 starts at the entry, the others wait for it.
    const _: fn(&VmFd, &Chips, usize, &Entry) -> Result<Vcpu> = Vcpu::new;
    /// What must wait until every vCPU exists.
    const _: fn(&Chips, &[Vcpu]) -> Result<()> = after_vcpus;
    /// The console's interrupt line.
    const _: u32 = layout::CONSOLE_LINE;
    /// Registers by which a guest says what message each line is, where KVM has no lines; only where
    /// [`Machine::has_platform`].
    const _: fn(Machine) -> Option<Box<dyn Redirection>> = redirection;
    /// Makes a write to the event an edge on an interrupt line; called last, and only where
    /// [`Machine::has_platform`] and there is no [`redirection`].
    const _: fn(&VmFd, &EventFd, u32) -> Result<()> = wire;
    /// Makes an interrupt line high or low, as long as it stays so; likewise. Lines have the
    /// architecture's numbers.
    const _: fn(&VmFd, u32, bool) -> Result<()> = set_line;
    /// Devices that a machine has besides if it has a PCI bus.
    const _: fn(&Chips) -> &'static [(Extra, BusAddr)] = pci_extras;
    /// What interrupt numbers stand for from now on: these messages, and lines as ever where KVM has
    /// them; only where [`Machine::has_platform`]. An error leaves all as it was.
    const _: Routes = route;
    type Routes = fn(&VmFd, Machine, &[(u32, Message)]) -> Result<()>;
    /// What makes the vCPU leave the guest.
    const _: fn(&mut Vcpu) -> Kick = Vcpu::kick;
    /// What KVM keeps of coalesced writes, where pages of the host have so many bytes.
    const _: fn(&Vcpu, usize) -> Ring = Vcpu::ring;
    const fn runs<T: Run + Send>() {}
    const _: () = runs::<Vcpu>();

    // What a debugger needs.
    /// What gdb is told about registers.
    const fn describes<T: Arch<Usize = u64, BreakpointKind = usize>>() {}
    const _: () = describes::<GdbArch>();
    type Registers = <GdbArch as Arch>::Registers;
    /// All registers that gdb shows, read and written.
    const _: fn(&Vcpu) -> Result<Registers> = Vcpu::gdb_registers;
    const _: fn(&Vcpu, &Registers) -> Result<()> = Vcpu::set_gdb_registers;
    /// The virtual address of the next instruction.
    const _: fn(&Vcpu) -> Result<u64> = Vcpu::code_address;
    /// The guest-physical address of a virtual one, if it is mapped.
    const _: fn(&Vcpu, &GuestRam, u64) -> Result<Option<u64>> = Vcpu::translate;
    /// The instruction that is a breakpoint. Where one can stand is aligned to its length.
    const _: &[u8] = BREAKPOINT;
    /// Makes code that was written at a guest-physical address visible to the guest.
    const _: fn(&GuestRam, u64, usize) = code_written;
    /// Debug registers that KVM lets us use.
    const _: fn(&Kvm, &VmFd) -> Slots = debug_slots;
    /// The debug registers that wait for all of this, if there are enough.
    const _: fn(&[Hardware], Slots) -> Option<DebugRegisters> = debug_registers;
    /// Has the vCPU stop after one instruction (the first flag), at [`BREAKPOINT`] (the second) and
    /// for what the registers wait for. Those of the default wait for nothing.
    const _: fn(&mut Vcpu, bool, bool, &DebugRegisters) -> Result<()> = Vcpu::debug;
    /// Gives the guest what caused a trap and was meant for it; only right after that trap.
    const _: fn(&mut Vcpu, Trap) -> Result<()> = Vcpu::give_back;

    /// Where the register with a system call's result lies in a signal's context: bytes from its start.
    const _: usize = SIGNAL_RESULT;
    /// This machine where a filter is told whose system calls they are.
    const _: u32 = AUDIT;
    /// What only this architecture's hosts have to tell.
    const _: fn(&Kvm) -> Vec<Finding> = findings;
    /// The embedded guests.
    const _: fn() -> &'static [crate::guests::Guest] = guests::all;
}
