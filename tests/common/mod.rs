//! What the test programs share: running the real binary under a time limit, guests and ELF files
//! to run, and the reasons for which a test can't run here.
//!
//! Nothing here starts any program but bivisor: in the emulated hosts there is no other.

// Every test program compiles this for itself and uses its own part.
#![allow(dead_code, unused_imports, unused_macros)]

pub mod bzimage;
pub mod elf;
pub mod network;
pub mod stock;

use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use bivisor::guests::{self, Guest};
use libtest_mimic::{Arguments, Trial};
use serde_json::Value;
use tempfile::TempDir;

/// This is an emulated host, as cross/runner says: some ten times slower than others, and ours alone.
pub fn emulated() -> bool {
    std::env::var_os("BIVISOR_EMULATED").is_some()
}

/// What differs between the architectures that the tests run on.
pub struct Machine {
    /// Where a flat image is loaded that says nothing of its mode and place, or where an ELF file
    /// may be (guest-physical).
    pub load: u64,
    /// An address in front of or behind RAM (guest-physical).
    pub outside: u64,
    /// `e_machine` of this architecture's 64-bit ELF files, and of one that nobody supports here.
    pub elf_machine: u16,
    pub foreign_elf_machine: u16,
    /// `e_machine` of 32-bit ELF files that run here, and the options that they need no longer.
    pub elf32_machine: Option<u16>,
    /// A register of 64 bits.
    pub register: &'static str,
    /// Where the guest `hello` begins, and the offsets of its first instructions.
    pub hello: u64,
    pub hello_instructions: [u64; 4],
    /// The breakpoint instruction.
    pub breakpoint: &'static [u8],
    /// Where RAM begins.
    pub ram: u64,
    /// Where the pc lies among all registers that gdb gets.
    pub pc_at: usize,
    /// Where the vector registers lie among them, of 16 bytes each, and how many there are.
    pub vectors_at: usize,
    pub vectors: usize,
    /// Options of the guest `smp`, for four CPUs.
    pub smp_options: &'static str,
    /// Options with which any ELF file takes a command line and an initial RAM disk.
    pub linux_options: &'static str,
}

/// ELF machine numbers (System V ABI, "Machine Information").
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const EM_AARCH64: u16 = 183;

/// The one place in the tests that tells architectures apart.
pub const MACHINE: Machine = if cfg!(target_arch = "x86_64") {
    Machine {
        load: 0x10_0000,
        outside: 0xd000_0000,
        elf_machine: EM_X86_64,
        foreign_elf_machine: EM_AARCH64,
        elf32_machine: Some(EM_386),
        register: "rax",
        hello: 0x1000,
        hello_instructions: [0, 3, 6, 9],
        breakpoint: &[0xcc],
        ram: 0,
        pc_at: 16 * 8,
        vectors_at: 0x114,
        vectors: 16,
        smp_options: "--cpus 4 --reg rbx=4",
        linux_options: "--entry-protocol linux",
    }
} else {
    Machine {
        load: 0x4008_0000,
        outside: 0x1000,
        elf_machine: EM_AARCH64,
        foreign_elf_machine: EM_X86_64,
        elf32_machine: None,
        register: "x0",
        hello: 0x4008_0000,
        hello_instructions: [0, 4, 8, 12],
        breakpoint: &[0, 0, 0x20, 0xd4],
        ram: 0x4000_0000,
        pc_at: 32 * 8,
        vectors_at: 33 * 8 + 4,
        vectors: 32,
        smp_options: "--cpus 4",
        linux_options: "",
    }
};

/// Our choice: far more than any guest here needs, even on an emulated host that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// One run of bivisor that is being prepared.
pub struct Run {
    pub command: Command,
    input: Vec<u8>,
    patience: Duration,
}

/// What became of it.
pub struct Ran {
    pub stdout: Vec<u8>,
    pub stderr: String,
    /// As a shell shows it: 128 + n after signal n.
    pub status: i32,
    pub took: Duration,
}

