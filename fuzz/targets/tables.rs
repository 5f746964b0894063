//! Tables for boards of every kind.
#![no_main]

fuzzing::target!("tables");
