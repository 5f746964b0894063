//! The command line: its syntax here, what each command means in a file of its own.

mod check;
mod console;
mod copy;
mod devices;
mod disk;
mod guests;
mod inspect;
mod net;
mod parse;
mod run;
mod share;
mod vsock;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::builder::PossibleValuesParser;
use clap::{CommandFactory, Parser, Subcommand};

use bivisor::config::{self, DebugConsole};
use bivisor::exit::BusAddr;
use bivisor::gdb;
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
    #[command(after_help = RUN_AFTER)]
    Run(Box<Run>),
    /// List the embedded guests, or write one to a file
    #[command(
        after_help = "Example:\n  bivisor guests export echo echo.bin\n  echo hi | bivisor run echo.bin"
    )]
    Guests {
        #[command(subcommand)]
        command: Option<Guests>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Tell what an image is: format, architecture, version, entry, memory
    #[command(after_help = "Example:\n  bivisor inspect /boot/vmlinuz-$(uname -r)")]
    Inspect {
        /// The image
        file: PathBuf,
        /// As one line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Tell what this host can do
    Check {
        /// As one line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Make, look at and convert disks
    #[command(
        after_help = "Examples:\n  bivisor disk create root.qcow2 20G\n  bivisor disk convert root.qcow2 root.img\n  bivisor disk snapshot root.qcow2 try.qcow2   # then: run --disk try.qcow2,backing"
    )]
    Disk {
        #[command(subcommand)]
        command: disk::Disk,
    },
    /// Print a completion script for a shell
    #[command(
        after_help = "Example:\n  bivisor completions bash > ~/.local/share/bash-completion/completions/bivisor"
    )]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

const RUN_AFTER: &str = "\
ADDR, SIZE and VALUE are decimal or, after 0x, hexadecimal; K, M, G and T multiply by powers of 1024.

Examples:
  bivisor run kernel.elf --memory 256M --cpus 2 --timeout 10s
  bivisor run kernel.bin --load 0x1000 --debug-console port:0xf1 --trace
  bivisor run kernel.elf --expect 'all tests passed' --fail-on PANIC --no-progress 30s
  bivisor run vmlinuz --initrd-dir root --cpus 2 --cmdline quiet
  bivisor run vmlinuz --initrd initrd.img --disk root.img --cmdline root=/dev/vda
  bivisor run vmlinuz --initrd initrd.img --disk root.img --net user,hostfwd=tcp:5555:22 --cmdline root=/dev/vda1
  bivisor run vmlinuz --initrd initrd.img --share src=/home/me/src,readonly   # in the guest: mount -t virtiofs src /mnt
  bivisor run kernel.elf --console pty
  bivisor run kernel.elf --gdb tcp:1234        # then: gdb kernel.elf -ex 'target remote :1234'

While the guest reads from a terminal: Ctrl-A x ends it, Ctrl-A h shows more keys.";

#[derive(Subcommand)]
enum Guests {
    /// Write an embedded guest to a file, as a flat binary for `bivisor run`
    Export {
        /// Which guest
        name: String,
        /// Where to
        file: PathBuf,
    },
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
    /// Show what the time up to the guest's first instruction was spent on, and when it printed what, on standard error
    #[arg(long)]
    timings: bool,
    /// Tell when the console first shows TEXT, in --timings and --trace=FILE.json (repeatable)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    mark: Vec<String>,
    /// Show each exit in words, on standard error or in FILE; in FILE.json as events for Perfetto or chrome://tracing
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-")]
    trace: Option<PathBuf>,
    #[command(flatten)]
    console: console::ConsoleOptions,
    /// Once the guest runs, keep from this process what it does not need: system calls, files, capabilities
    /// (log: let it through, the kernel's log has it)
    #[arg(long, value_name = "HOW", value_parser = parse::sandbox(), default_value = "on")]
    sandbox: sandbox::Mode,
    /// Write how the guest ended, as one line of JSON, to FILE or (-) to standard output
    #[arg(long, value_name = "FILE|-")]
    verdict: Option<PathBuf>,
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
    /// Have the guest wait for gdb before its first instruction
    #[arg(long, value_name = "tcp:[HOST:]PORT|unix:PATH", value_parser = parse::gdb_address)]
    gdb: Option<gdb::Address>,
    /// Name the addresses in reports by the symbols of this System.map or ELF file (for Linux also: --cmdline nokaslr)
    #[arg(long, value_name = "FILE")]
    symbols: Option<PathBuf>,
    #[command(flatten)]
    devices: devices::DeviceOptions,
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
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Parsed {
    match Args::try_parse_from(args) {
        Ok(args) => Parsed::Command(args),
        Err(error) if error.use_stderr() => Parsed::Wrong(one_line(&error)),
        Err(error) => Parsed::Text(error.render().to_string()),
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
            Command::Guests { command: None, json } => guests::list(json),
            Command::Guests { command: Some(Guests::Export { name, file }), .. } => {
                guests::export(&name, &file)
            }
            Command::Inspect { file, json } => inspect::print_description(&file, json),
            Command::Check { json } => check::print_findings(json),
            Command::Disk { command } => command.carry_out(),
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Args::command(), "bivisor", &mut script);
                print(&script)
            }
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
    use super::*;

    fn parsed(line: &str) -> Parsed {
        parse(line.split_whitespace().map(OsString::from))
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
            ("bivisor run f --transport isa", "'isa'"),
            ("bivisor run f --max-exits 0", "'0'"),
            ("bivisor run f --fast", "'--fast'"),
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
