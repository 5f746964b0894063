//! What bivisor itself costs, beside a floor that does the least that KVM allows (`examples/floor.rs`): a
//! start from the process's beginning to the first output and to its end, exits, more vCPUs, more memory,
//! many guests at once, and what stays in memory; and a kernel's start beside other monitors. All in turn.
//!
//! `cross/bench native start` runs it on this machine, `cross/bench ARCH start` in an emulated host.

#[allow(dead_code, reason = "no stock kernels here")]
mod common;
#[allow(dead_code, reason = "one kind of file is enough")]
#[path = "../tests/common/elf.rs"]
mod elf;

use std::fs;
use std::io::{self, Error, Read};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use bivisor::guests;
use common::peers::{self, Boot};
use common::report::Measure;
use common::smaps::Mappings;
use common::{MEMORY_MIB, rounds, terminal};

const OWN: &str = env!("CARGO_BIN_EXE_bivisor");

/// Exits of which the time is measured.
const EXITS: u64 = 100_000;

/// Bytes that the guest `burst` prints.
const BURST: u64 = 1600 * 64 + 4;

/// Guests at once. Our choice, with what each has.
const CROWD: usize = 100;
const CROWD_MEMORY: &str = "32M";

/// How long a guest has that is to come to rest. Our choice: three times what bivisor waits before it gives
/// back what only a start needs.
const REST: Duration = Duration::from_millis(300);

/// Milliseconds.
struct Times {
    first_output: f64,
    end: f64,
    cpu: f64,
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Waits for the end of a program, and gives its status and the CPU time that it has used.
fn wait(child: &Child) -> (i32, Duration) {
    let (mut status, mut usage) = (0, MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: both places outlive the call.
    let ended = unsafe { libc::wait4(child.id() as i32, &mut status, 0, usage.as_mut_ptr()) };
    assert!(ended > 0, "wait for it: {}", Error::last_os_error());
    // SAFETY: all zeros are a value, and the kernel has written another.
    let usage = unsafe { usage.assume_init() };
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    (status, time(usage.ru_utime) + time(usage.ru_stime))
}

/// The CPU time of a program that succeeds or is ended for the number of its exits.
fn end(child: &Child) -> Duration {
    let (status, cpu) = wait(child);
    assert_well(status);
    cpu
}

fn assert_well(status: i32) {
    let well = libc::WIFEXITED(status) && matches!(libc::WEXITSTATUS(status), 0 | 124);
    assert!(well, "it ended with {status:#x}");
}

/// One run of a command: its times, its status, and whether it has shown anything.
#[expect(clippy::zombie_processes, reason = "`wait` waits for it")]
fn observe(command: &mut Command, input: Stdio) -> (Times, i32, bool) {
    command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::null());
    let began = Instant::now();
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut output = child.stdout.take().expect("it has one");
    let mut bytes = [0; 64];
    let shown = output.read(&mut bytes).expect("read what it shows") > 0;
    let first_output = millis(began.elapsed());
    io::copy(&mut output, &mut io::sink()).expect("read what it shows");
    let (status, cpu) = wait(&child);
    (Times { first_output, end: millis(began.elapsed()), cpu: millis(cpu) }, status, shown)
}

/// One run that succeeds or is ended for the number of its exits.
fn run(command: &mut Command) -> Times {
    let (times, status, _) = observe(command, Stdio::null());
    assert_well(status);
    times
}

/// A way to run a guest.
struct Candidate {
    name: String,
    command: Box<dyn Fn() -> Command>,
    times: Vec<Times>,
}

impl Candidate {
    fn new(name: &str, program: impl AsRef<Path>, words: &str) -> Self {
        let (program, words) = (program.as_ref().to_owned(), words.to_owned());
        let command = Box::new(move || {
            let mut command = Command::new(&program);
            command.args(words.split_whitespace());
            command
        });
        Self { name: name.into(), command, times: Vec::new() }
    }

