//! What is read of EFI programs.

#![no_main]

use fuzzing::bivisor::formats::samples;
use fuzzing::bivisor::payload::pe;

fuzzing::target!([samples::zboot(b""), samples::arm64_image()], |bytes: &[u8]| {
    assert!(pe::end(bytes).is_none() || pe::is_pe(bytes));
});
