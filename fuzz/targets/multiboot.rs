//! Multiboot headers, in files of their own and in ELF files.

#![no_main]

use fuzzing::bivisor::formats::{multiboot::Header, samples};

fuzzing::target!([samples::multiboot(), samples::multiboot_with(3, [0; 5])], |bytes: &[u8]| {
    let (head, len) = fuzzing::image::head(bytes);
    for is_elf in [false, true] {
        if let Ok(Some(header)) = Header::read(head, len, is_elf) {
            let _ = header.facts();
        }
    }
});
