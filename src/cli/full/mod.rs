//! What the feature `full` adds: commands beside `hello` and `run`, reports for machines, gdb, and
//! virtio devices. `small.rs` stands in for it in a program without that feature.

mod check;
mod copy;
mod devices;
mod disk;
mod gdb;
mod guests;
mod inspect;
mod net;
mod reports;
mod share;
mod vsock;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{CommandFactory, Subcommand};

use bivisor::config::Config;
use bivisor::gdb::{Address, Listener};

use super::{Args, print};
pub use reports::Reports;

/// What follows the options of `run` in its help.
pub const RUN_AFTER: &str = "\
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

/// Commands beside those that start a guest.
#[derive(Subcommand)]
pub enum Command {
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

/// What `guests` does beside listing them.
#[derive(Subcommand)]
pub enum Guests {
    /// Write an embedded guest to a file, as a flat binary for `bivisor run`
    Export {
        /// Which guest
        name: String,
        /// Where to
        file: PathBuf,
    },
}

/// Options of `run` for what is beside the image and the console.
#[derive(clap::Args)]
pub struct Extras {
    /// Have the guest wait for gdb before its first instruction
    #[arg(long, value_name = "tcp:[HOST:]PORT|unix:PATH", value_parser = gdb::address)]
    gdb: Option<Address>,
    /// Name the addresses in reports by the symbols of this System.map or ELF file (for Linux also: --cmdline nokaslr)
    #[arg(long, value_name = "FILE")]
    symbols: Option<PathBuf>,
    #[command(flatten)]
    devices: devices::DeviceOptions,
}

impl Command {
    /// Carries out the command; gives the process status.
    pub fn carry_out(self) -> Result<u8> {
        match self {
            Self::Guests { command: None, json } => guests::list(json),
            Self::Guests { command: Some(Guests::Export { name, file }), .. } => {
                guests::export(&name, &file)
            }
            Self::Inspect { file, json } => inspect::print_description(&file, json),
            Self::Check { json } => check::print_findings(json),
            Self::Disk { command } => command.carry_out(),
            Self::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Args::command(), "bivisor", &mut script);
                print(&script)
            }
        }
    }
}

impl Extras {
    /// Has `config` have what was asked for.
    pub fn add_to(&self, config: &mut Config) -> Result<()> {
        config.devices = self.devices.open(config.cpus)?;
        config.balloon = self.devices.balloon;
        config.transport = self.devices.transport;
        config.gdb = self.gdb.as_ref().map(Listener::open).transpose()?;
        Ok(())
    }

    /// The file of `--symbols`.
    pub fn symbols(&self) -> Result<Option<File>> {
        let open = |path: &PathBuf| {
            File::open(path).with_context(|| format!("--symbols {}", path.display()))
        };
        self.symbols.as_ref().map(open).transpose()
    }

    /// Whether programs are started for devices.
    pub fn start_programs(&self) -> bool {
        self.devices.start_programs()
    }

    /// The files of disks.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.devices.files()
    }
}
