//! Names for addresses: of a `System.map`, or of an ELF file's symbol table.

use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSymbol};

/// Bytes of a file that are looked at. Our choice: several times what a kernel with debug
/// information has.
const FILE_MAX: u64 = 2 << 30;
/// Our choice: what lies farther behind a symbol is not a part of it.
const REACH: u64 = 1 << 20;

/// Symbols by their addresses, lowest first.
pub struct Symbols(Vec<(u64, String)>);

impl Symbols {
    /// The symbols in `file`.
    pub fn read(file: &File) -> Result<Self> {
        let mut bytes = Vec::new();
        file.take(FILE_MAX + 1).read_to_end(&mut bytes).context("read it")?;
        ensure!(bytes.len() as u64 <= FILE_MAX, "larger than {} MiB", FILE_MAX >> 20);
        Self::parse(&bytes)
    }

    /// The symbols in a file with this content.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut symbols = match bytes.starts_with(b"\x7fELF") {
            true => of_elf(bytes)?,
            false => of_map(bytes),
        };
        ensure!(!symbols.is_empty(), "no symbols: give a System.map or an ELF file that has some");
        symbols.sort_unstable();
        Ok(Self(symbols))
    }

    /// The symbol at or before `address` and the distance, as in `do_idle+0x1c`.
    pub fn name(&self, address: u64) -> Option<String> {
        let after = self.0.partition_point(|(start, _)| *start <= address);
        let (start, name) = self.0.get(after.checked_sub(1)?)?;
        match address - start {
            0 => Some(name.clone()),
            distance if distance < REACH => Some(format!("{name}+{distance:#x}")),
            _ => None,
        }
    }
}

/// Functions, and what assembly code does not mark as one.
fn of_elf(bytes: &[u8]) -> Result<Vec<(u64, String)>> {
    let file = object::File::parse(bytes).context("it is a damaged ELF file")?;
    let symbols = file.symbols().filter(|symbol| {
        use object::SymbolKind::{Label, Text, Unknown};
        symbol.is_definition() && matches!(symbol.kind(), Text | Label | Unknown)
    });
    let named = symbols.filter_map(|symbol| {
        let name = symbol.name().ok().filter(|name| !name.is_empty())?;
        Some((symbol.address(), printable(name)))
    });
    Ok(named.collect())
}

/// Lines of `ADDRESS TYPE NAME` (nm(1)), of which those are skipped that are none, and data.
fn of_map(bytes: &[u8]) -> Vec<(u64, String)> {
    let text = String::from_utf8_lossy(bytes);
    let symbol = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
        let address = u64::from_str_radix(address, 16).ok()?;
        matches!(kind, "t" | "T" | "w" | "W").then(|| (address, printable(name)))
    };
    text.lines().filter_map(symbol).collect()
}

/// Names are shown on terminals.
fn printable(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    fn read(bytes: &[u8]) -> Result<Symbols> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        Symbols::read(&file)
    }

    #[test]
    fn an_address_is_named_by_the_symbol_before_it() {
        let map = "ffff800008001000 T second\n0000000000001000 t first\nffff800008000000 D data\n\
                   no line at all\nzz T zz\n";
        let symbols = read(map.as_bytes()).unwrap();
        for (address, name) in [
            (0xfff, None),
            (0x1000, Some("first")),
            (0x101c, Some("first+0x1c")),
            (0x10_1000, None),
            (0xffff_8000_0800_0fff, None),
            (0xffff_8000_0800_1001, Some("second+0x1")),
        ] {
            assert_eq!(symbols.name(address).as_deref(), name, "{address:#x}");
        }
    }

    #[test]
    fn this_test_knows_its_own_name() {
        let symbols = Symbols::read(&File::open("/proc/self/exe").unwrap()).unwrap();
        let named = |(_, name): &&(u64, String)| name.contains("this_test_knows_its_own_name");
        let (address, name) = symbols.0.iter().find(named).unwrap();
        assert!(symbols.name(address + 1).unwrap().ends_with("+0x1"), "{name}");
    }

    #[test]
    fn what_has_no_symbols_is_refused() {
        for (bytes, problem) in [
            (&b""[..], "no symbols"),
            (b"\x7fELFx", "damaged ELF"),
            (b"\xff\0\x1b[2J\n", "no symbols"),
        ] {
            let error = format!("{:#}", read(bytes).err().unwrap());
            assert!(error.contains(problem), "{error}");
        }
    }
}
