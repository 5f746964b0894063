//! `disk`, and the options that name disks: what is made, as QEMU's own tools see it, and images
//! that are damaged or mean harm.

mod common;

#[path = "disk/hostile.rs"]
mod hostile;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Ran, bivisor, cases, folder};
use hostile::{
    hostile_27_bad_disks_are_refused_before_the_guest_starts, hostile_29_backing_files_do_no_harm,
    hostile_29_damaged_images_are_refused,
};

/// Bytes of most disks here: some clusters, the last one not whole.
const SIZE: u64 = (5 << 20) + 512 * 3;

/// A file that is refused is refused soon.
const SOON: Duration = Duration::from_secs(2);

/// QEMU's tool for disks is here.
fn qemu_img() -> Option<String> {
    let there = Command::new("qemu-img").arg("--version").stdout(Stdio::null()).status();
    there.is_err().then(|| "no qemu-img here (cross/setup installs it)".into())
}

/// Runs `qemu-img`, which must succeed, and gives what it printed.
fn qemu(line: &str, paths: &[&Path]) -> String {
    let output = Command::new("qemu-img").args(line.split(' ')).args(paths).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "qemu-img {line}: {text}{output:?}");
    text
}

fn disk(line: &str, paths: &[&Path]) -> Ran {
    let mut run = bivisor(&format!("disk {line}"));
    for path in paths {
        run = run.arg(path);
    }
    run.finish()
}

/// `disk`, which must succeed without a word.
fn done(line: &str, paths: &[&Path]) {
    let ran = disk(line, paths);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "disk {line}");
}

/// A raw disk with data at its beginning, in its middle and at its end, and holes between them.
fn patterned(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(SIZE).unwrap();
    for (at, len) in [(0, 1000), (2 << 20, 300_000), (SIZE - 700, 700)] {
        let bytes: Vec<u8> = (0..len).map(|index| (index * 7 % 251 + 1) as u8).collect();
        file.write_all_at(&bytes, at).unwrap();
    }
}

fn new_disks_are_what_qemu_img_takes() {
    let folder = folder();
    for (name, format) in [("a.qcow2", "qcow2"), ("a.img", "raw"), ("odd", "raw")] {
        let path = folder.path().join(name);
        let ran = bivisor("disk create").arg(&path).arg("3G").finish();
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        let info: serde_json::Value =
            serde_json::from_str(&qemu(&format!("info --output=json -f {format}"), &[&path]))
                .unwrap();
        assert_eq!(info["virtual-size"], 3u64 << 30);
        assert!(fs::metadata(&path).unwrap().blocks() < 2048, "an empty disk takes no room");
        if format == "qcow2" {
            qemu("check -q -f qcow2", &[&path]);
        }
        let ran = disk("info --json", &[&path]);
        let told: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
        assert_eq!((&told["format"], &told["size"]), (&format.into(), &(3u64 << 30).into()));
    }
}

fn a_disk_survives_every_conversion() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (raw, qcow2, back) = (at("a.img"), at("b.qcow2"), at("c.img"));
    patterned(&raw);
    done("convert", &[&raw, &qcow2]);
    qemu("check -q -f qcow2", &[&qcow2]);
    qemu("compare -q -f raw -F qcow2", &[&raw, &qcow2]);
    assert!(fs::metadata(&qcow2).unwrap().len() < 1 << 20, "zeros take no room");
    done("convert", &[&qcow2, &back]);
    assert_eq!(fs::read(&raw).unwrap(), fs::read(&back).unwrap());
    assert!(fs::metadata(&back).unwrap().blocks() * 512 < 1 << 20, "holes stay holes");
}

/// What QEMU writes in other ways than we do.
fn qemu_s_images_are_read_as_qemu_reads_them() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let raw = at("a.img");
    patterned(&raw);
    for options in [
        "-o cluster_size=512",
        "-o cluster_size=2M",
        "-o compat=0.10",
        "-o refcount_bits=1",
        "-o preallocation=full",
        "-c",
        "-c -o compression_type=zstd",
    ] {
        let (qcow2, back) = (at("b.qcow2"), at("c.img"));
        let line = format!("convert -f raw -O qcow2 {options}");
        if options.ends_with("zstd") {
            // Not every build of it can.
            let made = Command::new("qemu-img").args(line.split(' ')).args([&raw, &qcow2]).output();
            if !made.unwrap().status.success() {
                continue;
            }
        } else {
            qemu(&line, &[&raw, &qcow2]);
        }
        let ran = disk("convert", &[&qcow2, &back]);
        if ran.status == 0 {
            assert!(fs::read(&raw).unwrap() == fs::read(&back).unwrap(), "{options}");
        } else {
            // Refused in one line rather than misread.
            assert!(options.ends_with("zstd"), "{options}: {ran:?}");
            assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
        }
        let _ = fs::remove_file(&back);
    }
}

