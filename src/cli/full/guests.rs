//! `guests`: the embedded guests, listed or written to a file.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use bivisor::guests::{all, find};

use crate::cli::print;

/// Lists them with what each proves and how to run it.
pub fn list(json: bool) -> Result<u8> {
    if json {
        let rows: Vec<_> = all()
            .iter()
            .map(|guest| {
                serde_json::json!({
                    "name": guest.name,
                    "proves": guest.proves,
                    "options": guest.options,
                    "bytes": guest.image.len(),
                })
            })
            .collect();
        return print(format!("{}\n", serde_json::Value::from(rows)));
    }
    let width = all().iter().map(|guest| guest.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for guest in all() {
        let _ = writeln!(text, "{:width$}  {}", guest.name, guest.proves);
        if !guest.options.is_empty() {
            let _ =
                writeln!(text, "{:width$}  bivisor run {}.bin {}", "", guest.name, guest.options);
        }
    }
    text.push_str("\nTo try one: bivisor guests export NAME NAME.bin, then its line above (or bivisor run NAME.bin).\n");
    print(text)
}

/// Writes guest `name` to `file`.
pub fn export(name: &str, file: &Path) -> Result<u8> {
    let Some(guest) = find(name) else {
        let names: Vec<_> = all().iter().map(|guest| guest.name).collect();
        anyhow::bail!("no guest is called {name:?}; there are {}", names.join(", "));
    };
    std::fs::write(file, guest.image).with_context(|| format!("write {}", file.display()))?;
    Ok(0)
}
