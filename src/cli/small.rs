//! In place of what the feature `full` adds: nothing. No command beside `hello` and `run`, and none of the
//! options for what is beside a guest's image and its console.

use std::fs::File;
use std::iter;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use clap::Subcommand;

use bivisor::config::Config;
use bivisor::outcome::Outcome;
use bivisor::trace::Trace;

/// What follows the options of `run` in its help.
pub const RUN_AFTER: &str = "\
ADDR, SIZE and VALUE are decimal or, after 0x, hexadecimal; K, M, G and T multiply by powers of 1024.

Examples:
  bivisor run kernel.elf --memory 256M --cpus 2 --timeout 10s
  bivisor run vmlinuz --initrd-dir root --cpus 2 --cmdline quiet

This program was built without the feature `full`: it has no virtio devices, no gdb, no reports for machines, \
and packed images must be unpacked first.";

/// No command.
#[derive(Subcommand)]
pub enum Command {}

/// No option.
#[derive(clap::Args)]
pub struct Extras {}

/// No option.
#[derive(clap::Args)]
pub struct Reports {}

/// No file.
pub struct VerdictFile;

impl Command {
    /// There is none to carry out.
    pub fn carry_out(self) -> Result<u8> {
        match self {}
    }
}

impl Extras {
    /// Nothing was asked for.
    pub fn add_to(&self, _: &mut Config) -> Result<()> {
        Ok(())
    }

    /// No file.
    pub fn symbols(&self) -> Result<Option<File>> {
        Ok(None)
    }

    /// Nothing is started.
    pub fn start_programs(&self) -> bool {
        false
    }

    /// No disks.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        iter::empty()
    }
}

impl Reports {
    /// No file.
    pub fn verdict(&self) -> Result<VerdictFile> {
        Ok(VerdictFile)
    }

    /// None.
    pub fn trace(&self, _: Instant) -> Result<Option<Trace>> {
        Ok(None)
    }

    /// None.
    pub fn marks(&self, _: bool) -> Option<Vec<String>> {
        None
    }

    /// None.
    pub fn show_timings(&self, _: &Outcome) {}
}

impl VerdictFile {
    /// Nothing is written.
    pub fn tell(&mut self, _: &Outcome, _: u64) -> Result<()> {
        Ok(())
    }

    /// Nothing is written.
    pub fn tell_refusal(&mut self, _: &anyhow::Error) -> Result<()> {
        Ok(())
    }
}
