//! The command line: its syntax here, what each command means in a file of its own.

mod console;
#[cfg_attr(not(feature = "full"), path = "small.rs")]
mod full;
mod parse;
mod run;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand};

use bivisor::config::{self, DebugConsole};
use bivisor::exit::BusAddr;
use bivisor::memory::{ImageMemory, RamRange};
use bivisor::sandbox;

/// A virtual machine monitor on Linux KVM: starts a guest and tells what became of it.
#[derive(Parser)]
#[command(name = "bivisor", version, after_help = HELP_AFTER, disable_help_subcommand = true)]
#[command(subcommand_value_name = "COMMAND")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

const HELP_AFTER: &str = "\
Exit status:
  0        the guest powered off, or wrote 0 to the exit register
  1-119    what the guest wrote to the exit register
  120      the guest asked for a reset
  121      the console showed a --fail-on text, or never the --expect text
  122      the guest reported a panic
  123      the guest crashed
  124      a limit was reached (--timeout, --max-exits, --no-progress)
  125      bivisor or the host failed, usage included
  126      the image can't be run here
  128+n    ended by signal n

Example:
  bivisor hello";

#[derive(Subcommand)]
enum Command {
    /// Start the embedded hello-world guest
    Hello(Limits),
    /// Start a guest from an image: a flat binary, an ELF executable or a kernel
    #[command(after_help = full::RUN_AFTER)]
    Run(Box<Run>),
    #[command(flatten)]
    Other(full::Command),
}

/// Options of every command that starts a guest.
#[derive(clap::Args)]
struct Limits {
    /// End the guest after this time (500ms, 10s, 2m), with status 124
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, allow_hyphen_values = true)]
    timeout: Option<Duration>,
    /// End the guest after this many exits to devices, with status 124
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_exits: Option<u64>,
    /// Start the guest anew when it asks for a reset, instead of ending with status 120
    #[arg(long)]
    reboot: bool,
    #[command(flatten)]
    console: console::ConsoleOptions,
    /// Once the guest runs, keep from this process what it does not need: system calls, files, capabilities
    /// (log: let it through, the kernel's log has it)
    #[arg(long, value_name = "HOW", value_parser = parse::sandbox(), default_value = "on")]
    sandbox: sandbox::Mode,
    #[command(flatten)]
    reports: full::Reports,
}

#[derive(clap::Args)]
struct Run {
    /// The image
    file: PathBuf,
    /// The mode to start in; the image says it otherwise
    #[arg(long, value_parser = PossibleValuesParser::new(config::mode_names()))]
    mode: Option<String>,
    /// Enter the image by this protocol, of those that it can be entered by (`inspect` lists them)
    #[arg(long, value_name = "NAME")]
    entry_protocol: Option<String>,
    /// The kind of machine; the image says it otherwise
    #[arg(long, value_parser = PossibleValuesParser::new(config::machine_names()))]
    machine: Option<String>,
    /// Load a flat binary here
    #[arg(long, value_name = "ADDR", value_parser = parse::size, allow_hyphen_values = true)]
    load: Option<u64>,
    /// Start here, instead of at the first byte or at the ELF file's entry
    #[arg(long, value_name = "ADDR", value_parser = parse::size, allow_hyphen_values = true)]
    entry: Option<u64>,
    /// Set a register of the first CPU (repeatable)
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse::register, allow_hyphen_values = true)]
    reg: Vec<(String, u64)>,
    /// Unpack a packed kernel anew, and keep nothing in the cache
    #[arg(long)]
    no_cache: bool,
    /// Add this to the kernel's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, default_value = "")]
    cmdline: String,
    /// Give the kernel this initial RAM disk (repeatable: one behind the other; multiboot: each a module)
    #[arg(long, value_name = "FILE")]
    initrd: Vec<PathBuf>,
    /// Pack what is in DIR into an initial RAM disk (repeatable; behind those of --initrd)
    #[arg(long, value_name = "DIR")]
    initrd_dir: Vec<PathBuf>,
    /// Give the guest RAM at exactly this place (repeatable)
    #[arg(long, value_name = "START:SIZE", value_parser = parse::ram, conflicts_with = "memory", allow_hyphen_values = true)]
    ram: Vec<RamRange>,
    /// Give the guest so much RAM [default: 128M]
    #[arg(long, value_name = "SIZE", value_parser = parse::size, allow_hyphen_values = true)]
    memory: Option<u64>,
    /// Copy the image and initial RAM disks into RAM, which starts sooner, or map their files, whose
    /// pages guests then share
    #[arg(long, value_name = "HOW", value_parser = parse::image_memory(), default_value = "copy")]
    image_memory: ImageMemory,
    /// Give the guest so many CPUs
    #[arg(long, value_name = "N", value_parser = parse::count, default_value = "1", allow_hyphen_values = true)]
    cpus: usize,
    /// Print what the guest writes there, byte by byte or (as=numbers) a number a line; let it read input from in=ADDR
    #[arg(long, value_name = "port:ADDR|mmio:ADDR[,in=ADDR][,as=numbers]", value_parser = parse::debug_console)]
    debug_console: Option<DebugConsole>,
    /// Move the exit register
    #[arg(long, value_name = "port:ADDR|mmio:ADDR", value_parser = parse::bus_addr)]
    exit_register: Option<BusAddr>,
    #[command(flatten)]
    extras: full::Extras,
    #[command(flatten)]
    limits: Limits,
}

