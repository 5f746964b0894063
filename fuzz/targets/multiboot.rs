//! Multiboot headers, in files of their own and in ELF files.
#![no_main]

fuzzing::target!("multiboot");
