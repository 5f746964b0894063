use proptest::prelude::*;

use super::Compression::*;
use super::*;
use crate::effort;

/// A deflate stream of stored blocks in a gzip file whose header has `flags` and `fields`.
fn gzip_of(bytes: &[u8], flags: u8, fields: &[u8]) -> Vec<u8> {
    let mut file = vec![0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 3];
    file.extend(fields);
    let blocks: Vec<_> = bytes.chunks(0xffff).collect();
    for (index, block) in blocks.iter().enumerate() {
        let len = block.len() as u16;
        file.push(u8::from(index + 1 == blocks.len()));
        file.extend(len.to_le_bytes());
        file.extend((!len).to_le_bytes());
        file.extend(*block);
    }
    file.extend(crc32fast::hash(bytes).to_le_bytes());
    file.extend((bytes.len() as u32).to_le_bytes());
    file
}

fn lz4_of(bytes: &[u8]) -> Vec<u8> {
    let mut file = LZ4_LEGACY.to_vec();
    for block in bytes.chunks(LZ4_BLOCK) {
        let packed = lz4_flex::block::compress(block);
        file.extend((packed.len() as u32).to_le_bytes());
        file.extend(packed);
    }
    file
}

fn zstd_of(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// Calls to one place, which the filter for machine code makes all alike.
fn calls() -> Vec<u8> {
    (0..64u8)
        .flat_map(|n| {
            let displacement = 0x1000 - (7 * i32::from(n) + 5);
            [&[0xe8][..], &displacement.to_le_bytes(), &[0x90, n]].concat()
        })
        .collect()
}

/// The same, packed by xz 5.4.1 with that filter, `--lzma2=dict=1MiB` and `--check=crc32`, as the
/// build of Linux does it.
const CALLS_XZ: &str = "\
    fd377a585a0000016922de3602010400210110008b216f49e001bf00685d0073fffdf00c623611d23166ba4d8042a4\
    3a8fee588796e924d29b1012f1a6350c5c55f0f0f1a65eb12681a046ef9afc013baeed9085b80560b3ced309a67fdf\
    0c05821fcd3ce9e5f8f38724403f65635c5d2eca406483381c6fad8ef95f36d1e48e8aa5484516e18c0018c56d5d00\
    018001c0030000eab98e943e300d8b020000000001595a";

fn calls_xz() -> Vec<u8> {
    let digits: Vec<_> = CALLS_XZ.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

/// Every compression, with the same content where it can be packed here.
fn samples() -> Vec<(Compression, Vec<u8>, Vec<u8>)> {
    samples_of(20_000)
}

/// As above, with so many words.
fn samples_of(words: u32) -> Vec<(Compression, Vec<u8>, Vec<u8>)> {
    let text: Vec<u8> = (0..words).flat_map(|n| (n % 977 * n).to_le_bytes()).collect();
    vec![
        (Gzip, gzip_of(&text, 0, b""), text.clone()),
        (Zstd, zstd_of(&text), text.clone()),
        (Lz4, lz4_of(&text), text),
        (Xz, calls_xz(), calls()),
    ]
}

#[test]
fn each_compression_is_told_by_its_magic_and_unpacked() {
    for (compression, packed, content) in samples() {
        assert_eq!(Compression::recognise(&packed), Some(compression));
        assert!(unpack(compression, &packed, 1 << 20).unwrap() == content, "{compression:?}");
    }
    for nothing in [&b""[..], b"\x1f\x8b", b"\x7fELF", b"\xfd7zXZ"] {
        assert_eq!(Compression::recognise(nothing), None);
    }
}

#[test]
fn what_follows_the_stream_is_left_alone() {
    for (compression, packed, content) in samples() {
        let size = (content.len() as u32).to_le_bytes();
        let unpacked = unpack(compression, &[&packed[..], &size].concat(), 1 << 20).unwrap();
        assert!(unpacked == content, "{compression:?} and the size");
        let unpacked = unpack(compression, &[&packed[..], &[0; 100]].concat(), 1 << 20).unwrap();
        assert!(unpacked == content, "{compression:?} and zeros");
    }
}

#[test]
fn the_limit_is_exact() {
    for (compression, packed, content) in samples() {
        let len = content.len() as u64;
        assert!(unpack(compression, &packed, len).unwrap() == content, "{compression:?}");
        for limit in [len - 1, len / 2, 1, 0] {
            let error = unpack(compression, &packed, limit).unwrap_err().to_string();
            let says = format!("{} data that unpack to more than {limit:#x}", compression.name());
            assert!(error.contains(&says), "{error}");
        }
    }
}

#[test]
fn hostile_16_a_stream_that_ends_early_is_damaged() {
    for (compression, packed, _) in samples() {
        let step = packed.len() / effort::rounds(97).max(20) + 1;
        for len in (6..packed.len()).step_by(step) {
            // Only lz4's frames have no end that could be missed: a whole block may be the last.
            let result = unpack(compression, &packed[..len], 1 << 20);
            assert!(result.is_err(), "{compression:?} {len} of {}", packed.len());
        }
    }
}

#[test]
fn gzip_headers_may_have_fields() {
    let fields = b"\x03\0abcname\0comment\0xx";
    assert_eq!(unpack(Gzip, &gzip_of(b"content", 0x1e, fields), 100).unwrap(), b"content");
    for (flags, fields) in [(0x20, &b""[..]), (4, b"\xff\xff"), (8, b"")] {
        let mut file = gzip_of(&[b'x'; 8], flags, fields);
        file.iter_mut().skip(10 + fields.len()).for_each(|byte| *byte |= 1);
        assert!(unpack(Gzip, &file, 100).is_err(), "{flags:#x}");
    }
}

#[test]
fn checksums_are_checked() {
    for (compression, mut packed, content) in samples().into_iter().filter(|s| s.0 != Lz4) {
        let at = packed.len() - if compression == Xz { 30 } else { 8 };
        packed[at] ^= 1;
        let result = unpack(compression, &packed, 1 << 20);
        assert!(!result.is_ok_and(|bytes| bytes != content), "{compression:?}");
    }
}

#[test]
fn a_bomb_ends_at_the_limit() {
    let zeros = vec![0; effort::rounds(64 << 20)];
    for (compression, bomb) in [(Zstd, zstd_of(&zeros)), (Lz4, lz4_of(&zeros))] {
        assert!(bomb.len() < 1 << 20);
        let error = unpack(compression, &bomb, 1 << 20).unwrap_err().to_string();
        assert!(error.contains("more than 0x100000 bytes"), "{error}");
        assert!(unpack(compression, &bomb, u64::MAX).unwrap() == zeros, "the room grows");
    }
}

#[test]
fn lz4_frames_may_follow_each_other() {
    let two = [lz4_of(b"first "), lz4_of(b"second")].concat();
    assert_eq!(unpack(Lz4, &two, 100).unwrap(), b"first second");
}

#[test]
fn hostile_23_flipped_bytes_never_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    for (compression, packed, content) in samples_of(500) {
        for _ in 0..effort::long_rounds(10_000) {
            let mut file = packed.clone();
            for _ in 0..=random(3) {
                let at = random(file.len().min(4096));
                file[at] ^= 1 << random(8);
            }
            let limit = content.len() as u64 + 1000;
            if let Ok(bytes) = unpack(compression, &file, limit) {
                assert!(bytes.len() as u64 <= limit);
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_behind_a_magic_are_handled(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for magic in [&b"\x1f\x8b\x08\0"[..], b"\x28\xb5\x2f\xfd", &LZ4_LEGACY, b"\xfd7zXZ\0"] {
            let file = [magic, &bytes].concat();
            let compression = Compression::recognise(&file).unwrap();
            if let Ok(unpacked) = unpack(compression, &file, 10_000) {
                prop_assert!(unpacked.len() <= 10_000);
            }
        }
    }
}
