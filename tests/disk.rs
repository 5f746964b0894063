//! `disk`, and the options that name disks: what is made, as QEMU's own tools see it, and images
//! that are damaged or mean harm.

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Ran, bivisor, cases, folder};

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

/// HOSTILE 29: images whose headers and tables lie. Each is refused or read as errors, never more;
/// and none is changed by it.
fn hostile_29_damaged_images_are_refused() {
    let folder = folder();
    let good = folder.path().join("good.qcow2");
    let raw = folder.path().join("a.img");
    patterned(&raw);
    qemu("convert -f raw -O qcow2", &[&raw, &good]);
    let bytes = fs::read(&good).unwrap();
    let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let (l1, refcounts) = (word(40), word(48));
    let l2 = word(l1 as usize) & 0x00ff_ffff_ffff_fe00;
    let at_end = bytes.len() as u64;
    type Patch<'a> = (&'a str, u64, Vec<u8>);
    let be32 = |value: u32| value.to_be_bytes().to_vec();
    let be64 = |value: u64| value.to_be_bytes().to_vec();
    let mut patches: Vec<Patch> = vec![("magic", 0, b"QFI\0".to_vec())];
    for value in [0, 1, 4, u32::MAX] {
        patches.push(("version", 4, be32(value)));
    }
    for value in [0, 8, 22, 63, u32::MAX] {
        patches.push(("cluster bits", 20, be32(value)));
    }
    for value in [0, 1, 513, 1 << 63, u64::MAX, u64::MAX - 511] {
        patches.push(("size", 24, be64(value)));
    }
    for value in [1, 2, 3] {
        patches.push(("encryption", 32, be32(value)));
    }
    for value in [0, u32::MAX, 0x7fff_ffff] {
        patches.push(("L1 entries", 36, be32(value)));
    }
    for value in [1, 512, at_end, at_end + (1 << 40), u64::MAX, 1 << 63] {
        patches.push(("L1 offset", 40, be64(value)));
        patches.push(("refcount table", 48, be64(value)));
    }
    for value in [0, u32::MAX] {
        patches.push(("refcount clusters", 56, be32(value)));
    }
    patches.push(("snapshots", 60, be32(u32::MAX)));
    patches.push(("snapshot table", 64, be64(u64::MAX)));
    for bit in 0..64 {
        patches.push(("incompatible features", 72, be64(1 << bit)));
    }
    for value in [7, 63, u32::MAX] {
        patches.push(("refcount order", 96, be32(value)));
    }
    for value in [0, 1, 103, 1 << 20, u32::MAX] {
        patches.push(("header length", 100, be32(value)));
    }
    patches.push(("backing name past the end", 8, [be64(at_end), be32(100)].concat()));
    patches.push(("long backing name", 8, [be64(1024), be32(u32::MAX)].concat()));
    for value in [l1, l2, refcounts, 0, at_end, at_end + (1 << 50), u64::MAX, 1] {
        patches.push(("L1 entry", l1, be64(value | 1 << 63)));
        patches.push(("L2 entry", l2, be64(value | 1 << 63)));
        patches.push(("compressed cluster", l2, be64(value | 1 << 62)));
        patches.push(("refcount block", refcounts, be64(value)));
    }
    let path = folder.path().join("bad.qcow2");
    let out = folder.path().join("out.img");
    for (what, at, patch) in patches {
        let what = format!("{what} {at:#x} = {patch:02x?}");
        let mut bad = bytes.clone();
        bad[at as usize..at as usize + patch.len()].copy_from_slice(&patch);
        fs::write(&path, &bad).unwrap();
        let ran = disk("convert", &[&path, &out]);
        assert!(ran.took < SOON * 5, "{what}: {:?}", ran.took);
        if ran.status == 0 {
            // What is not looked at, or harmless. It is never larger than it said.
            fs::remove_file(&out).unwrap();
        } else {
            assert_eq!((ran.status, ran.stderr.lines().count()), (125, 1), "{what}: {ran:?}");
        }
        assert!(!out.exists(), "{what}");
        assert!(fs::read(&path).unwrap() == bad, "{what}: it was changed");
    }
    // Every length.
    for len in [0, 1, 71, 72, 103, 104, 512, 1 << 16, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..len]).unwrap();
        let ran = disk("convert", &[&path, &out]);
        assert!(ran.took < SOON * 5, "{len} bytes: {:?}", ran.took);
        assert!(ran.status == 0 || ran.status == 125, "{len} bytes: {ran:?}");
        let _ = fs::remove_file(&out);
    }
}

