//! How long a stock kernel takes from the start of the monitor's process to the guest's first line
//! from user space, and what the monitor keeps in memory beside the guest's own pages: bivisor
//! with each way of `--image-memory`, and QEMU where there is one. All run in turn.
//!
//! `cross/bench ARCH` runs it in an emulated host, with QEMU 7.2.

#[allow(dead_code, reason = "not all is needed here")]
mod common;

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Instant;

use common::report::Measure;
use common::smaps::Mappings;
use common::{bivisor, guests, initrd, qemu, rounds};

const MARK: &[u8] = b"The guest is up.";

/// What is told of one run.
struct Sample {
    /// From the process's start to the mark.
    seconds: f64,
    /// Resident memory at the mark, less that of the largest mapping, which is the guest's RAM.
    kib: u64,
}

struct Candidate {
    name: String,
    command: Box<dyn Fn() -> Command>,
    samples: Vec<Sample>,
}

fn sample(mut command: Command) -> Option<Sample> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().expect("start a monitor");
    let mut output = child.stdout.take().expect("it has an output");
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    while !seen.windows(MARK.len()).any(|window| window == MARK) {
        match output.read(&mut buffer) {
            Ok(n) if n > 0 => seen.extend(&buffer[..n]),
            _ => {
                let mut said = String::new();
                let _ = child.stderr.take().expect("it has one").read_to_string(&mut said);
                eprintln!("no mark: {said}\n{}", String::from_utf8_lossy(&seen));
                let _ = child.wait();
                return None;
            }
        }
    }
    let sample = Sample {
        seconds: start.elapsed().as_secs_f64(),
        kib: Mappings::of(child.id()).beside_largest().resident,
    };
    child.kill().expect("end a monitor");
    child.wait().expect("a monitor ends");
    Some(sample)
}

fn main() {
    let folder = tempfile::tempdir().expect("make a temporary folder");
    let init = "#!/bin/busybox sh\necho The guest is up.\nexec sleep 1000\n";
    // As large as a distribution's.
    let ballast = fs::read(guests().join("cloud")).expect("cross/bench fetches it");
    let initrd = initrd(folder.path(), init, |root| {
        fs::write(root.join("ballast"), &ballast).expect("fill the archive");
    });
    let own = |way: &str| {
        let (initrd, words) = (initrd.clone(), format!("--image-memory {way}"));
        let command = Box::new(move || bivisor(&initrd, &words));
        Candidate { name: format!("bivisor {way}"), command, samples: Vec::new() }
    };
    let mut candidates: Vec<_> = ["copy", "map"].map(own).into();
    if qemu(&initrd, "").is_some() {
        let initrd = initrd.clone();
        let command = Box::new(move || qemu(&initrd, "").expect("it was there"));
        candidates.push(Candidate { name: "QEMU".into(), command, samples: Vec::new() });
    }
    for round in 0..rounds(10) {
        for candidate in &mut candidates {
            if let Some(sample) = sample((candidate.command)()) {
                println!(
                    "{round:3} {:20} {:6.2} s {:7} KiB",
                    candidate.name, sample.seconds, sample.kib
                );
                candidate.samples.push(sample);
            }
        }
    }
    let mut time = Measure::new("stock kernel: start to the first line from user space", "s", true);
    let mut memory = Measure::new("the same, resident beside the guest's pages", "KiB", true);
    for candidate in &candidates {
        time.add(&candidate.name, candidate.samples.iter().map(|sample| sample.seconds).collect());
        memory.add(
            &candidate.name,
            candidate.samples.iter().map(|sample| sample.kib as f64).collect(),
        );
    }
    time.tell();
    memory.tell();
}
