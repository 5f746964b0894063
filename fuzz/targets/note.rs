//! Notes of ELF files, and what a PVH note says.
#![no_main]

fuzzing::target!("note");
