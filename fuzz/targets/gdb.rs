//! A gdb that says anything whatever.
#![no_main]

fuzzing::target!("gdb");
