//! Tables: what guests are told of boards as odd as they can be.

use bivisor::board::{Board, Kernel, Module, Start};
use bivisor::exit::BusAddr;
use bivisor::fuzzing::fdt::{Gic, device_tree};
use bivisor::fuzzing::features::Features;
use bivisor::fuzzing::{Machine, Mode, first_state};
use bivisor::machine::player::Script;
use bivisor::memory::{RamRange, check_ranges};
use bivisor::places::Places;

/// Guest-physical addresses end here: the most bits that a host has.
const ADDRESSES: u64 = 1 << 52;
const PAGE: u64 = 4096;

/// Our choice: both kinds of local APICs are among them. How many fit is a test of the library's.
const MOST_CPUS: usize = 512;

const MODES: [Mode; 8] = [
    Mode::Real,
    Mode::Protected,
    Mode::Long,
    Mode::Linux,
    Mode::Linux32,
    Mode::Linux16,
    Mode::Pvh,
    Mode::Multiboot,
];
const MACHINES: [Machine; 3] = [Machine::Bare, Machine::Micro, Machine::Pc];

/// A range of whole pages, as likely small as large.
fn range(numbers: &mut Script<'_>) -> RamRange {
    let shift = numbers.number(1) % 40;
    let start = (numbers.number(4) * PAGE) << (shift % 20);
    RamRange { start, len: (numbers.number(2) * PAGE) << (shift / 2) }
}

/// A small board for each mode, as bytes.
pub fn seeds() -> Vec<Vec<u8>> {
    let seed = |mode| {
        let mut bytes = vec![0, 2];
        // Two ranges of 16 MiB, at 0 and at 4 GiB, and the exit register.
        bytes.extend([0, 2, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x10, 0, 0, 0x10, 0]);
        bytes.extend(0x0911_0000u64.to_be_bytes());
        // An image of 1 MiB at 1 MiB, an initial RAM disk and a module.
        bytes.extend([mode, 1]);
        bytes.extend((1u64 << 20).to_be_bytes());
        bytes.extend([0, 0x10, 0, 0, 0, 0x10, 0, 1, 0, 0x10, 0]);
        bytes.extend(b"console=ttyS0");
        bytes
    };
    (0..MODES.len() as u8).map(seed).collect()
}

/// Makes every table for the board that `bytes` stand for.
pub fn run(bytes: &[u8]) {
    let mut numbers = Script(bytes);
    let cpus = numbers.number(2) as usize % MOST_CPUS;
    let ranges = (0..numbers.number(2) % 258).map(|_| range(&mut numbers)).collect();
    let Ok(ram) = check_ranges(ranges, PAGE, ADDRESSES, &[]) else { return };
    let exit_register = BusAddr::memory(numbers.number(8));
    let pci = numbers.number(1) & 1 != 0;
    let board = Board { cpus, ram, exit_register, virtio: vec![], pci };
    let mode = MODES[numbers.number(1) as usize % MODES.len()];
    let machine = MACHINES[numbers.number(1) as usize % MACHINES.len()];
    let entry = numbers.number(8);
    let mut places = Places::new(&board.ram);
    let _ = places.reserve(entry, numbers.number(4), "image");
    // Such a kernel has been placed there, or it does not start.
    let real_mode_part = places.reserve(0x9_0000, 0x9000, "kernel");
    if mode == Mode::Linux16 && real_mode_part.is_err() {
        return;
    }
    let file = |numbers: &mut Script<'_>, places: &mut Places| {
        let len = numbers.number(3);
        let start = places.take_below(1 << 32, len, PAGE, "file").ok()?;
        Some(RamRange { start, len })
    };
    let initrd = file(&mut numbers, &mut places);
    let modules = (0..numbers.number(1))
        .filter_map(|_| file(&mut numbers, &mut places))
        .map(|place| Module { place, name: b"module".to_vec() })
        .collect();
    let header = numbers.0[..numbers.0.len().min(0x300)].to_vec();
    let kernel = Kernel { cmdline: numbers.0.to_vec(), initrd, modules, header };
    let features = Features { pmu: true, ..Features::default() };
    for gic in [Gic::V2, Gic::V3] {
        let _ = device_tree(&board, &kernel, gic, features);
    }
    let start = Start { mode, entry, registers: Vec::new(), kernel };
    if let Ok((_, tables)) = first_state(&start, &board, machine, &mut places) {
        for (at, table) in tables {
            assert!(places.in_ram(at, table.len() as u64), "a table outside RAM, at {at:#x}");
        }
    }
}
