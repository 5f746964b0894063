//! HOSTILE 46: whole machines that start and stop in one process, sixteen at a time, through the library: no
//! descriptor, thread, mapping or file is left of them.
//!
//! Counted is a process that does nothing else, so this program starts itself. It has one arena for its
//! heap: with more, how many there are depends on which threads meet.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bivisor::config::{Config, Memory};
use bivisor::console::Console;
use bivisor::devices::block::raw::Raw;
use bivisor::devices::block::{Block, Engine};
use bivisor::devices::entropy::Entropy;
use bivisor::guests;
use bivisor::machine::Machine;
use bivisor::payload::Payload;
use libtest_mimic::Trial;

use crate::common::{cases, emulated, folder, kvm};
use crate::hygiene::AT_ONCE;

/// What tells this program that it is to start machines, and how many.
const STARTS: &str = "BIVISOR_TEST_STARTS";

/// RAM of each machine. Our choice: what is lost of a single one is more than what may differ.
const RAM_LEN: u64 = 128 << 20;

/// What may differ of anonymous memory: the heap, and stacks of threads that glibc keeps for the next ones,
/// 40 MiB at most (glibc 2.36, nptl/allocatestack.c), each a mapping and its guard.
const BYTES: u64 = 64 << 20;
const MAPPINGS: usize = 64;

/// What a process has.
#[derive(Debug)]
struct Possessions {
    descriptors: Vec<String>,
    threads: Vec<String>,
    /// Mappings that have a name: files, vCPUs, rings; how many of each.
    named: BTreeMap<String, usize>,
    anonymous: usize,
    anonymous_bytes: u64,
}

impl Possessions {
    fn now() -> Self {
        let mut descriptors: Vec<_> = fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .map(|target| target.display().to_string())
            .collect();
        descriptors.sort();
        let names = fs::read_dir("/proc/self/task").unwrap().flatten();
        let mut threads: Vec<_> = names
            .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
            .map(|name| name.trim().to_owned())
            .collect();
        threads.sort();
        let (mut named, mut anonymous, mut anonymous_bytes) = (BTreeMap::new(), 0, 0);
        for line in fs::read_to_string("/proc/self/maps").unwrap().lines() {
            let name = line.splitn(6, ' ').nth(5).unwrap_or("").trim();
            // A heap that grows stays one mapping, with or without its name.
            if !name.is_empty() && name != "[heap]" {
                *named.entry(name.to_owned()).or_default() += 1;
                continue;
            }
            let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            anonymous += 1;
            anonymous_bytes += number(end) - number(start);
        }
        Self { descriptors, threads, named, anonymous, anonymous_bytes }
    }

    /// What there is once it is as `wanted`, or after a while: a thread's name is there a moment longer than the
    /// thread, and so are KVM's own.
    fn once(wanted: impl Fn(&Self) -> bool) -> Self {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let now = Self::now();
            if wanted(&now) || Instant::now() > deadline {
                return now;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Nothing more than `before`, but for what may differ.
    fn are_those_of(&self, before: &Self) -> bool {
        (&self.descriptors, &self.threads, &self.named)
            == (&before.descriptors, &before.threads, &before.named)
            && self.anonymous <= before.anonymous + MAPPINGS
            && self.anonymous_bytes < before.anonymous_bytes + BYTES
    }
}

/// One machine from nothing to its end: guests that end in each way, and ones that are kicked at any moment
/// from before their first instruction on.
fn start(number: usize) {
    let (name, status) = [
        ("poweroff", 0),
        ("smp", 0),
        ("spin", 124),
        ("reset", 120),
        ("disk", 0),
        ("panic", 122),
        ("sleep", 124),
    ][number % 7];
    let guest = guests::find(name).unwrap();
    let null = File::options().write(true).open("/dev/null").unwrap();
    let mut console = Console::new(null, None);
    console.before = b"wr1r".to_vec();
    let mut config = Config::new(Payload::Bytes(guest.image), console);
    config.memory = Memory::Size(RAM_LEN);
    let mut words = guest.options.split_whitespace();
    while let Some((option, value)) = words.next().zip(words.next()) {
        match option {
            "--mode" => config.mode = Some(value.into()),
            "--cpus" => config.cpus = value.parse().unwrap(),
            "--reg" => {
                let (register, value) = value.split_once('=').unwrap();
                config.registers.push((register.into(), value.parse().unwrap()));
            }
            "--timeout" => {
                config.timeout = Some(Duration::from_micros(number as u64 * 997 % 20_000));
            }
            "--scratch" => {}
            other => panic!("{name} has {other}"),
        }
    }
    let engine = if number.is_multiple_of(2) { Engine::Best } else { Engine::Threads };
    let scratch = Arc::new(Raw::scratch(1 << 20).unwrap());
    config.devices.push(Box::new(Block::new(scratch, "", config.cpus, engine)));
    config.devices.push(Box::new(Entropy::new().unwrap()));
    let outcome = Machine::build(config).expect("a machine").run();
    assert_eq!(outcome.stop.status(), status, "{name}, number {number}: {}", outcome.stop.word());
}

/// So many of them, by so many threads at a time.
fn start_all(count: usize) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let number @ 0.. = next.fetch_add(1, Ordering::Relaxed)
                    && number < count
                {
                    start(number);
                }
            });
        }
    });
}

/// The part of the process that is counted, if this is it.
pub fn play() {
    let Ok(count) = std::env::var(STARTS) else { return };
    // What is made once is there afterwards.
    start_all(AT_ONCE);
    let before = Possessions::once(|now| now.threads.len() == 1);
    start_all(count.parse().unwrap());
    let after = Possessions::once(|now| now.are_those_of(&before));
    assert!(after.are_those_of(&before), "before: {before:#?}\nafter: {after:#?}");
    println!(
        "{} descriptors, {} threads, {} named and {} to {} anonymous mappings, {} to {} KiB",
        after.descriptors.len(),
        after.threads.len(),
        after.named.values().sum::<usize>(),
        before.anonymous,
        after.anonymous,
        before.anonymous_bytes >> 10,
        after.anonymous_bytes >> 10,
    );
    std::process::exit(0);
}

fn hostile_46_machines_that_start_and_stop_in_one_process_leave_nothing() {
    let temporary = folder();
    let mut command = Command::new(std::env::current_exe().unwrap());
    // Our choice: the promise of group 46 where that takes seconds, a sample in an emulated host.
    let count = if emulated() { AT_ONCE } else { 1000 };
    command.env(STARTS, count.to_string()).env("MALLOC_ARENA_MAX", "1");
    command.env("TMPDIR", temporary.path()).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "{}: {}{}", output.status, text[0], text[1]);
    eprint!("{}", text[0]);
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "files");
}

pub fn trials() -> Vec<Trial> {
    cases![hostile_46_machines_that_start_and_stop_in_one_process_leave_nothing, kvm;]
}
