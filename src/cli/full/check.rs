//! `check`: what this host can do, for people or as JSON.

use std::fmt::Write;

use anyhow::Result;
use bivisor::host;

use crate::cli::print;

/// Prints what [`host::examine`] finds.
pub fn print_findings(json: bool) -> Result<u8> {
    let findings = host::examine()?;
    if json {
        let object: serde_json::Map<_, _> =
            findings.into_iter().map(|f| (f.key.into(), f.value.into())).collect();
        return print(format!("{}\n", serde_json::Value::from(object)));
    }
    let width = findings.iter().map(|finding| finding.key.len()).max().unwrap_or_default();
    let mut text = String::new();
    for finding in findings {
        let _ = writeln!(text, "{:width$}  {}", finding.key, finding.value);
    }
    print(text)
}
