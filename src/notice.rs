//! Lines on standard error while a guest runs, such as why a device of it stopped. What guests can
//! cause is limited in number: a log that a guest can fill is one more thing to attack.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU32, Ordering};

/// Our choice: the lines that guests can cause in one process; more tell nothing new.
const AT_MOST: u32 = 32;

/// A message as one line of ours. What a file's name or a guest put into it can't make it two, or
/// command a terminal.
pub fn line(message: &str) -> String {
    let mut line = String::from("bivisor: ");
    for c in message.chars() {
        match c {
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line.push('\n');
    line
}

/// Prints `message`, which a guest may have caused, unless there were too many.
pub fn say(message: &str) {
    static SAID: AtomicU32 = AtomicU32::new(0);
    let said = SAID.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
        (count <= AT_MOST).then_some(count + 1)
    });
    let text = match said {
        Ok(AT_MOST) => line("more lines like the last ones are not shown"),
        Ok(_) => line(message),
        Err(_) => return,
    };
    // Nobody is left to tell when standard error can't be written.
    let _ = io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_whatever_is_in_it() {
        assert_eq!(line("a\n\x1b[2Jb\u{7f}é"), "bivisor: a\\n\\u{1b}[2Jb\\u{7f}é\n");
    }
}
