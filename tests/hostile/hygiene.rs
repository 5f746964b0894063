//! HOSTILE 46, 55 and 58: what is left of guests that have ended, and what one costs that does nothing.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::common::{Run, bivisor, cases, emulated, folder, guest, guest_file, kvm, wait};

/// Our choice: the promise of group 46 where that takes seconds, a sample in an emulated host.
fn starts() -> usize {
    if emulated() { 48 } else { 1000 }
}

pub const AT_ONCE: usize = 16;

/// What a process of ours leaves in a folder, and children of this one.
fn left(folder: &Path) -> (usize, usize) {
    let files = fs::read_dir(folder).unwrap().count();
    // A test has a thread of its own, which is the parent of what it starts (proc(5), children).
    let children = fs::read_to_string("/proc/thread-self/children")
        .unwrap_or_default()
        .split_whitespace()
        .count();
    (files, children)
}

/// Guests that end in every way, sixteen at a time, again and again.
fn hostile_46_guests_that_start_and_stop_leave_nothing() {
    let (folder, temporary) = (folder(), folder());
    let before = left(temporary.path());
    let rows = [
        ("poweroff", "", 0),
        ("smp", "", 0),
        ("spin", "--timeout 20ms", 124),
        ("reset", "", 120),
        ("panic", "", 122),
    ];
    let images = rows.map(|(name, ..)| guest_file(&folder, name));
    let start = |number: usize| {
        let (name, options, status) = rows[number % rows.len()];
        let run = bivisor("run").arg(&images[number % rows.len()]).words(options);
        let own = guest(name).options.replace("--timeout 500ms", "");
        let mut command = run.words(&own).words("--scratch 1M --rng").command;
        command.env("TMPDIR", temporary.path()).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::null());
        (command.spawn().expect("start bivisor"), status)
    };
    let mut running: Vec<(Child, i32)> = Vec::new();
    for number in 0..starts() {
        if running.len() == AT_ONCE {
            let (mut child, status) = running.remove(0);
            assert_eq!(wait(&mut child, Duration::from_secs(60)), Some(status));
        }
        running.push(start(number));
    }
    for (mut child, status) in running {
        assert_eq!(wait(&mut child, Duration::from_secs(60)), Some(status));
    }
    assert_eq!(left(temporary.path()), before, "files and processes");
}

/// The CPU time of a process, in ticks (proc(5), stat).
fn ticks(process: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// The voluntary context switches of all threads: each is a wake-up.
fn wake_ups(process: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let of = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.map_or(0, |count| count.trim().parse().unwrap())
    };
    tasks.flatten().map(of).sum()
}

/// A run that goes on, once it has settled: where others keep an emulated host busy, its start takes seconds. One
/// that never does is measured all the same.
fn settled(run: Run) -> Child {
    let mut command = run.command;
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let child = command.spawn().expect("start bivisor");
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut used = None;
    while used != Some(ticks(child.id())) && Instant::now() < deadline {
        used = Some(ticks(child.id()));
        thread::sleep(Duration::from_secs(1));
    }
    child
}

/// CPUs that sleep or are held, and devices that nobody drives, cost nothing.
fn hostile_58_a_guest_that_waits_wakes_nobody() {
    let folder = folder();
    let sleeping = guest("sleep").options.replace("500ms", "60s");
    let sleeping = bivisor("run").arg(guest_file(&folder, "sleep")).words(&sleeping);
    // They wait for gdb, and so for ever.
    let socket = folder.path().join("gdb");
    let held = format!("--cpus 2 --gdb unix:{}", socket.display());
    let held = bivisor("run").arg(guest_file(&folder, "spin")).words(&held);
    thread::scope(|scope| {
        for run in [sleeping, held] {
            scope.spawn(|| wakes_nobody(run.words("--rng --scratch 1M")));
        }
    });
}

fn wakes_nobody(mut run: Run) {
    run.command.stderr(Stdio::null());
    let mut child = settled(run);
    let (began, ticks_before, wakes_before) =
        (Instant::now(), ticks(child.id()), wake_ups(child.id()));
    thread::sleep(Duration::from_secs(2));
    let wakes = wake_ups(child.id()) - wakes_before;
    let used = ticks(child.id()) - ticks_before;
    let limit = began.elapsed().as_secs() * 5;
    child.kill().unwrap();
    child.wait().unwrap();
    // A tick is 10 ms: five of a hundred are the promise.
    assert!(used <= limit, "{used} ticks of CPU time");
    assert!(wakes <= 20, "{wakes} wake-ups");
}

pub fn trials() -> Vec<Trial> {
    cases![
        hostile_46_guests_that_start_and_stop_leave_nothing, kvm;
        hostile_58_a_guest_that_waits_wakes_nobody, kvm;
    ]
}
