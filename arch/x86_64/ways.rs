//! The ways in which images are entered on this architecture, the preferred one first.

use super::{EM_386, EM_X86_64, Mode, layout};
use crate::arch::formats::{Kernel, bzimage, multiboot};
use crate::board::Takes;
use crate::payload::image::{Form, Image, Layer};
use crate::payload::load::{Part, Rules, Source, Way};

/// The Linux boot protocol at 64 bits: of a `vmlinux`, or of a bzImage that unpacks itself.
const LINUX: &str = "linux";
/// The same at 32 bits.
const LINUX_32: &str = "linux32";
/// A bzImage by the `vmlinux` that is packed in it.
const VMLINUX: &str = "vmlinux";

/// 32-bit code and the first page tables end here.
const FOUR_GIB: u64 = 1 << 32;

/// How images start.
pub const RULES: Rules<Mode> = Rules {
    flat_load: |mode, _| match mode {
        Mode::Real => layout::REAL_LOAD,
        _ => layout::FLAT_LOAD,
    },
    elf_mode: |bits, machine| match (bits, machine) {
        (32, EM_386) => Some(Mode::Protected),
        (64, EM_X86_64) => Some(Mode::Long),
        _ => None,
    },
    ways: |image, _| ways(image),
    unpack_themselves: &[LINUX, LINUX_32],
};

/// A kernel that is given what every `vmlinux` takes.
const VMLINUX_TAKES: Takes =
    Takes::Ramdisk { is_linux: true, cmdline: layout::CMDLINE_MAX, below: layout::INITRD_BELOW };

fn ways(image: &Image) -> Vec<Way<Mode>> {
    let bare = |protocol, mode, source| Way {
        protocol,
        mode,
        source,
        header: Vec::new(),
        takes: Takes::Nothing,
    };
    match &image.form {
        Form::Flat => vec![bare("flat", Mode::Real, Source::Flat)],
        Form::Kernel(Kernel::BzImage(header)) => of_bzimage(header),
        Form::Kernel(Kernel::Multiboot(header)) => vec![of_multiboot(header)],
        Form::Kernel(Kernel::Arm64(_)) => Vec::new(),
        Form::Elf { elf, pvh_entry, kernel, is_linux } => {
            let bzimage = image.layers.iter().rev().find_map(|layer| match layer {
                Layer::Kernel(Kernel::BzImage(header)) => Some(header),
                _ => None,
            });
            let source = Source::Elf(None);
            let vmlinux = |protocol, header: Vec<u8>| Way {
                protocol,
                mode: Mode::Linux,
                source: source.clone(),
                header,
                takes: VMLINUX_TAKES,
            };
            let mut ways = Vec::new();
            ways.extend(bzimage.map(|header| vmlinux(VMLINUX, header.raw.clone())));
            ways.extend(pvh_entry.map(|entry| {
                let source = Source::Elf(Some(entry));
                Way {
                    protocol: "pvh",
                    mode: Mode::Pvh,
                    source,
                    header: vec![],
                    takes: VMLINUX_TAKES,
                }
            }));
            if let Some(Kernel::Multiboot(header)) = kernel {
                ways.push(of_multiboot(header));
            }
            let is_64_bit = (elf.bits(), elf.machine()) == (64, EM_X86_64);
            let linux = || vmlinux(LINUX, Vec::new());
            let other = is_64_bit && bzimage.is_none();
            if other && *is_linux {
                ways.push(linux());
            }
            let mode = if is_64_bit { Mode::Long } else { Mode::Protected };
            ways.push(bare("elf", mode, source.clone()));
            // An older vmlinux does not say that it is one.
            if other && !*is_linux {
                ways.push(linux());
            }
            ways
        }
    }
}

/// A multiboot kernel goes where its header says, else where ELF does.
fn of_multiboot(header: &multiboot::Header) -> Way<Mode> {
    let source = match header.addresses {
        None => Source::Elf(None),
        Some(multiboot::Addresses { offset, load, len, memory, entry }) => {
            Source::Part(Part { offset, len, starts: vec![load], memory, entry: entry - load })
        }
    };
    let takes = Takes::Modules { below: FOUR_GIB };
    Way { protocol: "multiboot", mode: Mode::Multiboot, source, header: Vec::new(), takes }
}

/// A bzImage that unpacks itself, or that has nothing packed in it.
fn of_bzimage(header: &bzimage::Header) -> Vec<Way<Mode>> {
    if !header.loaded_high() {
        return Vec::new();
    }
    // The first gibibytes are all that 32-bit code and the identity map reach.
    let mut starts = header.starts();
    starts.retain(|start| start.checked_add(header.init_size).is_some_and(|end| end <= FOUR_GIB));
    if starts.is_empty() {
        return Vec::new();
    }
    let takes = Takes::Ramdisk {
        // What is no Linux has nothing packed in it, and words of its own on the command line.
        is_linux: header.packed().is_some(),
        cmdline: layout::CMDLINE_MAX.min(header.cmdline_size as usize),
        below: layout::INITRD_BELOW.min(u64::from(header.initrd_addr_max) + 1),
    };
    let way = |protocol, mode, entry| {
        let (offset, len) = (header.protected_at, header.protected_len);
        let (starts, memory) = (starts.clone(), header.init_size);
        let source = Source::Part(Part { offset, len, starts, memory, entry });
        Way { protocol, mode, source, header: header.raw.clone(), takes }
    };
    let mut ways = Vec::new();
    if header.has_64_bit_entry() {
        ways.push(way(LINUX, Mode::Linux, bzimage::ENTRY_64));
    }
    ways.push(way(LINUX_32, Mode::Linux32, 0));
    ways
}
