//! Unpacking of gzip.
#![no_main]

fuzzing::target!("gzip");