fn a_snapshot_stands_on_its_base_and_only_when_asked() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (base, top, whole) = (at("base.img"), at("top.qcow2"), at("whole.img"));
    patterned(&base);
    done("snapshot", &[&base, &top]);
    qemu("check -q -f qcow2", &[&top]);
    qemu("compare -q -f raw -F qcow2", &[&base, &top]);
    let info = disk("info", &[&top]);
    assert!(info.text().contains("stands on     base.img (raw)\n"), "{info:?}");
    let refused = disk("convert", &[&top, &whole]);
    assert_eq!(refused.status, 125);
    assert!(refused.stderr.contains("add ,backing"), "{refused:?}");
    assert!(!whole.exists());
    done("convert --backing", &[&top, &whole]);
    assert_eq!(fs::read(&base).unwrap(), fs::read(&whole).unwrap());
    // One on another, made by QEMU, in a folder of its own.
    fs::create_dir(at("deep")).unwrap();
    let deep = at("deep/third.qcow2");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "../top.qcow2"])
        .arg(&deep)
        .status();
    assert!(made.unwrap().success());
    fs::remove_file(&whole).unwrap();
    done("convert --backing", &[&deep, &whole]);
    assert_eq!(fs::read(&base).unwrap(), fs::read(&whole).unwrap());
}

/// A refusal: 125, soon, in one line that names the file.
fn refused(ran: &Ran, named: &Path, what: &str) {
    assert_eq!(ran.status, 125, "{what}: {ran:?}");
    assert_eq!(ran.stderr.lines().count(), 1, "{what}: {}", ran.stderr);
    let name = named.file_name().unwrap().to_str().unwrap();
    assert!(ran.stderr.contains(name), "{what}: {}", ran.stderr);
    assert!(ran.took < SOON, "{what}: {:?}", ran.took);
}

fn nothing_is_overwritten_and_nothing_half_made_stays() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("there.img"), "mine").unwrap();
    let target = at("target");
    symlink(at("elsewhere"), &target).unwrap();
    for name in ["there.img", "target"] {
        let ran = bivisor("disk create").arg(at(name)).arg("1M").finish();
        refused(&ran, &at(name), "a file that exists");
    }
    assert!(!at("elsewhere").exists());
    assert_eq!(fs::read(at("there.img")).unwrap(), b"mine");
    for size in ["0", "511", "513", "8589934592G", "2T1"] {
        let ran = bivisor("disk create").arg(at("new.qcow2")).arg(size).finish();
        assert_eq!((ran.status, ran.stderr.lines().count()), (125, 1), "{size}: {ran:?}");
        assert!(!at("new.qcow2").exists(), "{size}");
    }
    refused(&disk("convert", &[&at("there.img"), &at("new.img")]), &at("there.img"), "4 bytes");
    refused(&disk("convert", &[&at("no.img"), &at("new.img")]), &at("no.img"), "missing");
    assert!(!at("new.img").exists());
}

/// A guest that looks at none of its disks runs as it does without.
fn disks_harm_no_guest() {
    let folder = folder();
    let image: PathBuf = folder.path().join("guest");
    fs::write(&image, bivisor::guests::find("hello").unwrap().image).unwrap();
    let disk = folder.path().join("sparse");
    File::create(&disk).unwrap().set_len(1 << 43).unwrap();
    let run = bivisor("run").arg(&image).arg("--disk").arg(&disk);
    let ran = run.words("--scratch 1M --scratch 4G --rng").finish();
    assert_eq!((ran.status, ran.text().as_str()), (0, "Hello, world!\n"), "{ran:?}");
    let many = (0..17).map(|_| "--scratch 1M").collect::<Vec<_>>().join(" ");
    let ran = bivisor("run").arg(&image).words(&many).finish();
    assert_eq!((ran.status, ran.stderr.lines().count()), (125, 1), "{ran:?}");
}

fn main() {
    use common::kvm;
    common::conclude(cases![
        new_disks_are_what_qemu_img_takes, qemu_img;
        a_disk_survives_every_conversion, qemu_img;
        qemu_s_images_are_read_as_qemu_reads_them, qemu_img;
        a_snapshot_stands_on_its_base_and_only_when_asked, qemu_img;
        nothing_is_overwritten_and_nothing_half_made_stays;
        hostile_29_damaged_images_are_refused, qemu_img;
        hostile_29_backing_files_do_no_harm, qemu_img;
        hostile_27_bad_disks_are_refused_before_the_guest_starts, kvm;
        disks_harm_no_guest, kvm;
    ]);
}
