//! Where things are in an aarch64 guest: as on QEMU's `virt` board where that has the thing, so
//! that bare-metal code made for it finds them.
//!
//! ```text
//! 0x0000_0000  nothing (virt has its flash here)
//! 0x0800_0000  GIC distributor
//! 0x0801_0000  GICv2 CPU interface
//! 0x0802_0000  GICv2m frame
//! 0x0808_0000  GICv3 interrupt translation service
//! 0x080a_0000  GICv3 redistributors, 128 KiB for each of 123 CPUs
//! 0x0900_0000  PL011, on the same console
//! 0x0901_0000  PL031
//! 0x0910_0000  console (16550)
//! 0x0911_0000  exit register
//! 0x0912_0000  pvpanic
//! 0x0913_0000  exception vectors for a guest that has none yet, read-only
//! 0x0914_0000  where those vectors tell that one was taken
//! 0x0a00_0000  virtio devices, 0x200 for each of 16
//! 0x1000_0000  PCI: memory of devices
//! 0x3f00_0000  PCI: configuration of bus 0
//! 0x4000_0000  RAM; a flat image at +0x8_0000
//! ```

use super::mode::Machine;
use crate::board::{Extra, NoPci, Pci, Seat, StopRegister};
use crate::exit::BusAddr;
use crate::layout_check::{Region, ascending_and_disjoint};
use crate::memory::RamRange;

/// Where `virt` has the distributor of either version.
pub const GIC_DISTRIBUTOR: Region =
    Region { name: "GIC distributor", start: 0x0800_0000, len: 0x1_0000 };
/// Where `virt` has the GICv2 CPU interface.
pub const GIC_CPU_INTERFACE: Region =
    Region { name: "GIC CPU interface", start: 0x0801_0000, len: 0x1_0000 };
/// Where `virt` has the frame of GICv2m, which makes interrupts of messages.
pub const GIC_FRAME: Region = Region { name: "GICv2m frame", start: 0x0802_0000, len: PAGE };
/// The shared interrupts that are the frame's. Our choice: all behind those of devices.
pub const FRAME_SPIS: (u32, u32) = (32, MESSAGES - 32);
/// Where `virt` has the GICv3 redistributors.
pub const GIC_REDISTRIBUTORS: Region =
    Region { name: "GIC redistributors", start: 0x080a_0000, len: 0x00f6_0000 };
/// Where `virt` has the GICv3 interrupt translation service.
pub const GIC_ITS: Region = Region { name: "GIC ITS", start: 0x0808_0000, len: 0x2_0000 };
/// Bytes of one CPU's redistributor: the RD and the SGI frame (Arm IHI 0069, "GIC Redistributor
/// register map").
pub const GIC_REDISTRIBUTOR_LEN: u64 = 0x2_0000;

/// Where `virt` has its UART: bare-metal code made for that board prints there.
pub const PL011: BusAddr = BusAddr::memory(0x0900_0000);
/// Its shared interrupt there.
pub const PL011_SPI: u32 = 1;
/// Where `virt` has its clock.
pub const PL031: BusAddr = BusAddr::memory(0x0901_0000);

/// Devices of this platform alone.
pub fn extras(_: Machine) -> &'static [(Extra, BusAddr)] {
    &[(Extra::Pl011 { line: PL011_SPI }, PL011), (Extra::Pl031, PL031)]
}

/// Our choice: past what `virt` has at 0x0900_0000 (a PL011, an RTC and more), a page of its own.
pub const CONSOLE: BusAddr = BusAddr::memory(0x0910_0000);
/// The console's shared interrupt. Our choice: that of a second UART on `virt`.
pub const CONSOLE_LINE: u32 = 8;
/// The PMU's private interrupt (Arm BSA, "PPI assignments": INTID 23).
pub const PMU_PPI: u32 = 7;
/// Our choice: the next 64 KiB, so that a guest with pages of that size maps each device alone.
pub const EXIT_REGISTER: BusAddr = BusAddr::memory(0x0911_0000);
/// As above.
pub const PANIC_REPORT: BusAddr = BusAddr::memory(0x0912_0000);

/// Our choice, as above. 64 KiB, since a memory slot is whole pages of the host.
pub const VECTORS: Region = Region { name: "exception vectors", start: 0x0913_0000, len: 0x1_0000 };
/// Our choice: right behind, where a load relative to the pc reaches it.
pub const UNHANDLED: Region =
    Region { name: "unhandled exceptions", start: 0x0914_0000, len: PAGE };

/// Where `virt` has virtio devices, and what each of them takes there.
const VIRTIO: Region = Region { name: "virtio devices", start: 0x0a00_0000, len: 16 * VIRTIO_LEN };
const VIRTIO_LEN: u64 = 0x200;
/// The shared interrupt of the first of them, on `virt` too.
const VIRTIO_SPI: u32 = 16;

/// Where virtio device number `index` lies.
pub fn virtio(index: usize) -> Option<Seat> {
    let start = VIRTIO.start + index as u64 * VIRTIO_LEN;
    let (at, line) = (BusAddr::memory(start), VIRTIO_SPI + index as u32);
    let seat = Seat { at, len: VIRTIO_LEN, line };
    (start < VIRTIO.end()).then_some(seat)
}

/// Where `virt` has its PCI buses: of what is below RAM we take as much as one bus needs.
pub const PCI: Pci = Pci {
    config: Region { name: "PCI configuration", start: 0x3f00_0000, len: 1 << 20 },
    window: Region { name: "PCI devices", start: 0x1000_0000, len: 16 << 20 },
};

