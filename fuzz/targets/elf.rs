//! ELF files: headers, segments, the entry.
#![no_main]

fuzzing::target!("elf");
