//! How the first vCPU starts: segments, control registers, and the tables that its mode needs, as
//! plain numbers.
//!
//! Source: SDM vol. 3A, chapters "Protected-Mode Memory Management", "Paging" and "Processor
//! Management and Initialization", ed. 083.

use anyhow::{Result, ensure};

use super::mode::{Machine, Mode};
use super::registers::{CS, GENERAL, RFLAGS, RIP, Register, SEGMENTS};
use super::{bios, handover, layout, linux};
use crate::board::{Board, Start};
use crate::places::Places;

/// `rflags` bit 1 reads as one (SDM vol. 1, "EFLAGS Register").
const RFLAGS_FIXED: u64 = 1 << 1;

const CR0_PE: u64 = 1 << 0;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Selectors of the two descriptors in our table: `__BOOT_CS` and `__BOOT_DS`, which Linux wants
/// (Linux v6.12 Documentation/arch/x86/boot.rst, "64-bit BOOT PROTOCOL") and nobody else minds.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;

/// Segment types (SDM vol. 3A, "Code- and Data-Segment Descriptor Types"): accessed, so that the
/// CPU need not write the descriptor.
const TYPE_CODE: u8 = 0xb;
const TYPE_DATA: u8 = 0x3;

/// One segment as the CPU caches it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// First byte.
    pub base: u64,
    /// Last byte's offset.
    pub limit: u32,
    /// Type field.
    pub kind: u8,
    /// Default operation size is 32 bits.
    pub db: bool,
    /// 64-bit code.
    pub long: bool,
}

impl Segment {
    /// Limits above a megabyte count pages.
    pub fn granular(&self) -> bool {
        self.limit > 0xf_ffff
    }

    /// The descriptor (SDM vol. 3A, "Segment Descriptors"): present, code or data, ring 0.
    fn descriptor(&self) -> u64 {
        let limit = u64::from(if self.granular() { self.limit >> 12 } else { self.limit });
        let flags =
            u64::from(self.granular()) << 3 | u64::from(self.db) << 2 | u64::from(self.long) << 1;
        let access = 0x90 | u64::from(self.kind);
        (limit & 0xffff)
            | (self.base & 0xff_ffff) << 16
            | access << 40
            | (limit >> 16 & 0xf) << 48
            | flags << 52
            | (self.base >> 24 & 0xff) << 56
    }

    /// A real-mode segment.
    fn real(selector: u16, kind: u8) -> Self {
        let base = u64::from(selector) << 4;
        Self { selector, base, limit: 0xffff, kind, db: false, long: false }
    }
}

/// The system registers of a first vCPU; what is not named here keeps KVM's reset value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SystemRegisters {
    /// In the order of [`SEGMENTS`].
    pub segments: [Segment; SEGMENTS.len()],
    /// Base and limit of the global descriptor table, if there is one.
    pub gdt: Option<(u64, u16)>,
    /// cr0, cr3, cr4, efer: the order of [`super::registers::CONTROL`].
    pub control: [u64; 4],
}

/// Everything that a first vCPU starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstState {
    /// In the order of [`GENERAL`].
    pub general: [u64; GENERAL.len()],
    /// Segments and control registers.
    pub system: SystemRegisters,
}

/// Bytes of our tables: the descriptor table's page, then PML4, PDPT and four page directories.
const GDT_LEN: u64 = 0x1000;
const PAGE_TABLES_LEN: u64 = 6 * 0x1000;

/// A table that must be written to guest memory.
pub type Table = (u64, Vec<u8>);

/// Works out the first state for `start`, and the tables that it needs, for which `places` gives
/// room: low where the guest leaves some, else at the top of RAM.
pub fn first_state(
    start: &Start<Mode, Register>,
    board: &Board,
    machine: Machine,
    places: &mut Places,
) -> Result<(FirstState, Vec<Table>)> {
    let mut tables = Vec::new();
    let mut system = match start.mode {
        Mode::Real => real(start),
        Mode::Linux16 => real_mode_kernel(),
        _ => flat(start.mode, place(places, GDT_LEN, "descriptor table")?, &mut tables),
    };
    if start.mode.is_64_bit() {
        let at = place(places, PAGE_TABLES_LEN, "page tables")?;
        tables.push((at, identity_map(at)));
        system.control[1] = at;
    }
    let mut general = [0; GENERAL.len()];
    general[RFLAGS] = RFLAGS_FIXED;
    if machine.has_platform() {
        let rsdp = handover::acpi(board, machine, places, &mut tables)?;
        if machine == Machine::Pc {
            bios::place(board, places, &mut tables);
        }
        for (register, value) in handover::protocol(start, board, rsdp, places, &mut tables)? {
            general[register] = value;
        }
    }
    let mut rip_is_set = false;
    for (register, value) in &start.registers {
        match *register {
            Register::General(i) => {
                general[i] = *value;
                rip_is_set |= i == RIP;
            }
            Register::Segment(i) if start.mode == Mode::Real => {
                system.segments[i] = Segment::real(*value as u16, system.segments[i].kind);
            }
            Register::Segment(i) => system.segments[i].selector = *value as u16,
            Register::Control(i) => system.control[i] = *value,
        }
    }
    if !rip_is_set {
        let base = system.segments[CS].base;
        let reach =
            if start.mode.is_64_bit() { u64::MAX } else { system.segments[CS].limit.into() };
        let ip = start.entry.checked_sub(base).filter(|ip| *ip <= reach);
        ensure!(
            ip.is_some(),
            "entry {:#x} can't be reached from the code segment at {base:#x}: \
             start in another --mode, load lower, or set --reg cs and --reg ip",
            start.entry
        );
        general[RIP] = ip.expect("checked above");
    }
    Ok((FirstState { general, system }, tables))
}

