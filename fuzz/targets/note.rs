//! Notes of ELF files, and what a PVH note says.

#![no_main]

use fuzzing::bivisor::formats::{pvh, samples};
use fuzzing::bivisor::payload::{Payload, elf::Image};

fuzzing::target!([samples::pvh_note(4), samples::pvh_note(8)], |bytes: &[u8]| {
    let file = Payload::Memory(samples::elf(bytes));
    let image = Image::read(&file).expect("only its notes are odd");
    if let Ok(Some(note)) = image.note(&file, pvh::OWNER, pvh::PHYS32_ENTRY) {
        let _ = pvh::entry(&note);
    }
});
