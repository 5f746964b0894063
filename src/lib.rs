//! bivisor: a virtual machine monitor on Linux KVM, the same program on x86-64 and aarch64.
//!
//! The map, in the order in which data flows:
//!
//! - [`config`]: what a machine is to be
//! - [`payload`]: the image: [`payload::image`] recognises it, [`payload::unpack`] and
//!   [`payload::cache`] unpack it, [`payload::load`] places it in RAM, [`payload::describe`] tells
//! - [`memory`]: guest RAM and KVM's slots, in [`host_memory`], with files that are mapped into it;
//!   [`places`]: what lies where in it while it is built
//! - [`kernel`]: what a kernel is given: command line, initial RAM disk, modules; [`archive`] packs a
//!   folder for it
//! - [`board`]: what the core and an architecture tell each other; [`layout_check`]: address maps
//! - `arch`: everything that differs between architectures, behind one pinned contract
//! - [`machine`]: builds a machine in the one right order
//! - [`event_loop`]: its threads, and what ends it; [`kick`]: makes a vCPU leave the guest; `bell`: when
//!   a vCPU without an event loop needs one; `own_code`: gives back what was needed only to start
//! - [`gdb`]: a debugger at the guest; [`debug`]: the vocabulary that it speaks with architectures
//! - [`run`]: the run loop of one vCPU; [`exit`]: the vocabulary that it speaks; [`coalesced`]: the console's
//!   bytes that cost no exit
//! - [`bus`]: addresses to devices; [`devices`]; [`irq`]: their interrupt lines
//! - [`virtio`]: devices that share rings with their drivers; [`pieces`]: the buffers of these
//! - [`pci`]: the bus that can carry them; [`messages`]: interrupts without a line
//! - [`console`]: the host's side of the guest's console; [`terminal`]: raw and as it was
//! - [`journal`]: counts and the last exits; [`trace`]: each exit in words or on a line of time;
//!   [`timeline`]: what a start was spent on
//! - [`outcome`]: how it ended, and the process status; [`verdict`]: the same as JSON and for people;
//!   [`symbols`]: names for its addresses
//! - [`sandbox`]: what is left to the process while a guest runs
//! - [`notice`]: lines for the user while a guest runs
//! - [`host`]: what this host can do
//! - [`guests`]: the embedded guests
//! - [`bound_socket`]: a socket that listens at a path; [`child`]: a program that serves a guest;
//!   [`sys`]: system calls that nobody wraps
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use bivisor::{config::Config, console::Console, guests, machine::Machine, payload::Payload};
//!
//! let image = Payload::Bytes(guests::find("hello").expect("it is embedded").image);
//! let console = Console::new(std::fs::File::create("hello.txt")?, None);
//! let outcome = Machine::build(Config::new(image, console))?.run();
//! assert_eq!(outcome.stop.status(), 0);
//! # Ok(())
//! # }
//! ```

/// Whether machines can have all that there is. [`config::Config::check_features`] refuses what is left out
/// otherwise; the few places that would still lead to it ask this, so that nothing of it is linked.
const FULL: bool = cfg!(feature = "full");

pub mod archive;
mod bell;
pub mod board;
pub mod bound_socket;
pub mod bus;
pub mod child;
pub mod coalesced;
pub mod config;
pub mod console;
pub mod debug;
pub mod devices;
#[cfg(test)]
mod effort;
pub mod event_loop;
pub mod exit;
pub mod gdb;
pub mod host;
pub mod host_memory;
pub mod irq;
pub mod journal;
pub mod kernel;
pub mod kick;
pub mod layout_check;
pub mod machine;
mod mapped;
pub mod memory;
pub mod messages;
pub mod notice;
pub mod outcome;
mod own_code;
pub mod payload;
pub mod pci;
pub mod pieces;
pub mod places;
pub mod run;
pub mod sandbox;
pub mod symbols;
pub mod sys;
pub mod terminal;
pub mod timeline;
pub mod trace;
pub mod verdict;
pub mod virtio;

#[path = "../guests/mod.rs"]
pub mod guests;

/// Everything that differs between guest architectures lives beside `src/`, in `arch/`.
#[path = "../arch/mod.rs"]
mod arch;

/// The parsers and tables of the architectures, for fuzzing alone.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub use arch::{formats, fuzzing};

/// What fuzz targets do with bytes, to replay what they have found.
#[cfg(test)]
#[path = "../fuzz/src/inputs/mod.rs"]
mod fuzz_inputs;
/// They know the library by its name.
#[cfg(test)]
extern crate self as bivisor;
