//! The guest's console on the host: where its output goes and where its input comes from.
//!
//! [`output`] gathers what the guest prints and writes it a line at a time; [`input`] reads the
//! host's side once the guest looks for it; [`keys`] are the ones that are meant for us and not
//! for the guest; [`watch`] looks for texts in the output.

pub mod input;
pub mod keys;
pub mod output;
pub mod watch;

use std::fs::File;
use std::io;

pub use input::{EOT, Input, Listener};
pub use output::{Output, PATIENCE};

/// The host files of a console.
pub struct Console {
    /// Where the guest's output goes.
    pub output: File,
    /// What messages call that.
    pub name: String,
    /// Input in front of what is read.
    pub before: Vec<u8>,
    /// Where the guest's input comes from; without it the guest sees an end of file at once.
    pub input: Option<File>,
    /// What is peculiar about the two.
    pub nature: Nature,
}

/// What is peculiar about the files of a console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// Nothing.
    Files,
    /// They are the standard streams. An input that is a terminal is raw while the guest reads it,
    /// and some keys are ours.
    Standard,
    /// They are the upper side of a pseudo-terminal: readers come and go. What is printed while
    /// there is none fills the terminal's buffer, and then is dropped.
    Pty,
}

impl Console {
    /// A console between two files.
    pub fn new(output: File, input: Option<File>) -> Self {
        let (name, before) = ("the console's file".into(), Vec::new());
        Self { output, name, before, input, nature: Nature::Files }
    }

    /// The same console for another machine.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            output: self.output.try_clone()?,
            name: self.name.clone(),
            before: self.before.clone(),
            input: self.input.as_ref().map(File::try_clone).transpose()?,
            nature: self.nature,
        })
    }
}
