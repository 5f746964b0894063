//! Where images go and where they start: ELF files of both classes, flat ones at any address.

use std::fs;

use libtest_mimic::Trial;

use crate::common::elf::{Segment, elf32, elf64};
use crate::common::{MACHINE, bivisor, cases, folder, guest, kvm, run_guest};

pub fn trials() -> Vec<Trial> {
    cases![
        an_elf_file_goes_where_it_says, kvm;
        a_32_bit_elf_file_starts_in_32_bits, kvm;
        a_flat_image_goes_where_it_is_told_to, kvm;
    ]
}

fn an_elf_file_goes_where_it_says() {
    let folder = folder();
    let image = guest("add").image;
    let gap = 0x1_0000;
    let segments = [
        Segment { guest_addr: MACHINE.load, bytes: image, zeros: 0x1234 },
        Segment { guest_addr: MACHINE.load + gap, bytes: b"x", zeros: 0 },
        Segment { guest_addr: MACHINE.load + 2 * gap, bytes: b"", zeros: gap },
    ];
    let path = folder.path().join("add.elf");
    fs::write(&path, elf64(MACHINE.elf_machine, MACHINE.load, &segments)).unwrap();
    let options = guest("add").options.replace("--mode long", "");
    let ran = bivisor("run").arg(path).words(&options).finish();
    assert_eq!((ran.text().as_str(), ran.status), ("2 + 2 = 4\n", 0), "{ran:?}");
}

fn a_32_bit_elf_file_starts_in_32_bits() {
    let Some(machine) = MACHINE.elf32_machine else { return };
    let folder = folder();
    let segment = Segment { guest_addr: MACHINE.load, bytes: guest("exit").image, zeros: 0 };
    let path = folder.path().join("exit.elf");
    fs::write(&path, elf32(machine, MACHINE.load as u32, &[segment])).unwrap();
    let options = guest("exit").options.replace("--mode protected", "");
    let ran = bivisor("run").arg(path).words(&options).finish();
    assert_eq!(ran.status, 42, "{ran:?}");
}

fn a_flat_image_goes_where_it_is_told_to() {
    let folder = folder();
    let at = MACHINE.load + 0x7_0000;
    let options = format!("{} --load {at:#x}", guest("exit").options);
    let ran = run_guest(&folder, "exit", |_| options.clone()).finish();
    assert_eq!(ran.status, 42, "{ran:?}");
    // The same image behind as many bytes that are not to be run.
    let path = folder.path().join("late.bin");
    let offset = 0x100;
    let mut bytes = vec![0xff; offset];
    bytes.extend_from_slice(guest("exit").image);
    fs::write(&path, bytes).unwrap();
    let options = format!("{options} --entry {:#x}", at + offset as u64);
    let ran = bivisor("run").arg(path).words(&options).finish();
    assert_eq!(ran.status, 42, "{ran:?}");
}
