//! The search for a version in what no header describes.
#![no_main]

fuzzing::target!("version");
