//! A program of the host's that reaches for a guest's.
#![no_main]

fuzzing::target!("vsock_peer");