/// What a command line comes to.
pub enum Parsed {
    /// A command to carry out.
    Command(Args),
    /// Text for standard output: help, or the version.
    Text(String),
    /// What is wrong, in one line.
    Wrong(String),
}

/// Reads the command line.
pub fn parse(args: &[OsString]) -> Parsed {
    if let Some(command) = start_alone(args) {
        return Parsed::Command(Args { command });
    }
    match Args::try_parse_from(args) {
        Ok(args) => Parsed::Command(args),
        Err(error) if error.use_stderr() => Parsed::Wrong(one_line(&error)),
        Err(error) => Parsed::Text(error.render().to_string()),
    }
}

/// A command that starts a guest, if it is one and nothing is wrong with it: the options of all the others
/// are then not even listed, which takes as long as all else that is done before KVM.
fn start_alone(args: &[OsString]) -> Option<Command> {
    fn read<T: clap::Args>(args: &[OsString]) -> Option<T> {
        let options = T::augment_args(clap::Command::new("bivisor"));
        T::from_arg_matches(&options.try_get_matches_from(args).ok()?).ok()
    }
    let own = args.get(1..)?;
    match own.first()?.to_str()? {
        "hello" => read(own).map(Command::Hello),
        "run" => read(own).map(|options| Command::Run(Box::new(options))),
        _ => None,
    }
}

/// clap's message without its usage, on one line.
fn one_line(error: &clap::Error) -> String {
    use clap::error::ErrorKind;
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        || error.kind() == ErrorKind::MissingSubcommand
    {
        return "a command is missing: try `bivisor hello`, or `bivisor --help`".into();
    }
    let text = error.render().to_string();
    let body = text.split("\nUsage:").next().unwrap_or_default();
    let body = body.split("\nFor more information").next().unwrap_or_default();
    let lines = body.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines.collect::<Vec<_>>().join(" ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    format!("{line} (see `bivisor --help`)")
}

pub use run::status_of;

impl Args {
    /// Carries out the command; gives the process status.
    pub fn execute(self) -> Result<u8> {
        match self.command {
            Command::Hello(limits) => run::hello(limits),
            Command::Run(options) => run::image(*options),
            Command::Other(command) => command.carry_out(),
        }
    }
}

/// Writes `bytes` to standard output; the status of a command that did nothing else.
pub fn print(bytes: impl AsRef<[u8]>) -> Result<u8> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes.as_ref())
        .and_then(|()| stdout.flush())
        .context("write to standard output")?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parsed(line: &str) -> Parsed {
        let args: Vec<_> = line.split_whitespace().map(OsString::from).collect();
        parse(&args)
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn wrong_usage_is_one_line_that_names_what_is_wrong() {
        for (line, named) in [
            ("bivisor", "a command is missing"),
            ("bivisor fly", "'fly'"),
            ("bivisor run", "<FILE>"),
            ("bivisor run f --memory", "--memory"),
            ("bivisor run f --memory -1", "'-1' for '--memory <SIZE>': negative"),
            ("bivisor run f --memory 99999999999999G", "more than 64 bits"),
            ("bivisor run f --memory 1M --memory 2M", "--memory"),
            ("bivisor run f --memory 1M --ram 0:1M", "--ram"),
            ("bivisor run f --cpus -1", "'-1'"),
            ("bivisor run f --cpus 1.5", "'1.5'"),
            ("bivisor run f --mode none", "'none'"),
            ("bivisor run f --machine none", "'none'"),
            #[cfg(feature = "full")]
            ("bivisor run f --transport isa", "'isa'"),
            ("bivisor run f --max-exits 0", "'0'"),
            ("bivisor run f --fast", "'--fast'"),
            #[cfg(feature = "full")]
            ("bivisor guests export hello", "<FILE>"),
        ] {
            let Parsed::Wrong(message) = parsed(line) else { panic!("{line} is accepted") };
            assert!(message.contains(named) && !message.contains('\n'), "{line}: {message}");
        }
    }

    #[test]
    fn help_and_version_are_no_errors() {
        for line in ["bivisor --help", "bivisor run --help", "bivisor --version", "bivisor -V"] {
            assert!(matches!(parsed(line), Parsed::Text(_)), "{line}");
        }
    }
}
