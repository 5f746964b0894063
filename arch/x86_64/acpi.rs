//! ACPI tables: what a kernel learns about CPUs, interrupts, the console and how to switch off.
//!
//! The micro machine is hardware-reduced, and says what it does *not* have: no CMOS clock, no
//! keyboard controller to probe, no VGA. Each of these would cost a stock kernel seconds of looking
//! for it. A PC has its clock, its timer and its interrupt controllers, and so ACPI's fixed registers.
//!
//! Source: ACPI 6.5, 5.2 "ACPI System Description Tables" and 4.8.3.7 "Sleep Control and Status".

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name,
    Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{self, AccessSize, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};

use super::layout;
use super::mode::Machine;
use crate::board::{Board, Pci, Seat};
use crate::exit::BusAddr;

const OEM: [u8; 6] = *b"BIVISR";
const OEM_TABLE: [u8; 8] = *b"BIVISOR ";
const OEM_REVISION: u32 = 1;

/// FADT "IA-PC Boot Architecture Flags": devices on an ISA bus, no VGA, no CMOS RTC; a bit that is
/// clear says that there is no 8042.
const LEGACY_DEVICES: u16 = 1 << 0;
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_RTC: u16 = 1 << 5;

/// MADT "Multiple APIC Flags": there are two 8259 besides.
const PCAT_COMPAT: u32 = 1 << 0;

/// The line of ACPI's interrupt, which never comes. Our choice: a PC's.
const SCI: u16 = 9;

/// MADT entry types, and the flag of a CPU that is there.
const LOCAL_APIC: u8 = 0;
const IO_APIC: u8 = 1;
const LOCAL_X2APIC: u8 = 9;
const ENABLED: u32 = 1;

/// The first APIC id that only an x2APIC entry can hold.
const FIRST_X2APIC_ID: u32 = 255;

/// Alignment of each table: what the FACS wants.
const ALIGN: usize = 64;

/// Bytes and version of the FACS (ACPI 6.5, 5.2.10 "Firmware ACPI Control Structure").
const FACS_LEN: usize = 64;
const FACS_VERSION: u8 = 2;

/// Sleep type of S5 in our DSDT for the sleep control register. Our choice: what most boards use.
pub const S5_TYPE: u8 = 5;
/// The same for the PM1a control register of a PC: what QEMU's q35 has.
const S5_TYPE_PC: u8 = 0;

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Every table for `machine` with what is on `board`, to be placed at `at`; the RSDP comes first.
pub fn tables(at: u64, board: &Board, machine: Machine) -> Vec<u8> {
    // The RSDP's room is kept; what it points to follows.
    let mut blob = vec![0; Rsdp::len().next_multiple_of(ALIGN)];
    let mut place = |table: Vec<u8>| {
        let addr = at + blob.len() as u64;
        blob.extend(table);
        blob.resize(blob.len().next_multiple_of(ALIGN), 0);
        addr
    };
    let dsdt = place(dsdt(board, machine));
    let facs = (machine == Machine::Pc).then(|| place(facs()));
    let fadt = place(fadt(dsdt, facs));
    let madt = place(madt(board.cpus, machine));
    let mcfg = board.pci.then(|| place(mcfg()));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for table in [fadt, madt].into_iter().chain(mcfg) {
        xsdt.add_entry(table);
    }
    let xsdt = place(bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM, xsdt));
    blob[..rsdp.len()].copy_from_slice(&rsdp);
    blob
}

