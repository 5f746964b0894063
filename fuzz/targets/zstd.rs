//! Unpacking of zstd.
#![no_main]

fuzzing::target!("zstd");
