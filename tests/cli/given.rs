//! What a kernel is given: initial RAM disks, command lines, and boards that fill its tables.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libtest_mimic::Trial;
use tempfile::TempDir;

use crate::common::elf::{Segment, elf64};
use crate::common::{MACHINE, Run, bivisor, cases, folder, guest, guest_file, kvm, most_cpus};
use crate::{FAILURE, check_refusal, make_files, soon};

pub fn trials() -> Vec<Trial> {
    cases![
        hostile_24_an_initial_ram_disk_that_is_none_is_named, kvm;
        hostile_24_an_initial_ram_disk_has_to_fit, kvm;
        hostile_25_a_command_line_is_refused_or_comes_as_it_is, kvm;
        hostile_26_as_many_cpus_as_there_are_and_one_more, kvm;
        hostile_26_as_many_ranges_as_there_are_and_one_more, kvm;
    ]
}

const MIB: u64 = 1 << 20;

/// `run` of an ELF file that takes everything and ends well.
fn kernel(folder: &TempDir) -> Run {
    let segment = Segment { guest_addr: MACHINE.load, bytes: guest("add").image, zeros: 0 };
    let path = folder.path().join("add.elf");
    fs::write(&path, elf64(MACHINE.elf_machine, MACHINE.load, &[segment])).unwrap();
    bivisor("run").arg(path).words(MACHINE.linux_options).patience(soon())
}

fn hostile_24_an_initial_ram_disk_that_is_none_is_named() {
    let folder = make_files();
    let path = |name: &str| folder.path().join(name).display().to_string();
    for (path, says) in [
        (path("empty"), "empty"),
        (path("none"), "no such file"),
        (path("dangling"), "no such file"),
        (path("itself"), "symbolic link"),
        (path("fifo"), "pipe"),
        (folder.path().display().to_string(), "directory"),
        ("/dev/zero".into(), "device"),
    ] {
        let ran = kernel(&folder).words("--initrd").arg(&path).finish();
        check_refusal(&ran, FAILURE, &["--initrd", &path, says]);
    }
}

fn hostile_24_an_initial_ram_disk_has_to_fit() {
    let folder = folder();
    let archive = folder.path().join("archive");
    let ram = format!("--ram {:#x}:2M", MACHINE.ram);
    // Around a kernel of a page 1 MiB (on the other architecture 512 KiB) above the start of RAM.
    for (len, fits) in [
        (1, true),
        (MIB / 2 - 4096, true),
        (2 * MIB - 4096, false),
        (2 * MIB, false),
        (2 * MIB + 1, false),
        (8 << 30, false),
        (1 << 40, false),
    ] {
        File::create(&archive).unwrap().set_len(len).unwrap();
        let ran = kernel(&folder).words(&ram).words("--initrd").arg(&archive).finish();
        match fits {
            true => assert_eq!(ran.status, 0, "{len:#x}: {ran:?}"),
            false => {
                let size = format!("no room for {} KiB", len.div_ceil(1024));
                check_refusal(&ran, FAILURE, &["--initrd", &size, "--memory"]);
            }
        }
    }
}

/// The command line that the guest `multiboot` finds behind its name.
fn shown(folder: &Path, text: &str) -> String {
    let run = bivisor("run multiboot.bin --memory 2M --cmdline").arg(text);
    let mut run = run.patience(soon());
    run.command.current_dir(folder);
    let ran = run.finish();
    assert_eq!(ran.status, 0, "{ran:?}");
    let all = ran.text();
    let shown = all.strip_prefix("bivisor\nmultiboot.bin ").expect("its own name comes first");
    shown[..shown.find("\n00000000 ").expect("the memory map follows")].into()
}

fn hostile_25_a_command_line_is_refused_or_comes_as_it_is() {
    let folder = folder();
    for len in [2048, 4096, 100_000] {
        let text = "x".repeat(len);
        let ran = kernel(&folder).words("--cmdline").arg(&text).finish();
        check_refusal(&ran, FAILURE, &["--cmdline", "a kernel takes 2047"]);
    }
    let ran = kernel(&folder).words("--cmdline").arg(OsStr::from_bytes(b"a\xff")).finish();
    check_refusal(&ran, FAILURE, &["UTF-8"]);
    for text in ["", "x", "a\nb", "a=\"b c\" 'd'", "-- first second"] {
        let ran = kernel(&folder).words("--cmdline").arg(text).finish();
        assert_eq!(ran.status, 0, "{text:?}: {ran:?}");
    }
    if bivisor::guests::find("multiboot").is_none() {
        return;
    }
    guest_file(&folder, "multiboot");
    let longest = "x".repeat(2047 - "multiboot.bin ".len());
    for text in ["x", "a\nb", "a=\"b c\" 'd'", "-- first second", "\u{e9}", &longest] {
        assert_eq!(shown(folder.path(), text), text);
    }
}

fn hostile_26_as_many_cpus_as_there_are_and_one_more() {
    let folder = folder();
    let option = format!("--cpus {}", most_cpus() + 1);
    let ran = kernel(&folder).words(&option).finish();
    check_refusal(&ran, FAILURE, &[&option, "at most"]);
}

fn hostile_26_as_many_ranges_as_there_are_and_one_more() {
    let folder = folder();
    let ranges = |count: u64| -> String {
        (0..count).map(|i| format!("--ram {:#x}:64K ", MACHINE.ram + i * 0x2_0000)).collect()
    };
    let path = guest_file(&folder, "exit");
    let run = |count| {
        let run = bivisor("run").arg(&path).words(guest("exit").options);
        run.words(&ranges(count)).patience(soon()).finish()
    };
    assert_eq!(run(256).status, 42);
    check_refusal(&run(257), FAILURE, &["--ram", "257 ranges", "at most 256"]);
}
