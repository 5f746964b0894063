//! Damaged headers of every format, named after the groups of hostile input that they belong to.

use super::samples::{arm64_image, bzimage, multiboot, multiboot_with, put};
use super::*;

fn read(image: &[u8]) -> Result<Option<Kernel>> {
    Kernel::read(&image[..image.len().min(HEAD)], image.len() as u64)
}

fn facts(image: &[u8]) -> Facts {
    read(image).unwrap().expect("it is recognised").facts()
}

/// What the refusal of `image` says.
fn refusal(image: &[u8]) -> String {
    read(image).expect_err("it is refused").to_string()
}

/// `image` with `bytes` at `at`.
fn with(mut image: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    put(&mut image, at, bytes);
    image
}

#[test]
fn whole_images_are_recognised() {
    let image = bzimage(b"packed kernel");
    let kernel = read(&image).unwrap().unwrap();
    assert_eq!(kernel.packed(), Some((0x800, 13)));
    assert_eq!(kernel.version(&Payload::Memory(image)).unwrap(), "1.2.3 (sample)");
    let Kernel::BzImage(header) = &kernel else { panic!("{kernel:?}") };
    assert_eq!(header.raw.len(), 0x26c - bzimage::HEADER);
    assert!(header.has_64_bit_entry() && header.may_lie_above_4_gib());
    let facts_of = kernel.facts();
    assert_eq!((facts_of.entry, facts_of.load), (Some(0x100_0200), (Some(0x100_0000), 0x10_0000)));
    assert_eq!(facts(&arm64_image()).load, (None, 0x1_0000));
    let placed = facts(&multiboot());
    assert_eq!((placed.entry, placed.load), (Some(0x10_0100), (Some(0x10_0000), 0x1_0000)));
    for nothing in [&[][..], &[0; 64], &[0; 8192], &[0xff; 10_000]] {
        assert_eq!(read(nothing).unwrap(), None);
    }
}

#[test]
fn hostile_17_hosts_run_their_own() {
    for (host, architecture, runs) in [
        ("x86_64", "x86_64", true),
        ("x86_64", "i386", true),
        ("x86_64", "aarch64", false),
        ("aarch64", "aarch64", true),
        ("aarch64", "x86_64", false),
        ("aarch64", "i386", false),
    ] {
        assert_eq!(host_runs(host, architecture), runs, "{architecture} on {host}");
    }
}

#[test]
fn hostile_19_a_bzimage_header_is_checked_field_by_field() {
    let good = || bzimage(b"packed kernel");
    for (at, bytes, says) in [
        (0x1f1, &[255][..], "ends past the end of the file"),
        (0x1f4, &[0xff; 4], "ends past the end of the file"),
        (0x1fe, &[0, 0], "no boot flag"),
        (0x200, &[0x90], "its header ends at 0x26c"),
        (0x201, &[0x20], "its header ends at 0x222"),
        (0x201, &[0xff], "its header ends at 0x301"),
        (0x206, &[0xff, 1], "boot protocol 1.255"),
        (0x206, &[5, 2], "boot protocol 2.05"),
        (0x206, &[0, 0], "boot protocol 0.00"),
        (0x230, &[0; 4], "alignment 0x0"),
        (0x230, &[1, 1, 0, 0], "alignment 0x101"),
        (0x235, &[32], "least alignment"),
        (0x235, &[255], "least alignment"),
        (0x248, &[0xff; 4], "its payload"),
        (0x24c, &[0xff; 4], "its payload"),
        (0x248, &[0xff; 8], "its payload"),
        (0x258, &[0xff; 8], "wraps around"),
    ] {
        let refused = refusal(&with(good(), at, bytes));
        assert!(refused.contains(says), "{at:#x}: {refused}");
    }
}

#[test]
fn hostile_19_odd_but_usable_bzimages_are_described_as_they_are() {
    let good = || bzimage(b"packed kernel");
    let header = |image: &[u8]| match read(image).unwrap() {
        Some(Kernel::BzImage(header)) => header,
        other => panic!("{other:?}"),
    };
    // setup_sects 0 means 4; a payload ends where the shorter kernel does.
    let four = with(with(bzimage(&[0; 2048]), 0x1f1, &[0]), 0x1f4, &[0; 4]);
    assert_eq!(header(&with(four, 0x24c, &[16, 0, 0, 0])).protected_at, 5 * 512);
    let len = good().len() as u64;
    assert_eq!(header(&with(good(), 0x260, &[0; 4])).init_size, len - 3 * 512);
    assert_eq!(header(&with(good(), 0x260, &[0xff; 4])).init_size, 0xffff_ffff);
    assert_eq!(header(&with(good(), 0x238, &[0; 4])).cmdline_size, 0);
    assert_eq!(header(&with(good(), 0x22c, &[1, 0, 0, 0])).initrd_addr_max, 1);
    assert!(!header(&with(good(), 0x236, &[0, 0])).has_64_bit_entry());
    assert_eq!(
        facts(&with(good(), 0x211, &[0])).refused,
        Some("it is a zImage, loaded below 1 MiB")
    );
    // Before 2.08 there is no payload, whatever the bytes are.
    let old = with(with(good(), 0x206, &[7, 2]), 0x248, &[0xff; 8]);
    assert_eq!(header(&old).packed(), None);
    // A version string outside the real-mode part, or without an end, is none.
    for pointer in [0u16, 0x400, 0xffff] {
        let image = with(good(), 0x20e, &pointer.to_le_bytes());
        assert_eq!(header(&image).kernel_version(&Payload::Memory(image)), None, "{pointer:#x}");
    }
    let endless = with(good(), 0x280, &[b'1'; 3 * 512 - 0x280]);
    assert_eq!(header(&endless).kernel_version(&Payload::Memory(endless)), None);
}

