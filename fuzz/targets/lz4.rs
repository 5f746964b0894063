//! Unpacking of lz4.
#![no_main]

fuzzing::target!("lz4");
