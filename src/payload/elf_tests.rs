use proptest::prelude::*;

use super::*;
use crate::memory::RamRange;

/// An ELF file with the given segments (paddr, vaddr, file bytes, memsz).
fn elf(bits: u8, machine: u16, entry: u64, segments: &[(u64, u64, &[u8], u64)]) -> Vec<u8> {
    let word = usize::from(bits / 8);
    let (header_len, entry_len) = if bits == 32 { (52, 32) } else { (64, 56) };
    let mut file = b"\x7fELF".to_vec();
    file.extend([if bits == 32 { 1 } else { 2 }, 1, 1, 0]);
    file.resize(16, 0);
    let put = |file: &mut Vec<u8>, value: u64, width: usize| {
        file.extend(&value.to_le_bytes()[..width]);
    };
    for (value, width) in [
        (2, 2),
        (u64::from(machine), 2),
        (1, 4),
        (entry, word),
        (header_len, word),
        (0, word),
        (0, 4),
        (header_len, 2),
        (entry_len, 2),
        (segments.len() as u64, 2),
        (0, 2),
        (0, 2),
        (0, 2),
    ] {
        put(&mut file, value, width);
    }
    let mut offset = header_len + entry_len * segments.len() as u64;
    for (paddr, vaddr, bytes, memsz) in segments {
        put(&mut file, 1, 4);
        if bits == 64 {
            put(&mut file, 7, 4);
        }
        for value in [offset, *vaddr, *paddr, bytes.len() as u64, *memsz] {
            put(&mut file, value, word);
        }
        if bits == 32 {
            put(&mut file, 7, 4);
        }
        put(&mut file, 0, word);
        offset += bytes.len() as u64;
    }
    segments.iter().for_each(|(_, _, bytes, _)| file.extend(*bytes));
    file
}

fn payload(bytes: Vec<u8>) -> Payload {
    Payload::Bytes(bytes.leak())
}

fn load(bytes: Vec<u8>) -> Result<(u64, Vec<u8>)> {
    let ranges = vec![RamRange { start: 0x10_0000, len: 0x1_0000 }];
    let mut places = Places::new(&ranges);
    let ram = GuestRam::new(ranges)?;
    let payload = payload(bytes);
    let image = Image::read(&payload)?;
    image.machine_mode(|_, machine| (machine == 62).then_some(()))?;
    image.place(&payload, &ram, &mut places)?;
    let entry = image.entry_guest_addr()?;
    Ok((entry, ram.peek(entry, 4)))
}

#[test]
fn both_classes_are_placed_at_their_physical_addresses() {
    for bits in [32, 64] {
        let file = elf(
            bits,
            62,
            0x10_2002,
            &[(0x10_0000, 0x10_0000, b"data", 0x1000), (0x10_2000, 0x10_2000, b"..code", 6)],
        );
        assert_eq!(load(file).unwrap(), (0x10_2002, b"code".to_vec()), "{bits}");
    }
}

#[test]
fn an_entry_in_a_high_virtual_address_is_carried_to_its_physical_one() {
    let high = 0xffff_ffff_8010_0000;
    let file = elf(64, 62, high + 1, &[(0x10_3000, high, b".code", 5)]);
    assert_eq!(load(file).unwrap(), (0x10_3001, b"code".to_vec()));
}

