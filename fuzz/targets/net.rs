//! Rings of the net device.
#![no_main]

fuzzing::target!("net");
