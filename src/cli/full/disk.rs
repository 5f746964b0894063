//! `disk`: makes, describes and converts disks.
//!
//! A file that is made here did not exist before, and is gone again if it could not be finished.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser};

use bivisor::devices::block::format::Format;
use bivisor::devices::block::qcow2::{self, Qcow2};
use bivisor::devices::block::raw::{self, Access};
use serde_json::json;

use super::copy::copy;
use crate::cli::{parse, print};

/// What can be done.
#[derive(clap::Subcommand)]
pub enum Disk {
    /// Make an empty disk
    Create {
        /// Where; it must not exist
        file: PathBuf,
        /// Its size
        #[arg(value_parser = parse::size, allow_hyphen_values = true)]
        size: u64,
        /// Its format; what the file's suffix says, or raw
        #[arg(long, value_parser = format())]
        format: Option<Format>,
    },
    /// Tell a disk's format, size and the file that it stands on
    Info {
        /// The disk
        file: PathBuf,
        /// Its format; what the file's suffix says, or raw
        #[arg(long, value_parser = format())]
        format: Option<Format>,
        /// As one line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Copy a disk into a new file, of another format if wanted; what is zeros takes no room
    Convert {
        /// The disk
        from: PathBuf,
        /// Where to; it must not exist
        to: PathBuf,
        /// The format of FROM; what its suffix says, or raw
        #[arg(long, value_parser = format())]
        from_format: Option<Format>,
        /// The format of TO; what its suffix says, or raw
        #[arg(long, value_parser = format())]
        to_format: Option<Format>,
        /// Read the files that FROM stands on, too
        #[arg(long)]
        backing: bool,
    },
    /// Make a qcow2 disk that stands on another one, which must not change any more
    Snapshot {
        /// The disk to stand on
        base: PathBuf,
        /// Where; it must not exist
        file: PathBuf,
        /// The format of BASE; what its suffix says, or raw
        #[arg(long, value_parser = format())]
        format: Option<Format>,
    },
}

fn format() -> impl TypedValueParser<Value = Format> {
    PossibleValuesParser::new(Format::NAMED.map(|(name, _)| name))
        .map(|name| Format::named(&name).expect("one of those"))
}

/// Bytes of a cluster of new images. What QEMU takes: small disks stay small.
const CLUSTER_SIZE: u64 = 1 << 16;

/// The largest disk. Our choice: what a file can have on the file systems of today, less a bit.
const LARGEST: u64 = 1 << 60;

const READ_ONLY: Access = Access { read_only: true, direct: false };

impl Disk {
    /// Does it; gives the process status.
    pub fn carry_out(self) -> Result<u8> {
        match self {
            Self::Create { file, size, format } => {
                let format = format.unwrap_or_else(|| Format::of_name(&file));
                make(&file, |new| create(new, format, size, None))
            }
            Self::Info { file, format, json } => {
                let format = format.unwrap_or_else(|| Format::of_name(&file));
                print(describe(&file, format, json).with_context(|| name(&file))?)
            }
            Self::Convert { from, to, from_format, to_format, backing } => {
                let from_format = from_format.unwrap_or_else(|| Format::of_name(&from));
                let to_format = to_format.unwrap_or_else(|| Format::of_name(&to));
                let source = from_format.open(&from, READ_ONLY, backing);
                let source = source.with_context(|| name(&from))?;
                make(&to, |new| {
                    create(new, to_format, source.size(), None)?;
                    let target = to_format.open(&to, Access::default(), false)?;
                    let mut bar = Bar::new(source.size());
                    copy(&*source, &*target, |done| bar.show(done))?;
                    bar.end();
                    target.flush().context("write it out")
                })
            }
            Self::Snapshot { base, file, format } => {
                let format = format.unwrap_or_else(|| Format::of_name(&base));
                let (size, backing) = (|| {
                    let size = format.open(&base, READ_ONLY, true)?.size();
                    // From where the new file lies.
                    let full = base.canonicalize().context("find it")?;
                    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
                    let here = folder.unwrap_or(Path::new(".")).canonicalize();
                    let near = here.ok().filter(|here| full.parent() == Some(here));
                    let named = near.and(full.file_name()).map_or(full.clone(), PathBuf::from);
                    let text = named.to_str().context("its path is not UTF-8")?;
                    anyhow::Ok((size, text.to_owned()))
                })()
                .with_context(|| name(&base))?;
                let backing = Some((backing.as_str(), format.name()));
                make(&file, |new| create(new, Format::Qcow2, size, backing))
            }
        }
    }
}

fn name(path: &Path) -> String {
    path.display().to_string()
}

/// Makes the file at `path` and has `fill` fill it.
fn make(path: &Path, fill: impl FnOnce(File) -> Result<()>) -> Result<u8> {
    let made = OpenOptions::new().read(true).write(true).create_new(true).open(path);
    let file = made.with_context(|| format!("create {}", path.display()))?;
    if let Err(error) = fill(file).with_context(|| name(path)) {
        // It is ours, and of no use to anybody.
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    Ok(0)
}

fn create(file: File, format: Format, size: u64, backing: Option<(&str, &str)>) -> Result<()> {
    ensure!(size > 0, "a disk of 0 bytes: give it a size, for example 20G");
    ensure!(size.is_multiple_of(512), "{size} bytes are not a multiple of 512, a sector");
    ensure!(size <= LARGEST, "{size} bytes are more than a disk can have here ({LARGEST})");
    match format {
        Format::Raw => file.set_len(size).context("set its size"),
        Format::Qcow2 => Qcow2::create(file, size, CLUSTER_SIZE, backing),
    }
}

fn describe(path: &Path, format: Format, as_json: bool) -> Result<String> {
    let file = raw::open(path, READ_ONLY)?;
    let taken = file.metadata().context("look at it")?.blocks() * 512;
    let header = match format {
        Format::Raw => None,
        Format::Qcow2 => Some(qcow2::header(&file)?),
    };
    drop(file);
    let size = match &header {
        Some(header) => header.size,
        None => format.open(path, READ_ONLY, false)?.size(),
    };
    let backing = header.as_ref().and_then(|header| header.backing.as_ref());
    if as_json {
        let mut json = json!({ "format": format.name(), "size": size, "taken": taken });
        if let Some(header) = &header {
            json["cluster_size"] = header.cluster_size.into();
        }
        if let Some((name, format)) = backing {
            json["backing"] = json!({ "file": name.to_string_lossy(), "format": format });
        }
        return Ok(format!("{json}\n"));
    }
    let mut text = String::new();
    let mut row = |key: &str, value: String| {
        let value: String = value.chars().flat_map(char::escape_debug).collect();
        let _ = writeln!(text, "{key:<14}{value}");
    };
    row("format", format.name().into());
    row("size", format!("{size} ({})", human(size)));
    row("room taken", format!("{taken} ({})", human(taken)));
    if let Some(header) = &header {
        row("cluster size", header.cluster_size.to_string());
    }
    if let Some((name, format)) = backing {
        row("stands on", format!("{} ({format})", name.display()));
    }
    Ok(text)
}

/// A number of bytes in the largest unit that keeps three digits.
fn human(bytes: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (bytes.max(1).ilog2() / 10) as usize;
    match unit {
        0 => format!("{bytes} bytes"),
        _ => format!("{:.1} {}", bytes as f64 / (1u64 << (10 * unit)) as f64, units[unit]),
    }
}

/// A line of progress on a terminal; nothing elsewhere.
struct Bar {
    total: u64,
    shown: Option<Instant>,
    on: bool,
}

impl Bar {
    /// Our choice: as often as an eye follows.
    const PAUSE: Duration = Duration::from_millis(100);
    const WIDTH: usize = 40;

    fn new(total: u64) -> Self {
        Self { total, shown: None, on: io::stderr().is_terminal() }
    }

    fn show(&mut self, done: u64) {
        if !self.on || self.shown.is_some_and(|at| at.elapsed() < Self::PAUSE) {
            return;
        }
        self.shown = Some(Instant::now());
        let share = done as f64 / self.total.max(1) as f64;
        let full = (share * Self::WIDTH as f64) as usize;
        let (hashes, dots) = ("#".repeat(full), ".".repeat(Self::WIDTH - full.min(Self::WIDTH)));
        // Nobody is left to tell when standard error can't be written.
        let _ = write!(io::stderr(), "\r[{hashes}{dots}] {:3.0} %", 100.0 * share);
    }

    /// The line is as if it had never been.
    fn end(&mut self) {
        if self.on && self.shown.is_some() {
            let _ = write!(io::stderr(), "\r{:1$}\r", "", Self::WIDTH + 10);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_people() {
        for (bytes, expected) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (20 << 30, "20.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(human(bytes), expected);
        }
    }
}
