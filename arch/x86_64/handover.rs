//! What a kernel finds in RAM besides itself, and the registers that lead there: ACPI tables, the
//! command line, and the structure of its boot protocol.

use anyhow::{Result, ensure};

use super::boot::{Table, place};
use super::mode::{Machine, Mode};
use super::registers::{RAX, RBX, RSI, RSP, Register};
use super::{acpi, bios, layout, linux, multiboot, pvh};
use crate::board::{Board, Start};
use crate::places::Places;

/// An index of a general register, and its value.
type Set = (usize, u64);

/// What stands at the reset vector, in real mode: `mov dx, RESET_CONTROL; mov al, RESET_VALUE;
/// out dx, al`, which ends the machine, and `hlt` behind it.
const RESET_CODE: [u8; 7] = {
    let [low, high] = (layout::RESET_CONTROL.addr as u16).to_le_bytes();
    [0xba, low, high, 0xb0, layout::RESET_VALUE, 0xee, 0xf4]
};

/// Places the ACPI tables, the RSDP first, where a search finds it; gives its address.
pub fn acpi(
    board: &Board,
    machine: Machine,
    places: &mut Places,
    tables: &mut Vec<Table>,
) -> Result<u64> {
    let rsdp = layout::ACPI.start;
    let acpi = acpi::tables(rsdp, board, machine);
    ensure!(
        acpi.len() as u64 <= layout::ACPI.len,
        "--cpus {}: their ACPI tables take {:#x} bytes, and there is room for {:#x}: use fewer",
        board.cpus,
        acpi.len(),
        layout::ACPI.len
    );
    places.reserve(rsdp, layout::ACPI.len, "ACPI tables")?;
    tables.push((rsdp, acpi));
    places.reserve(layout::RESET_VECTOR, RESET_CODE.len() as u64, "reset vector")?;
    tables.push((layout::RESET_VECTOR, RESET_CODE.to_vec()));
    Ok(rsdp)
}