    fn values(&self, value: impl Fn(&Times) -> f64) -> Vec<f64> {
        self.times.iter().map(value).collect()
    }
}

/// Runs them all in turn, so often; a first round warms caches up.
fn in_turn(candidates: &mut [Candidate], rounds: usize) {
    for round in 0..=rounds {
        for candidate in &mut *candidates {
            let times = run(&mut (candidate.command)());
            if round > 0 {
                candidate.times.push(times);
            }
        }
    }
}

fn tell(name: &str, candidates: &[Candidate], value: impl Fn(&Times) -> f64) {
    let mut measure = Measure::new(name, "ms", true);
    for candidate in candidates {
        measure.add(&candidate.name, candidate.values(&value));
    }
    measure.tell();
}

/// The floor, beside the program.
fn floor() -> PathBuf {
    Path::new(OWN).with_file_name("examples").join("floor")
}

/// The guest's image as a file in `folder`.
fn image(folder: &Path, name: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, guests::find(name).expect("it is embedded").image).expect("write a guest");
    path.display().to_string()
}

fn hello() {
    let mut candidates = [
        Candidate::new("floor", floor(), ""),
        Candidate::new("bivisor --sandbox off", OWN, "hello --sandbox off"),
        Candidate::new("bivisor", OWN, "hello"),
    ];
    in_turn(&mut candidates, rounds(100));
    tell("hello: start to first output", &candidates, |times| times.first_output);
    tell("hello: start to end", &candidates, |times| times.end);
    tell("hello: CPU time", &candidates, |times| times.cpu);
}

/// A kernel by PVH's protocol, which most monitors know: it prints a line and ends as it can, by bivisor's
/// exit register, by an i8042's reset line, else by a triple fault. All with the same memory, and a terminal
/// as standard input, since one of them wants that.
fn kernel(folder: &Path) {
    const AT: u32 = 0x10_0000;
    const TEXT: &[u8] = b"Hello, world!\n\0";
    // `lodsb; test al, al; jz +3; out dx, al; jmp -8; xor eax, eax; out 0xf4, al; mov al, 0xfe; out 0x64, al`,
    // and `lidt [text]; int3` behind `mov esi, text; mov dx, 0x3f8`.
    const REST: &[u8] =
        b"\xac\x84\xc0\x74\x03\xee\xeb\xf8\x31\xc0\xe6\xf4\xb0\xfe\xe6\x64\x0f\x01\x1d";
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    let text = AT + 5 + 4 + REST.len() as u32 + 4 + 1;
    let text = &text.to_le_bytes()[..];
    let mut code = [b"\xbe", text, b"\x66\xba\xf8\x03", REST, text, b"\xcc", TEXT].concat();
    code.resize(code.len().next_multiple_of(4), 0);
    let path = folder.join("kernel");
    fs::write(&path, elf::pvh(AT.into(), &code)).expect("write a kernel");
    let boot = Boot { folder: folder.into(), kernel: path.clone(), initrd: None, cpus: 1 };
    let own = format!("run {} --memory {MEMORY_MIB}M", path.display());
    let mut candidates = vec![
        Candidate::new("floor, its own guest", floor(), ""),
        Candidate::new("bivisor", OWN, &own),
    ];
    for (name, command) in peers::all() {
        let boot = boot.clone();
        let command = Box::new(move || command(&boot));
        candidates.push(Candidate { name: name.into(), command, times: Vec::new() });
    }
    for round in 0..=rounds(100).div_ceil(2) {
        for candidate in &mut candidates {
            let (_upper, input) = terminal();
            match observe(&mut (candidate.command)(), input) {
                (times, _, true) if round > 0 => candidate.times.push(times),
                (_, status, false) => println!("{}: no output, {status:#x}", candidate.name),
                _ => {}
            }
        }
    }
    tell("a kernel: start to first output", &candidates, |times| times.first_output);
    tell("a kernel: start to end", &candidates, |times| times.end);
    tell("a kernel: CPU time", &candidates, |times| times.cpu);
}

fn exits(folder: &Path) {
    let image = image(folder, "exits");
    let count = EXITS.to_string();
    let own = format!("run {image} --max-exits {count} --memory 32M");
    let mut candidates = [
        Candidate::new("floor", floor(), &format!("exits {count}")),
        Candidate::new("bivisor --sandbox off", OWN, &format!("{own} --sandbox off")),
        Candidate::new("bivisor", OWN, &own),
    ];
    in_turn(&mut candidates, rounds(100).div_ceil(5));
    let mut measure = Measure::new("exits to user space per second", "thousands", false);
    for candidate in &candidates {
        measure.add(&candidate.name, candidate.values(|times| EXITS as f64 / times.end));
    }
    measure.tell();
}

