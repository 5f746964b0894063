//! Headers of Linux for arm64.
#![no_main]

fuzzing::target!("arm64_image");
