//! What is typed at a terminal.
#![no_main]

fuzzing::target!("keys");
