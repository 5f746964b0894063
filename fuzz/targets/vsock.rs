//! Rings of the vsock device.
#![no_main]

fuzzing::target!("vsock");
