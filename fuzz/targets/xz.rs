//! Unpacking of xz.
#![no_main]

fuzzing::target!("xz");