/// `bivisor` with the words of `line` as its arguments and an empty standard input.
pub fn bivisor(line: &str) -> Run {
    program(env!("CARGO_BIN_EXE_bivisor"), line)
}

/// Another build of it.
pub fn program(path: impl AsRef<std::ffi::OsStr>, line: &str) -> Run {
    let mut command = Command::new(path);
    command.args(line.split_whitespace());
    Run { command, input: Vec::new(), patience: PATIENCE }
}

impl Run {
    /// Adds one argument, which may hold blanks.
    pub fn arg(mut self, arg: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.command.args(args);
        self
    }

    /// Gives it `input` through a pipe that then ends.
    pub fn input(mut self, input: &[u8]) -> Self {
        self.input = input.to_vec();
        self
    }

    /// Kills it after `patience`.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Runs it to its end. Panics if it must be killed.
    pub fn finish(mut self) -> Ran {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let start = Instant::now();
        let mut child = self.command.spawn().expect("start bivisor");
        let mut stdin = child.stdin.take().unwrap();
        let input = self.input;
        // A run that ends without reading its input is no error of the test.
        let writer = thread::spawn(move || drop(stdin.write_all(&input)));
        let stdout = read_to_end(child.stdout.take().unwrap());
        let stderr = read_to_end(child.stderr.take().unwrap());
        let status = wait(&mut child, self.patience);
        let took = start.elapsed();
        let ran = Ran {
            stdout: stdout.join().unwrap(),
            stderr: String::from_utf8_lossy(&stderr.join().unwrap()).into_owned(),
            status: status.unwrap_or(-1),
            took,
        };
        writer.join().unwrap();
        assert!(
            status.is_some(),
            "{:?} did not end within {:?}: {ran:?}",
            self.command,
            self.patience
        );
        ran
    }
}

impl fmt::Debug for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stderr, status, took, .. } = self;
        writeln!(f, "status {status} after {took:?}, standard error:\n{stderr}")?;
        // The end of a long output is what explains a failure.
        let text = self.text();
        let skip = text.chars().count().saturating_sub(4000);
        write!(f, "standard output:\n{}", text.chars().skip(skip).collect::<String>())
    }
}

impl Ran {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Reads all of `from` in a thread of its own.
fn read_to_end(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).expect("read a pipe");
        bytes
    })
}