/// Output byte by byte, of which the floor makes an exit each.
fn output(folder: &Path) {
    let image = image(folder, "burst");
    let own = format!("run {image} --expect done --memory 32M");
    let mut candidates = [
        Candidate::new("floor", floor(), &format!("burst {BURST}")),
        Candidate::new("bivisor", OWN, &own),
    ];
    in_turn(&mut candidates, rounds(100).div_ceil(10));
    let mut measure =
        Measure::new("console output, byte by byte", "thousand bytes per second", false);
    for candidate in &candidates {
        measure.add(&candidate.name, candidate.values(|times| BURST as f64 / times.end));
    }
    measure.tell();
}

/// What a start takes with more of something.
fn growth(folder: &Path, name: &str, option: &str, values: &[&str]) {
    let image = image(folder, "poweroff");
    let candidate =
        |value: &&str| Candidate::new(value, OWN, &format!("run {image} {option} {value}"));
    let mut candidates: Vec<_> = values.iter().map(candidate).collect();
    in_turn(&mut candidates, rounds(100).div_ceil(2));
    tell(name, &candidates, |times| times.end);
}

/// Guests that are there at once, until all have ended; milliseconds of wall and CPU time for each.
fn crowd(folder: &Path) {
    let image = image(folder, "hello");
    let command = || {
        let mut command = Command::new(OWN);
        command.args(["run", &image, "--memory", CROWD_MEMORY]).stdout(Stdio::null());
        command.stdin(Stdio::null());
        command
    };
    let all = |at_once: usize| {
        let (began, mut cpu) = (Instant::now(), Duration::ZERO);
        for _ in 0..CROWD / at_once {
            let children: Vec<_> =
                (0..at_once).map(|_| command().spawn().expect("start bivisor")).collect();
            cpu += children.iter().map(end).sum::<Duration>();
        }
        (millis(began.elapsed()) / CROWD as f64, millis(cpu) / CROWD as f64)
    };
    let (mut wall, mut cpu) = (
        Measure::new("a hundred guests: wall time for each", "ms", true),
        Measure::new("a hundred guests: CPU time for each", "ms", true),
    );
    let mut samples = [const { Vec::new() }; 2];
    for _ in 0..rounds(100).div_ceil(10) {
        for (samples, at_once) in samples.iter_mut().zip([1, CROWD]) {
            samples.push(all(at_once));
        }
    }
    for (samples, name) in samples.iter().zip(["one after the other", "all at once"]) {
        wall.add(name, samples.iter().map(|sample| sample.0).collect());
        cpu.add(name, samples.iter().map(|sample| sample.1).collect());
    }
    wall.tell();
    cpu.tell();
}

/// What stays in memory beside the guest's pages.
fn memory(folder: &Path) {
    let (mut resident, mut dirty) = (
        Measure::new("resident beside the guest's pages", "KiB", true),
        Measure::new("private and dirty beside the guest's pages", "KiB", true),
    );
    for (name, guest, options) in [
        ("spinning", "spin", ""),
        ("spinning, --sandbox off", "spin", "--sandbox off"),
        ("two vCPUs", "spin", "--cpus 2"),
    ] {
        let image = image(folder, guest);
        let mut samples = Vec::new();
        for _ in 0..rounds(100).div_ceil(20) {
            let mut command = Command::new(OWN);
            command.args(["run", &image]).args(options.split_whitespace());
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
            let mut child = child.expect("start bivisor");
            sleep(REST);
            samples.push(Mappings::of(child.id()).beside_largest());
            child.kill().expect("end bivisor");
            child.wait().expect("it ends");
        }
        resident.add(name, samples.iter().map(|usage| usage.resident as f64).collect());
        dirty.add(name, samples.iter().map(|usage| usage.private_dirty as f64).collect());
    }
    resident.tell();
    dirty.tell();
}

fn main() {
    let folder = tempfile::tempdir().expect("make a temporary folder");
    let folder = folder.path();
    hello();
    kernel(folder);
    exits(folder);
    output(folder);
    growth(folder, "start to end with so many vCPUs", "--cpus", &["1", "2", "8", "32"]);
    growth(folder, "start to end with so much memory", "--memory", &["128M", "1G", "3G"]);
    crowd(folder);
    memory(folder);
}
