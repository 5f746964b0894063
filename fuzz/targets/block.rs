//! Rings of the block device.
#![no_main]

fuzzing::target!("block");
