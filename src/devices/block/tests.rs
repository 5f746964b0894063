//! The block device, driven through its registers: what each request does, and hostile ones.

mod faults;
mod limits;

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use virtio_bindings::bindings::virtio_blk::*;

use super::*;
use crate::devices::block::raw::{Access, Raw};
use crate::effort;
use crate::virtio::counted::Counted;
use crate::virtio::driver::{Buffer, Driver};

/// Sectors of the disk.
const SECTORS: u64 = 64;
const LEN: u64 = SECTORS * SECTOR;

/// Where a request's header, data and status lie.
const HEADER: u64 = 0x1000;
const DATA: u64 = 0x2000;
const STATUS: u64 = 0x1100;

/// The features that a driver of today accepts.
const FEATURES: u64 = 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_DISCARD | 1 << 28 | 1 << 29;

fn file(len: u64) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..len).map(|at| (at / SECTOR + 1) as u8).collect();
    file.write_all(&bytes).unwrap();
    file
}

/// What is true of one is true of the other.
const ENGINES: [Engine; 2] = [Engine::Best, Engine::Threads];

fn driver(file: &tempfile::NamedTempFile, access: Access, engine: Engine) -> Driver {
    let disk = Raw::open(file.path(), access).unwrap();
    let mut driver = Driver::new(Box::new(Block::new(Arc::new(disk), "serial", 1, engine)));
    driver.start(FEATURES);
    driver
}

fn header(driver: &Driver, kind: u32, sector: u64) {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    driver.ram.write(&bytes, HEADER).unwrap();
    driver.ram.write(&[0xff], STATUS).unwrap();
}

/// One request with `data` between header and status; gives the outcome and the bytes written.
fn ask(driver: &mut Driver, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
    header(driver, kind, sector);
    let ends = [Buffer::Readable(HEADER, 16), Buffer::Writable(STATUS, 1)];
    let buffers = [&ends[..1], data, &ends[1..]].concat();
    let written = driver.request(0, &buffers);
    (driver.ram.peek(STATUS, 1)[0], written)
}

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const FAILED: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPPORTED: u8 = VIRTIO_BLK_S_UNSUPP as u8;

fn ranges(driver: &Driver, ranges: &[(u64, u32, u32)]) -> Buffer {
    let bytes: Vec<u8> = ranges
        .iter()
        .flat_map(|(sector, count, flags)| {
            [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
        })
        .collect();
    driver.ram.write(&bytes, DATA).unwrap();
    Buffer::Readable(DATA, bytes.len() as u32)
}

#[test]
fn sectors_are_read_and_written_where_they_belong() {
    for engine in ENGINES {
        let file = file(LEN);
        let mut driver = driver(&file, Access::default(), engine);
        let two = [Buffer::Writable(DATA, 512), Buffer::Writable(DATA + 0x1000, 512)];
        assert_eq!(ask(&mut driver, VIRTIO_BLK_T_IN, 5, &two), (OK, 1025));
        assert_eq!(driver.ram.peek(DATA, 512), [6; 512]);
        assert_eq!(driver.ram.peek(DATA + 0x1000, 512), [7; 512]);

        driver.ram.write(&[0xaa; 1024], DATA).unwrap();
        let data = [Buffer::Readable(DATA, 100), Buffer::Readable(DATA + 100, 924)];
        assert_eq!(ask(&mut driver, VIRTIO_BLK_T_OUT, SECTORS - 2, &data), (OK, 1));
        assert_eq!(ask(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
        let mut bytes = [0; 1536];
        file.as_file().read_exact_at(&mut bytes, LEN - 1536).unwrap();
        assert_eq!((&bytes[..512], &bytes[512..]), (&[62; 512][..], &[0xaa; 1024][..]));
    }
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    for engine in ENGINES {
        let file = file(LEN);
        let mut driver = driver(&file, Access::default(), engine);
        let zeroes = [ranges(&driver, &[(1, 2, 0), (8, 8, 1)])];
        assert_eq!(ask(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, &zeroes), (OK, 1));
        let discards = [ranges(&driver, &[(32, 8, 0), (SECTORS, 0, 0)])];
        assert_eq!(ask(&mut driver, VIRTIO_BLK_T_DISCARD, 0, &discards), (OK, 1));
        let bytes = std::fs::read(file.path()).unwrap();
        let sector = |at: usize| bytes[at * 512];
        assert_eq!([0, 1, 2, 3, 7, 8, 15, 16].map(sector), [1, 0, 0, 4, 8, 0, 0, 17]);
        assert_eq!((sector(31), sector(40), bytes.len() as u64), (32, 41, LEN));
    }
}

#[test]
fn the_serial_number_is_told_as_far_as_there_is_room() {
    let file = file(LEN);
    let mut driver = driver(&file, Access::default(), Engine::Best);
    let room = |len| [Buffer::Writable(DATA, len)];
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_GET_ID, 0, &room(20)), (OK, 21));
    assert_eq!(driver.ram.peek(DATA, 20), b"serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    driver.ram.write(&[9; 4], DATA).unwrap();
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_GET_ID, 0, &room(1)), (OK, 2));
    assert_eq!(driver.ram.peek(DATA, 2), [b's', 9]);
}