/// Finds room for a table: low where the guest leaves some, else at the top of RAM, but below
/// 4 GiB, where 32-bit code reaches it.
pub fn place(places: &mut Places, len: u64, what: &str) -> Result<u64> {
    let low = places.take_below(layout::TABLES_BELOW, len, 0x1000, what);
    low.or_else(|_| places.take_below(1 << 32, len, 0x1000, what))
}

/// Real mode: every segment at zero, the code segment where the entry needs it.
fn real(start: &Start<Mode, Register>) -> SystemRegisters {
    let mut segments = [Segment::real(0, TYPE_DATA); SEGMENTS.len()];
    // Zero as long as 16 bits of ip reach the entry; past 1 MiB nothing does.
    let selector = if start.entry <= 0xf_ffff { (start.entry >> 4) as u16 & 0xf000 } else { 0 };
    segments[CS] = Segment::real(selector, TYPE_CODE);
    SystemRegisters { segments, gdt: None, control: [CR0_ET, 0, 0, 0] }
}

/// The real-mode part of a kernel: the code segment begins at its entry, the others at its start.
fn real_mode_kernel() -> SystemRegisters {
    let selector = (layout::REAL_MODE_KERNEL.start >> 4) as u16;
    let mut segments = [Segment::real(selector, TYPE_DATA); SEGMENTS.len()];
    segments[CS] = Segment::real(selector + (linux::REAL_MODE_ENTRY >> 4) as u16, TYPE_CODE);
    SystemRegisters { segments, gdt: None, control: [CR0_ET, 0, 0, 0] }
}

/// Protected and long mode: flat segments from a descriptor table of our own at `gdt`.
fn flat(mode: Mode, gdt: u64, tables: &mut Vec<Table>) -> SystemRegisters {
    let long = mode.is_64_bit();
    let limit = u32::MAX;
    let data =
        Segment { selector: DATA_SELECTOR, base: 0, limit, kind: TYPE_DATA, db: true, long: false };
    let code = Segment { selector: CODE_SELECTOR, kind: TYPE_CODE, db: !long, long, ..data };
    let descriptors = [0, 0, code.descriptor(), data.descriptor()];
    let bytes: Vec<u8> = descriptors.iter().flat_map(|d| d.to_le_bytes()).collect();
    let gdt_limit = bytes.len() as u16 - 1;
    tables.push((gdt, bytes));
    let mut segments = [data; SEGMENTS.len()];
    segments[CS] = code;
    let control = if long {
        // SSE on: what an ordinary 64-bit compiler makes runs without further ado.
        [
            CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_PG,
            0,
            CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT,
            EFER_LME | EFER_LMA,
        ]
    } else {
        [CR0_PE | CR0_ET, 0, 0, 0]
    };
    SystemRegisters { segments, gdt: Some((gdt, gdt_limit)), control }
}

