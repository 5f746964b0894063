//! The version of a Linux kernel, from the line that it prints first.
//!
//! Source: Linux v6.12 init/version-timestamp.c, `linux_banner`. Only an unpacked image has it, and
//! nowhere in particular, so the search reads the image: for people who ask, never for a boot.

use memchr::memmem::Finder;

use super::Payload;

/// What the line begins with. Other strings begin so, too; the version begins with a digit.
const MARK: &[u8] = b"Linux version ";
/// Our choice: the line is in the read-only data, which no kernel has further behind.
const SEARCHED: u64 = 256 << 20;
/// Read at a time: small enough for a cache, large enough to hide the system call.
const CHUNK: usize = 256 * 1024;
/// Bytes after the mark that can hold the release ("6.1.0-56-cloud"), which ends at a blank.
const RELEASE: usize = 128;

/// The release in `payload`, if it is a Linux kernel that is not packed.
pub fn find(payload: &Payload) -> Option<String> {
    let finder = Finder::new(MARK);
    let overlap = MARK.len() + RELEASE;
    let mut buffer = vec![0; CHUNK + overlap];
    let end = payload.len().min(SEARCHED);
    let mut at = 0;
    while at < end {
        let len = (end - at).min(buffer.len() as u64) as usize;
        payload.read_at(&mut buffer[..len], at, "kernel").ok()?;
        let found = finder
            .find_iter(&buffer[..len])
            .find_map(|mark| release(&buffer[mark + MARK.len()..len.min(mark + overlap)]));
        if found.is_some() {
            return found;
        }
        at += CHUNK as u64;
    }
    None
}

/// The release at the start of `text`.
fn release(text: &[u8]) -> Option<String> {
    let text = text.split(|&byte| byte == b' ').next().filter(|word| word.len() < text.len())?;
    let is_release = text.first()?.is_ascii_digit() && text.iter().all(u8::is_ascii_graphic);
    is_release.then(|| String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_found_wherever_it_lies() {
        for at in [0, 1, CHUNK - 20, CHUNK - 1, CHUNK, CHUNK + 150, 3 * CHUNK] {
            let mut image = vec![0; at];
            image.extend(b"Linux version 6.1.0-56-cloud (someone@somewhere)");
            assert_eq!(find(&Payload::Memory(image)).unwrap(), "6.1.0-56-cloud", "{at:#x}");
        }
    }

    #[test]
    fn what_only_looks_like_it_is_no_release() {
        for text in [&b"Linux version %s (%s)"[..], b"Linux version ", b"Linux version 6.1", b""] {
            assert_eq!(find(&Payload::Memory(text.to_vec())), None, "{text:?}");
        }
        let endless = [b"Linux version ".as_slice(), &[b'1'; 1000]].concat();
        assert_eq!(find(&Payload::Memory(endless)), None);
    }
}