/// The status of `child`, which is killed after `patience`; then there is none.
pub fn wait(child: &mut Child, patience: Duration) -> Option<i32> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().expect("wait for bivisor") {
            return Some(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
        }
        if Instant::now() > deadline {
            child.kill().expect("kill bivisor");
            child.wait().expect("wait for bivisor");
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// A folder for one test, gone with it.
pub fn folder() -> TempDir {
    tempfile::tempdir().expect("make a temporary folder")
}

/// The embedded guest `name` as a file in `folder`.
pub fn guest_file(folder: &TempDir, name: &str) -> PathBuf {
    let path = folder.path().join(format!("{name}.bin"));
    fs::write(&path, guest(name).image).expect("write a guest");
    path
}

/// The embedded guest `name`.
pub fn guest(name: &str) -> &'static Guest {
    guests::find(name).unwrap_or_else(|| panic!("no guest is called {name}"))
}

/// The one line of JSON in the file at `path`.
pub fn read_verdict(path: &Path) -> Value {
    let text = fs::read_to_string(path).expect("a verdict was written");
    assert_eq!(text.lines().count(), 1, "{text:?}");
    serde_json::from_str(&text).expect("a verdict is JSON")
}

/// Runs the guest `name` with its own options, of which `change` may make others.
pub fn run_guest(folder: &TempDir, name: &str, change: impl Fn(&str) -> String) -> Run {
    let path = guest_file(folder, name);
    bivisor("run").arg(path).words(&change(guest(name).options))
}

impl Run {
    /// Adds the words of `line`.
    pub fn words(mut self, line: &str) -> Self {
        self.command.args(line.split_whitespace());
        self
    }
}

/// Something that a test needs of the host: `None` if it is there, else the reason to skip.
pub type Need = fn() -> Option<String>;

/// A test that needs what `needs` names. Where that is missing it is skipped, with the reason; or
/// run all the same with BIVISOR_NO_SKIP set, where skipping would hide that a host is broken.
pub fn trial(name: &str, needs: &[Need], test: impl FnOnce() + Send + 'static) -> Trial {
    let trial = Trial::test(name, move || {
        test();
        Ok(())
    });
    let skips = std::env::var_os("BIVISOR_NO_SKIP").is_none();
    match needs.iter().find_map(|need| need()).filter(|_| skips) {
        None => trial,
        Some(reason) => {
            eprintln!("skipped: {name}: {reason}");
            trial.with_ignored_flag(true)
        }
    }
}

/// Trials of functions, each under its own name: a row is a function and what it needs.
macro_rules! cases {
    ($($test:ident $(, $need:path)*;)*) => {
        vec![$($crate::common::trial(stringify!($test), &[$($need),*], $test)),*]
    };
}
pub(crate) use cases;

/// The `main` of a test program.
pub fn conclude(trials: Vec<Trial>) -> ! {
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

/// KVM_GET_API_VERSION (KVM API 4.1), and its only answer.
const KVM_GET_API_VERSION: u64 = 0xae00;
const KVM_API_VERSION: i32 = 12;
/// KVM_CHECK_EXTENSION (KVM API 4.4), and the question how many vCPUs a machine can have.
const KVM_CHECK_EXTENSION: u64 = 0xae03;
const KVM_CAP_MAX_VCPUS: u64 = 66;

/// The answer of /dev/kvm to `request`, or why there is none.
fn ask_kvm(request: u64, argument: u64) -> Result<i32, String> {
    let kvm = fs::File::options().read(true).write(true).open("/dev/kvm");
    let kvm = kvm.map_err(|error| format!("no usable /dev/kvm: {error}"))?;
    // SAFETY: the argument of both requests is a number.
    Ok(unsafe { libc::ioctl(kvm.as_raw_fd(), request as _, argument) })
}

/// Guests can be run here.
pub fn kvm() -> Option<String> {
    match ask_kvm(KVM_GET_API_VERSION, 0) {
        Ok(version) => (version != KVM_API_VERSION).then(|| "/dev/kvm is not KVM".into()),
        Err(reason) => Some(reason),
    }
}

/// The CPUs that a machine can have as far as KVM is concerned.
pub fn most_cpus() -> i32 {
    ask_kvm(KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS).expect("KVM is there")
}

/// Guests can have twelve CPUs; with an interrupt controller of the second generation, only eight.
pub fn a_dozen_cpus() -> Option<String> {
    let cpus = ask_kvm(KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS).ok()?;
    (cpus < 12).then(|| format!("this host's KVM gives a machine {cpus} CPUs at most"))
}

/// The test may take minutes; its name begins with `long`.
pub fn long() -> Option<String> {
    let asked = std::env::var_os("BIVISOR_LONG").is_some();
    (!asked).then(|| "takes minutes (cross/test long, or BIVISOR_LONG=1)".into())
}

/// The test may unmount things and become somebody else.
pub fn root() -> Option<String> {
    // SAFETY: reads a number.
    let user = unsafe { libc::geteuid() };
    (user != 0).then(|| "needs root, to have mounts of its own".into())
}

/// What `bivisor check` says about `key`. It is asked once: each test of a program may need it.
pub fn finding(key: &str) -> String {
    static FOUND: LazyLock<Value> =
        LazyLock::new(|| serde_json::from_str(&bivisor("check --json").finish().text()).unwrap());
    FOUND[key].as_str().unwrap_or_default().to_owned()
}

/// Debug registers stop a guest where it runs.
pub fn hardware_breakpoints() -> Option<String> {
    let emulated = finding("host-is-a-guest").contains("(QEMU TCG)");
    emulated.then(|| "QEMU, which emulates this host, ignores debug registers of its guests".into())
}
