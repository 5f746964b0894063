//! What a kernel finds in RAM besides itself, and the registers that lead there: ACPI tables, the
//! command line, and the structure of its boot protocol.

use anyhow::{Result, ensure};

use super::boot::{Table, place};
use super::mode::{Machine, Mode};
use super::registers::{RAX, RBX, RSI, RSP, Register};
use super::{acpi, layout, linux, multiboot, pvh};
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
    let acpi = acpi::tables(rsdp, board.cpus, machine);
    ensure!(acpi.len() as u64 <= layout::ACPI.len, "ACPI tables are too large: use fewer CPUs");
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