#[test]
fn hostile_20_an_arm64_image_header_is_checked_field_by_field() {
    let header = |at: usize, bytes: &[u8]| match read(&with(arm64_image(), at, bytes)).unwrap() {
        Some(Kernel::Arm64(header)) => header,
        other => panic!("{other:?}"),
    };
    let number = |value: u64| value.to_le_bytes();
    let old = header(16, &number(0));
    assert_eq!((old.text_offset, old.image_size, old.page_kib), (0x8_0000, 8192, None));
    assert_eq!(header(16, &number(1)).image_size, 4096, "at least what the file has");
    assert_eq!(header(16, &number(1 << 40)).image_size, 1 << 40, "the loader knows its RAM");
    for offset in [0, 0xf_ffc0, 0x8_0000, 0x20_0000, 0x1234_5678] {
        assert_eq!(header(8, &number(offset)).text_offset, offset);
    }
    for (flags, page_kib) in [(0, None), (2, Some(4)), (4, Some(16)), (6, Some(64))] {
        assert_eq!(header(24, &number(flags)).page_kib, page_kib);
    }
    assert!(header(24, &number(8)).anywhere && !header(24, &number(0)).anywhere);
    let big = with(arm64_image(), 24, &number(1));
    assert_eq!(facts(&big).refused, Some("it is a big-endian kernel"));
    for (image, says) in [
        (arm64_image()[..63].to_vec(), "63 of 64 bytes"),
        (arm64_image()[..60].to_vec(), "60 of 64 bytes"),
        (with(arm64_image(), 8, &number(u64::MAX)), "fit no memory"),
        (with(arm64_image(), 16, &number(u64::MAX)), "fit no memory"),
    ] {
        let refused = refusal(&image);
        assert!(refused.contains(says), "{refused}");
    }
    // An EFI program's sections tell where the file should end.
    let mut program = with(arm64_image(), 0, b"MZ");
    put(&mut program, 0x3c, &[0x40]);
    put(&mut program, 0x40, b"PE\0\0");
    put(&mut program, 0x46, &[1]);
    put(&mut program, 0x40 + 24 + 16, &[0, 0x10, 0, 0]);
    assert!(read(&program).unwrap().is_some());
    assert!(refusal(&program[..0x50]).contains("lacks its sections"));
    assert!(refusal(&program[..4095]).contains("sections end at 0x1000"));
}

#[test]
fn hostile_21_a_multiboot_header_is_checked_field_by_field() {
    const START: u32 = 0x10_0000;
    const KLUDGE: u32 = 1 << 16;
    for (flags, addresses, says) in [
        (KLUDGE | 8, [0; 5], "unknown features (flags 0x8)"),
        (KLUDGE | 0xffff, [0; 5], "unknown features (flags 0xfff8)"),
        (3, [0; 5], "says not where it goes"),
        (KLUDGE, [START, START + 1, 0, 0, START], "its header"),
        (KLUDGE, [START + 0x41, START, 0, 0, START], "its header"),
        (KLUDGE, [START + 0x40, START, START - 1, 0, START], "it loads"),
        (KLUDGE, [START + 0x40, START, START, 0, START], "it loads"),
        (KLUDGE, [START + 0x40, START, START + 0x1001, 0, START], "it loads"),
        (KLUDGE, [START + 0x40, START, 0, START + 0xfff, START], "memory up to"),
        (KLUDGE, [START + 0x40, START, 0, 1, START], "memory up to"),
        (KLUDGE, [0xffff_f041, 0xffff_f001, 0, 0, 0xffff_f001], "memory up to"),
        (KLUDGE, [START + 0x40, START, 0, 0, START - 1], "its entry"),
        (KLUDGE, [START + 0x40, START, 0, 0, START + 0x1000], "its entry"),
    ] {
        let refused = refusal(&multiboot_with(flags, addresses));
        assert!(refused.contains(says), "{flags:#x} {addresses:x?}: {refused}");
    }
    // Not a header: a wrong sum, out of step, or beyond 8 KiB.
    assert_eq!(read(&with(multiboot(), 0x48, &[0])).unwrap(), None);
    assert_eq!(read(&multiboot()[1..]).unwrap(), None);
    let far = |at: usize| [vec![0; at - 0x40], multiboot()].concat();
    assert_eq!(read(&far(8192)).unwrap(), None);
    assert!(refusal(&far(8192 - 16)).contains("past byte 8192"));
    // An ELF file needs no address fields, but is placed by them where it has them.
    let elf = |image: &[u8]| Kernel::read_in_elf(image, image.len() as u64, EM_386).unwrap();
    assert_eq!(elf(&multiboot_with(3, [0; 5])).unwrap().facts().entry, None);
    assert_eq!(elf(&multiboot()).unwrap().facts().entry, Some(0x10_0100));
    assert_eq!(Kernel::read_in_elf(&multiboot(), 4096, EM_AARCH64).unwrap(), None);
}
