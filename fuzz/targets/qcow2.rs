//! qcow2 images.

#![no_main]

fuzzing::target!(fuzzing::qcow2::seeds(), fuzzing::qcow2::run);
