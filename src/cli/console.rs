//! The options of the guest's console: where it goes, and what is read from it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use bivisor::config::{Config, ConsoleDevice};
use bivisor::console::{Console, Nature};
use bivisor::terminal;

use super::parse;

/// Options of every command that starts a guest.
#[derive(clap::Args)]
pub struct ConsoleOptions {
    /// Put the console on standard input and output, into a file, on a new pseudo-terminal, or nowhere;
    /// with `virtio` the guest has a virtio console there, and the serial port only prints
    #[arg(long, value_name = "[virtio,]stdio|file:PATH|pty|none", value_parser = console, default_value = "stdio")]
    console: Wanted,
    /// End the guest with status 0 as soon as the console shows TEXT; 121 if it ends well without (repeatable: any one)
    #[arg(long, value_name = "TEXT", value_parser = text, allow_hyphen_values = true)]
    expect: Vec<String>,
    /// End the guest with status 121 as soon as the console shows TEXT (repeatable)
    #[arg(long, value_name = "TEXT", value_parser = text, allow_hyphen_values = true)]
    fail_on: Vec<String>,
    /// End the guest with status 124 when it neither makes an exit nor prints for this long
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, allow_hyphen_values = true)]
    no_progress: Option<Duration>,
}

/// Where the console is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Stdio,
    File(PathBuf),
    Pty,
    Nowhere,
}

/// What the option says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    device: ConsoleDevice,
    place: Place,
}

fn console(text: &str) -> Result<Wanted, String> {
    let (device, rest) = match text.strip_prefix("virtio") {
        Some("") => (ConsoleDevice::Virtio, "stdio"),
        Some(rest) => (ConsoleDevice::Virtio, rest.strip_prefix(',').unwrap_or(text)),
        None => (ConsoleDevice::Serial, text),
    };
    Ok(Wanted { device, place: place(rest)? })
}

fn place(text: &str) -> Result<Place, String> {
    match text.split_once(':') {
        None if text == "stdio" => Ok(Place::Stdio),
        None if text == "pty" => Ok(Place::Pty),
        None if text == "none" => Ok(Place::Nowhere),
        Some(("file", path)) if !path.is_empty() => Ok(Place::File(path.into())),
        _ => Err("not stdio, file:PATH, pty or none".into()),
    }
}

fn text(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("no text: any console shows that".into()) } else { Ok(text.into()) }
}

/// A file of our own for one of the standard streams.
pub fn own(stream: BorrowedFd<'_>, name: &str) -> Result<File> {
    // Above the standard streams. musl's fcntl(2) would set the flag once more.
    let own = rustix::io::fcntl_dupfd_cloexec(stream, 3);
    Ok(File::from(own.with_context(|| format!("open {name}"))?))
}

impl ConsoleOptions {
    /// The console's files.
    pub fn open(&self) -> Result<Console> {
        match &self.console.place {
            Place::Stdio => standard(),
            Place::File(path) => {
                let name = path.display().to_string();
                let output = File::create(path).with_context(|| format!("create {name}"))?;
                Ok(Console { name, ..Console::new(output, None) })
            }
            Place::Pty => pty(),
            Place::Nowhere => {
                let output = File::options().write(true).open("/dev/null");
                Ok(Console::new(output.context("open /dev/null")?, None))
            }
        }
    }

    /// Has `config` have the device that was asked for, and watch the console.
    pub fn watch(&self, config: &mut Config) {
        config.console_device = self.console.device;
        config.expect.clone_from(&self.expect);
        config.fail_on.clone_from(&self.fail_on);
        config.no_progress = self.no_progress;
    }
}

/// The console on standard output and input.
fn standard() -> Result<Console> {
    ensure!(
        !crate::start::stdout_was_closed(),
        "standard output is closed: give the guest's output a place to go"
    );
    // A panic must not leave the terminal raw, whether it unwinds or not.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        terminal::leave();
        report(panic);
    }));
    let name = String::from("standard output");
    Ok(Console {
        output: own(io::stdout().as_fd(), &name)?,
        name,
        before: Vec::new(),
        input: Some(own(io::stdin().as_fd(), "standard input")?),
        nature: Nature::Standard,
    })
}

/// The console on a new pseudo-terminal, whose path is told on standard error.
fn pty() -> Result<Console> {
    let (output, path) = terminal::open_pty().context("open a pseudo-terminal")?;
    let input = output.try_clone().context("open a pseudo-terminal")?;
    let told = writeln!(io::stderr(), "bivisor: the console is {path}");
    told.context("tell the console's path on standard error")?;
    Ok(Console { output, name: path, before: Vec::new(), input: Some(input), nature: Nature::Pty })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices() {
        let wanted = |device, place| Ok(Wanted { device, place });
        for (text, expected) in [
            ("none", wanted(ConsoleDevice::Serial, Place::Nowhere)),
            ("virtio", wanted(ConsoleDevice::Virtio, Place::Stdio)),
            ("virtio,pty", wanted(ConsoleDevice::Virtio, Place::Pty)),
            ("virtio,file:virtio,x", wanted(ConsoleDevice::Virtio, Place::File("virtio,x".into()))),
            ("virtio,", Err(())),
            ("virtiopty", Err(())),
            ("virtio,virtio", Err(())),
        ] {
            assert_eq!(console(text).map_err(|_| ()), expected, "{text}");
        }
    }

    #[test]
    fn places() {
        for (text, expected) in [
            ("stdio", Ok(Place::Stdio)),
            ("pty", Ok(Place::Pty)),
            ("none", Ok(Place::Nowhere)),
            ("file:a:b", Ok(Place::File("a:b".into()))),
            ("file:", Err(())),
            ("file", Err(())),
            ("", Err(())),
            ("stdio:", Err(())),
            ("tcp:1", Err(())),
        ] {
            assert_eq!(place(text).map_err(|_| ()), expected, "{text}");
        }
    }
}
