//! Headers of Linux for arm64.

#![no_main]

use fuzzing::bivisor::formats::{arm64_image::Header, samples};

fuzzing::target!([samples::arm64_image()], |bytes: &[u8]| {
    let (head, len) = fuzzing::image::head(bytes);
    if let Ok(Some(header)) = Header::read(head, len) {
        assert!(header.image_size >= len);
        let _ = header.facts();
    }
});
