//! What is read of EFI programs.
#![no_main]

fuzzing::target!("pe");