#[test]
fn the_configuration_tells_the_disk() {
    let file = file(LEN);
    let mut driver = driver(&file, Access::default(), Engine::Best);
    assert_eq!(driver.config(0, 8), SECTORS.to_le_bytes());
    assert_eq!(driver.config(20, 4), 512u32.to_le_bytes());
    // HOSTILE 37: past its end are zeros, whatever the width.
    assert_eq!(driver.config(0xf8, 8), [0; 8]);
    assert_eq!(driver.config(59, 4), [0; 4]);
    let offered = driver.offered();
    assert_eq!(offered >> VIRTIO_BLK_F_RO & 1, 0);
    let access = Access { read_only: true, ..Access::default() };
    drop(driver);
    let mut driver = self::driver(&file, access, Engine::Best);
    assert_eq!(driver.offered() >> VIRTIO_BLK_F_RO & 1, 1);
    driver.ram.write(&[7; 512], DATA).unwrap();
    let data = [Buffer::Readable(DATA, 512)];
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_OUT, 0, &data), (FAILED, 1));
    assert_eq!(std::fs::read(file.path()).unwrap()[0], 1);
}

#[test]
fn many_requests_at_once_all_come_back() {
    for engine in ENGINES {
        let file = file(LEN);
        let mut driver = driver(&file, Access::default(), engine);
        header(&driver, VIRTIO_BLK_T_IN, 3);
        for round in 0..effort::rounds(500) {
            // Five chains of three: as many as sixteen descriptors hold.
            let heads: Vec<u16> = (0..5)
                .map(|index| {
                    let data = Buffer::Writable(DATA + index * 0x1000, 512);
                    let status = Buffer::Writable(STATUS + index, 1);
                    driver.offer(0, &[Buffer::Readable(HEADER, 16), data, status])
                })
                .collect();
            driver.notify(0);
            let mut back: Vec<u16> = (0..5).map(|_| driver.wait_for_used(0).0).collect();
            back.sort_unstable();
            let mut heads = heads;
            heads.sort_unstable();
            assert_eq!(back, heads, "round {round}");
        }
        assert_eq!(driver.ram.peek(DATA + 0x4000, 512), [4; 512]);
    }
}

#[test]
fn a_request_allocates_nothing() {
    for engine in ENGINES {
        let file = file(LEN);
        let disk = Arc::new(Raw::open(file.path(), Access::default()).unwrap());
        let (device, count) = Counted::new(Box::new(Block::new(disk, "serial", 1, engine)));
        let mut driver = Driver::new(Box::new(device));
        driver.start(FEATURES);
        let mut all = |rounds: u32| {
            for round in 0..rounds {
                let read = [Buffer::Writable(DATA, 512), Buffer::Writable(DATA + 0x1000, 512)];
                ask(&mut driver, VIRTIO_BLK_T_IN, u64::from(round) % SECTORS / 2, &read);
                let write = [Buffer::Readable(DATA, 512), Buffer::Readable(DATA + 0x1000, 1024)];
                ask(&mut driver, VIRTIO_BLK_T_OUT, 7, &write);
                ask(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]);
            }
            count.load(Ordering::Acquire)
        };
        // Lists of pieces grow to their length with the first requests, of which each has its own.
        let first = all(2 * 128);
        assert_eq!(all(100) - first, 0, "{engine:?}");
    }
}

