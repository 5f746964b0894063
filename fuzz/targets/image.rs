//! The whole path: whatever is recognised is described, and loaded in every way.
#![no_main]

fuzzing::target!("image");
