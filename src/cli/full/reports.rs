//! What is told of a run beside the console: its verdict, a trace, times.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use bivisor::outcome::Outcome;
use bivisor::trace::Trace;
use bivisor::verdict::Verdict;

use crate::cli::console::own;
use crate::cli::status_of;

/// Options of every command that starts a guest.
#[derive(clap::Args)]
pub struct Reports {
    /// Show what the time up to the guest's first instruction was spent on, and when it printed what, on standard error
    #[arg(long)]
    timings: bool,
    /// Tell when the console first shows TEXT, in --timings and --trace=FILE.json (repeatable)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    mark: Vec<String>,
    /// Show each exit in words, on standard error or in FILE; in FILE.json as events for Perfetto or chrome://tracing
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-")]
    trace: Option<PathBuf>,
    /// Write how the guest ended, as one line of JSON, to FILE or (-) to standard output
    #[arg(long, value_name = "FILE|-")]
    verdict: Option<PathBuf>,
}

/// A file that the user named for our output.
fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("create {}", path.display()))
}

impl Reports {
    /// Opens the file of `--verdict`.
    pub fn verdict(&self) -> Result<VerdictFile> {
        Ok(VerdictFile(match &self.verdict {
            None => None,
            Some(path) if path == Path::new("-") => {
                Some(own(io::stdout().as_fd(), "standard output")?)
            }
            Some(path) => Some(create(path)?),
        }))
    }

    /// Where `--trace` goes: lines of words or, into a file of that name, JSON.
    pub fn trace(&self, began: Instant) -> Result<Option<Trace>> {
        Ok(match &self.trace {
            None => None,
            Some(path) if path == Path::new("-") => {
                Some(Trace::words(own(io::stderr().as_fd(), "standard error")?))
            }
            Some(path) if path.extension().is_some_and(|extension| extension == "json") => {
                Some(Trace::events(create(path)?, began))
            }
            Some(path) => Some(Trace::words(create(path)?)),
        })
    }

    /// The texts whose time is to be told, of a run that is `traced` or not; nothing if no time is.
    pub fn marks(&self, traced: bool) -> Option<Vec<String>> {
        (self.timings || !self.mark.is_empty() || traced).then(|| self.mark.clone())
    }

    /// Shows the table of `--timings` if it is wanted.
    pub fn show_timings(&self, outcome: &Outcome) {
        if !self.timings {
            return;
        }
        let mut text = outcome.timeline.table();
        for (index, exits) in outcome.cpu_exits.iter().enumerate() {
            let _ = writeln!(text, "{:<32} {exits:>10}", format!("exits of vCPU {index}"));
        }
        // Nobody is left to tell when standard error can't be written.
        let _ = io::stderr().write_all(text.as_bytes());
    }
}

/// Where the verdict goes, if it is wanted.
pub struct VerdictFile(Option<File>);

impl VerdictFile {
    /// Writes how the guest ended, which had been started anew `reboots` times.
    pub fn tell(&mut self, outcome: &Outcome, reboots: u64) -> Result<()> {
        self.write(|| Verdict::new(outcome).after(reboots))
    }

    /// Writes that no guest was started, and why.
    pub fn tell_refusal(&mut self, error: &anyhow::Error) -> Result<()> {
        self.write(|| Verdict::refused(error, status_of(error)))
    }

    fn write(&mut self, verdict: impl FnOnce() -> Verdict) -> Result<()> {
        let Some(file) = &mut self.0 else { return Ok(()) };
        file.write_all(verdict().json().as_bytes()).context("write the verdict")
    }
}
