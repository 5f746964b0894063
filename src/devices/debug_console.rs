//! The debug console: a byte sink, and a source if wanted, wherever a guest expects one.
//!
//! Shares the console's output and input. As bytes, the low byte of each write is printed; as
//! numbers, each write is a line with its value in decimal, all of its width.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::{answer, value};
use crate::bus::Device;
use crate::console::{Input, Output};
use crate::exit::Stop;

/// How writes are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shown {
    /// Raw: the low byte of each write.
    #[default]
    Bytes,
    /// One decimal number a line.
    Numbers,
}

/// The output side, and the input side where both share an address.
pub struct DebugConsole {
    output: Option<Arc<Output>>,
    input: Option<Arc<Input>>,
    shown: Shown,
}

impl DebugConsole {
    /// A side that prints to `output` (else drops writes) and reads from `input` (else reads zero).
    pub fn new(output: Option<Arc<Output>>, input: Option<Arc<Input>>, shown: Shown) -> Self {
        Self { output, input, shown }
    }
}

impl Device for DebugConsole {
    /// The next input byte; zero while there is none.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        let byte = self.input.as_ref().and_then(Input::next);
        answer(data, byte.unwrap_or(0).into());
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> ControlFlow<Stop> {
        let Some(output) = &self.output else { return ControlFlow::Continue(()) };
        match self.shown {
            Shown::Bytes => output.push(&data[..1]),
            Shown::Numbers => output.push(format!("{}\n", value(data)).as_bytes()),
        }
    }
}
