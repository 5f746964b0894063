//! Disks that are damaged or mean harm.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::symlink;
use std::process::Command;

use super::common::{bivisor, folder};
use super::{SOON, disk, patterned, qemu, refused};

/// HOSTILE 29: images whose headers and tables lie. Each is refused or read as errors, never more;
/// and none is changed by it.
pub fn hostile_29_damaged_images_are_refused() {
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
pub fn hostile_29_backing_files_do_no_harm() {
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
pub fn hostile_27_bad_disks_are_refused_before_the_guest_starts() {
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
