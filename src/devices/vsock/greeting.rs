//! What a program of the host says first: `CONNECT port` and a line's end.

use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// Bytes of the longest line: the longest number has ten digits, and a few blanks do no harm.
const LINE_MAX: usize = 32;

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Greeting {
    /// Some of the line is missing.
    Unfinished,
    /// The guest's port.
    Port(u32),
    /// It is something else.
    Wrong,
}

/// Reads the line from `stream`, and not a byte behind it.
pub fn read(stream: &UnixStream) -> Greeting {
    let mut bytes = [0; LINE_MAX];
    let count = match recv(stream, &mut bytes, RecvFlags::PEEK) {
        Ok((_, count)) if count > 0 => count,
        Err(Errno::AGAIN | Errno::INTR) => return Greeting::Unfinished,
        _ => return Greeting::Wrong,
    };
    let Some(end) = bytes[..count].iter().position(|&byte| byte == b'\n') else {
        return if count == LINE_MAX { Greeting::Wrong } else { Greeting::Unfinished };
    };
    let taken = recv(stream, &mut bytes[..=end], RecvFlags::empty());
    if taken != Ok((end + 1, end + 1)) {
        return Greeting::Wrong;
    }
    parse(&bytes[..end]).map_or(Greeting::Wrong, Greeting::Port)
}

/// The port in `line`.
fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (word, port) = (words.next()?, words.next()?);
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let whole = word.eq_ignore_ascii_case("connect") && digits && words.next().is_none();
    whole.then(|| port.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn hostile_42_lines() {
        for (line, expected) in [
            (&b"CONNECT 0\n"[..], Greeting::Port(0)),
            (b"CONNECT 4294967295\nCONNECT", Greeting::Port(u32::MAX)),
            (b"connect  52 \r\n", Greeting::Port(52)),
            (b"CONNECT 99999999999\n", Greeting::Wrong),
            (b"CONNECT 4294967296\n", Greeting::Wrong),
            (b"CONNECT -1\n", Greeting::Wrong),
            (b"CONNECT +1\n", Greeting::Wrong),
            (b"CONNECT 1 2\n", Greeting::Wrong),
            (b"CONNECT\n", Greeting::Wrong),
            (b"CONNECTED 1\n", Greeting::Wrong),
            (b"\n", Greeting::Wrong),
            (b"\xff\xfe\n", Greeting::Wrong),
            (b"CONNECT 1", Greeting::Unfinished),
            (&[b'x'; LINE_MAX - 1], Greeting::Unfinished),
            (&[b'x'; LINE_MAX], Greeting::Wrong),
            (&[b'C'; 100_000], Greeting::Wrong),
        ] {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            ours.write_all(line).unwrap();
            theirs.set_nonblocking(true).unwrap();
            assert_eq!(read(&theirs), expected, "{:?}", line.escape_ascii().to_string());
        }
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        assert_eq!(read(&theirs), Greeting::Unfinished);
        ours.write_all(b"CONN").unwrap();
        assert_eq!(read(&theirs), Greeting::Unfinished);
        ours.write_all(b"ECT 7\nrest").unwrap();
        drop(ours);
        assert_eq!(read(&theirs), Greeting::Port(7));
        let mut rest = String::new();
        theirs.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "rest");
        assert_eq!(read(&theirs), Greeting::Wrong);
    }
}