/// The console, other devices, and the sleep state in which the machine is off.
fn dsdt(board: &Board, machine: Machine) -> Vec<u8> {
    let console = layout::CONSOLE.addr as u16;
    let hid = Name::new(Path::new("_HID"), &EISAName::new("PNP0501"));
    let uid = Name::new(Path::new("_UID"), &aml::ZERO);
    let ports = IO::new(console, console, 1, 8);
    let line = Interrupt::new(true, true, false, false, layout::CONSOLE_LINE);
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ports, &line]));
    let serial = Device::new(Path::new("COM1"), vec![&hid, &uid, &resources]);
    // QEMU docs/specs/pvpanic.rst, "ACPI Interface".
    let hid = Name::new(Path::new("_HID"), &"QEMU0001");
    let panic = layout::PANIC_REPORT.addr as u16;
    let port = IO::new(panic, panic, 1, 1);
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&port]));
    let panic = Device::new(Path::new("PEVT"), vec![&hid, &resources]);
    let bus = Scope::new(Path::new("\\_SB_"), vec![&serial, &panic]);
    let virtio: Vec<_> = board.virtio.iter().enumerate().flat_map(virtio).collect();
    let s5_type = if machine == Machine::Pc { S5_TYPE_PC } else { S5_TYPE };
    let s5 = Name::new(Path::new("\\_S5_"), &Package::new(vec![&s5_type, &aml::ZERO]));
    let mut sdt = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, OEM_REVISION);
    sdt.append_slice(&bytes(&bus));
    sdt.append_slice(&virtio);
    if board.pci {
        sdt.append_slice(&pci());
    }
    sdt.append_slice(&bytes(&s5));
    sdt.as_slice().to_vec()
}

/// One virtio device behind registers in memory, with the id that Linux gave it (v6.12
/// drivers/virtio/virtio_mmio.c).
fn virtio((index, seat): (usize, &Seat)) -> Vec<u8> {
    let hid = Name::new(Path::new("_HID"), &"LNRO0005");
    let uid = Name::new(Path::new("_UID"), &(index as u32));
    // DMA sees what the CPUs' caches hold.
    let coherent = Name::new(Path::new("_CCA"), &aml::ONE);
    let registers = Memory32Fixed::new(true, seat.at.addr as u32, seat.len as u32);
    let line = Interrupt::new(true, true, false, false, seat.line);
    let resources = ResourceTemplate::new(vec![&registers, &line]);
    let resources = Name::new(Path::new("_CRS"), &resources);
    let name = format!("VR{index:02}");
    let device = Device::new(Path::new(&name), vec![&hid, &uid, &coherent, &resources]);
    bytes(&Scope::new(Path::new("\\_SB_"), vec![&device]))
}

/// The host bridge of a PCI bus without pins or ports. Its configuration space is also what a board's
/// resources name: else Linux does not believe the MCFG (v6.12 arch/x86/pci/mmconfig-shared.c).
fn pci() -> Vec<u8> {
    let Pci { config, window } = layout::PCI;
    let hid = Name::new(Path::new("_HID"), &EISAName::new("PNP0C02"));
    let uid = Name::new(Path::new("_UID"), &aml::ONE);
    let registers = Memory32Fixed::new(true, config.start as u32, config.len as u32);
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&registers]));
    let board = Device::new(Path::new("MB00"), vec![&hid, &uid, &resources]);

    let hid = Name::new(Path::new("_HID"), &EISAName::new("PNP0A08"));
    let cid = Name::new(Path::new("_CID"), &EISAName::new("PNP0A03"));
    let [uid, segment, bus] =
        ["_UID", "_SEG", "_BBN"].map(|name| Name::new(Path::new(name), &aml::ZERO));
    let coherent = Name::new(Path::new("_CCA"), &aml::ONE);
    let buses = AddressSpace::new_bus_number(0u16, 0);
    let (first, last) = (window.start as u32, (window.end() - 1) as u32);
    let memory =
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None);
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&buses, &memory]));
    let names: Vec<&dyn Aml> = vec![&hid, &cid, &uid, &segment, &bus, &coherent, &resources];
    let bridge = Device::new(Path::new("PCI0"), names);
    bytes(&Scope::new(Path::new("\\_SB_"), vec![&board, &bridge]))
}

/// Where the configuration space of the bus is (PCI Firmware Specification 3.3, 4.1.2 "MCFG Table
/// Description").
fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(layout::PCI.config.start, 0, 0, 0);
    bytes(&mcfg)
}

/// The table with which a system shares the fixed registers; it has neither a checksum nor, here,
/// anything to say.
fn facs() -> Vec<u8> {
    let mut facs = vec![0; FACS_LEN];
    facs[..4].copy_from_slice(b"FACS");
    facs[4] = FACS_LEN as u8;
    facs[32] = FACS_VERSION;
    facs
}

