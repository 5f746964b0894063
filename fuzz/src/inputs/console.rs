//! The console: keys of a terminal, and what a guest prints while somebody waits for a text.

use bivisor::console::keys::{Keys, Press};
use bivisor::console::watch::{Wanted, Watch};
use bivisor::exit::Stop;

pub fn keys_seeds() -> Vec<Vec<u8>> {
    [&b"ls\r"[..], b"\x01h\x01\x01\x01x", b"\x1b[A\x01\x1b[B"].map(<[u8]>::to_vec).into()
}

/// Presses keys. Whatever is not for us reaches the guest, a Ctrl-A perhaps later than it was pressed.
pub fn keys(bytes: &[u8]) {
    let (mut keys, mut kept) = (Keys::default(), 0);
    for &key in bytes {
        match keys.press(key) {
            Press::Typed(typed) => {
                assert!(typed.ends_with(&[key]) && typed.len() <= 1 + kept);
                kept = 0;
            }
            Press::Nothing => kept = 1,
            Press::Help | Press::Quit => kept = 0,
        }
    }
}

pub fn printed_seeds() -> Vec<Vec<u8>> {
    [&b"aab\naaabaab"[..], b"login:\nDebian\r\nlogin: ", b"\x1b[0m\n\x1b[0\x1b[0m\xff"]
        .map(<[u8]>::to_vec)
        .into()
}

/// The first line is waited for in the others: it is found where it is first complete.
pub fn printed(bytes: &[u8]) {
    let at = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (text, output) = (String::from_utf8_lossy(&bytes[..at]).into_owned(), &bytes[at..]);
    let wanted = Wanted { expect: std::slice::from_ref(&text), line: true, ..Wanted::default() };
    let Some(mut watch) = Watch::new(&wanted) else { return };
    let mut seen = Vec::new();
    for &byte in output {
        if byte != b'\r' || text.contains('\r') {
            seen.push(byte);
        }
        let complete = !text.is_empty() && seen.ends_with(text.as_bytes());
        let skipped = byte == b'\r' && !text.contains('\r');
        let stop = watch.see(byte).break_value();
        assert_eq!(matches!(stop, Some(Stop::Expected)), complete && !skipped, "{text:?}");
    }
    let _ = watch.last_line();
}
