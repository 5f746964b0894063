use super::*;
use crate::arch::formats::samples::{self, elf, pvh_note, zboot};
use crate::effort;

fn lz4(bytes: &[u8]) -> Vec<u8> {
    let packed = lz4_flex::block::compress(bytes);
    [&b"\x02\x21\x4c\x18"[..], &(packed.len() as u32).to_le_bytes(), &packed].concat()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

const PLAIN: Unpacking<'static> = Unpacking { limit: 1 << 20, cache: None, kernels: true };

fn read(bytes: Vec<u8>) -> Result<Image> {
    Image::read(Payload::Memory(bytes), &PLAIN)
}

fn refusal(bytes: Vec<u8>) -> String {
    match read(bytes) {
        Ok(image) => panic!("{:?} is accepted", image.form),
        Err(error) => error.to_string(),
    }
}

fn is_elf(image: &Image) -> bool {
    matches!(image.form, Form::Elf { .. })
}

#[test]
fn layers_are_taken_off_from_the_outside() {
    let image = read(lz4(&samples::bzimage(&zstd(&elf(b""))))).unwrap();
    assert!(is_elf(&image));
    let [
        Layer::Compressed(Compression::Lz4),
        Layer::Kernel(_),
        Layer::Compressed(Compression::Zstd),
    ] = &image.layers[..]
    else {
        panic!("{:?}", image.layers)
    };
    assert_eq!(image.version().unwrap(), "1.2.3 (sample)", "the outer header's");
    let image = read(zboot(&zstd(&elf(b"")))).unwrap();
    assert_eq!(image.layers, [Layer::Zboot, Layer::Compressed(Compression::Zstd)]);
    assert_eq!(image.version().unwrap(), "7.8.9-sample", "found by a search");
    let image = read(samples::bzimage(&elf(b""))).unwrap();
    assert!(is_elf(&image), "a kernel that is packed without compression");
    let image = read(zstd(b"twelve bytes")).unwrap();
    assert_eq!(image.form, Form::Flat);
    assert_eq!(image.bytes.head(100).unwrap(), b"twelve bytes");
    for (name, sample) in samples::all() {
        assert!(matches!(read(lz4(&sample)).unwrap().form, Form::Kernel(_)), "{name}");
    }
}

#[test]
fn a_kernel_that_unpacks_itself_can_be_left_to() {
    let bytes = samples::bzimage(&zstd(&elf(b"")));
    let unpacking = Unpacking { kernels: false, ..PLAIN };
    let image = Image::read(Payload::Memory(bytes), &unpacking).unwrap();
    assert!(image.layers.is_empty() && matches!(image.form, Form::Kernel(_)));
    let image = read(samples::bzimage(b"packed in a way that nobody knows")).unwrap();
    assert!(matches!(image.form, Form::Kernel(_)));
}

#[test]
fn the_cache_is_filled_and_used() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(&folder.path().join("cache"), 1 << 20).unwrap();
    let unpacking = Unpacking { cache: Some(&cache), ..PLAIN };
    for _ in 0..2 {
        let bytes = Payload::Memory(samples::bzimage(&zstd(&elf(b""))));
        let image = Image::read(bytes, &unpacking).unwrap();
        assert!(is_elf(&image) && matches!(image.bytes, Payload::File(..)));
        assert_eq!(image.bytes.head(1 << 20).unwrap(), elf(b""));
    }
    let small = Unpacking { limit: 16, ..unpacking };
    assert!(Image::read(Payload::Memory(zstd(&elf(b""))), &small).is_err(), "the limit holds");
}

#[test]
fn hostile_15_files_that_are_nothing() {
    for len in [1, 64, 511, 512] {
        assert_eq!(read(vec![0; len]).unwrap().form, Form::Flat, "{len}");
    }
    for (bytes, says) in [
        (&b"#!/bin/sh\n"[..], "script"),
        (b"QFI\xfb\0\0\0\x03", "qcow2"),
        (b"BZh91AY&SY", "bzip2"),
        (b"\x04\x22\x4d\x18", "lz4 -l"),
        (b"\x1f\x8b\x08", "gzip data"),
        (b"\x7fELF", "truncated"),
    ] {
        let refused = refusal(bytes.to_vec());
        assert!(refused.contains(says), "{refused}");
    }
}

#[test]
fn hostile_16_truncated_kernels_are_refused() {
    let whole = samples::bzimage(&zstd(&[elf(b""), vec![7; 5000]].concat()));
    for len in (0x280..whole.len() - 16).step_by(64) {
        assert!(refusal(whole[..len].to_vec()).contains("truncated"), "{len:#x}");
    }
    let packed = zboot(&zstd(&elf(b"")));
    for len in [8, 12, 16, 64, packed.len() - 1] {
        assert!(refusal(packed[..len].to_vec()).contains("truncated"), "{len:#x}");
    }
}

#[test]
fn hostile_17_what_no_host_runs() {
    let mut program = vec![0; 512];
    samples::put(&mut program, 0, b"MZ");
    samples::put(&mut program, 0x3c, b"\x80");
    samples::put(&mut program, 0x80, b"PE\0\0");
    assert!(refusal(program.clone()).contains("EFI program"));
    assert!(refusal(zstd(&program)).contains("EFI program"));
    assert!(refusal(zboot(b"packed by an unknown program")).contains("unknown way: zstd22"));
    assert!(refusal(zboot(&zstd(b"no kernel"))).contains("no kernel"));
    assert!(refusal(samples::bzimage(&zstd(b"no kernel"))).contains("no kernel"));
}

#[test]
fn hostile_18_pvh_notes() {
    let entry = |note: &[u8]| match read(elf(note)).unwrap().form {
        Form::Elf { pvh_entry, .. } => pvh_entry,
        form => panic!("{form:?}"),
    };
    assert_eq!(entry(b""), None);
    assert_eq!(entry(&pvh_note(4)), Some(0x10_0010));
    for len in [0, 3, 5, 0x7fff_ffff, 0xffff_fffe, 0xffff_ffff] {
        assert!(refusal(elf(&pvh_note(len))).contains("note"), "{len:#x}");
    }
    let mut outside = elf(&pvh_note(4));
    samples::put(&mut outside, 64 + 56 + 8, &[0xff; 8]);
    assert!(refusal(outside).contains("notes"));
}

#[test]
fn packing_has_a_depth_limit() {
    let mut bytes = elf(b"");
    for depth in 1..=3 {
        bytes = lz4(&bytes);
        assert!(is_elf(&read(bytes.clone()).unwrap()), "{depth}");
    }
    assert!(refusal(lz4(&bytes)).contains("more than 3 times"));
    assert!(refusal(lz4(&vec![0; 2 << 20])).contains("more than 0x100000 bytes"));
}

#[test]
fn hostile_23_flipped_bytes_never_panic() {
    let mut images: Vec<_> = samples::all().into_iter().map(|(_, bytes)| bytes).collect();
    images.push(elf(&pvh_note(4)));
    images.push(samples::bzimage(&lz4(&elf(&pvh_note(4)))));
    images.push(zboot(&zstd(&elf(b""))));
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    for (index, image) in images.iter().enumerate() {
        for _ in 0..effort::long_rounds(10_000) {
            let mut bytes = image.clone();
            let at = random(bytes.len().min(4096));
            bytes[at] = random(256) as u8;
            if let Ok(image) = read(bytes) {
                assert!(image.bytes.len() <= PLAIN.limit.max(1 << 13), "{index} {at:#x}");
                let _ = super::super::describe::Description::of(&image);
            }
        }
    }
}
