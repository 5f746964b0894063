//! The device tree that a guest finds in x0.
//!
//! Source: Devicetree Specification v0.4; the bindings under Linux v6.12
//! Documentation/devicetree/bindings (arm/psci.yaml, arm/cpus.yaml, timer/arm,arch_timer.yaml,
//! interrupt-controller/arm,gic{,-v3}.yaml, pci/host-generic-pci.yaml, arm/pmu.yaml, serial/{8250,pl011}.yaml,
//! misc/pvpanic-mmio.txt).

use anyhow::{Context, Result};
use vm_fdt::{Error, FdtWriter};

use super::features::Features;
use super::{layout, mode};
use crate::board::{Board, Kernel, Pci};
use crate::exit::{BusAddr, Space};

/// The interrupt controller that a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gic {
    /// Distributor and CPU interface.
    V2,
    /// Distributor and redistributors.
    V3,
}

/// What every peripheral of Arm's with an identification register is compatible with.
const PRIMECELL: &str = "arm,primecell";

/// Handles of what other nodes refer to.
const GIC_PHANDLE: u32 = 1;
const CLOCK_PHANDLE: u32 = 2;
const MESSAGES_PHANDLE: u32 = 3;

/// The bus clock of `virt`, in Hz. Nothing depends on it.
const BUS_CLOCK: u32 = 24_000_000;

/// Interrupt specifiers (arm,gic.yaml): a private peripheral interrupt, active low.
const PPI: u32 = 1;
const LEVEL_LOW: u32 = 8;

/// Private interrupts of the timers: secure, non-secure, virtual, hypervisor (Arm BSA, "PPI
/// assignments", minus 16).
const TIMER_INTERRUPTS: [u32; 4] = [13, 14, 11, 10];

/// Clock of a PC's serial port, in Hz: 115200 baud times 16.
const UART_CLOCK: u32 = 1_843_200;

/// Interrupt specifiers: a shared peripheral interrupt, on a rising edge or while the line is
/// high. The latter needs a device that holds it until the guest is done (`irq::Level`).
const SPI: u32 = 0;
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// The device tree for `board` and `kernel`, as a blob.
pub fn device_tree(
    board: &Board,
    kernel: &Kernel,
    gic: Gic,
    features: Features,
) -> Result<Vec<u8>> {
    write(board, kernel, gic, features).context("write the device tree")
}