// HOSTILE 40: each is told by its status, and the next request is served.
#[test]
fn hostile_40_wrong_requests_fail_alone() {
    for engine in ENGINES {
        let file = file(LEN);
        let mut driver = driver(&file, Access::default(), engine);
        let data = |len| vec![Buffer::Writable(DATA, len)];
        let from = |len| vec![Buffer::Readable(DATA, len)];
        for (kind, sector, buffers, expected) in [
            (VIRTIO_BLK_T_IN, u64::MAX, data(512), FAILED),
            (VIRTIO_BLK_T_IN, u64::MAX >> 9, data(512), FAILED),
            (VIRTIO_BLK_T_IN, SECTORS, data(512), FAILED),
            (VIRTIO_BLK_T_IN, SECTORS - 1, data(1024), FAILED),
            (VIRTIO_BLK_T_IN, 0, data(511), FAILED),
            (VIRTIO_BLK_T_IN, 0, data(513), FAILED),
            (VIRTIO_BLK_T_OUT, SECTORS - 1, from(1024), FAILED),
            (VIRTIO_BLK_T_OUT, 0, from(1), FAILED),
            (VIRTIO_BLK_T_OUT, u64::MAX, from(512), FAILED),
            (0x1234_5678, 0, data(512), UNSUPPORTED),
            (VIRTIO_BLK_T_DISCARD, 0, from(15), FAILED),
            (VIRTIO_BLK_T_DISCARD, 0, from(16 * 33), FAILED),
            (VIRTIO_BLK_T_DISCARD, 0, vec![], FAILED),
            (VIRTIO_BLK_T_IN, 0, vec![], OK),
            (VIRTIO_BLK_T_IN, SECTORS, vec![], OK),
        ] {
            let (status, _) = ask(&mut driver, kind, sector, &buffers);
            assert_eq!(status, expected, "type {kind} at {sector} with {buffers:?}");
        }
        for (kind, range, expected) in [
            (VIRTIO_BLK_T_DISCARD, (0, u32::MAX, 0), FAILED),
            (VIRTIO_BLK_T_WRITE_ZEROES, (0, u32::MAX, 0), FAILED),
            (VIRTIO_BLK_T_DISCARD, (u64::MAX, 1, 0), FAILED),
            (VIRTIO_BLK_T_DISCARD, (SECTORS, 1, 0), FAILED),
            (VIRTIO_BLK_T_DISCARD, (0, 1, 1), UNSUPPORTED),
            (VIRTIO_BLK_T_WRITE_ZEROES, (0, 1, 2), UNSUPPORTED),
        ] {
            // The first range is good, and stays as it was: all are checked first.
            let buffers = [ranges(&driver, &[(5, 1, 0), range])];
            let (status, _) = ask(&mut driver, kind, 0, &buffers);
            assert_eq!(status, expected, "type {kind} with {range:?}");
        }
        assert_eq!(ask(&mut driver, VIRTIO_BLK_T_IN, 0, &data(512)), (OK, 513));
        // A header in sixteen pieces, and status and data in one buffer.
        header(&driver, VIRTIO_BLK_T_IN, 1);
        let mut buffers: Vec<_> = (0..15).map(|at| Buffer::Readable(HEADER + at, 1)).collect();
        buffers[14] = Buffer::Readable(HEADER + 14, 2);
        buffers.push(Buffer::Writable(DATA, 513));
        assert_eq!(driver.request(0, &buffers), 513);
        assert_eq!(
            (driver.ram.peek(DATA, 512), driver.ram.peek(DATA + 512, 1)),
            (vec![2; 512], vec![OK])
        );
    }
}

#[test]
fn a_request_without_room_for_its_status_ends_the_device_until_a_reset() {
    for engine in ENGINES {
        let file = file(LEN);
        let mut driver = driver(&file, Access::default(), engine);
        for buffers in [&[Buffer::Readable(HEADER, 16)][..], &[Buffer::Writable(0xffff_0000, 16)]] {
            driver.send(0, buffers);
            driver.wait_for_failure();
            driver.start(FEATURES);
            assert_eq!(ask(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]).0, OK);
        }
        // A short header can still be told.
        driver.ram.write(&[0xff], STATUS).unwrap();
        driver.request(0, &[Buffer::Readable(HEADER, 15), Buffer::Writable(STATUS, 1)]);
        assert_eq!(driver.ram.peek(STATUS, 1), [FAILED]);
    }
}

// HOSTILE 30: a file that becomes shorter is an error of the requests beyond it.
#[test]
fn hostile_30_a_file_that_shrinks_fails_what_is_gone() {
    for engine in ENGINES {
        let file = file(LEN);
        let mut driver = driver(&file, Access::default(), engine);
        file.as_file().set_len(512 * 3).unwrap();
        let data = [Buffer::Writable(DATA, 1024)];
        assert_eq!(ask(&mut driver, VIRTIO_BLK_T_IN, 1, &data).0, OK);
        assert_eq!(ask(&mut driver, VIRTIO_BLK_T_IN, 2, &data).0, FAILED);
        assert_eq!(ask(&mut driver, VIRTIO_BLK_T_IN, 1, &data).0, OK);
    }
}

