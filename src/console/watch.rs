//! Looks for texts in what the guest prints, and keeps its last line.
//!
//! Each text has the automaton of Knuth, Morris and Pratt (SIAM J. Comput. 6(2), 1977): one state,
//! one table as long as the text, and no second look at a byte, however the output was cut up.

use std::ops::ControlFlow;

use crate::exit::Stop;

/// Our choice: a line of a terminal, and room for a long one. The rest of a longer one is not kept.
const LINE_LEN: usize = 256;

/// One text, and how much of it the output ends with.
struct Text {
    bytes: Box<[u8]>,
    /// For every prefix, how long the longest shorter prefix is that it ends with.
    falls_to: Box<[usize]>,
    seen: usize,
    /// Carriage returns count only where the text has some: `a\nb` is found in `a\r\nb`.
    carriage_returns: bool,
}

impl Text {
    fn new(text: &str) -> Self {
        let bytes: Box<[u8]> = text.as_bytes().into();
        let mut falls_to = vec![0; bytes.len()].into_boxed_slice();
        let mut len = 0;
        for at in 1..bytes.len() {
            while len > 0 && bytes[at] != bytes[len] {
                len = falls_to[len - 1];
            }
            len += usize::from(bytes[at] == bytes[len]);
            falls_to[at] = len;
        }
        let carriage_returns = bytes.contains(&b'\r');
        Self { bytes, falls_to, seen: 0, carriage_returns }
    }

    /// True if `byte` completes the text.
    fn see(&mut self, byte: u8) -> bool {
        if self.bytes.is_empty() || byte == b'\r' && !self.carriage_returns {
            return false;
        }
        while self.seen > 0 && self.bytes[self.seen] != byte {
            self.seen = self.falls_to[self.seen - 1];
        }
        self.seen += usize::from(self.bytes[self.seen] == byte);
        let complete = self.seen == self.bytes.len();
        if complete {
            self.seen = self.falls_to[self.seen - 1];
        }
        complete
    }
}

/// The beginning of a line.
#[derive(Default)]
struct Line(Vec<u8>);

/// What the output is watched for.
pub struct Watch {
    expected: Vec<Text>,
    failing: Vec<Text>,
    /// The line that is being printed, and the last one before it that was not blank.
    line: Line,
    before: Line,
}

impl Watch {
    /// Watches for the texts `expect` and `fail_on`, or only for the last line (`line`); nothing
    /// if none is asked for.
    pub fn new(expect: &[String], fail_on: &[String], line: bool) -> Option<Self> {
        let texts = |texts: &[String]| texts.iter().map(|text| Text::new(text)).collect();
        let wanted = line || !expect.is_empty() || !fail_on.is_empty();
        wanted.then(|| Self {
            expected: texts(expect),
            failing: texts(fail_on),
            line: Line::default(),
            before: Line::default(),
        })
    }

    /// Looks at the next byte that is printed. Breaks when it completes a text; where it
    /// completes several, the bad news count.
    pub fn see(&mut self, byte: u8) -> ControlFlow<Stop> {
        self.keep(byte);
        // All of them look at every byte: no short cut.
        let expected = self.expected.iter_mut().fold(false, |any, text| text.see(byte) | any);
        let mut stop = expected.then_some(Stop::Expected);
        for text in &mut self.failing {
            if text.see(byte) {
                let text = String::from_utf8_lossy(&text.bytes).into_owned();
                stop = Some(Stop::FailOn(text));
            }
        }
        stop.map_or(ControlFlow::Continue(()), ControlFlow::Break)
    }

    fn keep(&mut self, byte: u8) {
        let Line(line) = &mut self.line;
        match byte {
            b'\n' => {
                if !line.trim_ascii().is_empty() {
                    std::mem::swap(&mut self.line, &mut self.before);
                }
                self.line.0.clear();
            }
            _ if line.len() < LINE_LEN => line.push(byte),
            _ => {}
        }
    }

    /// The last line that is not blank, complete or not.
    pub fn last_line(&self) -> String {
        let Line(line) =
            if self.line.0.trim_ascii().is_empty() { &self.before } else { &self.line };
        String::from_utf8_lossy(line.trim_ascii_end()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// After how many bytes of `output` the watch breaks, and with what.
    fn watch(expect: &[&str], fail_on: &[&str], output: &[u8]) -> Option<(usize, String)> {
        let own = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect::<Vec<_>>();
        let mut watch = Watch::new(&own(expect), &own(fail_on), true).unwrap();
        output.iter().enumerate().find_map(|(at, &byte)| match watch.see(byte).break_value()? {
            Stop::Expected => Some((at + 1, "expected".into())),
            Stop::FailOn(text) => Some((at + 1, text)),
            stop => panic!("{stop:?}"),
        })
    }

    #[test]
    fn the_first_text_that_is_complete_counts() {
        for (expect, fail_on, output, found) in [
            (&["ab"][..], &[][..], &b"aab"[..], Some((3, "expected"))),
            (&["aab"], &[], b"aaab", Some((4, "expected"))),
            (&["abcabd"], &[], b"abcabcabd", Some((9, "expected"))),
            (&["x", "ab"], &[], b"ab", Some((2, "expected"))),
            (&["a\nb"], &[], b"a\r\nb", Some((4, "expected"))),
            (&["a\r\nb"], &[], b"a\nb a\r\nb", Some((8, "expected"))),
            (&["ab"], &[], b"a b", None),
            (&["login"], &["panic"], b"a panic, no login", Some((7, "panic"))),
            (&["nic"], &["panic"], b"a panic", Some((7, "panic"))),
            (&[], &["\u{e9}"], "caf\u{e9}".as_bytes(), Some((5, "\u{e9}"))),
        ] {
            let found = found.map(|(at, what)| (at, what.to_string()));
            assert_eq!(watch(expect, fail_on, output), found, "{expect:?} {fail_on:?}");
        }
    }

    proptest! {
        #[test]
        fn a_text_is_found_where_a_search_finds_it(text in "[ab]{1,6}", output in "[ab]{0,60}") {
            let found = watch(&[&text], &[], output.as_bytes()).map(|(at, _)| at);
            prop_assert_eq!(found, output.find(&text).map(|at| at + text.len()));
        }
    }

    #[test]
    fn the_last_line_is_kept_within_bounds() {
        for (output, line) in [
            ("", ""),
            ("one\ntwo", "two"),
            ("one\r\n\r\n  \n", "one"),
            ("one\ntwo\n", "two"),
            (&"x".repeat(100_000), &"x".repeat(LINE_LEN)),
        ] {
            let mut watch = Watch::new(&[], &[], true).unwrap();
            output.bytes().for_each(|byte| assert!(watch.see(byte).is_continue()));
            assert_eq!(watch.last_line(), line);
            assert!(watch.line.0.capacity() <= LINE_LEN && watch.before.0.capacity() <= LINE_LEN);
        }
    }

    #[test]
    fn nothing_is_watched_unless_asked_for() {
        assert!(Watch::new(&[], &[], false).is_none());
    }
}
