//! qcow2 images.
#![no_main]

fuzzing::target!("qcow2");
