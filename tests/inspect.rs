//! `inspect`, and recognising images: what files are told to be, with which status, and that real
//! kernels survive every kind of damage. Nothing here needs /dev/kvm.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bivisor::payload::Payload;
use bivisor::payload::describe::Description;
use bivisor::payload::image::{Image, Unpacking};
use bivisor::payload::unpack::Compression;
use common::elf::{Segment, elf64};
use common::{MACHINE, Ran, bivisor, cases, folder};

/// The file was recognised.
const OK: i32 = 0;
/// It could not be read.
const FAILURE: i32 = 125;
/// It is no image, or a damaged one.
const BAD_IMAGE: i32 = 126;

/// The promise: an answer comes in under two seconds. A large kernel takes a debug build longer.
const SOON: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(60);

fn inspect(path: &Path) -> Ran {
    bivisor("inspect").arg(path).patience(PATIENCE).finish()
}

fn described(path: &Path) -> serde_json::Value {
    let ran = bivisor("inspect --json").arg(path).patience(PATIENCE).finish();
    assert_eq!((ran.status, ran.stderr.as_str()), (OK, ""), "{}", path.display());
    serde_json::from_slice(&ran.stdout).expect("one line of JSON")
}

fn good_elf(machine: u16) -> Vec<u8> {
    let segment = Segment { guest_addr: MACHINE.load, bytes: &[0; 64], zeros: 0x1000 };
    elf64(machine, MACHINE.load, &[segment])
}

fn an_elf_file_is_told_with_its_addresses() {
    let folder = folder();
    let path = folder.path().join("good");
    fs::write(&path, good_elf(MACHINE.elf_machine)).unwrap();
    let ran = inspect(&path);
    assert_eq!((ran.status, ran.stderr.as_str()), (OK, ""));
    let end = MACHINE.load + 64 + 0x1000;
    for line in [
        "format        ELF, 64 bits".to_string(),
        format!("entry         {:#x}", MACHINE.load),
        format!("memory        {:#x}..{end:#x}", MACHINE.load),
        "runs here     yes".into(),
    ] {
        assert!(ran.text().lines().any(|shown| shown == line), "{line}: {}", ran.text());
    }
    let json = described(&path);
    assert_eq!(json["entry"], MACHINE.load);
    assert_eq!(json["load_len"], 64 + 0x1000);
    assert_eq!(json["runs_here"], true);
    assert_eq!(json["entry_protocols"][0], "elf");
    assert_eq!(json["refused"], serde_json::Value::Null);
}

fn hostile_17_an_image_for_elsewhere_is_told_but_does_not_run_here() {
    let folder = folder();
    let path = folder.path().join("foreign");
    fs::write(&path, good_elf(MACHINE.foreign_elf_machine)).unwrap();
    let json = described(&path);
    assert_eq!(json["runs_here"], false);
    assert_eq!(json["entry_protocols"].as_array().map(Vec::len), Some(0));
    assert!(json["refused"].as_str().unwrap().starts_with("it is for "), "{json}");
}

fn hostile_15_what_is_no_image_is_refused_in_one_line() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("empty"), b"").unwrap();
    fs::write(at("script"), b"#!/bin/sh\n").unwrap();
    fs::write(at("cut"), &good_elf(MACHINE.elf_machine)[..100]).unwrap();
    fs::write(at("gzip"), b"\x1f\x8b\x08\0\0\0\0\0\0\x03garbage").unwrap();
    fs::write(at("new\nline"), b"#!/bin/sh\n").unwrap();
    symlink("dangling", at("dangling-target")).unwrap();
    symlink("self", at("self")).unwrap();
    let rows = [
        (at("empty"), BAD_IMAGE),
        (at("script"), BAD_IMAGE),
        (at("cut"), BAD_IMAGE),
        (at("gzip"), BAD_IMAGE),
        (at("new\nline"), BAD_IMAGE),
        (folder.path().to_path_buf(), BAD_IMAGE),
        ("/dev/zero".into(), BAD_IMAGE),
        ("/dev/urandom".into(), BAD_IMAGE),
        (at("dangling-target"), FAILURE),
        (at("self"), FAILURE),
        (at("none"), FAILURE),
    ];
    for (path, status) in rows {
        let ran = bivisor("inspect").arg(&path).patience(SOON).finish();
        assert_eq!(ran.status, status, "{ran:?}");
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
        let name = path.file_name().unwrap().to_str().unwrap().replace('\n', "\\n");
        assert!(ran.stdout.is_empty() && ran.stderr.contains(&name), "{ran:?}");
    }
    for len in [1, 64, 511, 512] {
        fs::write(at("zeros"), vec![0; len]).unwrap();
        assert_eq!(described(&at("zeros"))["format"], "flat binary");
    }
}