/// HOSTILE 29: what an image stands on.
fn hostile_29_backing_files_do_no_harm() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let top = at("top.qcow2");
    let out = at("out.img");
    let stand = |name: &str, format: &str| {
        let _ = fs::remove_file(&top);
        let line = format!("create -q -u -f qcow2 -F {format} -b");
        let made = Command::new("qemu-img")
            .args(line.split(' '))
            .arg(name)
            .arg(&top)
            .arg("1M")
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
    };
    let fifo = at("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    fs::write(at("secret"), vec![7; 1 << 20]).unwrap();
    for name in [at("secret").to_str().unwrap(), "secret", "./secret", "no", "json:{}"] {
        stand(name, "raw");
        let ran = disk("convert", &[&top, &out]);
        refused(&ran, &top, name);
        assert!(ran.stderr.contains("add ,backing"), "{name}: {}", ran.stderr);
    }
    for (name, format) in [
        ("fifo", "raw"),
        ("top.qcow2", "qcow2"),
        ("no", "raw"),
        ("secret", "qcow2"),
        ("json:{\"driver\":\"raw\"}", "raw"),
        ("nbd://localhost", "raw"),
        (".", "raw"),
    ] {
        stand(name, format);
        refused(&disk("convert --backing", &[&top, &out]), &top, name);
    }
    // A loop of two, and a hundred on each other.
    for count in [2, 100] {
        for index in 0..count {
            let name = at(&format!("{index}.qcow2"));
            let next = format!("{}.qcow2", (index + 1) % count);
            stand(&next, "qcow2");
            fs::rename(&top, &name).unwrap();
        }
        let first = at("0.qcow2");
        refused(&disk("convert --backing", &[&first, &out]), &first, "a long chain");
    }
    assert!(!out.exists());
}

/// HOSTILE 27: on the command line of a guest.
fn hostile_27_bad_disks_are_refused_before_the_guest_starts() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let image = at("guest");
    fs::write(&image, bivisor::guests::find("hello").unwrap().image).unwrap();
    let make = |name: &str, len: u64| File::create(at(name)).unwrap().set_len(len).unwrap();
    make("empty", 0);
    make("one", 1);
    make("odd", 1025);
    make("good", 4096);
    make("sparse", (1 << 43) - 512);
    fs::create_dir(at("folder")).unwrap();
    symlink(at("loop"), at("loop")).unwrap();
    let twice = format!("{0} --disk {0}", at("good").display());
    let rows: Vec<(String, &str)> = ["empty", "one", "odd", "folder", "loop", "missing"]
        .into_iter()
        .map(|name| (at(name).display().to_string(), name))
        .chain([
            (twice, "good"),
            (format!("{},format=qcow2", at("good").display()), "good"),
            (format!("{},format=vmdk", at("good").display()), "vmdk"),
            (format!("{},fast", at("good").display()), "fast"),
            ("/dev/zero".into(), "/dev/zero"),
            ("/dev/null".into(), "/dev/null"),
        ])
        .collect();
    for (options, named) in rows {
        let run = bivisor("run").arg(&image).words(&format!("--disk {options}"));
        let ran = run.finish();
        assert_eq!((ran.status, ran.stderr.lines().count()), (125, 1), "{options}: {ran:?}");
        assert!(ran.stderr.contains(named), "{options}: {}", ran.stderr);
        assert!(ran.took < SOON, "{options}: {:?}", ran.took);
    }
    let held = OpenOptions::new().read(true).write(true).open(at("good")).unwrap();
    held.try_lock().unwrap();
    let ran = bivisor("run").arg(&image).arg("--disk").arg(at("good")).finish();
    assert!(ran.status == 125 && ran.stderr.contains("another process uses it"), "{ran:?}");
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
