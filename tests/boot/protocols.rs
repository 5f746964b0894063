//! Boot protocols: how an image is entered, and what it is given.

use std::fs;
use std::path::Path;

use libtest_mimic::Trial;

use crate::common::bzimage::bzimage;
use crate::common::elf::{PVH_SAYS, Segment, elf32, pvh};
use crate::common::{MACHINE, Ran, bivisor, cases, folder, guest, guest_file, kvm};
use bivisor::guests;

pub fn trials() -> Vec<Trial> {
    let mut trials = cases![
        a_flat_image_has_one_protocol, kvm;
    ];
    if guests::find("multiboot").is_some() {
        trials.extend(cases![
            each_initrd_is_a_module, kvm;
            a_multiboot_header_wins_over_elf_unless_elf_is_asked_for, kvm;
            modules_never_overlap_the_kernel, kvm;
            a_multiboot_kernel_may_lie_anywhere_in_ram, kvm;
            a_bzimage_is_entered_at_64_32_or_16_bits, kvm;
            a_pvh_kernel_that_is_no_linux_is_told_what_its_user_says, kvm;
        ]);
    }
    trials
}

fn run(folder: &Path, image: &str, options: &str) -> Ran {
    let mut run = bivisor("run").arg(folder.join(image)).words(options);
    run.command.current_dir(folder);
    run.finish()
}

/// The guest prints three lines of memory map at this size.
const MAP: &str = "00000000 0009fc00 1\n0009fc00 00060400 2\n00100000 00100000 1\n";

fn each_initrd_is_a_module() {
    let folder = folder();
    guest_file(&folder, "multiboot");
    fs::write(folder.path().join("one.txt"), "first").unwrap();
    fs::write(folder.path().join("two"), vec![b'2'; 0x1001]).unwrap();
    let options = "--memory 2M --initrd one.txt --initrd two --initrd one.txt --cmdline a=b";
    let ran = run(folder.path(), "multiboot.bin", options);
    let long = "2".repeat(0x1001);
    let modules = format!("one.txt:first\ntwo:{long}\none.txt:first\n");
    assert_eq!(ran.text(), format!("bivisor\nmultiboot.bin a=b\n{MAP}{modules}"), "{ran:?}");
    assert_eq!(ran.status, 0, "{ran:?}");
}

fn modules_never_overlap_the_kernel() {
    let folder = folder();
    guest_file(&folder, "multiboot");
    // What is free of 2 MiB: all but a page above 1 MiB, and what lies below the firmware's part.
    for (len, status) in [(0xf_f000, 0), (0x10_0000, 125), (0x20_0000, 125)] {
        fs::write(folder.path().join("module"), vec![b'm'; len]).unwrap();
        let options = "--memory 2M --initrd module --max-exits 200";
        let ran = run(folder.path(), "multiboot.bin", options);
        // A whole module takes too long to print.
        let expected = if status == 0 { 124 } else { status };
        assert_eq!(ran.status, expected, "{len:#x}: {ran:?}");
        assert!(status == 0 || ran.stderr.contains("--initrd: no room for"), "{ran:?}");
    }
}

fn a_multiboot_header_wins_over_elf_unless_elf_is_asked_for() {
    let Some(machine) = MACHINE.elf32_machine else { return };
    let folder = folder();
    // The file is the segment from its first byte on, which is where the header says it goes; as
    // ELF it would be entered elsewhere.
    let elsewhere = MACHINE.load + 0x1_0000;
    let image = guest("multiboot").image;
    let segments = [
        Segment { guest_addr: MACHINE.load, bytes: image, zeros: 0x800 },
        Segment { guest_addr: elsewhere, bytes: guest("exit").image, zeros: 0 },
    ];
    let mut file = elf32(machine, elsewhere as u32, &segments);
    let at = file.windows(image.len()).position(|part| part == image).expect("it is in there");
    assert_eq!(at % 4, 0, "a header lies on a boundary of 4 bytes");
    fs::write(folder.path().join("both"), &file).unwrap();
    let ran = run(folder.path(), "both", "--memory 2M --cmdline x");
    assert_eq!((ran.text(), ran.status), (format!("bivisor\nboth x\n{MAP}"), 0), "{ran:?}");
    let ran = run(folder.path(), "both", "--entry-protocol elf --reg rax=42");
    assert_eq!((ran.status, ran.text().as_str()), (42, ""), "{ran:?}");
    let ran = run(folder.path(), "both", "--entry-protocol pvh");
    assert_eq!(ran.status, 125, "{ran:?}");
    assert!(ran.stderr.contains("this image is entered by multiboot, elf"), "{ran:?}");
    let ran = run(folder.path(), "both", "--entry-protocol multiboot --mode long");
    assert_eq!((ran.status, ran.stderr.lines().count()), (125, 1), "{ran:?}");
    // Without its magic number it is an ELF file like any other.
    file[at] = 0;
    fs::write(folder.path().join("both"), &file).unwrap();
    let ran = run(folder.path(), "both", "--reg rax=42");
    assert_eq!(ran.status, 42, "{ran:?}");
}

