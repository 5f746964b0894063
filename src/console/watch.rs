//! Looks for texts in what the guest prints, and keeps its last line.
//!
//! Each text has the automaton of Knuth, Morris and Pratt (SIAM J. Comput. 6(2), 1977): one state,
//! one table as long as the text, and no second look at a byte, however the output was cut up.

use std::ops::ControlFlow;
use std::time::Instant;

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

/// What is to be watched for.
#[derive(Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// Texts that end the guest well.
    pub expect: &'a [String],
    /// Texts that end it badly.
    pub fail_on: &'a [String],
    /// Texts whose first showing is timed.
    pub marks: &'a [String],
    /// Keep the last line.
    pub line: bool,
    /// Tell when what was printed.
    pub timed: bool,
}

/// What the output is watched for.
pub struct Watch {
    expected: Vec<Text>,
    failing: Vec<Text>,
    /// Texts of which the first showing is timed, and its time.
    marks: Vec<(Text, Option<Instant>)>,
    /// When the first byte was printed.
    first: Option<Instant>,
    timed: bool,
    /// The line that is being printed, and the last one before it that was not blank.
    line: Line,
    before: Line,
}

impl Watch {
    /// Watches for what is wanted; nothing if nothing is.
    pub fn new(wanted: &Wanted<'_>) -> Option<Self> {
        let texts = |texts: &[String]| texts.iter().map(|text| Text::new(text)).collect();
        let Wanted { expect, fail_on, marks, line, timed } = *wanted;
        let any = line || timed || !expect.is_empty() || !fail_on.is_empty() || !marks.is_empty();
        any.then(|| Self {
            expected: texts(expect),
            failing: texts(fail_on),
            marks: marks.iter().map(|text| (Text::new(text), None)).collect(),
            first: None,
            timed,
            line: Line::default(),
            before: Line::default(),
        })
    }

    /// Looks at the next byte that is printed. Breaks when it completes a text; where it
    /// completes several, the bad news count.
    pub fn see(&mut self, byte: u8) -> ControlFlow<Stop> {
        self.keep(byte);
        if self.timed {
            self.time(byte);
        }
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

    fn time(&mut self, byte: u8) {
        self.first.get_or_insert_with(Instant::now);
        for (text, at) in self.marks.iter_mut().filter(|(_, at)| at.is_none()) {
            if text.see(byte) {
                *at = Some(Instant::now());
            }
        }
    }

    /// When the first byte and each mark that was shown were printed.
    pub fn moments(&self) -> Vec<(String, Instant)> {
        let first = self.first.map(|at| ("first output".into(), at));
        let marks = self.marks.iter().filter_map(|(text, at)| {
            at.map(|at| (format!("{:?}", String::from_utf8_lossy(&text.bytes)), at))
        });
        first.into_iter().chain(marks).collect()
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
        let mut watch = Watch::new(&Wanted {
            expect: &own(expect),
            fail_on: &own(fail_on),
            line: true,
            ..Wanted::default()
        })
        .unwrap();
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
            let mut watch = Watch::new(&Wanted { line: true, ..Wanted::default() }).unwrap();
            output.bytes().for_each(|byte| assert!(watch.see(byte).is_continue()));
            assert_eq!(watch.last_line(), line);
            assert!(watch.line.0.capacity() <= LINE_LEN && watch.before.0.capacity() <= LINE_LEN);
        }
    }

    #[test]
    fn nothing_is_watched_unless_asked_for() {
        assert!(Watch::new(&Wanted::default()).is_none());
    }

    #[test]
    fn the_first_byte_and_the_first_showing_of_each_mark_are_timed() {
        let marks = ["login:".to_owned(), "never".to_owned()];
        let wanted = Wanted { marks: &marks, timed: true, ..Wanted::default() };
        let mut watch = Watch::new(&wanted).unwrap();
        assert!(watch.moments().is_empty());
        assert!(b"boot\nlogin:".iter().all(|byte| watch.see(*byte).is_continue()));
        let moments = watch.moments();
        let names: Vec<_> = moments.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["first output", "\"login:\""]);
        assert!(moments[0].1 <= moments[1].1);
        assert!(b" login:".iter().all(|byte| watch.see(*byte).is_continue()));
        assert_eq!(watch.moments(), moments);
    }
}
