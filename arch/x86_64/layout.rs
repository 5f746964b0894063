//! Where things are in an x86-64 guest.
//!
//! ```text
//! memory                                    ports
//! 0x0000_0000  RAM (up to 3 GiB)            0x0060, 0x0064  i8042: command 0xfe resets
//! 0xc000_0000  PCI: memory of devices       0x00f4          exit register
//! 0xd000_0000  PCI: configuration of bus 0
//! 0xd800_0000  virtio, 0x200 for each of 16
//! 0xfec0_0000  I/O APIC                     0x03f8          console (16550)
//! 0xfee0_0000  local APICs                  0x0505          pvpanic
//! 0xfffb_c000  KVM's own four pages         0x0604          ACPI PM1a control: power-off
//! 0x1_0000_0000  the rest of RAM            0x0600          ACPI sleep control and status
//!                                           0x060c          ACPI PM1a events (PC)
//!                                           0x0cf9          reset control
//! ```
//!
//! A PC also has the ports of its CMOS (0x70), and KVM those of its timer (0x40, 0x61) and its
//! interrupt controllers (0x20, 0xa0, 0x4d0).

use super::mode::Machine;
use crate::board::{Does, Extra, NoPci, Pci, Seat, StopRegister};
use crate::exit::BusAddr;
use crate::layout_check::{Region, ascending_and_disjoint};
use crate::memory::RamRange;

/// COM1: the base that the PC platform gives the first serial port.
pub const CONSOLE: BusAddr = BusAddr::port(0x3f8);

/// The PC's CMOS: index and data.
const CMOS: BusAddr = BusAddr::port(0x70);
/// The byte of it that holds the century; ACPI's tables tell it.
pub const CMOS_CENTURY: u8 = 0x32;
/// ACPI's PM1a event block. Our choice: behind the control register.
pub const EVENTS: BusAddr = BusAddr::port(0x60c);

/// Devices of this kind of machine alone.
pub fn extras(machine: Machine) -> &'static [(Extra, BusAddr)] {
    match machine {
        Machine::Bare | Machine::Micro | Machine::Linux => &[],
        Machine::Pc => &[(Extra::Cmos, CMOS), (Extra::FixedEvents, EVENTS)],
    }
}

/// COM1's interrupt line.
pub const CONSOLE_LINE: u32 = 4;

/// Where QEMU's isa-debug-exit is usually put, so that guests made for it work.
pub const EXIT_REGISTER: BusAddr = BusAddr::port(0xf4);

/// QEMU's pvpanic (docs/specs/pvpanic.rst).
pub const PANIC_REPORT: BusAddr = BusAddr::port(0x505);

/// Ports are 16 bits wide (SDM vol. 1, "I/O Port Addressing").
pub const PORTS: u64 = 1 << 16;

/// ACPI's sleep control register, and the status register behind it. Our choice: where chipsets
/// have their power management.
pub const SLEEP_CONTROL: BusAddr = BusAddr::port(0x600);
/// ACPI's PM1a control register, where QEMU's q35 has it.
pub const PM1A_CONTROL: BusAddr = BusAddr::port(0x604);
/// Where the PC has the address for its PCI configuration (PCI 3.0, 3.2.2.3.2), around the reset control.
const PCI_ADDRESS: BusAddr = BusAddr::port(0xcf8);
/// The chipset's reset control, and the value that resets all of it.
pub const RESET_CONTROL: BusAddr = BusAddr::port(0xcf9);
/// See [`RESET_CONTROL`].
pub const RESET_VALUE: u8 = 0x6;

/// Intel PCH data sheets, "Reset Control Register": RST_CPU (bit 2) resets.
const RESET: StopRegister = StopRegister {
    name: "reset control",
    at: RESET_CONTROL,
    len: 1,
    mask: 0x4,
    value: 0x4,
    does: Does::Reset,
    reads: 0,
};

/// The PC's registers that switch it off or reset it.
pub const STOP_REGISTERS: &[StopRegister] = &[
    // IBM PC/AT Technical Reference, "Keyboard Controller": command 0xfe pulses the reset line.
    // Its status reads zero: the controller is ready for a command.
    StopRegister {
        name: "i8042 command",
        at: BusAddr::port(0x64),
        len: 1,
        mask: 0xff,
        value: 0xfe,
        does: Does::Reset,
        reads: 0,
    },
    // ACPI 6.5, 4.8.3.2.1 "PM1 Control Registers": SLP_EN (bit 13) with sleep type 0, at the port
    // where QEMU's q35 has it: what small kernels write to switch a virtual machine off.
    StopRegister {
        name: "ACPI PM1a control",
        at: PM1A_CONTROL,
        len: 2,
        mask: 0x3c00,
        value: 0x2000,
        does: Does::PowerOff,
        // SCI_EN: ACPI is on.
        reads: 1,
    },
    // ACPI 6.5, 4.8.3.7 "Sleep Control and Status": SLP_EN (bit 5) with the sleep type of S5.
    StopRegister {
        name: "ACPI sleep control",
        at: SLEEP_CONTROL,
        len: 2,
        mask: 0x3c,
        value: 0x34,
        does: Does::PowerOff,
        reads: 0,
    },
    RESET,
];

/// Start of the hole below 4 GiB that holds devices. Our choice: 1 GiB, room for PCI.
const HOLE: u64 = 0xc000_0000;
/// End of that hole.
const FOUR_GIB: u64 = 1 << 32;

/// The four pages that Intel's virtualization needs for itself (KVM API, KVM_SET_TSS_ADDR and
/// KVM_SET_IDENTITY_MAP_ADDR): the identity map, then three for the task state.
pub const KVM_PAGES: u64 = 0xfffb_c000;

