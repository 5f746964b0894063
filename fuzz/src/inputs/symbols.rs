//! Files of symbols, whose names are shown for addresses.

use bivisor::formats::samples;
use bivisor::symbols::Symbols;

/// The beginning of a `System.map`, and ELF files without symbols.
pub fn seeds() -> Vec<Vec<u8>> {
    let map = b"ffff800008001000 T second\n0000000000001000 t first\nffff800008000000 D data\n";
    vec![map.to_vec(), samples::elf(b""), samples::elf(&samples::pvh_note(4))]
}

/// Reads `bytes` as a file of symbols; names are fit for a terminal.
pub fn run(bytes: &[u8]) {
    let Ok(symbols) = Symbols::parse(bytes) else { return };
    for address in [0, 0x1000, 0x1001, u64::MAX].into_iter().chain(starts(bytes)) {
        let name = symbols.name(address).unwrap_or_default();
        assert!(!name.chars().any(char::is_control), "{name:?}");
    }
}

/// Addresses that may well have a name: numbers of the file itself.
fn starts(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let words: Vec<u64> = text
        .split_ascii_whitespace()
        .filter_map(|word| u64::from_str_radix(word, 16).ok())
        .take(100)
        .collect();
    words.into_iter()
}
