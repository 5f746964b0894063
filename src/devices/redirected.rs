//! Lines that are messages: a [`Redirection`]'s registers on the bus, and what tells KVM of each line that
//! a device has which message it is now.

use std::ops::ControlFlow;

use super::{answer, value};
use crate::board::Message;
use crate::bus::Device;
use crate::exit::Stop;
use crate::irq::{Redirection, Route};

/// A line that a device has.
struct Line {
    number: u32,
    /// What it stands for now.
    says: Option<Message>,
    route: Route,
}

/// The registers and the lines.
pub struct Redirected {
    registers: Box<dyn Redirection>,
    lines: Vec<Line>,
}

impl Redirected {
    /// `registers`, and the lines that there are, by number: whatever `registers` has for others is
    /// kept and means nothing.
    pub fn new(registers: Box<dyn Redirection>, lines: Vec<(u32, Route)>) -> Self {
        let line = |(number, route)| Line { number, says: None, route };
        Self { registers, lines: lines.into_iter().map(line).collect() }
    }
}

impl Device for Redirected {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        answer(data, self.registers.read(offset).into());
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> ControlFlow<Stop> {
        let changed = self.registers.write(offset, value(data) as u32);
        let Some(number) = changed else { return ControlFlow::Continue(()) };
        let message = self.registers.message(number);
        for line in self.lines.iter_mut().filter(|line| line.number == number) {
            if line.says != message {
                // One that can't be sent is tried again when the guest writes it again.
                let taken = (line.route)(message);
                line.says = message.filter(|_| taken);
            }
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::layout_check::Region;

    /// One register for each line: zero masks it.
    #[derive(Default)]
    struct Table([u32; 4]);

    impl Redirection for Table {
        fn place(&self) -> Region {
            Region { name: "table", start: 0x1000, len: 16 }
        }

        fn read(&self, offset: u64) -> u32 {
            self.0[offset as usize / 4]
        }

        fn write(&mut self, offset: u64, value: u32) -> Option<u32> {
            self.0[offset as usize / 4] = value;
            Some(offset as u32 / 4)
        }

        fn message(&self, line: u32) -> Option<Message> {
            let data = self.0[line as usize];
            (data != 0).then_some(Message { guest_addr: 0x1000, data, sender: 0 })
        }
    }

    #[test]
    fn a_line_is_told_what_it_stands_for_when_that_changes() {
        const REFUSED: u32 = 9;
        let (told, heard) = channel();
        let line = |number| {
            let told = told.clone();
            let route = move |message: Option<Message>| {
                let data = message.map(|message| message.data);
                told.send((number, data)).unwrap();
                data != Some(REFUSED)
            };
            (number, Box::new(route) as Route)
        };
        let mut lines = Redirected::new(Box::<Table>::default(), vec![line(1), line(2), line(1)]);
        for (number, value) in
            [(0, 5), (2, 0), (2, 5), (2, 5), (1, 6), (2, 7), (2, 0), (2, REFUSED), (2, REFUSED)]
        {
            assert!(lines.write(4 * number, &u32::to_le_bytes(value)).is_continue());
            let mut data = [0xff; 8];
            lines.read(4 * number, &mut data);
            assert_eq!(u64::from_le_bytes(data), u64::from(value));
        }
        let expected = [
            (2, Some(5)),
            (1, Some(6)),
            (1, Some(6)),
            (2, Some(7)),
            (2, None),
            (2, Some(REFUSED)),
            (2, Some(REFUSED)),
        ];
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), expected);
    }
}
