//! ELF files: headers, segments, the entry.

#![no_main]

use fuzzing::bivisor::formats::samples;
use fuzzing::bivisor::payload::{Payload, elf::Image};

fuzzing::target!([samples::elf(&samples::pvh_note(4)), samples::elf(b"")], |bytes: &[u8]| {
    if let Ok(image) = Image::read(&Payload::Memory(bytes.to_vec())) {
        let (start, end) = image.load_range();
        assert!(start < end);
        let _ = (image.entry_guest_addr(), image.machine_name());
    }
});