/// A file system that does without its cache, if the tests run on one.
#[test]
fn past_the_cache_whatever_the_alignment_of_the_buffers() {
    for engine in ENGINES {
        // What cargo builds lies on a disk; temporary files may not.
        let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        let mut file = tempfile::NamedTempFile::new_in(folder).unwrap();
        file.write_all(&(0..LEN).map(|at| (at / SECTOR + 1) as u8).collect::<Vec<_>>()).unwrap();
        let access = Access { direct: true, ..Access::default() };
        if let Err(error) = Raw::open(file.path(), access) {
            assert!(format!("{error:#}").contains("leave ,direct out"), "{error:#}");
            return;
        }
        let mut driver = driver(&file, access, engine);
        for shift in [0, 1, 512, 700] {
            let at = DATA + shift;
            let two = [Buffer::Writable(at, 512), Buffer::Writable(at + 0x1000, 512)];
            assert_eq!(ask(&mut driver, VIRTIO_BLK_T_IN, 5, &two), (OK, 1025), "{shift}");
            assert_eq!(driver.ram.peek(at, 512), [6; 512]);
            assert_eq!(driver.ram.peek(at + 0x1000, 512), [7; 512]);
            driver.ram.write(&[shift as u8; 1024], at).unwrap();
            let data = [Buffer::Readable(at, 100), Buffer::Readable(at + 100, 924)];
            assert_eq!(ask(&mut driver, VIRTIO_BLK_T_OUT, 9, &data), (OK, 1), "{shift}");
            let mut bytes = [0xff; 1024];
            file.as_file().read_exact_at(&mut bytes, 9 * 512).unwrap();
            assert_eq!(bytes, [shift as u8; 1024]);
        }
    }
}

// HOSTILE 27: what can't be a disk is refused with its reason.
#[test]
fn hostile_27_files_that_are_no_disks_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let access = Access::default();
    let refused = |len: u64| {
        std::fs::File::create(&path).unwrap().set_len(len).unwrap();
        Raw::open(&path, access).err().map(|error| format!("{error:#}"))
    };
    assert!(refused(0).unwrap().contains("is empty"));
    for len in [1, 511, 513, 1025] {
        assert!(refused(len).unwrap().contains("not a multiple of 512"), "{len}");
    }
    assert!(refused(512).is_none());
    for (path, reason) in [
        (folder.path(), "Is a directory"),
        (std::path::Path::new("/dev/zero"), "neither a file nor a block device"),
        (&folder.path().join("missing"), "No such file"),
    ] {
        let error = format!("{:#}", Raw::open(path, access).err().unwrap());
        assert!(error.contains(reason), "{}: {error}", path.display());
    }
}

#[test]
fn one_file_has_one_writer_or_many_readers() {
    let file = file(LEN);
    let writer = Access::default();
    let reader = Access { read_only: true, ..writer };
    let first = Raw::open(file.path(), writer).unwrap();
    for access in [writer, reader] {
        let error = Raw::open(file.path(), access).err().unwrap().to_string();
        assert!(error.contains("another process"), "{error}");
    }
    drop(first);
    let readers = [reader, reader].map(|access| Raw::open(file.path(), access).unwrap());
    assert!(Raw::open(file.path(), writer).is_err());
    drop(readers);
    assert!(Raw::open(file.path(), writer).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: effort::rounds(300) as u32, ..ProptestConfig::default() })]

    /// Any header and any buffers: an answer or a failure, and nothing beyond the disk.
    #[test]
    fn any_request_is_answered_or_ends_the_device(
        words: [u32; 4],
        kind in 0u32..16,
        known: bool,
        near: bool,
        threads: bool,
        buffers in proptest::collection::vec((any::<bool>(), 0u64..0x11_0000, 0u32..3000), 0..6),
    ) {
        let file = file(LEN);
        let engine = if threads { Engine::Threads } else { Engine::Best };
        let mut driver = driver(&file, Access::default(), engine);
        let kind = if known { kind } else { words[0] };
        let sector = u64::from(words[2]) | u64::from(words[3]) << 32;
        header(&driver, kind, if near { sector % (SECTORS + 2) } else { sector });
        let mut all = vec![Buffer::Readable(HEADER, 16)];
        all.extend(buffers.iter().map(|&(write, at, len)| match write {
            true => Buffer::Writable(at, len),
            false => Buffer::Readable(at, len),
        }));
        all.push(Buffer::Writable(STATUS, 1));
        driver.send(0, &all);
        driver.wait("answer", |driver| {
            driver.used(0).is_some() || driver.get(0x70) & 64 != 0
        });
        prop_assert_eq!(file.as_file().metadata().unwrap().len(), LEN);
    }
}