/// Places what the boot protocol hands over; gives the registers in which the kernel looks for it.
pub fn protocol(
    start: &Start<Mode, Register>,
    board: &Board,
    rsdp: u64,
    places: &mut Places,
    tables: &mut Vec<Table>,
) -> Result<Vec<Set>> {
    if matches!(start.mode, Mode::Real | Mode::Protected | Mode::Long) {
        return Ok(Vec::new());
    }
    let kernel = &start.kernel;
    let cmdline = place(places, kernel.cmdline.len() as u64 + 1, "command line")?;
    tables.push((cmdline, [&kernel.cmdline[..], b"\0"].concat()));
    let map = linux::memory_map(&board.ram, layout::LEGACY);
    Ok(match start.mode {
        Mode::Multiboot => {
            let len = multiboot::len(&kernel.modules, map.len());
            let at = place(places, len, "multiboot information")?;
            let (modules, ram) = (&kernel.modules, &board.ram);
            let info = multiboot::info(at, cmdline, modules, &map, ram, layout::LEGACY.start);
            tables.push((at, info));
            vec![(RAX, multiboot::MAGIC), (RBX, at)]
        }
        Mode::Pvh => {
            let at = place(places, pvh::len(map.len()), "start info")?;
            tables.push((at, pvh::start_info(at, cmdline, kernel.initrd, rsdp, &map)));
            vec![(RBX, at)]
        }
        _ => {
            // Of a longer map a kernel would never see the end.
            let most = if start.mode == Mode::Linux16 { bios::MAP_MAX } else { linux::E820_MAX };
            ensure!(
                map.len() <= most,
                "--ram: the memory map has {} entries, and this kernel is told {most}: \
                 use fewer ranges",
                map.len()
            );
            let (header, initrd) = (&kernel.header[..], kernel.initrd);
            // The 32-bit entry is where the kernel lies.
            let code32_start = (start.mode == Mode::Linux32).then_some(start.entry as u32);
            let params = linux::Params { header, code32_start, cmdline, initrd, rsdp, map: &map };
            if start.mode == Mode::Linux16 {
                let (at, header) = linux::real_mode_header(&params);
                tables.push((layout::REAL_MODE_KERNEL.start + at, header));
                return Ok(vec![(RSP, linux::REAL_MODE_STACK)]);
            }
            let at = place(places, linux::ZERO_PAGE_LEN, "zero page")?;
            tables.push((at, linux::zero_page(&params)));
            vec![(RSI, at)]
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::boot::first_state;
    use super::*;
    use crate::board::Kernel;
    use crate::memory::{MAX_RANGES, RamRange};

    const MIB: u64 = 1 << 20;

    /// The bytes of all tables for so many CPUs and, behind 4 MiB, pieces of RAM with gaps.
    fn tables(mode: Mode, machine: Machine, cpus: usize, pieces: usize) -> Result<usize> {
        let mut ram = vec![RamRange { start: 0, len: 4 * MIB }];
        ram.extend((1..pieces as u64).map(|i| RamRange { start: 4 * MIB * i + MIB, len: MIB }));
        let mut places = Places::new(&ram);
        let board =
            Board { cpus, ram, exit_register: layout::EXIT_REGISTER, virtio: vec![], pci: false };
        let kernel = Kernel { cmdline: vec![b'x'; layout::CMDLINE_MAX], ..Kernel::default() };
        let entry =
            if mode == Mode::Linux16 { layout::REAL_MODE_KERNEL.start + 0x200 } else { MIB };
        let start = Start { mode, entry, registers: Vec::new(), kernel };
        let (_, tables) = first_state(&start, &board, machine, &mut places)?;
        for (at, table) in &tables {
            assert!(places.in_ram(*at, table.len() as u64), "{at:#x}");
        }
        // None lies over another.
        let mut ends: Vec<_> = tables.iter().map(|(at, t)| (*at, at + t.len() as u64)).collect();
        ends.sort_unstable();
        assert!(ends.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{ends:x?}");
        Ok(tables.iter().map(|(_, table)| table.len()).sum())
    }

    #[test]
    fn hostile_26_acpi_tables_hold_every_cpu_that_kvm_has_or_say_so() {
        for machine in [Machine::Micro, Machine::Pc] {
            // KVM_MAX_VCPUS is 4096 at the most (Linux v6.12 arch/x86/kvm/Kconfig).
            assert!(tables(Mode::Pvh, machine, 4096, 1).is_ok());
            let (mut fits, mut fails) = (4096, 1 << 14);
            while fails - fits > 1 {
                let middle = (fits + fails) / 2;
                match tables(Mode::Pvh, machine, middle, 1) {
                    Ok(_) => fits = middle,
                    Err(_) => fails = middle,
                }
            }
            let refused = tables(Mode::Pvh, machine, fails, 1).unwrap_err().to_string();
            assert!(
                refused.starts_with(&format!("--cpus {fails}: their ACPI tables")),
                "{refused}"
            );
        }
    }

    #[test]
    fn hostile_26_a_memory_map_is_told_whole_or_not_at_all() {
        // The piece at 0 is three of the map: below and above what a PC keeps, and that itself.
        for (mode, machine, most) in [
            (Mode::Linux, Machine::Micro, 126),
            (Mode::Linux32, Machine::Micro, 126),
            (Mode::Linux16, Machine::Pc, 125),
            (Mode::Pvh, Machine::Micro, MAX_RANGES),
            (Mode::Multiboot, Machine::Pc, MAX_RANGES),
        ] {
            for pieces in [1, most - 1, most] {
                tables(mode, machine, 1, pieces)
                    .unwrap_or_else(|e| panic!("{mode:?} {pieces}: {e}"));
            }
            if most < MAX_RANGES {
                let refused = tables(mode, machine, 1, most + 1).unwrap_err().to_string();
                let says = format!("--ram: the memory map has {} entries", most + 3);
                assert!(refused.starts_with(&says), "{refused}");
            }
        }
    }
}