fn write(board: &Board, kernel: &Kernel, gic: Gic, features: Features) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_string("model", "bivisor")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC_PHANDLE)?;

    let chosen = fdt.begin_node("chosen")?;
    // As on `virt`, for firmware and bare-metal code: U-Boot 2023.01 crashes if it has no driver for
    // what this names. To Linux the command line's console, the 16550, is more than this.
    fdt.property_string("stdout-path", &format!("/serial@{:x}", layout::PL011.addr))?;
    fdt.property("bootargs", &[&kernel.cmdline[..], b"\0"].concat())?;
    if let Some(initrd) = kernel.initrd {
        fdt.property_u64("linux,initrd-start", initrd.start)?;
        fdt.property_u64("linux,initrd-end", initrd.end())?;
    }
    fdt.end_node(chosen)?;

    // The PL011 has no alias: Linux would take the number for its own of that kind, and ttyAMA0 is
    // what everybody calls the first.
    let aliases = fdt.begin_node("aliases")?;
    fdt.property_string("serial0", &format!("/serial@{:x}", layout::CONSOLE.addr))?;
    fdt.end_node(aliases)?;

    // What lies below in place of a flash comes last: firmware for `virt` takes the first of these
    // nodes for its RAM.
    let count_below = board.ram.partition_point(|range| range.start < layout::RAM_START);
    let (below, ram) = board.ram.split_at(count_below);
    for range in ram.iter().chain(below) {
        let memory = fdt.begin_node(&format!("memory@{:x}", range.start))?;
        fdt.property_string("device_type", "memory")?;
        fdt.property_array_u64("reg", &[range.start, range.len])?;
        fdt.end_node(memory)?;
    }

    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 0)?;
    for index in 0..board.cpus {
        let affinity = mode::affinity(index);
        let cpu = fdt.begin_node(&format!("cpu@{affinity:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u64("reg", affinity)?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(cpus)?;

    let psci = fdt.begin_node("psci")?;
    fdt.property_string_list("compatible", vec!["arm,psci-1.0".into(), "arm,psci-0.2".into()])?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(psci)?;

    let timer = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    let cells: Vec<u32> = TIMER_INTERRUPTS.iter().flat_map(|n| [PPI, *n, LEVEL_LOW]).collect();
    fdt.property_array_u32("interrupts", &cells)?;
    fdt.property_null("always-on")?;
    fdt.end_node(timer)?;

    if features.pmu {
        let pmu = fdt.begin_node("pmu")?;
        fdt.property_string("compatible", "arm,armv8-pmuv3")?;
        fdt.property_array_u32("interrupts", &[PPI, layout::PMU_PPI, LEVEL_HIGH])?;
        fdt.end_node(pmu)?;
    }

    write_gic(&mut fdt, board, gic)?;

    write_device(&mut fdt, "serial", layout::CONSOLE, 8, &["ns16550a"], |fdt| {
        fdt.property_array_u32("interrupts", &[SPI, layout::CONSOLE_LINE, EDGE_RISING])?;
        fdt.property_u32("clock-frequency", UART_CLOCK)
    })?;
    // A primecell's driver asks for the clock of its bus.
    let clock = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", BUS_CLOCK)?;
    fdt.property_phandle(CLOCK_PHANDLE)?;
    fdt.end_node(clock)?;
    write_device(&mut fdt, "serial", layout::PL011, 0x1000, &["arm,pl011", PRIMECELL], |fdt| {
        fdt.property_array_u32("interrupts", &[SPI, layout::PL011_SPI, LEVEL_HIGH])?;
        fdt.property_array_u32("clocks", &[CLOCK_PHANDLE; 2])?;
        fdt.property_string_list("clock-names", vec!["uartclk".into(), "apb_pclk".into()])
    })?;
    write_device(&mut fdt, "rtc", layout::PL031, 0x1000, &["arm,pl031", PRIMECELL], |fdt| {
        fdt.property_u32("clocks", CLOCK_PHANDLE)?;
        fdt.property_string("clock-names", "apb_pclk")
    })?;
    for seat in &board.virtio {
        write_device(&mut fdt, "virtio", seat.at, seat.len, &["virtio,mmio"], |fdt| {
            fdt.property_null("dma-coherent")?;
            fdt.property_array_u32("interrupts", &[SPI, seat.line, EDGE_RISING])
        })?;
    }
    write_device(&mut fdt, "pvpanic", layout::PANIC_REPORT, 2, &["qemu,pvpanic-mmio"], |_| Ok(()))?;
    write_device(&mut fdt, "exit", board.exit_register, 8, &["bivisor,exit-register"], |_| Ok(()))?;

    if board.pci {
        write_pci(&mut fdt, gic)?;
    }

    fdt.end_node(root)?;
    fdt.finish()
}

/// The host bridge (pci/host-generic-pci.yaml), whose devices' messages go to the controller.
fn write_pci(fdt: &mut FdtWriter, gic: Gic) -> Result<(), Error> {
    /// Cells of an address there begin with what it is: memory of 32 bits (IEEE 1275 PCI bus
    /// binding, "Numerical Representation of Addresses").
    const MEMORY_32: u32 = 0x0200_0000;
    let Pci { config, window } = layout::PCI;
    let node = fdt.begin_node(&format!("pcie@{:x}", config.start))?;
    fdt.property_string("compatible", "pci-host-ecam-generic")?;
    fdt.property_string("device_type", "pci")?;
    fdt.property_array_u64("reg", &[config.start, config.len])?;
    fdt.property_u32("#address-cells", 3)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_array_u32("bus-range", &[0, 0])?;
    fdt.property_u32("linux,pci-domain", 0)?;
    let [start, len] = [window.start, window.len].map(|cells| [(cells >> 32) as u32, cells as u32]);
    let range = [&[MEMORY_32][..], &start, &start, &len].concat();
    fdt.property_array_u32("ranges", &range)?;
    fdt.property_null("dma-coherent")?;
    match gic {
        Gic::V2 => fdt.property_u32("msi-parent", MESSAGES_PHANDLE)?,
        // Each of the bus's functions is itself there.
        Gic::V3 => fdt.property_array_u32("msi-map", &[0, MESSAGES_PHANDLE, 0, 0x100])?,
    }
    fdt.end_node(node)
}

fn write_gic(fdt: &mut FdtWriter, board: &Board, gic: Gic) -> Result<(), Error> {
    let distributor = layout::GIC_DISTRIBUTOR;
    let (compatible, rest, rest_len) = match gic {
        Gic::V2 => ("arm,cortex-a15-gic", layout::GIC_CPU_INTERFACE, layout::GIC_CPU_INTERFACE.len),
        Gic::V3 => {
            let len = board.cpus as u64 * layout::GIC_REDISTRIBUTOR_LEN;
            ("arm,gic-v3", layout::GIC_REDISTRIBUTORS, len)
        }
    };
    let node = fdt.begin_node(&format!("interrupt-controller@{:x}", distributor.start))?;
    fdt.property_string("compatible", compatible)?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_array_u64("reg", &[distributor.start, distributor.len, rest.start, rest_len])?;
    fdt.property_phandle(GIC_PHANDLE)?;
    let (part, compatible) = match gic {
        // An interrupt map would look for it (2.4.3 "Interrupt Nexus Properties"); nothing lies below.
        Gic::V2 if !board.pci => {
            fdt.property_u32("#address-cells", 0)?;
            return fdt.end_node(node);
        }
        Gic::V2 => (layout::GIC_FRAME, "arm,gic-v2m-frame"),
        Gic::V3 => (layout::GIC_ITS, "arm,gic-v3-its"),
    };
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    let messages = fdt.begin_node(&format!("msi-controller@{:x}", part.start))?;
    fdt.property_string("compatible", compatible)?;
    fdt.property_null("msi-controller")?;
    if gic == Gic::V3 {
        fdt.property_u32("#msi-cells", 1)?;
    }
    fdt.property_array_u64("reg", &[part.start, part.len])?;
    if board.pci {
        fdt.property_phandle(MESSAGES_PHANDLE)?;
    }
    fdt.end_node(messages)?;
    fdt.end_node(node)
}

/// One device with a register window of `len` bytes, and `more` properties.
fn write_device(
    fdt: &mut FdtWriter,
    name: &str,
    at: BusAddr,
    len: u64,
    compatible: &[&str],
    more: impl FnOnce(&mut FdtWriter) -> Result<(), Error>,
) -> Result<(), Error> {
    debug_assert_eq!(at.space, Space::Memory, "this architecture has no ports");
    let node = fdt.begin_node(&format!("{name}@{:x}", at.addr))?;
    let names = compatible.iter().map(|name| name.to_string()).collect();
    fdt.property_string_list("compatible", names)?;
    fdt.property_array_u64("reg", &[at.addr, len])?;
    more(fdt)?;
    fdt.end_node(node)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::memory::RamRange;

    /// Every property of a blob by its path, read by the specification's chapter 5, "Flattened
    /// Devicetree (DTB) Format".
    fn properties(blob: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let word = |at: usize| u32::from_be_bytes(blob[at..at + 4].try_into().unwrap()) as usize;
        let text = |at: usize| {
            let end = blob[at..].iter().position(|byte| *byte == 0).unwrap();
            String::from_utf8(blob[at..at + end].to_vec()).unwrap()
        };
        assert_eq!((word(0), word(4)), (0xd00d_feed, blob.len()), "magic and total size");
        let (mut at, strings) = (word(8), word(12));
        let (mut path, mut found) = (vec![], BTreeMap::new());
        loop {
            let token = word(at);
            at += 4;
            match token {
                1 => {
                    path.push(text(at));
                    at = (at + path.last().unwrap().len() + 1).next_multiple_of(4);
                }
                2 => drop(path.pop()),
                3 => {
                    let (len, name) = (word(at), text(strings + word(at + 4)));
                    let value = blob[at + 8..at + 8 + len].to_vec();
                    found.insert(format!("{}/{name}", path.join("/")), value);
                    at = (at + 8 + len).next_multiple_of(4);
                }
                9 => return found,
                other => panic!("token {other} at {at:#x}"),
            }
        }
    }

    fn cells(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    #[test]
    fn the_tree_describes_the_board() {
        let board = Board {
            cpus: 17,
            ram: vec![
                RamRange { start: 0x4000_0000, len: 0x1000_0000 },
                RamRange { start: 0x1_0000_0000, len: 0x2000 },
            ],
            exit_register: BusAddr::memory(0x8000),
            virtio: vec![layout::virtio(0).unwrap(), layout::virtio(15).unwrap()],
            pci: false,
        };
        let initrd = RamRange { start: 0x4800_0000, len: 0x123 };
        let kernel = Kernel {
            cmdline: b"console=ttyS0".to_vec(),
            initrd: Some(initrd),
            ..Kernel::default()
        };
        for (gic, compatible, rest) in [
            (Gic::V2, "arm,cortex-a15-gic\0", [0x0801_0000, 0x1_0000]),
            (Gic::V3, "arm,gic-v3\0", [0x080a_0000, 17 * 0x2_0000]),
        ] {
            let features = Features { pmu: gic == Gic::V3, ..Features::default() };
            let found = properties(&device_tree(&board, &kernel, gic, features).unwrap());
            let expect = |path: &str, value: Vec<u8>| assert_eq!(found[path], value, "{path}");
            expect("/memory@40000000/reg", cells(&[0, 0x4000_0000, 0, 0x1000_0000]));
            expect("/memory@100000000/reg", cells(&[1, 0, 0, 0x2000]));
            expect("/cpus/cpu@0/reg", cells(&[0, 0]));
            expect("/cpus/cpu@100/reg", cells(&[0, 0x100]));
            expect("/cpus/cpu@f/enable-method", b"psci\0".to_vec());
            expect("/psci/method", b"hvc\0".to_vec());
            let pmu = found.get("/pmu/interrupts").cloned();
            assert_eq!(pmu, features.pmu.then(|| cells(&[1, 7, 4])));
            expect("/serial@9100000/reg", cells(&[0, 0x0910_0000, 0, 8]));
            expect("/chosen/stdout-path", b"/serial@9000000\0".to_vec());
            expect("/aliases/serial0", b"/serial@9100000\0".to_vec());
            expect("/serial@9100000/interrupts", cells(&[0, 8, 1]));
            expect("/serial@9000000/interrupts", cells(&[0, 1, 4]));
            expect("/serial@9000000/clock-names", b"uartclk\0apb_pclk\0".to_vec());
            expect("/serial@9000000/compatible", b"arm,pl011\0arm,primecell\0".to_vec());
            expect("/chosen/bootargs", b"console=ttyS0\0".to_vec());
            expect("/chosen/linux,initrd-end", cells(&[0, 0x4800_0123]));
            expect("/exit@8000/compatible", b"bivisor,exit-register\0".to_vec());
            expect("/virtio@a000000/interrupts", cells(&[0, 16, 1]));
            expect("/virtio@a001e00/reg", cells(&[0, 0x0a00_1e00, 0, 0x200]));
            expect("/pvpanic@9120000/reg", cells(&[0, 0x0912_0000, 0, 2]));
            expect("/interrupt-controller@8000000/compatible", compatible.into());
            let [start, len] = rest;
            let reg = cells(&[0, 0x0800_0000, 0, 0x1_0000, 0, start, 0, len]);
            expect("/interrupt-controller@8000000/reg", reg);
            assert_eq!(found.keys().filter(|path| path.starts_with("/cpus/cpu@")).count(), 17 * 4);
        }
    }

    #[test]
    fn the_first_memory_is_where_virt_has_it() {
        let starts = [0, 0x400_0000, layout::RAM_START, 0x1_0000_0000];
        let ram = starts.map(|start| RamRange { start, len: 0x20_0000 }).to_vec();
        let board = Board {
            cpus: 1,
            ram,
            exit_register: layout::EXIT_REGISTER,
            virtio: vec![],
            pci: false,
        };
        let blob = device_tree(&board, &Kernel::default(), Gic::V3, Features::default()).unwrap();
        let at = |start| {
            let name = format!("memory@{start:x}\0");
            blob.windows(name.len()).position(|part| part == name.as_bytes()).unwrap()
        };
        let [low, next, first, second] = starts.map(at);
        assert!(first < second && second < low && low < next);
    }
}
