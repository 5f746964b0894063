//! `hello` and `run`: from options to a machine, and from its outcome to a status.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};

use bivisor::archive::pack;
use bivisor::config::{Config, Memory};
use bivisor::console::Console;
use bivisor::exit::Stop;
use bivisor::guests;
use bivisor::kernel;
use bivisor::machine::Machine;
use bivisor::outcome::{Outcome, status};
use bivisor::payload::cache::Cache;
use bivisor::payload::load::Wish;
use bivisor::payload::{BadImage, Payload};
use bivisor::sandbox::{Again, Sandbox};
use bivisor::symbols::Symbols;
use bivisor::verdict::report;

use super::{Limits, Run};

/// `bivisor hello`.
pub fn hello(limits: Limits) -> Result<u8> {
    let guest = guests::find("hello").expect("it is embedded");
    let sandbox = Sandbox::new(limits.sandbox, again(&limits, false, Vec::new()));
    start(|console| Ok(Config::new(Payload::Bytes(guest.image), console)), &limits, sandbox, None)
}

/// `bivisor run FILE`.
pub fn image(options: Run) -> Result<u8> {
    let path = options.file.display().to_string();
    let build = |console: Console| {
        let payload = Payload::open(&options.file).context(path.clone())?;
        let mut config = Config::new(payload, console);
        config.cache = !options.no_cache;
        config.name = name_of(&options.file);
        let protocol = options.entry_protocol.clone();
        config.wish = Wish { load: options.load, entry: options.entry, protocol };
        config.mode = options.mode.clone();
        config.machine = options.machine.clone();
        config.registers = options.reg.clone();
        config.cmdline = options.cmdline.clone();
        for path in &options.initrd {
            // In words alone: a bad image is the kernel's fault.
            let bytes = Payload::open(path)
                .map_err(|error| anyhow::anyhow!("--initrd {}: {error:#}", path.display()))?;
            config.initrds.push(kernel::File { name: name_of(path), bytes });
        }
        config.cpus = options.cpus;
        config.debug_console = options.debug_console;
        config.exit_register = options.exit_register;
        options.extras.add_to(&mut config)?;
        if let Some(size) = options.memory {
            config.memory = Memory::Size(size);
        }
        if !options.ram.is_empty() {
            config.memory = Memory::Ranges(options.ram.clone());
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
    let symbols = options.extras.symbols()?;
    let named_files = [&options.file].into_iter().chain(&options.initrd).chain(&options.initrd_dir);
    let files = named_files.map(PathBuf::as_path).chain(options.extras.files());
    let programs = options.extras.start_programs();
    let again = again(&options.limits, programs, files.map(PathBuf::from).collect());
    let sandbox = Sandbox::new(options.limits.sandbox, again);
    start(build, &options.limits, sandbox, symbols.as_ref()).map_err(named)
}

/// The name of the file at `path`, without folders.
fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What is needed once more after a reset: `files`, the cache, and `programs` if there are some.
fn again(limits: &Limits, programs: bool, mut files: Vec<PathBuf>) -> Again {
    match limits.reboot {
        false => Again::Never,
        true if programs => Again::BuildWithPrograms,
        true => {
            files.extend(Cache::folder_of_user());
            Again::Build(files)
        }
    }
}

/// Builds the machine that `build` configures, runs it, again after a reset if that is wanted, and
/// tells how it ended.
fn start(
    build: impl Fn(Console) -> Result<Config>,
    limits: &Limits,
    sandbox: Option<Arc<Sandbox>>,
    symbols: Option<&File>,
) -> Result<u8> {
    // What is started for a guest from now on is in there.
    sandbox.iter().for_each(Sandbox::surround);
    // Opened first: a verdict that can't be written is known before the guest runs.
    let mut verdict = limits.reports.verdict()?;
    match run(build, limits, sandbox.as_ref()) {
        Ok((outcome, reboots)) => {
            verdict.tell(&outcome, reboots)?;
            explain(&outcome, symbols);
            Ok(outcome.stop.status())
        }
        Err(error) => {
            verdict.tell_refusal(&error)?;
            Err(error)
        }
    }
}

/// Runs machines until one is not to be started again; gives its end, and how many there were
/// before it.
fn run(
    build: impl Fn(Console) -> Result<Config>,
    limits: &Limits,
    sandbox: Option<&Arc<Sandbox>>,
) -> Result<(Outcome, u64)> {
    let mut console = limits.console.open()?;
    let began = crate::start::began();
    let mut trace = limits.reports.trace(began)?;
    let (mut timeout, mut max_exits) = (limits.timeout, limits.max_exits);
    for reboots in 0.. {
        // Only who comes back to it needs a copy.
        let copy = limits.reboot.then(|| console.try_clone()).transpose();
        let next = copy.context("copy the console's files")?;
        let mut config = build(console)?;
        limits.console.watch(&mut config);
        config.timeout = timeout;
        config.max_exits = max_exits;
        config.catch_signals = true;
        config.is_only = !limits.reboot;
        config.sandbox = sandbox.cloned();
        // The first machine's alone: a trace has one end.
        config.trace = trace.take();
        config.began = if reboots == 0 { began } else { Instant::now() };
        config.marks = limits.reports.marks(config.trace.is_some());
        let gdb = config.gdb.as_ref().map(|gdb| (gdb.address().to_string(), gdb.command()));
        let machine = Machine::build(config)?;
        if let Some((address, command)) = gdb {
            crate::complain(&format!("waiting for gdb on {address}: {command}"));
        }
        let mut outcome = machine.run();
        limits.reports.show_timings(&outcome);
        timeout = timeout.map(|left| left.saturating_sub(outcome.run_time));
        max_exits = max_exits.map(|left| left.saturating_sub(outcome.exits.total()));
        match &mut outcome.stop {
            // As it was asked for, and not what an earlier machine has left of it.
            Stop::TimeOut(limit) => *limit = limits.timeout.unwrap_or(*limit),
            Stop::ExitLimit(limit) => *limit = limits.max_exits.unwrap_or(*limit),
            _ => {}
        }
        let Some(next) = next.filter(|_| matches!(outcome.stop, Stop::Reset)) else {
            return Ok((outcome, reboots));
        };
        if let Some(limit) = limits.max_exits.filter(|_| max_exits == Some(0)) {
            outcome.stop = Stop::ExitLimit(limit);
            return Ok((outcome, reboots));
        }
        crate::complain(&format!("the guest asked for a reset: start number {}", reboots + 2));
        console = Console { before: outcome.unread(), ..next };
    }
    unreachable!("nobody counts to the end")
}

/// Says why the guest ended where that was not its own wish, and where its CPUs were.
fn explain(outcome: &Outcome, symbols: Option<&File>) {
    if let Some(reason) = outcome.stop.explanation() {
        if !matches!(outcome.stop, Stop::Refused(_)) {
            crate::complain(&reason);
        }
        // Read only now: most guests end well.
        let symbols = symbols.filter(|_| !outcome.cpus.is_empty()).map(Symbols::read);
        let symbols = symbols.transpose().unwrap_or_else(|error| {
            crate::complain(&format!("--symbols: {error:#}"));
            None
        });
        // Nobody is left to tell when standard error can't be written.
        let _ = io::stderr().write_all(report(outcome, symbols.as_ref()).as_bytes());
    }
}

/// The process status of an error before the guest ran.
pub fn status_of(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<BadImage>() {
        Some(_) => status::BAD_IMAGE,
        None => status::FAILURE,
    }
}