/// Without a `facs`, of hardware-reduced ACPI.
fn fadt(dsdt: u64, facs: Option<u64>) -> Vec<u8> {
    let register = |at: BusAddr, bits: u8| {
        let access = if bits == 8 { AccessSize::ByteAccess } else { AccessSize::WordAccess };
        GAS::new(gas::AddressSpace::SystemIo, bits, 0, access, at.addr)
    };
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.reset_reg = register(layout::RESET_CONTROL, 8);
    fadt.reset_value = layout::RESET_VALUE;
    if let Some(facs) = facs {
        fadt.firmware_ctrl = (facs as u32).into();
        fadt.iapc_boot_arch = (LEGACY_DEVICES | NO_VGA).into();
        fadt.sci_int = SCI.into();
        fadt.pm1a_evt_blk = (layout::EVENTS.addr as u32).into();
        fadt.pm1a_cnt_blk = (layout::PM1A_CONTROL.addr as u32).into();
        fadt.x_pm1a_evt_blk = register(layout::EVENTS, 32);
        fadt.x_pm1a_cnt_blk = register(layout::PM1A_CONTROL, 16);
        (fadt.pm1_evt_len, fadt.pm1_cnt_len) = (4, 2);
        fadt.century = layout::CMOS_CENTURY;
    } else {
        fadt = fadt.flag(Flags::HwReducedAcpi);
        fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_RTC).into();
        fadt.sleep_control_reg = register(layout::SLEEP_CONTROL, 8);
        fadt.sleep_status_reg = register(BusAddr::port(layout::SLEEP_CONTROL.addr + 1), 8);
    }
    bytes(&fadt.finalize())
}

