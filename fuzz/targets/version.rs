//! The search for a version in what no header describes.

#![no_main]

use fuzzing::bivisor::payload::Payload;
use fuzzing::bivisor::payload::image::{Image, Unpacking};

fuzzing::target!([b"Linux version 6.1.0 (someone)".to_vec()], |bytes: &[u8]| {
    let file = [&[0; 64], bytes].concat();
    let unpacking = Unpacking { limit: fuzzing::LIMIT, cache: None, kernels: true };
    if let Ok(image) = Image::read(Payload::Memory(file), &unpacking) {
        let version = image.version().unwrap_or_default();
        assert!(version.chars().all(|c| c.is_ascii_graphic()));
    }
});
