//! Device trees of a few boards, byte by byte as `tests/golden/` has them. There each has its source
//! beside it, which `tests/device_tree.rs` compares with what `dtc` reads.
//!
//! `UPDATE_GOLDEN=1 cargo test` writes both anew, to be looked at before they are committed.

use std::fs;
use std::path::Path;

use super::fdt::{Gic, device_tree};
use super::features::Features;
use super::layout;
use crate::board::{Board, Kernel};
use crate::exit::BusAddr;
use crate::memory::{MAX_RANGES, RamRange};

const MIB: u64 = 1 << 20;
const RAM: RamRange = RamRange { start: 0x4000_0000, len: 128 * MIB };
const HIGH: RamRange = RamRange { start: 0x1_0000_0000, len: 1 << 30 };
const INITRD: RamRange = RamRange { start: 0x47f0_0000, len: 0x1234 };

const NONE: Features = Features { pmu: false, sve: false, pointer_authentication: false };
const ALL: Features = Features { pmu: true, sve: true, pointer_authentication: true };

const LINUX: &[u8] = b"console=ttyS0 panic=-1";

fn board(cpus: usize, ram: &[RamRange]) -> Board {
    let (ram, exit_register) = (ram.to_vec(), layout::EXIT_REGISTER);
    Board { cpus, ram, exit_register, virtio: vec![], pci: false }
}

fn tree(
    cpus: usize,
    ram: &[RamRange],
    initrd: Option<RamRange>,
    words: &[u8],
    gic: Gic,
    features: Features,
) -> Vec<u8> {
    let kernel = Kernel { cmdline: words.to_vec(), initrd, ..Kernel::default() };
    device_tree(&board(cpus, ram), &kernel, gic, features).unwrap()
}

fn pci(gic: Gic) -> Vec<u8> {
    let board = Board { pci: true, ..board(1, &[RAM]) };
    let kernel = Kernel { cmdline: LINUX.to_vec(), ..Kernel::default() };
    device_tree(&board, &kernel, gic, NONE).unwrap()
}

#[test]
fn trees_are_as_they_were_looked_at() {
    let long = vec![b'x'; layout::CMDLINE_MAX];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for (name, blob) in [
        ("one-cpu-gicv2", tree(1, &[RAM], None, LINUX, Gic::V2, NONE)),
        ("one-cpu-gicv3", tree(1, &[RAM], None, LINUX, Gic::V3, NONE)),
        ("one-cpu-gicv3-pmu", tree(1, &[RAM], None, LINUX, Gic::V3, ALL)),
        ("four-cpus-gicv2", tree(4, &[RAM], None, LINUX, Gic::V2, NONE)),
        ("four-cpus-gicv3-initrd", tree(4, &[RAM], Some(INITRD), LINUX, Gic::V3, NONE)),
        ("two-ranges", tree(1, &[RAM, HIGH], Some(INITRD), LINUX, Gic::V3, NONE)),
        ("long-bootargs", tree(1, &[RAM], None, &long, Gic::V3, NONE)),
        ("no-bootargs", tree(1, &[RAM], None, b"", Gic::V3, NONE)),
        ("pci-gicv2", pci(Gic::V2)),
        ("pci-gicv3", pci(Gic::V3)),
    ] {
        let path = folder.join(format!("{name}.dtb"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&path, &blob).unwrap();
        }
        let golden = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(blob == golden, "{name} is another tree (is it meant? UPDATE_GOLDEN=1 writes it)");
    }
}

#[test]
fn hostile_26_the_fullest_board_has_a_tree_that_a_kernel_takes() {
    /// Linux v6.12 Documentation/arch/arm64/booting.rst, "Setup the device tree".
    const MOST: usize = 2 << 20;
    let cpus = (layout::GIC_REDISTRIBUTORS.len / layout::GIC_REDISTRIBUTOR_LEN) as usize;
    let range = |index: usize| RamRange { start: RAM.start + 2 * MIB * index as u64, len: MIB };
    let ranges: Vec<_> = (0..MAX_RANGES).map(range).collect();
    let long = vec![b'x'; layout::CMDLINE_MAX];
    for gic in [Gic::V2, Gic::V3] {
        let blob = tree(cpus, &ranges, Some(INITRD), &long, gic, ALL);
        assert!(blob.len() < MOST, "{:#x}", blob.len());
        for name in ["cpu@70a\0", "memory@5fe00000\0"] {
            let found = blob.windows(name.len()).any(|part| part == name.as_bytes());
            assert!(found, "{name}");
        }
    }
    // Odd values make an odd tree, and no panic.
    for address in [0, 1, u64::MAX] {
        let exit_register = BusAddr::memory(address);
        let ram = vec![RamRange { start: address, len: 0 }];
        let board = Board { cpus: 0, ram, exit_register, virtio: vec![], pci: false };
        assert!(device_tree(&board, &Kernel::default(), Gic::V3, ALL).is_ok());
    }
}
