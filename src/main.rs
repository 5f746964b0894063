//! The program: reads the command line, and is the only place that prints an error or picks a
//! process status.
//!
//! It has C's `main` and not Rust's: what std does before that (alternate stacks, the main
//! thread's bounds from /proc) is some twenty system calls of every start, for a message about
//! stack overflows. What is needed of it is done here.

#![cfg_attr(not(test), no_main)]

mod allocator;
mod cli;
mod start;

use std::ffi::OsString;
use std::io::{self, Write};

use bivisor::notice;
use bivisor::outcome::status;
use cli::Parsed;

/// Prints one line on standard error.
fn complain(message: &str) {
    // Nobody is left to tell when standard error can't be written.
    let _ = io::stderr().write_all(notice::line(message).as_bytes());
}

/// Carries out the command line `args`; gives the process status.
fn main(args: &[OsString]) -> u8 {
    let result = match cli::parse(args) {
        Parsed::Command(args) => args.execute(),
        Parsed::Text(text) => cli::print(text),
        Parsed::Wrong(message) => {
            complain(&message);
            return status::FAILURE;
        }
    };
    result.unwrap_or_else(|error| {
        complain(&format!("{error:#}"));
        cli::status_of(&error)
    })
}
