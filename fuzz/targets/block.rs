//! Rings of the block device.

#![no_main]

fuzzing::target!(fuzzing::rings::seeds(), |bytes| fuzzing::rings::play(
    bytes,
    fuzzing::rings::block
));
