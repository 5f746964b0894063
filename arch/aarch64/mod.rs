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
pub use mode::{Machine, Mode};
pub use registers::{REGISTER_NAMES, Register, register};

use super::formats::{Kernel, arm64_image};
use crate::board::Takes;
use crate::payload::image::{Form, Image};
use crate::payload::load::{Part, Rules, Source, Way};

/// The name in target triples.
pub const NAME: &str = "aarch64";

/// `e_machine` (ELF for the Arm 64-bit Architecture, "ELF Header").
const EM_AARCH64: u16 = 183;

/// How images start.
pub const RULES: Rules<Mode> = Rules {
    flat_load: |_, ram_start| ram_start.saturating_add(layout::FLAT_OFFSET),
    elf_mode: |bits, machine| (bits == 64 && machine == EM_AARCH64).then_some(Mode::El1),
    ways: |image, ram_start| ways(image, ram_start).into_iter().collect(),
    unpack_themselves: &[],
};

/// The one way to enter `image`, if it is for this architecture. Everything finds a device tree,
/// which has room for a command line and an initial RAM disk.
fn ways(image: &Image, ram_start: u64) -> Option<Way<Mode>> {
    let (protocol, source) = match &image.form {
        Form::Flat => ("flat", Source::Flat),
        Form::Elf { .. } => ("elf", Source::Elf(None)),
        // As low as it may lie: where every version of the protocol allows it.
        Form::Kernel(Kernel::Arm64(header)) if !header.big_endian => {
            let aligned = ram_start.checked_next_multiple_of(arm64_image::ALIGNMENT)?;
            let starts = vec![aligned.checked_add(header.text_offset)?];
            let (len, memory) = (image.bytes.len(), header.image_size);
            ("linux", Source::Parts(vec![Part { offset: 0, len, starts, memory, entry: 0 }]))
        }
        Form::Kernel(_) => return None,
    };
    let below = layout::initrd_below(ram_start);
    let takes = Takes::Ramdisk { is_linux: true, cmdline: layout::CMDLINE_MAX, below };
    Some(Way { protocol, mode: Mode::El1, source, header: Vec::new(), takes })
}