/// The frame, on a board that has it.
pub const PCI_EXTRAS: &[(Extra, BusAddr)] = &[(
    Extra::MessageFrame { base: PRIVATE_INTERRUPTS, first: FRAME_SPIS.0, count: FRAME_SPIS.1 },
    BusAddr::memory(GIC_FRAME.start),
)];

/// Interrupts that the controller knows, private ones included. Our choice: 96 shared lines.
pub const INTERRUPTS: u32 = 128;
/// Interrupts that are messages count from here, past the shared lines.
pub const MESSAGES: u32 = INTERRUPTS - PRIVATE_INTERRUPTS;

/// Interrupts that each CPU has for itself; the shared ones follow (Arm IHI 0069, "INTIDs").
pub const PRIVATE_INTERRUPTS: u32 = 32;

/// The shared interrupt that a write of `data` to `guest_addr` makes, if the frame's register is
/// there and the interrupt is the frame's.
pub fn frame_spi(guest_addr: u64, data: u32) -> Option<u32> {
    /// MSI_SETSPI_NS (Arm Server Base System Architecture, DEN 0029, "GICv2m Architecture").
    const SETSPI: u64 = 0x40;
    let (first, count) = FRAME_SPIS;
    let spi = data.checked_sub(PRIVATE_INTERRUPTS)?;
    let own = (first..first + count).contains(&spi);
    (guest_addr == GIC_FRAME.start + SETSPI && own).then_some(spi)
}

/// A shared interrupt as KVM_IRQ_LINE names it (KVM API): the kind from bit 24 on, then the INTID.
pub const fn irq_line(spi: u32) -> u32 {
    const KIND_SPI: u32 = 1;
    KIND_SPI << 24 | (PRIVATE_INTERRUPTS + spi)
}

/// Interrupts in each of the registers GICD_ICFGR (Arm IHI 0069, "GICD_ICFGR<n>").
pub const CONFIGURED: u32 = 16;

/// Such a register if all are edges: two bits for each, of which the upper one says so.
pub const EDGES: u32 = 0xaaaa_aaaa;

/// The register with this number as a guest finds it. All are edges but the PL011's: on `virt` it is
/// a level, and code for that board does not say so itself.
pub const fn icfgr(register: u32) -> u32 {
    let intid = PRIVATE_INTERRUPTS + PL011_SPI;
    if intid / CONFIGURED == register { EDGES & !(0b11 << (intid % CONFIGURED * 2)) } else { EDGES }
}

/// Bytes that a device's page takes.
const PAGE: u64 = 0x1000;

/// There is no port space.
pub const PORTS: u64 = 0;

/// PSCI does it.
pub const STOP_REGISTERS: &[StopRegister] = &[];

/// Memory addresses that are never RAM.
pub const WINDOWS: &[Region] = &[
    GIC_DISTRIBUTOR,
    GIC_CPU_INTERFACE,
    GIC_FRAME,
    GIC_ITS,
    GIC_REDISTRIBUTORS,
    Region { name: "PL011", start: PL011.addr, len: PAGE },
    Region { name: "PL031", start: PL031.addr, len: PAGE },
    Region { name: "console", start: CONSOLE.addr, len: PAGE },
    Region { name: "pvpanic", start: PANIC_REPORT.addr, len: PAGE },
    VECTORS,
    UNHANDLED,
    VIRTIO,
    PCI.window,
    PCI.config,
];
const _: () = assert!(ascending_and_disjoint(WINDOWS));

/// Where `virt` has RAM.
pub const RAM_START: u64 = 0x4000_0000;

/// Where a flat image goes, from the start of RAM: what kernels without an `Image` header were
/// linked for since the first arm64 Linux (its `TEXT_OFFSET`).
pub const FLAT_OFFSET: u64 = 0x8_0000;

/// The device tree lies no higher than this above the start of RAM, so that early code reaches it
/// with few page tables (Linux v4.1 Documentation/arm64/booting.txt: within 512 MiB).
pub const FDT_REACH: u64 = 512 << 20;

/// `COMMAND_LINE_SIZE` of Linux on this architecture, less its zero byte.
pub const CMDLINE_MAX: usize = 2047;

/// What Linux is told in a machine without a PCI bus: nothing, as it looks for none but that of the device
/// tree.
pub const WITHOUT_PCI: NoPci = NoPci { cmdline: "", extras: &[] };

/// In one gigabyte-aligned window of 32 GiB with the kernel (Linux v6.12
/// Documentation/arch/arm64/booting.rst); RAM begins at such an address or below it.
pub fn initrd_below(ram_start: u64) -> u64 {
    (ram_start & !((1 << 30) - 1)).saturating_add(32 << 30)
}

/// RAM is one piece.
pub fn ram(size: u64) -> Vec<RamRange> {
    vec![RamRange { start: RAM_START, len: size }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uart_interrupts_as_on_virt() {
        assert_eq!((irq_line(PL011_SPI), irq_line(0)), (0x0100_0021, 0x0100_0020));
        assert_eq!([1, 2, 3].map(icfgr), [0xaaaa_aaaa, 0xaaaa_aaa2, 0xaaaa_aaaa]);
    }

    #[test]
    fn the_frame_has_its_own_interrupts_alone() {
        let register = GIC_FRAME.start + 0x40;
        for (guest_addr, data, spi) in [
            (register, 64, Some(32)),
            (register, 127, Some(95)),
            (register, 63, None),
            (register, 128, None),
            (register, 0, None),
            (register, u32::MAX, None),
            (register + 4, 64, None),
            (1 << 32 | register, 64, None),
        ] {
            assert_eq!(frame_spi(guest_addr, data), spi, "{guest_addr:#x} {data}");
        }
    }

    #[test]
    fn ram_lies_past_every_window() {
        assert!(WINDOWS.iter().all(|window| window.end() <= ram(1)[0].start));
    }
}
