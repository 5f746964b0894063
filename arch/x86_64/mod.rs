//! x86-64 guests: 16-bit real, 32-bit protected and 64-bit long mode, a PC's ports.
//!
//! Pure, tested on any host: [`layout`], [`boot`], [`cpuid`], [`registers`], [`paging`], [`debug`]. With
//! ioctls: `kvm` and `gdb`.

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod debug;
#[cfg(target_arch = "x86_64")]
pub mod gdb;
#[cfg(target_arch = "x86_64")]
pub mod kvm;
pub mod layout;
pub mod linux;
pub mod paging;
pub mod pvh;
pub mod registers;

pub use boot::Mode;
pub use debug::{BREAKPOINT, DebugRegisters, debug_registers};
pub use registers::{REGISTER_NAMES, Register, register};

use super::formats::Kernel;
use crate::payload::load::Rules;

/// The name in target triples.
pub const NAME: &str = "x86_64";

/// `e_machine` values (System V ABI, chapter 4).
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;

/// How images start.
pub const RULES: Rules<Mode> = Rules {
    flat_mode: Mode::Real,
    flat_load: |mode, _| match mode {
        Mode::Real => layout::REAL_LOAD,
        _ => layout::FLAT_LOAD,
    },
    elf_mode: |bits, machine| match (bits, machine) {
        (32, EM_386) => Some(Mode::Protected),
        (64, EM_X86_64) => Some(Mode::Long),
        _ => None,
    },
    pvh_mode: Some(Mode::Pvh),
    packed: |kernel| match kernel {
        Kernel::BzImage(header) => Some((Mode::Linux, header.raw.clone())),
        _ => None,
    },
    place: |_, _| None,
};