fn a_pvh_kernel_that_is_no_linux_is_told_what_its_user_says() {
    let folder = folder();
    fs::write(folder.path().join("kernel"), pvh(0x10_0000, PVH_SAYS)).unwrap();
    for cmdline in ["", "a=b c"] {
        let mut run = bivisor("run").arg(folder.path().join("kernel"));
        run = run.arg("--cmdline").arg(cmdline).words("--memory 2M");
        let ran = run.finish();
        assert_eq!((ran.text().as_str(), ran.status), (cmdline, 0), "{ran:?}");
    }
}

fn a_flat_image_has_one_protocol() {
    let folder = folder();
    guest_file(&folder, "exit");
    let options = guest("exit").options;
    let ran = run(folder.path(), "exit.bin", &format!("{options} --entry-protocol flat"));
    assert_eq!(ran.status, 42, "{ran:?}");
    let ran = run(folder.path(), "exit.bin", &format!("{options} --entry-protocol linux"));
    assert_eq!(ran.status, 125, "{ran:?}");
    let says = "bivisor: --entry-protocol linux: this image is entered by flat\n";
    assert_eq!(ran.stderr, says);
}

fn a_multiboot_kernel_may_lie_anywhere_in_ram() {
    let folder = folder();
    let (magic, flags) = (0x1bad_b002u32, 1u32 << 16);
    for (start, status) in
        [(0, 7), (0x400, 7), (0x7c00, 7), (0x8_0000, 7), (0xf_0000, 125), (0x1f_ff00, 7)]
    {
        let sum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
        let words = [magic, flags, sum, start, start, 0, 0, start + 32];
        let mut image: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        // `mov al, 7; out 0xf4, al`.
        image.extend([0xb0, 7, 0xe6, 0xf4]);
        fs::write(folder.path().join("image"), image).unwrap();
        let ran = run(folder.path(), "image", "--memory 2M");
        assert_eq!(ran.status, status, "{start:#x}: {ran:?}");
        assert!(ran.stderr.lines().count() <= 1, "{ran:?}");
    }
}

fn a_bzimage_is_entered_at_64_32_or_16_bits() {
    let folder = folder();
    let path = folder.path().join("bzimage");
    fs::write(&path, bzimage()).unwrap();
    for (options, status) in [
        ("", 64),
        ("--entry-protocol linux", 64),
        ("--entry-protocol linux32", 32),
        ("--entry-protocol linux16", 16),
        ("--entry-protocol linux --machine micro", 64),
        ("--entry-protocol vmlinux", 125),
    ] {
        let ran = run(folder.path(), "bzimage", options);
        assert_eq!(ran.status, status, "{options}: {ran:?}");
    }
    let mut without = bzimage();
    without[0x236] = 0;
    fs::write(&path, &without).unwrap();
    assert_eq!(run(folder.path(), "bzimage", "").status, 32);
    without[0x214..0x218].fill(0);
    fs::write(&path, &without).unwrap();
    assert_eq!(run(folder.path(), "bzimage", "").status, 16);
    let long = format!("--cmdline {}", "x".repeat(256));
    let ran = run(folder.path(), "bzimage", &long);
    assert_eq!(ran.status, 125, "{ran:?}");
    assert!(ran.stderr.contains("--cmdline: 256 bytes with ours, a kernel takes 255"), "{ran:?}");
}
