//! Images that are mapped into guest RAM instead of copied, and files that shrink meanwhile.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use libtest_mimic::Trial;
use tempfile::TempDir;

use crate::common::{bivisor, cases, folder, guest, kvm, wait};

/// Bytes of the test's image: not a whole page.
const LEN: usize = (3 << 20) + 123;

pub fn trials() -> Vec<Trial> {
    cases![
        what_is_mapped_is_not_copied, kvm;
        hostile_22_an_image_that_shrinks_is_a_crash, kvm;
    ]
}

/// The guest `echo`, made long.
fn image(folder: &TempDir) -> PathBuf {
    let mut bytes = guest("echo").image.to_vec();
    bytes.resize(LEN, 0xcc);
    let path = folder.path().join("long");
    fs::write(&path, bytes).unwrap();
    path
}

/// A guest of `image` that has answered once, and waits for more.
fn start(image: &Path, how: &str) -> Child {
    let mut run = bivisor("run --image-memory").arg(how).arg(image).words(guest("echo").options);
    run.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = run.command.spawn().expect("start bivisor");
    child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).expect("it answers");
    child
}

fn end(mut child: Child) -> (Option<i32>, String) {
    drop(child.stdin.take());
    let status = wait(&mut child, Duration::from_secs(60));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (status, said)
}

fn what_is_mapped_is_not_copied() {
    let folder = folder();
    let image = image(&folder);
    let whole_pages = LEN as u64 - LEN as u64 % page_size();
    for (how, mapped) in [("map", whole_pages), ("copy", 0)] {
        let child = start(&image, how);
        let maps = fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
        let lines = maps.lines().filter(|line| line.ends_with(image.to_str().unwrap()));
        let bytes: u64 = lines
            .map(|line| {
                let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
                let number = |digits| u64::from_str_radix(digits, 16).unwrap();
                number(end) - number(start)
            })
            .sum();
        assert_eq!(bytes, mapped, "{how}: {maps}");
        assert_eq!(end(child), (Some(0), String::new()), "{how}");
    }
    assert_eq!(fs::read(&image).unwrap()[LEN - 1], 0xcc, "guests never write to their files");
}

fn page_size() -> u64 {
    // SAFETY: asks for a number.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 }
}

fn hostile_22_an_image_that_shrinks_is_a_crash() {
    let folder = folder();
    let image = image(&folder);
    for (how, expected) in [("map", 123), ("copy", 0)] {
        let mut child = start(&image, how);
        let file = File::options().write(true).open(&image).unwrap();
        file.set_len(0).unwrap();
        // It may be gone before it takes this.
        let _ = child.stdin.as_mut().unwrap().write_all(b"y");
        let (status, said) = end(child);
        assert_eq!(status, Some(expected), "{how}: {said}");
        let line = format!("{}, which is mapped into its RAM, shrank to 0 bytes", image.display());
        assert_eq!(said.contains(&line), expected != 0, "{how}: {said}");
        fs::write(&image, guest("echo").image).unwrap();
        file.set_len(LEN as u64).unwrap();
    }
}
