//! Pieces: what is taken as one, and how bytes come into them and out.

use std::io::{Read, Seek, Write};

use super::*;
use crate::memory::RamRange;

/// Two ranges that touch, and one apart.
fn ram() -> Arc<GuestRam> {
    let ranges = [(0x1000, 0x1000), (0x2000, 0x1000), (0x8000, 0x1000)];
    let ranges = ranges.map(|(start, len)| RamRange { start, len });
    Arc::new(GuestRam::new(ranges.to_vec()).unwrap())
}

#[test]
fn only_ram_is_taken_and_pieces_may_span_ranges_that_touch() {
    for (guest_addr, len, ok, count) in [
        (0x1000, 0x1000, true, 1),
        (0x1fff, 2, true, 2),
        (0x1000, 0x2000, true, 2),
        (0x1000, 0x2001, false, 0),
        (0x2fff, 2, false, 0),
        (0xfff, 2, false, 0),
        (0, 1, false, 0),
        (u64::MAX, 1, false, 0),
        (u64::MAX, 2, false, 0),
        (0x1000, usize::MAX, false, 0),
        (0x1234, 0, true, 0),
    ] {
        let mut pieces = Pieces::new(ram());
        let pushed = pieces.push(guest_addr, len);
        assert_eq!(pushed.is_ok(), ok, "{guest_addr:#x} of {len:#x}");
        if ok {
            assert_eq!((pieces.len(), pieces.as_iovecs().len()), (len, count));
        }
    }
}

#[test]
fn bytes_come_from_the_front_in_order_whatever_the_pieces() {
    let ram = ram();
    ram.write(b"abcdef", 0x1ffd).unwrap();
    ram.write(b"ghi", 0x8000).unwrap();
    let mut pieces = Pieces::new(ram.clone());
    pieces.push(0x1ffd, 6).unwrap();
    pieces.push(0x8000, 3).unwrap();
    let mut rest = Pieces::new(ram.clone());
    pieces.split_off(7, &mut rest);
    let mut bytes = [0; 9];
    assert_eq!((pieces.len(), rest.len()), (7, 2));
    assert_eq!((rest.read(&mut bytes), &bytes[..2]), (2, &b"hi"[..]));
    pieces.skip(1);
    assert_eq!((pieces.read(&mut bytes[..4]), &bytes[..4]), (4, &b"bcde"[..]));
    assert_eq!((pieces.read(&mut bytes), &bytes[..2]), (2, &b"fg"[..]));
    assert!(pieces.is_empty() && pieces.as_iovecs().is_empty());

    pieces.clear();
    pieces.push(0x1ffe, 4).unwrap();
    assert_eq!(pieces.write(b"WXYZ!"), 4);
    assert_eq!(ram.peek(0x1ffd, 6), b"aWXYZf");
    pieces.clear();
    pieces.push(0x1ffe, 4).unwrap();
    pieces.truncate(3);
    pieces.zero(9);
    assert_eq!(ram.peek(0x1ffd, 6), b"a\0\0\0Zf");
}

#[test]
fn files_and_streams_are_read_and_written_in_one_call() {
    let ram = ram();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"0123456789").unwrap();
    let mut pieces = Pieces::new(ram.clone());
    pieces.push(0x1ffe, 4).unwrap();
    assert_eq!(pieces.read_at(&file, 3).unwrap(), 4);
    assert_eq!(ram.peek(0x1ffe, 4), b"3456");
    pieces.clear();
    pieces.push(0x1ffe, 4).unwrap();
    assert_eq!(pieces.write_at(&file, 8).unwrap(), 4);
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "012345673456");

    let (reader, writer) = io::pipe().unwrap();
    pieces.clear();
    pieces.push(0x1ffe, 4).unwrap();
    assert_eq!(pieces.write_to(&writer).unwrap(), 4);
    pieces.push(0x8000, 9).unwrap();
    assert_eq!(pieces.read_from(&reader).unwrap(), 4);
    assert_eq!((ram.peek(0x8000, 5), pieces.len()), (b"3456\0".to_vec(), 5));
}

#[test]
fn what_goes_around_the_pieces_is_read_and_written_with_them() {
    let (reader, mut writer) = io::pipe().unwrap();
    // What is in the pipe, the limit; bytes in all, in front, in RAM, behind; what is left.
    for (text, limit, count, expected, left) in [
        (&b"0123456789abcdef"[..], 9, 15, [&b"012"[..], b"3456789ab", b"cde"], 0),
        (b"0123456789abcdef", 90, 15, [b"012", b"3456789ab", b"cde"], 0),
        (b"0123456789abcdef", 5, 11, [b"012", b"34567", b"89a"], 4),
        (b"0123456789abcdef", 4, 10, [b"012", b"3456", b"789"], 5),
        (b"0123456789abcdef", 2, 8, [b"012", b"34", b"567"], 7),
        (b"0123456789abcdef", 0, 6, [b"012", b"", b"345"], 9),
        (b"0123456", 5, 7, [b"012", b"3456", b"\0\0\0"], 5),
        (b"01", 5, 2, [b"01\0", b"", b"\0\0\0"], 9),
    ] {
        let ram = ram();
        let mut pieces = Pieces::new(ram.clone());
        pieces.push(0x1ffe, 4).unwrap();
        let mut more = Pieces::new(ram.clone());
        more.push(0x8000, 5).unwrap();
        pieces.append(&mut more);
        assert_eq!((pieces.len(), more.len()), (9, 0));
        writer.write_all(text).unwrap();
        let (mut front, mut back) = ([0; 3], [0; 3]);
        let read = pieces.read_between(&mut front, limit, &mut back, &reader).unwrap();
        let mut bytes = ram.peek(0x1ffe, 4);
        bytes.extend(ram.peek(0x8000, 5));
        bytes.truncate(expected[1].len());
        assert_eq!((read, pieces.len()), (count, left), "{limit}");
        assert_eq!([&front[..], &bytes, &back], expected, "{limit}");
        let mut rest = [0; 16];
        let unread = text.len() - count;
        (&reader).read_exact(&mut rest[..unread]).unwrap();
    }
    let ram = ram();
    ram.write(b"abcd", 0x1ffe).unwrap();
    let mut pieces = Pieces::new(ram.clone());
    pieces.push(0x1ffe, 4).unwrap();
    let mut front = Pieces::new(ram);
    pieces.take_front(1, &mut front);
    assert_eq!((front.len(), pieces.len()), (1, 3));
    assert_eq!(pieces.write_after(b"12", &writer).unwrap(), 5);
    let mut bytes = [0; 5];
    (&reader).read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"12bcd");
}

#[test]
fn pages_that_are_given_back_leave_shared_memory_too() {
    let page = sys::page_size();
    let ram = Arc::new(GuestRam::shared(vec![RamRange { start: 0, len: 8 * page }]).unwrap());
    ram.write(&vec![7; 8 * page as usize], 0).unwrap();
    let blocks = || rustix::fs::fstat(ram.shared_ranges()[0].file).unwrap().st_blocks;
    let before = blocks();
    let mut pieces = Pieces::new(ram.clone());
    pieces.push(page - 1, 4 * page as usize).unwrap();
    assert_eq!(pieces.give_back(), 3 * page);
    // Of 512 bytes each (stat(2)).
    assert_eq!(before - blocks(), 3 * page as i64 / 512);
    assert_eq!([ram.peek(page - 1, 2), ram.peek(4 * page - 1, 2)], [[7, 0], [0, 7]]);
}
