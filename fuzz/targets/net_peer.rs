//! The other end of a guest's network.
#![no_main]

fuzzing::target!("net_peer");
