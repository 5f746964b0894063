//! The trace: one line per exit, in words, and a summary of the counts at the end.
//!
//! Off, it costs one test of a pointer per exit. A line is one write, so that lines of several
//! vCPUs never mix.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};

use crate::bus::Bus;
use crate::journal::{Access, Counts, Kind};

/// Name for accesses that no device answers.
const NOTHING: &str = "nothing there";

/// Where trace lines go.
pub struct Trace(pub File);

impl Trace {
    /// One access of `vcpu`, to the device `name` or to none.
    pub fn access(&self, vcpu: usize, access: &Access, name: Option<&str>) -> io::Result<()> {
        let words = access.to_string();
        self.line(&format!("vcpu {vcpu}  {words:<40}  {}\n", name.unwrap_or(NOTHING)))
    }

    /// Any other thing that `vcpu` did.
    pub fn event(&self, vcpu: usize, words: &str) -> io::Result<()> {
        self.line(&format!("vcpu {vcpu}  {words}\n"))
    }

    /// The counts, per kind and per device.
    pub fn summary(&self, counts: &Counts, bus: &Bus) -> io::Result<()> {
        let mut text = format!("exits by kind: {} in all\n", counts.total());
        for kind in Kind::ALL.into_iter().filter(|kind| counts.kind(*kind) > 0) {
            let _ = writeln!(text, "{:>12}  {}", counts.kind(kind), kind.name());
        }
        text.push_str("accesses by device:\n");
        for (index, count) in counts.devices().iter().enumerate().filter(|(_, count)| **count > 0) {
            let name = if index < bus.len() { bus.name(index) } else { NOTHING };
            let _ = writeln!(text, "{count:>12}  {name}");
        }
        self.line(&text)
    }

    fn line(&self, text: &str) -> io::Result<()> {
        (&self.0).write_all(text.as_bytes())
    }
}
