//! The ways in which images are entered on this architecture, the preferred one first.

use super::{EM_386, EM_X86_64, Mode, layout, linux};
use crate::arch::formats::{Kernel, bzimage, multiboot};
use crate::board::Takes;
use crate::payload::image::{Form, Image, Layer};
use crate::payload::load::{Part, Rules, Source, Way};

/// The Linux boot protocol at 64 bits: of a `vmlinux`, or of a bzImage that unpacks itself.
const LINUX: &str = "linux";
/// The same at 32 bits.
const LINUX_32: &str = "linux32";
/// The same at 16 bits, with what there is of a BIOS.
const LINUX_16: &str = "linux16";
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
    unpack_themselves: &[LINUX, LINUX_32, LINUX_16],
};

/// What a kernel is given that is an ELF file, by Linux's protocol or PVH's.
fn elf_takes(is_linux: bool) -> Takes {
    Takes::Ramdisk { is_linux, cmdline: layout::CMDLINE_MAX, below: layout::INITRD_BELOW }
}

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
                takes: elf_takes(true),
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
                    takes: elf_takes(*is_linux),
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
            let starts = vec![load];
            Source::Parts(vec![Part { offset, len, starts, memory, entry: entry - load }])
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
    // The first gibibytes are all that 32-bit code and the identity map reach. A kernel that fits
    // nowhere there is left to what RAM has to say.
    let mut starts = header.starts();
    let preferred = starts[0];
    starts.retain(|start| start.checked_add(header.init_size).is_some_and(|end| end <= FOUR_GIB));
    if starts.is_empty() {
        starts.push(preferred);
    }
    let takes = Takes::Ramdisk {
        // What is no Linux has nothing packed in it, and words of its own on the command line.
        is_linux: header.packed().is_some(),
        cmdline: layout::CMDLINE_MAX.min(header.cmdline_size as usize),
        below: layout::INITRD_BELOW.min(u64::from(header.initrd_addr_max) + 1),
    };
    let (offset, len) = (header.protected_at, header.protected_len);
    let protected = Part { offset, len, starts, memory: header.init_size, entry: 0 };
    let way = |protocol, mode, parts| Way {
        protocol,
        mode,
        source: Source::Parts(parts),
        header: header.raw.clone(),
        takes,
    };
    let mut ways = Vec::new();
    if header.has_64_bit_entry() {
        let parts = vec![Part { entry: bzimage::ENTRY_64, ..protected.clone() }];
        ways.push(way(LINUX, Mode::Linux, parts));
    }
    // A header that leaves open where the 32-bit entry is has none.
    if header.code32_start != 0 {
        ways.push(way(LINUX_32, Mode::Linux32, vec![protected.clone()]));
    }
    if header.protected_at <= linux::REAL_MODE_MOST {
        let real = Part {
            offset: 0,
            len: header.protected_at,
            starts: vec![layout::REAL_MODE_KERNEL.start],
            memory: layout::REAL_MODE_KERNEL.len,
            entry: linux::REAL_MODE_ENTRY,
        };
        ways.push(way(LINUX_16, Mode::Linux16, vec![real, protected]));
    }
    ways
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::arch::formats::samples::{self, put};
    use crate::memory::{GuestRam, RamRange};
    use crate::payload::Payload;
    use crate::payload::image::Unpacking;
    use crate::payload::load::{self, Wish, choose};
    use crate::places::Places;

    fn image(bytes: Vec<u8>) -> Image {
        let unpacking = Unpacking { limit: 1 << 30, cache: None, kernels: true };
        Image::read(Payload::Memory(bytes), &unpacking).unwrap()
    }

    fn names(bytes: Vec<u8>) -> Vec<&'static str> {
        ways(&image(bytes)).iter().map(|way| way.protocol).collect()
    }

    /// A bzImage, packed in an unknown way, with `bytes` at `at`.
    fn bzimage(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut image = samples::bzimage(b"packed kernel");
        put(&mut image, at, bytes);
        image
    }

    fn part(way: &Way<Mode>) -> &Part {
        match &way.source {
            Source::Parts(parts) => &parts[0],
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_image_has_its_ways() {
        assert_eq!(names(vec![0x90; 100]), ["flat"]);
        assert_eq!(names(samples::multiboot()), ["multiboot"]);
        assert_eq!(names(samples::arm64_image()), [""; 0]);
        assert_eq!(names(bzimage(0x280, b"1")), ["linux", "linux32", "linux16"]);
        assert_eq!(names(bzimage(0x236, &[0])), ["linux32", "linux16"], "without a 64-bit entry");
        let bare = {
            let mut image = bzimage(0x236, &[0]);
            put(&mut image, 0x214, &[0; 4]);
            image
        };
        assert_eq!(names(bare), ["linux16"], "with neither entry");
        assert_eq!(names(bzimage(0x211, &[0])), [""; 0], "a zImage");
    }

    #[test]
    fn hostile_19_a_bzimage_goes_where_it_may() {
        for (at, bytes, starts) in [
            (0x280, &b"1"[..], &[0x100_0000, 0x20_0000, 0x20_0000][..]),
            // Preferred at the top of what there is, or nowhere near the bottom.
            (0x258, &[0, 0, 0xf8, 0xff, 0, 0, 0, 0], &[0x20_0000, 0x20_0000]),
            (0x258, &[0, 0, 0, 0, 1, 0, 0, 0], &[0x20_0000, 0x20_0000]),
            // Not relocatable, and larger than 4 GiB from there.
            (0x234, &[0], &[0x100_0000]),
            (0x260, &[0xff; 4], &[0x100_0000]),
            // Before 2.10 there is neither a preferred address nor a least alignment.
            (0x206, &[9, 2], &[0x10_0000, 0x20_0000, 0x10_0000]),
        ] {
            let ways = ways(&image(bzimage(at, bytes)));
            assert_eq!(part(&ways[0]).starts, starts, "{at:#x} {bytes:x?}");
            assert!(part(&ways[0]).len <= part(&ways[0]).memory);
        }
        let ways = ways(&image(bzimage(0x280, b"1")));
        let entries = [(0x200, Mode::Linux), (0, Mode::Linux32)];
        let Source::Parts(parts) = &ways[2].source else { panic!("{ways:?}") };
        let at: Vec<_> = parts.iter().map(|part| (part.offset, part.len, part.starts[0])).collect();
        let len = bzimage(0, &[]).len() as u64;
        assert_eq!(at, [(0, 0x600, 0x9_0000), (0x600, len - 0x600, 0x100_0000)]);
        assert!(ways.iter().zip(entries).all(|(way, e)| (part(way).entry, way.mode) == e));
    }

    #[test]
    fn hostile_19_a_bzimage_is_given_no_more_than_it_takes() {
        let takes = |at: usize, bytes: &[u8]| match ways(&image(bzimage(at, bytes)))[0].takes {
            Takes::Ramdisk { is_linux, cmdline, below } => (is_linux, cmdline, below),
            other => panic!("{other:?}"),
        };
        assert_eq!(takes(0x280, b"1"), (true, 2047, 0x8000_0000));
        assert_eq!(takes(0x24c, &[0; 4]), (false, 2047, 0x8000_0000), "nothing is packed in it");
        assert_eq!(takes(0x238, &[0; 4]), (true, 0, 0x8000_0000));
        assert_eq!(takes(0x238, &[0xff; 4]), (true, 2047, 0x8000_0000));
        assert_eq!(takes(0x22c, &[1, 0, 0, 0]), (true, 2047, 2));
        assert_eq!(takes(0x22c, &[0xff; 4]), (true, 2047, 0x8000_0000));
    }

    #[test]
    fn what_is_asked_for_is_chosen_or_refused_in_one_line() {
        let choose = |bytes: Vec<u8>, protocol, mode| {
            choose(&image(bytes), 0, protocol, mode, &RULES)
                .map(|way| (way.protocol, way.mode, way.takes == Takes::Nothing))
                .map_err(|error| format!("{error:#}"))
        };
        let linux = || bzimage(0x280, b"1");
        assert_eq!(choose(linux(), None, None), Ok(("linux", Mode::Linux, false)));
        assert_eq!(choose(linux(), Some("linux32"), None), Ok(("linux32", Mode::Linux32, false)));
        assert_eq!(choose(vec![0x90], None, Some(Mode::Long)), Ok(("flat", Mode::Long, true)));
        assert_eq!(
            choose(vec![0x90], Some("flat"), Some(Mode::Long)),
            Ok(("flat", Mode::Long, true))
        );
        for (bytes, protocol, mode, says) in [
            (
                linux(),
                Some("pvh"),
                None,
                "--entry-protocol pvh: this image is entered by linux, linux32, linux16",
            ),
            (vec![0x90], Some(""), None, "--entry-protocol : this image is entered by flat"),
            (linux(), Some("linux"), Some(Mode::Real), "--mode: the protocol linux says in which"),
            (bzimage(0x211, &[0]), None, None, "protocol 2.15: it is a zImage, loaded below 1 MiB"),
            (samples::arm64_image(), None, None, "for aarch64: it can't run here"),
        ] {
            let refused = choose(bytes, protocol, mode).unwrap_err();
            assert!(refused.contains(says) && !refused.contains('\n'), "{refused}");
        }
    }

    /// Reads, chooses and loads `bytes` as a machine with 4 MiB does.
    fn load(bytes: Vec<u8>, protocol: Option<&str>) -> anyhow::Result<u64> {
        let ranges = vec![RamRange { start: 0, len: 4 << 20 }];
        let unpacking = Unpacking { limit: 4 << 20, cache: None, kernels: protocol.is_none() };
        let image = Image::read(Payload::Memory(bytes), &unpacking)?;
        let way = choose(&image, 0, protocol, None, &RULES)?;
        let mut places = Places::new(&ranges);
        let ram = GuestRam::new(ranges)?;
        let entry = load::load(&image, &ram, &mut places, &Wish::default(), &way, &RULES)?;
        assert!(places.in_ram(entry, 1));
        Ok(entry)
    }

    #[test]
    fn images_lie_where_their_headers_say() {
        let low = |start: u32| {
            samples::multiboot_with(1 << 16, [start + 0x40, start, 0, 0, start + 0x100])
        };
        for (bytes, entry) in [
            (samples::multiboot(), Ok(0x10_0100)),
            (low(0), Ok(0x100)),
            (low(0x7c00), Ok(0x7d00)),
            (low(0x3f_f000), Ok(0x3f_f100)),
            (low(0x3f_f001), Err("kernel: 0x1000 bytes at 0x3ff001 lie outside RAM")),
            (low(0xc000_0000), Err("kernel: 0x1000 bytes at 0xc0000000 lie outside RAM")),
            // Relocatable: it prefers 16 MiB, and fits at 2.
            (bzimage(0x280, b"1"), Ok(0x20_0200)),
            (bzimage(0x260, &[0, 0, 0x20, 0]), Ok(0x20_0200)),
            (bzimage(0x260, &[0, 0, 0x21, 0]), Err("lie outside RAM")),
            (bzimage(0x234, &[0]), Err("kernel: 0x100000 bytes at 0x1000000 lie outside RAM")),
        ] {
            let loaded = load(bytes, None).map_err(|error| format!("{error:#}"));
            match (loaded, entry) {
                (Ok(loaded), Ok(entry)) => assert_eq!(loaded, entry),
                (Err(refused), Err(says)) => assert!(refused.contains(says), "{refused}"),
                (loaded, entry) => panic!("{loaded:x?} instead of {entry:x?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn hostile_23_damaged_headers_never_panic(
            at in 0usize..0x290,
            bytes in prop::collection::vec(any::<u8>(), 1..9),
            protocol in prop::sample::select(vec![None, Some("linux"), Some("linux16"), Some("linux32")]),
        ) {
            for mut image in [samples::bzimage(b"packed kernel"), samples::multiboot()] {
                put(&mut image, at, &bytes);
                let _ = load(image, protocol);
            }
        }
    }
}