#[test]
fn each_kind_of_damage_has_its_own_message() {
    let good = |machine| elf(64, machine, 0x10_0000, &[(0x10_0000, 0x10_0000, b"code", 4)]);
    let changed = |at: usize, bytes: &[u8]| {
        let mut file = good(62);
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    assert!(load(good(62)).is_ok());
    for (file, message) in [
        (good(183), "64-bit ELF file for Arm 64-bit"),
        (good(62)[..10].to_vec(), "ELF identification"),
        (good(62)[..40].to_vec(), "ELF header"),
        (good(62)[..80].to_vec(), "program headers"),
        (good(62)[..121].to_vec(), "ends past the end of the file"),
        (changed(4, &[3]), "class 3"),
        (changed(5, &[2]), "big-endian"),
        (changed(16, &[1]), "link it first"),
        (changed(32, &[0xff; 8]), "program headers"),
        (changed(54, &[55]), "1 program headers of 55 bytes"),
        (changed(56, &[0, 0]), "0 program headers"),
        (changed(56, &[0xff, 0xff]), "65535 program headers"),
        (changed(64, &[4]), "no PT_LOAD"),
        (changed(64, &[3]), "dynamic linker"),
        (changed(64 + 32, &[5]), "only 0x4 in memory"),
        (changed(64 + 8, &[0xff; 8]), "ends past the end of the file"),
        (changed(64 + 24, &[0xff; 8]), "wraps around"),
        (changed(64 + 40, &[0, 0, 0, 0, 1]), "lie outside RAM"),
        (changed(24, &[0xff; 8]), "in none of its segments"),
    ] {
        let error = load(file).unwrap_err().to_string();
        assert!(error.contains(message), "{error} should say {message}");
    }
    let twice = [(0x10_0000, 0x10_0000, &b"code"[..], 4), (0x10_0002, 0x10_0002, b"code", 4)];
    let error = load(elf(64, 62, 0x10_0000, &twice)).unwrap_err().to_string();
    assert!(error.contains("segment 1 at 0x100002..0x100006 overlaps segment 0"), "{error}");
}

/// Bytes of the headers of a 64-bit file with one segment, and where that header's fields lie.
const ONE_SEGMENT: usize = 64 + 56;

#[test]
fn hostile_16_a_file_is_refused_wherever_it_ends() {
    for bits in [32, 64] {
        let file = elf(bits, 62, 0x10_0000, &[(0x10_0000, 0x10_0000, &[0x90; 2000], 0x1000)]);
        assert!(load(file.clone()).is_ok());
        let shares = [25, 50, 99].map(|percent| file.len() * percent / 100);
        for len in (4..ONE_SEGMENT).chain((512..file.len()).step_by(512)).chain(shares) {
            let refused = load(file[..len].to_vec()).unwrap_err().to_string();
            assert!(refused.contains("truncated"), "{len}: {refused}");
        }
    }
}

#[test]
fn hostile_18_headers_and_segments_that_can_not_be() {
    let good = elf(64, 62, 0x10_0000, &[(0x10_0000, 0x10_0000, b"code", 4)]);
    for (at, bytes, says) in [
        // The class says 32 bits, all else is as for 64.
        (4, &[1][..], "program headers"),
        (4, &[0], "class 0"),
        // e_phoff: in the identification, at the file's end, past it, at the end of 64 bits.
        (32, &[1, 0], "no PT_LOAD"),
        (32, &[124, 0], "program headers"),
        (32, &[0xff, 0xff], "program headers"),
        (32, &[0xc9, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "program headers"),
        // e_phentsize.
        (54, &[0, 0], "headers of 0 bytes"),
        (54, &[0xff, 0xff], "headers of 65535 bytes"),
        // e_phnum.
        (56, &[2, 0], "program headers"),
        (56, &[0xfe, 0xff], "program headers"),
        // The entry is zero, or right behind the segment.
        (24, &[0, 0, 0, 0], "in none of its segments"),
        (24, &[4, 0, 0x10, 0], "in none of its segments"),
        // p_paddr: in front of RAM, in its last bytes, behind it, and nowhere.
        (64 + 24, &[0xfe, 0xff, 0x0f], "lie outside RAM"),
        (64 + 24, &[0xfe, 0xff, 0x10], "lie outside RAM"),
        (64 + 24, &[0, 0, 0x11], "lie outside RAM"),
        (64 + 24, &[0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "wraps around"),
        // p_vaddr and p_memsz.
        (64 + 16, &[0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "wraps around"),
        (64 + 40, &[0xff; 8], "wraps around"),
        // p_offset and p_filesz wrap together.
        (64 + 8, &[0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "ends past the end"),
    ] {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        let refused = load(file).unwrap_err().to_string();
        assert!(refused.contains(says), "{at} {bytes:x?}: {refused}");
        assert_eq!(refused.lines().count(), 1, "{refused}");
    }
}

#[test]
fn hostile_18_very_many_program_headers_take_no_time() {
    let segments = |count: u64| -> Vec<_> {
        (0..count).map(|index| (0x10_0000 + index, 0x10_0000 + index, &b"x"[..], 1)).collect()
    };
    assert!(load(elf(64, 62, 0x10_0000, &segments(1024))).is_ok());
    for count in [1025, 65534] {
        let refused = load(elf(64, 62, 0x10_0000, &segments(count))).unwrap_err().to_string();
        let says = format!("is a damaged ELF file: {count} segments, not 1024 at the most");
        assert_eq!(refused, says);
    }
    // So many without memory are none.
    let empty: Vec<_> = (0..65533).map(|_| (0, 0, &b""[..], 0)).chain(segments(1)).collect();
    assert!(load(elf(64, 62, 0x10_0000, &empty)).is_ok());
}

proptest! {
    #[test]
    fn damaged_headers_never_panic(at in 0usize..124, bytes in prop::collection::vec(any::<u8>(), 1..9)) {
        let mut file = elf(64, 62, 0x10_0000, &[(0x10_0000, 0x10_0000, b"code", 4)]);
        let end = (at + bytes.len()).min(file.len());
        file[at..end].copy_from_slice(&bytes[..end - at]);
        let _ = load(file);
    }
}