/// One local APIC for each CPU, and the I/O APIC.
fn madt(cpus: usize, machine: Machine) -> Vec<u8> {
    let mut sdt = Sdt::new(*b"APIC", 36, 5, OEM, OEM_TABLE, OEM_REVISION);
    let flags = if machine == Machine::Pc { PCAT_COMPAT } else { 0 };
    let apic = layout::LOCAL_APIC as u32;
    // In one piece: with each the checksum of the whole table is made anew.
    let mut body = [apic.to_le_bytes(), flags.to_le_bytes()].concat();
    for cpu in 0..cpus as u32 {
        if cpu < FIRST_X2APIC_ID {
            body.extend([LOCAL_APIC, 8, cpu as u8, cpu as u8]);
            body.extend(ENABLED.to_le_bytes());
        } else {
            body.extend([LOCAL_X2APIC, 16, 0, 0]);
            body.extend([cpu, ENABLED, cpu].map(u32::to_le_bytes).as_flattened());
        }
    }
    body.extend([IO_APIC, 12, 0, 0]);
    body.extend([layout::IO_APIC.start as u32, 0].map(u32::to_le_bytes).as_flattened());
    sdt.append_slice(&body);
    sdt.as_slice().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 0xe_0000;

    fn board(cpus: usize) -> Board {
        let virtio = vec![layout::virtio(0).unwrap(), layout::virtio(15).unwrap()];
        Board { cpus, ram: vec![], exit_register: layout::EXIT_REGISTER, virtio, pci: false }
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// The table at `addr`, whose checksum must be right.
    fn table(blob: &[u8], addr: u64) -> &[u8] {
        let start = (addr - AT) as usize;
        let len = u32_at(blob, start + 4) as usize;
        let table = &blob[start..start + len];
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "checksum");
        table
    }

    #[test]
    fn the_tables_lead_from_the_rsdp_to_every_cpu() {
        for cpus in [1, 2, 255, 256, 300] {
            let blob = tables(AT, &board(cpus), Machine::Micro);
            assert_eq!(&blob[..8], b"RSD PTR ");
            let xsdt = table(&blob, u64_at(&blob, 24));
            let found: Vec<_> = (36..xsdt.len()).step_by(8).map(|at| u64_at(xsdt, at)).collect();
            let [fadt, madt] = [table(&blob, found[0]), table(&blob, found[1])];
            assert_eq!((&fadt[..4], &madt[..4]), (&b"FACP"[..], &b"APIC"[..]));
            let dsdt = table(&blob, u64_at(fadt, 140));
            assert_eq!(&dsdt[..4], b"DSDT");
            // A device's registers: a fixed range of 32 bits (ACPI 6.5, 6.4.3.4).
            for start in [0xd800_0000u32, 0xd800_1e00] {
                let range = [start, 0x200].map(u32::to_le_bytes).concat();
                let range = [&[0x86, 9, 0, 1][..], &range].concat();
                assert!(dsdt.windows(range.len()).any(|bytes| bytes == range), "{start:#x}");
            }
            let mut at = 44;
            let mut ids = vec![];
            while at < madt.len() {
                match madt[at] {
                    LOCAL_APIC => ids.push(u32::from(madt[at + 3])),
                    LOCAL_X2APIC => ids.push(u32_at(madt, at + 4)),
                    IO_APIC => assert_eq!(u32_at(madt, at + 4), 0xfec0_0000),
                    other => panic!("entry type {other}"),
                }
                at += usize::from(madt[at + 1]);
            }
            assert_eq!(ids, (0..cpus as u32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_fadt_says_what_is_not_there_and_how_to_end() {
        let blob = tables(AT, &board(1), Machine::Micro);
        let xsdt = table(&blob, u64_at(&blob, 24));
        let fadt = table(&blob, u64_at(xsdt, 36));
        assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), NO_VGA | NO_CMOS_RTC);
        assert_eq!(u32_at(fadt, 112) & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
        assert_eq!((u64_at(fadt, 120), fadt[128]), (0xcf9, 6));
        assert_eq!(u64_at(fadt, 248), 0x600);
    }

    #[test]
    fn a_pci_bus_is_told_where_there_is_one() {
        let has = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|found| found == part);
        for pci in [false, true] {
            let blob = tables(AT, &Board { pci, ..board(1) }, Machine::Micro);
            let xsdt = table(&blob, u64_at(&blob, 24));
            assert_eq!(xsdt.len(), 36 + 8 * if pci { 3 } else { 2 });
            let dsdt = table(&blob, u64_at(table(&blob, u64_at(xsdt, 36)), 140));
            // EISA ids (ACPI 6.5, 19.3.4 "ASL Macros"): PNP0A08, PNP0C02.
            let [bridge, motherboard] = [[0x41, 0xd0, 0x0a, 0x08], [0x41, 0xd0, 0x0c, 0x02]];
            // 6.4.3.5: bus numbers from 0 to 0, memory from 0xc000_0000 to 0xc0ff_ffff.
            let buses = [&[0x88, 13, 0, 2, 0xc, 0][..], &[0; 8], &[1, 0]].concat();
            let memory = [0, 0xc000_0000u32, 0xc0ff_ffff, 0, 0x0100_0000].map(u32::to_le_bytes);
            let memory = [&[0x87, 23, 0, 0, 0xc, 1][..], memory.as_flattened()].concat();
            // 6.4.3.4: what the MCFG names is in use.
            let config = [0xd000_0000u32, 0x10_0000].map(u32::to_le_bytes);
            let config = [&[0x86, 9, 0, 1][..], config.as_flattened()].concat();
            for part in [&bridge[..], &motherboard, &buses, &memory, &config] {
                assert_eq!(has(dsdt, part), pci, "{part:x?}");
            }
            if pci {
                let mcfg = table(&blob, u64_at(xsdt, 52));
                let start = layout::PCI.config.start.to_le_bytes();
                assert_eq!((&mcfg[..4], mcfg.len()), (&b"MCFG"[..], 60));
                assert_eq!((&mcfg[44..52], &mcfg[52..]), (&start[..], &[0; 8][..]));
            }
        }
    }

    #[test]
    fn a_pc_s_tables_say_what_is_there() {
        let blob = tables(AT, &board(1), Machine::Pc);
        let xsdt = table(&blob, u64_at(&blob, 24));
        let fadt = table(&blob, u64_at(xsdt, 36));
        assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), LEGACY_DEVICES | NO_VGA);
        assert_eq!(u32_at(fadt, 112) & (1 << 20 | 1 << 10), 1 << 10);
        assert_eq!((u32_at(fadt, 56), u32_at(fadt, 64), fadt[88], fadt[89]), (0x60c, 0x604, 4, 2));
        assert_eq!((u64_at(fadt, 248), fadt[108]), (0, 0x32));
        let facs = u32_at(fadt, 36) as usize;
        assert_eq!((facs % 64, &blob[facs - AT as usize..][..5]), (0, &b"FACS\x40"[..]));
        let madt = table(&blob, u64_at(xsdt, 44));
        assert_eq!(u32_at(madt, 40), PCAT_COMPAT);
    }
}
