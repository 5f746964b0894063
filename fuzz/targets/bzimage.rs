//! Setup headers of Linux for x86.
#![no_main]

fuzzing::target!("bzimage");