// -------------------------------------------------------------------------------- real kernels

/// Kernels that `cross/` downloaded, by what their names begin or end with.
fn kernels() -> Vec<PathBuf> {
    fn search(folder: &Path, depth: u32, found: &mut Vec<PathBuf>) {
        for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_kernel = name.starts_with("vmlinuz")
                || name.starts_with("memtest86") && name.ends_with(".bin")
                || name.starts_with("xen-") && name.ends_with(".gz")
                || name.ends_with(".lkrn");
            match path.is_dir() {
                true if depth > 0 => search(&path, depth - 1, found),
                false if is_kernel => found.push(path),
                _ => {}
            }
        }
    }
    let mut found = Vec::new();
    search(&Path::new(env!("CARGO_MANIFEST_DIR")).join("cross/.cache"), 2, &mut found);
    found
}

fn downloaded_kernels() -> Option<String> {
    kernels().is_empty().then(|| "no kernel in cross/.cache: cross/setup downloads them".into())
}

fn real_kernels_are_recognised() {
    for path in kernels() {
        let json = described(&path);
        let (name, format) = (path.display(), json["format"].as_str().unwrap());
        assert_ne!(format, "flat binary", "{name}");
        assert!(json["architecture"].is_string() && json["load_len"].as_u64() > Some(0), "{name}");
        let is_linux = path.file_name().unwrap().to_string_lossy().starts_with("vmlinuz");
        let version = json["version"].as_str().unwrap_or_default();
        assert!(!is_linux || version.starts_with(|c: char| c.is_ascii_digit()), "{name} {version}");
    }
}

/// As `inspect` does it.
const WHOLE: Unpacking<'static> = Unpacking { limit: 1 << 30, cache: None, kernels: true };

/// Reads little more than headers: enough for ten thousand times.
const HEADERS: Unpacking<'static> = Unpacking { limit: 1 << 16, cache: None, kernels: false };

/// Copies of the real kernels, to be damaged in place.
fn each_copy(damage: impl Fn(&Path, &File, u64)) {
    let folder = folder();
    for kernel in kernels() {
        let path = folder.path().join("kernel");
        fs::copy(&kernel, &path).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let len = file.metadata().unwrap().len();
        damage(&path, &file, len);
        fs::remove_file(&path).unwrap();
    }
}

fn hostile_16_truncated_kernels_are_refused() {
    each_copy(|path, file, len| {
        let shares = [99, 50, 25].map(|percent| len * percent / 100);
        let sectors = (2..64).rev().map(|sector| sector * 512);
        for shorter in shares.into_iter().chain(sectors).filter(|shorter| *shorter < len) {
            file.set_len(shorter).unwrap();
            let result = Image::read(Payload::open(path).unwrap(), &WHOLE);
            let error = result.err().unwrap_or_else(|| panic!("{shorter:#x} of {len:#x} bytes"));
            assert!(error.to_string().contains("truncated"), "{shorter:#x}: {error}");
        }
    });
}

fn hostile_23_flipped_bytes_in_real_kernels_never_panic() {
    each_copy(|path, file, _| {
        let mut start = [0; 4096];
        file.read_exact_at(&mut start, 0).unwrap();
        let mut state = 0x0123_4567_89ab_cdefu64;
        // A file that is compressed as a whole is read and unpacked anew each time.
        let packed = Compression::recognise(&start).is_some();
        for _ in 0..if packed { 1_000 } else { 10_000 } {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (at, byte) = ((state >> 33) as usize % start.len(), (state >> 56) as u8);
            file.write_all_at(&[byte], at as u64).unwrap();
            if let Ok(image) = Image::read(Payload::open(path).unwrap(), &HEADERS) {
                // A version is searched for in the whole file: too slow for each of so many.
                if at % 256 == 0 {
                    let _ = Description::of(&image);
                }
            }
            file.write_all_at(&start[at..=at], at as u64).unwrap();
        }
    });
}

fn main() {
    common::conclude(cases! {
        an_elf_file_is_told_with_its_addresses;
        hostile_15_what_is_no_image_is_refused_in_one_line;
        hostile_17_an_image_for_elsewhere_is_told_but_does_not_run_here;
        real_kernels_are_recognised, downloaded_kernels;
        hostile_16_truncated_kernels_are_refused, downloaded_kernels;
        hostile_23_flipped_bytes_in_real_kernels_never_panic, downloaded_kernels;
    });
}
