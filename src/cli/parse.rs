//! The syntax of values on the command line: numbers, sizes, addresses, times.

use std::time::Duration;

use bivisor::config::DebugConsole;
use bivisor::devices::debug_console::Shown;
use bivisor::exit::{BusAddr, Space};
use bivisor::memory::{ImageMemory, RamRange};
use bivisor::sandbox::Mode;
use clap::builder::{PossibleValuesParser, TypedValueParser};

/// A number: decimal or, after `0x`, hexadecimal; `_` between digits.
pub fn number(text: &str) -> Result<u64, String> {
    let digits = text.replace('_', "");
    let parsed = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) if !hex.starts_with('+') => u64::from_str_radix(hex, 16),
        Some(_) => return Err("not a number".into()),
        None if digits.starts_with('+') => return Err("not a number".into()),
        None => digits.parse(),
    };
    parsed.map_err(|error| match error.kind() {
        std::num::IntErrorKind::PosOverflow => "more than 64 bits, use a smaller one".into(),
        _ if digits.starts_with('-') => "negative, use a positive number".into(),
        _ => "not a number (such as 4096 or 0x1000)".into(),
    })
}

/// A number of bytes, or an address: a number, with K, M, G or T for powers of 1024.
pub fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        Some((at, 't' | 'T')) => (&text[..at], 40),
        _ => (text, 0),
    };
    let count = number(digits)?;
    let bytes = count << shift;
    if bytes >> shift != count {
        return Err("more than 64 bits, use a smaller one".into());
    }
    Ok(bytes)
}

/// How many of something.
pub fn count(text: &str) -> Result<usize, String> {
    number(text)?.try_into().map_err(|_| "too many".into())
}

/// `copy` or `map`.
pub fn image_memory() -> impl TypedValueParser<Value = ImageMemory> {
    PossibleValuesParser::new(["copy", "map"]).map(|word| match word.as_str() {
        "map" => ImageMemory::Map,
        _ => ImageMemory::Copy,
    })
}

/// `on`, `off` or `log`.
pub fn sandbox() -> impl TypedValueParser<Value = Mode> {
    PossibleValuesParser::new(["on", "off", "log"]).map(|word| match word.as_str() {
        "off" => Mode::Off,
        "log" => Mode::Log,
        _ => Mode::On,
    })
}

/// `START:SIZE`.
pub fn ram(text: &str) -> Result<RamRange, String> {
    let (start, len) = text.split_once(':').ok_or("not START:SIZE (such as 0:64K)")?;
    Ok(RamRange { start: size(start)?, len: size(len)? })
}

/// `NAME=VALUE`.
pub fn register(text: &str) -> Result<(String, u64), String> {
    let (name, value) = text.split_once('=').ok_or("not NAME=VALUE")?;
    Ok((name.to_lowercase(), size(value)?))
}

/// `port:ADDR` or `mmio:ADDR`.
pub fn bus_addr(text: &str) -> Result<BusAddr, String> {
    let (space, addr) = match text.split_once(':') {
        Some(("port", addr)) => (Space::Port, addr),
        Some(("mmio", addr)) => (Space::Memory, addr),
        _ => return Err("not port:ADDR or mmio:ADDR".into()),
    };
    Ok(BusAddr { space, addr: size(addr)? })
}

/// `port:ADDR` or `mmio:ADDR`, then `,in=ADDR` and `,as=bytes` or `,as=numbers` if wanted.
pub fn debug_console(text: &str) -> Result<DebugConsole, String> {
    let mut parts = text.split(',');
    let output = bus_addr(parts.next().unwrap_or_default())?;
    let mut console = DebugConsole { output, input: None, shown: Shown::Bytes };
    for part in parts {
        match part.split_once('=') {
            Some(("in", addr)) => console.input = Some(size(addr)?),
            Some(("as", "bytes")) => console.shown = Shown::Bytes,
            Some(("as", "numbers")) => console.shown = Shown::Numbers,
            _ => return Err(format!("{part} is not in=ADDR, as=bytes or as=numbers")),
        }
    }
    Ok(console)
}

/// The longest time that a guest can be given. Our choice: past it no clock overflows.
const MAX_SECONDS: f64 = 365.0 * 86_400.0;

/// A time: a number, with `ms`, `s` (or nothing), `m` or `h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(at);
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("not a time (such as 500ms, 10s or 2m)".into()),
    };
    let value: f64 = digits.parse().map_err(|_| "not a time (such as 500ms, 10s or 2m)")?;
    let seconds = value * seconds;
    if !(seconds > 0.0 && seconds <= MAX_SECONDS) {
        return Err("must be more than nothing and at most a year".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_sizes() {
        for (text, expected) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("0x10_0000", Some(0x10_0000)),
            ("0xffffffffffffffff", Some(u64::MAX)),
            ("128M", Some(128 << 20)),
            ("2g", Some(2 << 30)),
            ("0x10M", Some(16 << 20)),
            ("16777215T", Some(0xff_ffff << 40)),
            ("16777216T", None),
            ("99999999999999G", None),
            ("18446744073709551616", None),
            ("-1", None),
            ("+1", None),
            ("0x+1", None),
            ("1e9", None),
            ("1.5", None),
            ("", None),
            ("M", None),
            ("0x", None),
            ("1é", None),
        ] {
            assert_eq!(size(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn addresses_ranges_and_registers() {
        assert_eq!(bus_addr("port:0x10"), Ok(BusAddr::port(0x10)));
        assert_eq!(bus_addr("mmio:0x8000"), Ok(BusAddr::memory(0x8000)));
        assert!(bus_addr("0x10").is_err() && bus_addr("port:").is_err() && bus_addr("").is_err());
        assert_eq!(ram("0:4K"), Ok(RamRange { start: 0, len: 4096 }));
        assert!(ram("4K").is_err() && ram(":").is_err() && ram("0:-1").is_err());
        assert_eq!(register("RAX=0x10"), Ok(("rax".into(), 16)));
        assert!(register("rax").is_err() && register("rax=").is_err());
    }

    #[test]
    fn debug_consoles() {
        let at = BusAddr::memory(0x8000);
        for (text, expected) in [
            ("mmio:0x8000", Ok((None, Shown::Bytes))),
            ("mmio:0x8000,in=0x8004", Ok((Some(0x8004), Shown::Bytes))),
            ("mmio:0x8000,as=numbers", Ok((None, Shown::Numbers))),
            ("mmio:0x8000,as=words", Err(())),
            ("mmio:0x8000,", Err(())),
        ] {
            let expected = expected.map(|(input, shown)| DebugConsole { output: at, input, shown });
            assert_eq!(debug_console(text).map_err(|_| ()), expected, "{text}");
        }
    }

    #[test]
    fn times() {
        for (text, millis) in [
            ("500ms", Some(500)),
            ("10s", Some(10_000)),
            ("10", Some(10_000)),
            ("0.5s", Some(500)),
            ("2m", Some(120_000)),
            ("1h", Some(3_600_000)),
            ("0", None),
            ("-1s", None),
            ("1d", None),
            ("inf", None),
            ("nan", None),
            ("1e99", None),
            ("99999999h", None),
            ("", None),
            ("s", None),
        ] {
            assert_eq!(duration(text).ok().map(|d| d.as_millis() as u64), millis, "{text}");
        }
    }
}
