//! Rings of the net device.

#![no_main]

fuzzing::target!(fuzzing::rings::seeds(), |bytes| fuzzing::rings::play(bytes, fuzzing::rings::net));
