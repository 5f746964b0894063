//! Rings of the vsock device.

#![no_main]

fuzzing::target!(fuzzing::rings::seeds(), |bytes| fuzzing::rings::play(
    bytes,
    fuzzing::rings::vsock
));
