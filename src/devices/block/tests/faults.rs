//! A host that has no room, and files that pretend to be others.

use std::fs::File;

use super::*;
use crate::devices::block::format::Format;
use crate::devices::block::qcow2::Qcow2;

// HOSTILE 28: what a guest writes does not decide what its disk is taken for (GHSA-jmr4-g2hv-mjj6).
#[test]
fn hostile_28_a_raw_disk_with_a_header_of_qcow2_stays_raw() {
    let folder = tempfile::tempdir().unwrap();
    let (path, image) = (folder.path().join("disk.img"), folder.path().join("image.qcow2"));
    Qcow2::create(
        File::options().read(true).write(true).create_new(true).open(&image).unwrap(),
        1 << 30,
        1 << 16,
        None,
    )
    .unwrap();
    let header = std::fs::read(&image).unwrap();
    File::create(&path).unwrap().set_len(LEN).unwrap();
    for round in 0..2 {
        let disk = Format::of_name(&path).open(&path, Access::default(), true).unwrap();
        assert_eq!(disk.size(), LEN, "round {round}");
        let mut driver = Driver::new(Box::new(Block::new(disk, "", 1, Engine::Best)));
        driver.start(FEATURES);
        assert_eq!(driver.config(0, 8), SECTORS.to_le_bytes());
        driver.ram.write(&header[..512], DATA).unwrap();
        let data = [Buffer::Readable(DATA, 512)];
        assert_eq!(ask(&mut driver, VIRTIO_BLK_T_OUT, 0, &data).0, OK);
    }
    assert_eq!(std::fs::read(&path).unwrap()[..512], header[..512]);
}

// HOSTILE 29: an image without its reference counts, found by fuzzing: to write to it had no end.
#[test]
fn hostile_29_an_image_that_is_cut_short_is_not_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    Qcow2::create(file.try_clone().unwrap(), 1 << 40, 1 << 21, None).unwrap();
    let writer = Access::default();
    drop(Qcow2::open(&path, writer, false).unwrap());
    let refusal = || format!("{:#}", Qcow2::open(&path, writer, false).err().unwrap());
    // A table of counts without a cluster.
    let mut clusters = [0; 4];
    file.read_exact_at(&mut clusters, 56).unwrap();
    file.write_all_at(&[0; 4], 56).unwrap();
    assert!(refusal().contains("cut short"), "{}", refusal());
    file.write_all_at(&clusters, 56).unwrap();
    file.set_len(1 << 20).unwrap();
    assert!(refusal().contains("cut short"), "{}", refusal());
}

// HOSTILE 29: a table of names with a part of an entry, found by fuzzing.
#[test]
fn hostile_29_names_of_features_that_are_cut_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    Qcow2::create(file.try_clone().unwrap(), 1 << 20, 1 << 16, None).unwrap();
    let reader = Access { read_only: true, ..Access::default() };
    drop(Qcow2::open(&path, reader, false).unwrap());
    for len in [1u32, 2, 47, 49] {
        file.write_all_at(&0x6803_f857u32.to_be_bytes(), 104).unwrap();
        file.write_all_at(&len.to_be_bytes(), 108).unwrap();
        let error = format!("{:#}", Qcow2::open(&path, reader, false).err().unwrap());
        assert!(error.contains("names of features"), "{len}: {error}");
    }
}

/// Gives this thread a file system of `len` bytes at `path`; `false` if it may not.
fn small_file_system(path: &std::path::Path, len: u64) -> bool {
    let target = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    let options = std::ffi::CString::new(format!("size={len}")).unwrap();
    // SAFETY: unshare takes flags only.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return false;
    }
    let private = libc::MS_REC | libc::MS_PRIVATE;
    let null = std::ptr::null();
    // SAFETY: the strings end with a zero, and what is null need not be there.
    let private = unsafe { libc::mount(null, c"/".as_ptr(), null, private, null.cast()) };
    let (name, data) = (c"tmpfs".as_ptr(), options.as_ptr().cast());
    // SAFETY: as above.
    let mounted = unsafe { libc::mount(name, target.as_ptr(), name, 0, data) };
    private == 0 && mounted == 0
}

// HOSTILE 31: a host without room is an error of what needs some, until there is some.
#[test]
fn hostile_31_without_room_a_write_fails_and_with_room_it_works_again() {
    // A file system of this thread's own lasts as long as it does.
    std::thread::spawn(|| {
        let folder = tempfile::tempdir().unwrap();
        if !small_file_system(folder.path(), 1 << 20) {
            println!("skipped: needs root for a small file system");
            return;
        }
        for engine in ENGINES {
            for name in ["disk.img", "disk.qcow2"] {
                without_room(folder.path(), name, engine);
            }
        }
    })
    .join()
    .unwrap();
}

fn without_room(folder: &std::path::Path, name: &str, engine: Engine) {
    const DISK_LEN: u64 = 8 << 20;
    let (path, ballast) = (folder.join(name), folder.join("ballast"));
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    match Format::of_name(&path) {
        Format::Raw => file.set_len(DISK_LEN).unwrap(),
        Format::Qcow2 => Qcow2::create(file, DISK_LEN, 1 << 16, None).unwrap(),
    }
    std::fs::write(&ballast, vec![1; 512 << 10]).unwrap();
    let disk = Format::of_name(&path).open(&path, Access::default(), false).unwrap();
    let mut driver = Driver::new(Box::new(Block::new(disk, "", 1, engine)));
    driver.start(FEATURES);
    let write = |driver: &mut Driver, index: u64| {
        driver.ram.write(&[index as u8 + 1; 4096], DATA).unwrap();
        ask(driver, VIRTIO_BLK_T_OUT, index * 128, &[Buffer::Readable(DATA, 4096)]).0
    };
    let written = |outcome: u8, driver: &mut Driver| {
        (0..DISK_LEN / 65536).filter(|index| write(driver, *index) == outcome).count()
    };
    let mut failed = written(FAILED, &mut driver);
    // A raw disk has room for as many pages as there are, a qcow2 disk for clusters.
    if name.ends_with("img") {
        assert_eq!(failed, 0);
        for index in 0..256 {
            let data = [Buffer::Readable(DATA, 4096)];
            failed +=
                usize::from(ask(&mut driver, VIRTIO_BLK_T_OUT, 8 + index * 8, &data).0 == FAILED);
        }
    }
    assert!(failed > 0, "{name}: there was room for all");
    // What had its room before still has it.
    assert_eq!(write(&mut driver, 0), OK, "{name}");
    let read = [Buffer::Writable(DATA, 512)];
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_IN, 0, &read).0, OK);
    assert_eq!(driver.ram.peek(DATA, 512), [1; 512], "{name}");

    std::fs::remove_file(&ballast).unwrap();
    assert_eq!(write(&mut driver, 7), OK, "{name}: there is room");
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]).0, OK);
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_IN, 7 * 128, &read).0, OK);
    assert_eq!(driver.ram.peek(DATA, 512), [8; 512], "{name}");
    drop(driver);
    std::fs::remove_file(&path).unwrap();
}
