//! aarch64 guests: EL1, the memory map of QEMU's `virt` board, PSCI, a device tree.
//!
//! Pure, tested on any host: [`layout`], [`registers`], [`fdt`], [`mode`], [`vectors`],
//! [`paging`], [`debug`]. With ioctls: `kvm`, `gdb` and `gic`.

pub mod debug;
pub mod fdt;
#[cfg(target_arch = "aarch64")]
pub mod gdb;
#[cfg(target_arch = "aarch64")]
mod gic;
#[cfg(target_arch = "aarch64")]
pub mod kvm;
pub mod layout;
pub mod mode;
pub mod paging;
pub mod registers;
pub mod vectors;

pub use debug::{BREAKPOINT, DebugRegisters, debug_registers};
pub use mode::Mode;
pub use registers::{REGISTER_NAMES, Register, register};

use super::formats::{Kernel, arm64_image};
use crate::payload::load::{Rules, Spot};

/// The name in target triples.
pub const NAME: &str = "aarch64";

/// `e_machine` (ELF for the Arm 64-bit Architecture, "ELF Header").
const EM_AARCH64: u16 = 183;

/// How images start.
pub const RULES: Rules<Mode> = Rules {
    flat_mode: Mode::El1,
    flat_load: |_, ram_start| ram_start.saturating_add(layout::FLAT_OFFSET),
    elf_mode: |bits, machine| (bits == 64 && machine == EM_AARCH64).then_some(Mode::El1),
    pvh_mode: None,
    packed: |_| None,
    place: |kernel, ram_start| match kernel {
        // As low as it may lie: where every version of the protocol allows it.
        Kernel::Arm64(header) if !header.big_endian => Some(Spot {
            mode: Mode::El1,
            start: ram_start.checked_next_multiple_of(arm64_image::ALIGNMENT)? + header.text_offset,
            len: header.image_size,
        }),
        _ => None,
    },
};
