//! EFI zboot: bytes behind its magic.
#![no_main]

fuzzing::target!("zboot");