/// Where the I/O APIC is, KVM's or ours (SDM vol. 3A, "APIC"; Intel 82093AA).
pub const IO_APIC: Region = Region { name: "I/O APIC", start: 0xfec0_0000, len: 0x1000 };
/// Where every CPU sees its local APIC.
pub const LOCAL_APIC: u64 = 0xfee0_0000;

/// Memory addresses that are never RAM.
pub const WINDOWS: &[Region] = &[
    PCI.window,
    PCI.config,
    VIRTIO,
    IO_APIC,
    Region { name: "local APICs", start: LOCAL_APIC, len: 0x1000 },
    Region { name: "pages of KVM's own", start: KVM_PAGES, len: 0x4000 },
];
const _: () = assert!(ascending_and_disjoint(WINDOWS));

/// A PCI bus. Our choice: at the hole's start, with room for more devices than it can have, and for
/// more buses.
pub const PCI: Pci = Pci {
    config: Region { name: "PCI configuration", start: 0xd000_0000, len: 1 << 20 },
    window: Region { name: "PCI devices", start: HOLE, len: 16 << 20 },
};

/// Inputs of the I/O APIC: interrupts that are messages count from here.
pub const MESSAGES: u32 = 24;

/// Where virtio devices lie. Our choice: in the middle of the hole, with room for PCI on both sides.
const VIRTIO: Region = Region { name: "virtio devices", start: 0xd800_0000, len: 16 * VIRTIO_LEN };
/// What each takes. Our choice: as on other platforms.
const VIRTIO_LEN: u64 = 0x200;
/// Their inputs of the I/O APIC: first those that a PC uses for nothing, then those that it has for
/// devices that we don't have.
const VIRTIO_LINES: [u32; 16] = [16, 17, 18, 19, 20, 21, 22, 23, 5, 6, 7, 10, 11, 12, 14, 15];

/// Where virtio device number `index` lies.
pub fn virtio(index: usize) -> Option<Seat> {
    let at = BusAddr::memory(VIRTIO.start + index as u64 * VIRTIO_LEN);
    VIRTIO_LINES.get(index).map(|line| Seat { at, len: VIRTIO_LEN, line: *line })
}

/// Where a flat binary goes in real mode. Our choice: the first page past the interrupt vectors
/// and the BIOS's data, whose place many guests overwrite.
pub const REAL_LOAD: u64 = 0x1000;

/// Where a flat binary goes otherwise: 1 MiB, past everything that a PC keeps below.
pub const FLAT_LOAD: u64 = 0x10_0000;

/// Tables go below the end of conventional memory, where kernels seldom load.
pub const TABLES_BELOW: u64 = 0xa_0000;

/// Interrupt vectors of real mode and the BIOS's data, which many kernels read or write.
pub const FIRST_PAGE: RamRange = RamRange { start: 0, len: 0x1000 };

/// Where a bzImage's real-mode part goes, with room for its heap, its stack and the jump to it
/// (Linux v6.12 Documentation/arch/x86/boot.rst, "Sample Boot Configuration").
pub const REAL_MODE_KERNEL: RamRange = RamRange { start: 0x9_0000, len: 0x9000 };

/// What a PC keeps below 1 MiB: the extended BIOS data area, video memory, ROMs. Not for a kernel.
pub const LEGACY: RamRange = RamRange { start: 0x9_fc00, len: 0x6_0400 };
/// Where the ACPI tables lie: in the part of that where a BIOS is, and kernels look for the RSDP
/// (ACPI 6.5, 5.2.5.1 "Finding the RSDP on IA-PC Systems").
pub const ACPI: RamRange = RamRange { start: 0xe_0000, len: 0x1_f000 };
/// Where a CPU in real mode goes on after a reset, as the last resort of kernels that want one: with
/// hardware-reduced ACPI and no EFI it is all that Linux tries.
pub const RESET_VECTOR: u64 = 0xf_fff0;

/// `COMMAND_LINE_SIZE` of Linux on this architecture, less its zero byte.
pub const CMDLINE_MAX: usize = 2047;

/// What Linux is told and finds in a machine without a PCI bus: the address register of one that has no
/// devices, and that it need not look (Linux Documentation/admin-guide/kernel-parameters.txt, `pci=`). Without
/// these words it looks through the bus, in 240 exits; without the register, or by `pci=off`, it complains
/// that there is none, however quiet it was told to be, in 124.
pub const WITHOUT_PCI: NoPci = NoPci {
    cmdline: "pci=conf1,noearly",
    extras: &[(Extra::PciAddress { within: RESET }, PCI_ADDRESS)],
};

/// Past the highest address of an initial RAM disk: what a bzImage's `initrd_addr_max` has said
/// since protocol 2.03.
pub const INITRD_BELOW: u64 = 0x8000_0000;

/// RAM, split around the hole below 4 GiB.
pub fn ram(size: u64) -> Vec<RamRange> {
    if size <= HOLE {
        vec![RamRange { start: 0, len: size }]
    } else {
        vec![RamRange { start: 0, len: HOLE }, RamRange { start: FOUR_GIB, len: size - HOLE }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_never_covers_a_window() {
        for size in [1, HOLE, HOLE + 1, 1 << 40] {
            let ranges = ram(size);
            assert_eq!(ranges.iter().map(|range| range.len).sum::<u64>(), size);
            for range in ranges {
                assert!(WINDOWS.iter().all(|w| w.end() <= range.start || range.end() <= w.start));
            }
        }
    }
}
