//! aarch64 guests: EL1, the memory map of QEMU's `virt` board, PSCI, a device tree.
//!
//! Pure, tested on any host: [`layout`], [`features`], [`registers`], [`fdt`], [`mode`],
//! [`vectors`], [`paging`], [`debug`], [`gdb_registers`]. With ioctls: `kvm`, `gdb` and `gic`.

pub mod debug;
pub mod fdt;
pub mod features;
#[cfg(target_arch = "aarch64")]
pub mod gdb;
pub mod gdb_registers;
#[cfg(target_arch = "aarch64")]
mod gic;
#[cfg(test)]
mod golden;
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

/// x0 in `struct ucontext` (Linux v6.12 arch/arm64/include/uapi/asm/ucontext.h): behind 40 bytes of flags,
/// link and stack, 128 of signal masks, aligned to 16, and the address of a fault.
pub const SIGNAL_RESULT: usize = 176 + 8;

/// This machine in `struct seccomp_data` (Linux v6.12 include/uapi/linux/audit.h: the ELF machine, 64 bits wide,
/// the least significant byte first).
pub const AUDIT: u32 = 0xc000_0000 | EM_AARCH64 as u32;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::formats::samples::{arm64_image, put};
    use crate::memory::{GuestRam, RamRange};
    use crate::payload::Payload;
    use crate::payload::image::Unpacking;
    use crate::payload::load::{self, Wish};
    use crate::places::Places;

    /// Loads an arm64 `Image` with these fields as a machine with 4 MiB at `ram_start` does.
    fn load(text_offset: u64, image_size: u64, flags: u64, ram_start: u64) -> anyhow::Result<u64> {
        let mut bytes = arm64_image();
        for (at, field) in [(8, text_offset), (16, image_size), (24, flags)] {
            put(&mut bytes, at, &field.to_le_bytes());
        }
        let unpacking = Unpacking { limit: 4 << 20, cache: None, kernels: true };
        let image = Image::read(Payload::Memory(bytes), &unpacking)?;
        let way = load::choose(&image, ram_start, None, None, &RULES)?;
        let ranges = vec![RamRange { start: ram_start, len: 4 << 20 }];
        let mut places = Places::new(&ranges);
        load::load(&image, &GuestRam::new(ranges)?, &mut places, &Wish::default(), &way, &RULES)
    }

    #[test]
    fn hostile_20_an_image_goes_where_its_header_says_or_is_refused() {
        const RAM: u64 = 0x4000_0000;
        const LITTLE: u64 = 0xa;
        for (text_offset, image_size, flags, ram_start, expected) in [
            (0, 0x1_0000, LITTLE, RAM, Ok(RAM)),
            // Not on a boundary, or past the first 2 MiB.
            (0xf_ffc0, 0x1_0000, LITTLE, RAM, Ok(RAM + 0xf_ffc0)),
            (0x20_0000, 0x1_0000, LITTLE, RAM, Ok(RAM + 0x20_0000)),
            (0x3f_f000, 0x1_0000, LITTLE, RAM, Err("lie outside RAM")),
            (0x4000_0000, 0x1_0000, LITTLE, RAM, Err("lie outside RAM")),
            (1 << 52, 0x1_0000, LITTLE, RAM, Err("fit no memory")),
            // No size, less than the file, RAM's, more.
            (0x1234, 0, LITTLE, RAM, Ok(RAM + 0x8_0000)),
            (0, 1, LITTLE, RAM, Ok(RAM)),
            (0, 4 << 20, LITTLE, RAM, Ok(RAM)),
            (0, (4 << 20) + 1, LITTLE, RAM, Err("lie outside RAM")),
            (0, 1 << 51, LITTLE, RAM, Err("lie outside RAM")),
            // RAM begins between two boundaries.
            (0, 0x1_0000, LITTLE, RAM + 0x1000, Ok(RAM + 0x20_0000)),
            // Page sizes are the guest's affair; a big-endian kernel is not.
            (0, 0x1_0000, 0x4, RAM, Ok(RAM)),
            (0, 0x1_0000, 0x6, RAM, Ok(RAM)),
            (0, 0x1_0000, 0x1, RAM, Err("big-endian")),
        ] {
            let loaded = load(text_offset, image_size, flags, ram_start);
            match (loaded.map_err(|error| format!("{error:#}")), expected) {
                (Ok(entry), Ok(at)) => assert_eq!(entry, at, "{text_offset:#x} {image_size:#x}"),
                (Err(refused), Err(says)) => assert!(refused.contains(says), "{refused}"),
                (loaded, _) => panic!("{text_offset:#x} {image_size:#x}: {loaded:x?}"),
            }
        }
    }
}