/// Page tables at `at` that map the first 4 GiB onto themselves in pages of 2 MiB.
fn identity_map(at: u64) -> Vec<u8> {
    /// Present and writable (SDM vol. 3A, "4-Level Paging").
    const TABLE: u64 = 0x3;
    /// A 2 MiB page.
    const LARGE: u64 = 0x80;
    const ENTRIES: u64 = 512;
    let entries = |values: &mut dyn Iterator<Item = u64>| {
        let mut page: Vec<u8> = values.flat_map(u64::to_le_bytes).collect();
        page.resize(page.len().next_multiple_of(0x1000), 0);
        page
    };
    let mut tables = entries(&mut std::iter::once((at + 0x1000) | TABLE));
    tables.extend(entries(&mut (0..4).map(|i| (at + 0x2000 + i * 0x1000) | TABLE)));
    tables.extend(entries(&mut (0..4 * ENTRIES).map(|i| i << 21 | TABLE | LARGE)));
    tables
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Kernel;
    use crate::memory::RamRange;

    fn board() -> Board {
        let ram = vec![RamRange { start: 0, len: 0x100_0000 }];
        Board { cpus: 1, ram, exit_register: layout::EXIT_REGISTER, virtio: vec![], pci: false }
    }

    fn start(
        mode: Mode,
        entry: u64,
        registers: &[(&str, u64)],
    ) -> Result<(FirstState, Vec<Table>)> {
        let registers = registers
            .iter()
            .map(|(name, value)| (super::super::register(name).unwrap().0, *value))
            .collect();
        let start = Start { mode, entry, registers, kernel: Kernel::default() };
        first_state(&start, &board(), Machine::Bare, &mut Places::new(&board().ram))
    }

    #[test]
    fn real_mode_reaches_every_entry_below_1_mib() {
        for (entry, selector, ip) in [
            (0, 0, 0),
            (0x1000, 0, 0x1000),
            (0xffff, 0, 0xffff),
            (0x1_2345, 0x1000, 0x2345),
            (0xf_ffff, 0xf000, 0xffff),
        ] {
            let (state, tables) = start(Mode::Real, entry, &[]).unwrap();
            let cs = state.system.segments[CS];
            assert_eq!(
                (cs.selector, state.general[RIP], tables.len()),
                (selector, ip, 0),
                "{entry:#x}"
            );
            assert_eq!(cs.base + ip, entry);
            assert_eq!(state.general[RFLAGS], 2);
        }
        let error = start(Mode::Real, 0x10_0000, &[]).unwrap_err().to_string();
        assert!(error.contains("entry 0x100000 can't be reached"), "{error}");
    }

    #[test]
    fn a_selector_moves_its_base_in_real_mode_and_ip_follows_the_entry() {
        let set = [("cs", 0x1000), ("ds", 0x1234), ("esp", 0xffff_ffff)];
        let (state, _) = start(Mode::Real, 0x1_0002, &set).unwrap();
        assert_eq!(state.system.segments[CS].base, 0x1_0000);
        assert_eq!(state.system.segments[1].base, 0x1_2340);
        assert_eq!((state.general[RIP], state.general[6]), (2, 0xffff_ffff));
        let (state, _) = start(Mode::Real, 0x1_0002, &[("cs", 0x1000), ("ip", 7)]).unwrap();
        assert_eq!(state.general[RIP], 7, "a register that was set stays as it was set");
        assert!(start(Mode::Real, 0x1000, &[("cs", 0x1000)]).is_err());
    }

    #[test]
    fn descriptors_are_those_of_flat_segments() {
        for (mode, code) in
            [(Mode::Protected, 0x00cf_9b00_0000_ffff), (Mode::Long, 0x00af_9b00_0000_ffff)]
        {
            let (state, tables) = start(mode, 0x10_0000, &[]).unwrap();
            let (at, bytes) = &tables[0];
            assert_eq!(state.system.gdt, Some((*at, 31)));
            let descriptors: Vec<u64> =
                bytes.chunks(8).map(|d| u64::from_le_bytes(d.try_into().unwrap())).collect();
            assert_eq!(descriptors, [0, 0, code, 0x00cf_9300_0000_ffff]);
            assert!(*at < layout::TABLES_BELOW && at % 0x1000 == 0);
        }
    }

    #[test]
    fn the_identity_map_leads_every_address_below_4_gib_to_itself() {
        let (state, tables) = start(Mode::Long, 0x10_0000, &[]).unwrap();
        let (at, bytes) = &tables[1];
        assert_eq!(state.system.control[1], *at);
        let entry = |table: u64, index: u64| {
            let offset = (table - at + index * 8) as usize;
            u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
        };
        for addr in [0u64, 0x1f_ffff, 0x20_0000, 0x4000_0000, 0xfee0_0000, 0xffff_ffff] {
            let pdpt = entry(*at, addr >> 39 & 511) & !0xfff;
            let directory = entry(pdpt, addr >> 30 & 511) & !0xfff;
            let page = entry(directory, addr >> 21 & 511);
            assert_eq!(page, addr & !0x1f_ffff | 0x83, "{addr:#x}");
        }
        assert_eq!((entry(*at, 1), entry(*at + 0x1000, 4)), (0, 0));
    }

    #[test]
    fn tables_go_high_when_the_guest_takes_all_low_memory() {
        let mut places = Places::new(&[RamRange { start: 0, len: 0x20_0000 }]);
        places.reserve(0, 0xa_0000, "image").unwrap();
        let kernel = Kernel::default();
        let start = Start { mode: Mode::Long, entry: 0, registers: vec![], kernel };
        let (_, tables) = first_state(&start, &board(), Machine::Bare, &mut places).unwrap();
        assert!(tables.iter().all(|(at, _)| *at >= 0xa_0000));
        let mut full = Places::new(&[RamRange { start: 0, len: 0x1000 }]);
        full.reserve(0, 0x1000, "image").unwrap();
        let error =
            first_state(&start, &board(), Machine::Bare, &mut full).unwrap_err().to_string();
        assert!(error.contains("no room for the descriptor table"), "{error}");
    }
}
