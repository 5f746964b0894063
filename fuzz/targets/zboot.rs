//! EFI zboot: bytes behind its magic.

#![no_main]

use fuzzing::bivisor::formats::samples::{put, zboot};
use fuzzing::seeds::PACKED;

fuzzing::target!(PACKED.map(zboot), |bytes: &[u8]| {
    let mut file = bytes.to_vec();
    if file.len() >= 8 {
        put(&mut file, 0, b"MZ\0\0zimg");
        fuzzing::image::run(&file);
    }
});
