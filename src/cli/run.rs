//! `hello` and `run`: from options to a machine, and from its outcome to a status.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};

use bivisor::archive::pack;
use bivisor::config::{Config, Memory};
use bivisor::gdb::Listener;
use bivisor::guests;
use bivisor::kernel;
use bivisor::machine::Machine;
use bivisor::outcome::{Outcome, status};
use bivisor::payload::load::Wish;
use bivisor::payload::{BadImage, Payload};
use bivisor::verdict::{Verdict, report};

use super::console::{ConsoleOptions, own};
use super::{Limits, Run};

/// `bivisor hello`.
pub fn hello(limits: Limits) -> Result<u8> {
    let guest = guests::find("hello").expect("it is embedded");
    let build =
        |console: &ConsoleOptions| Ok(Config::new(Payload::Bytes(guest.image), console.open()?));
    start(build, limits)
}

/// `bivisor run FILE`.
pub fn image(options: Run) -> Result<u8> {
    let path = options.file.display().to_string();
    let build = |console: &ConsoleOptions| {
        let payload = Payload::open(&options.file).context(path.clone())?;
        let mut config = Config::new(payload, console.open()?);
        config.cache = !options.no_cache;
        config.name = name_of(&options.file);
        let protocol = options.entry_protocol;
        config.wish = Wish { load: options.load, entry: options.entry, protocol };
        config.mode = options.mode;
        config.machine = options.machine;
        config.registers = options.reg;
        config.cmdline = options.cmdline;
        for path in &options.initrd {
            // In words alone: a bad image is the kernel's fault.
            let bytes = Payload::open(path)
                .map_err(|error| anyhow::anyhow!("--initrd {}: {error:#}", path.display()))?;
            config.initrds.push(kernel::File { name: name_of(path), bytes });
        }
        config.cpus = options.cpus;
        config.debug_console = options.debug_console;
        config.exit_register = options.exit_register;
        config.gdb = options.gdb.as_ref().map(Listener::open).transpose()?;
        if let Some(size) = options.memory {
            config.memory = Memory::Size(size);
        }
        if !options.ram.is_empty() {
            config.memory = Memory::Ranges(options.ram);
        }
        config.image_memory = options.image_memory;
        for folder in &options.initrd_dir {
            let archive = pack(folder, config.memory.total()).context("--initrd-dir")?;
            let bytes = Payload::Memory(archive);
            config.initrds.push(kernel::File { name: name_of(folder), bytes });
        }
        Ok(config)
    };
    let named = |error: anyhow::Error| match error.downcast_ref::<BadImage>() {
        // The image's own faults name the file; what is wrong with the machine does not.
        Some(bad) if !format!("{error:#}").starts_with(&path) => {
            anyhow::Error::new(BadImage(format!("{path}: {bad}")))
        }
        _ => error,
    };
    start(build, options.limits).map_err(named)
}

/// The name of the file at `path`, without folders.
fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A file that the user named for our output.
fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("create {}", path.display()))
}

/// Where `--verdict` goes.
fn verdict_file(limits: &Limits) -> Result<Option<File>> {
    let Some(path) = &limits.verdict else { return Ok(None) };
    let file = if path == Path::new("-") {
        own(io::stdout().as_fd(), "standard output")?
    } else {
        create(path)?
    };
    Ok(Some(file))
}

/// Builds the machine that `build` configures, runs it and tells how it ended.
fn start(build: impl FnOnce(&ConsoleOptions) -> Result<Config>, limits: Limits) -> Result<u8> {
    // Opened first: a verdict that can't be written is known before the guest runs.
    let verdict = verdict_file(&limits)?;
    let built = build(&limits.console).and_then(|mut config| {
        limits.console.watch(&mut config);
        config.timeout = limits.timeout;
        config.max_exits = limits.max_exits;
        config.catch_signals = true;
        config.trace = match &limits.trace {
            None => None,
            Some(path) if path == Path::new("-") => {
                Some(own(io::stderr().as_fd(), "standard error")?)
            }
            Some(path) => Some(create(path)?),
        };
        let gdb = config.gdb.as_ref().map(|gdb| (gdb.address().to_string(), gdb.command()));
        let machine = Machine::build(config)?;
        if let Some((address, command)) = gdb {
            crate::complain(&format!("waiting for gdb on {address}: {command}"));
        }
        Ok(machine)
    });
    match built {
        Ok(machine) => {
            let outcome = machine.run();
            if let Some(mut file) = verdict {
                write_verdict(&mut file, &Verdict::new(&outcome))?;
            }
            explain(&outcome);
            Ok(outcome.stop.status())
        }
        Err(error) => {
            if let Some(mut file) = verdict {
                write_verdict(&mut file, &Verdict::refused(&error, status_of(&error)))?;
            }
            Err(error)
        }
    }
}

fn write_verdict(file: &mut File, verdict: &Verdict) -> Result<()> {
    file.write_all(verdict.json().as_bytes()).context("write the verdict")
}

/// Says why the guest ended where that was not its own wish, and where its CPUs were.
fn explain(outcome: &Outcome) {
    if let Some(reason) = outcome.stop.explanation() {
        crate::complain(&reason);
        // Nobody is left to tell when standard error can't be written.
        let _ = io::stderr().write_all(report(outcome).as_bytes());
    }
}

/// The process status of an error before the guest ran.
pub fn status_of(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<BadImage>() {
        Some(_) => status::BAD_IMAGE,
        None => status::FAILURE,
    }
}
