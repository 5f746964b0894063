//! How long a stock kernel takes from the start of the monitor's process to the guest's first line
//! from user space, and what the monitor keeps in memory beside the guest's own pages: bivisor
//! with each way of `--image-memory`, and QEMU where there is one. All run in turn.
//!
//! `cross/bench ARCH` runs it in an emulated host, with QEMU 7.2.

mod common;

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use common::{bivisor, guests, initrd, median, qemu, rounds};

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

/// Resident KiB of the process, without its largest mapping and what was mapped into that.
fn resident(child: &Child) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/smaps", child.id())).unwrap_or_default();
    let mut mappings: Vec<(u64, u64, u64)> = Vec::new();
    for line in text.lines() {
        if let Some((start, end)) =
            line.split_once(' ').and_then(|(range, _)| range.split_once('-'))
            && let (Ok(start), Ok(end)) =
                (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
        {
            mappings.push((start, end, 0));
        } else if let Some(size) = line.strip_prefix("Rss:") {
            let kib = size.trim().trim_end_matches(" kB").parse().unwrap_or(0);
            mappings.last_mut().expect("a size belongs to a mapping").2 = kib;
        }
    }
    // Mappings without a gap are one: files in the guest's RAM are neighbours of its rest.
    let mut joined: Vec<(u64, u64, u64)> = Vec::new();
    for (start, end, kib) in mappings {
        match joined.last_mut() {
            Some(last) if last.1 == start => *last = (last.0, end, last.2 + kib),
            _ => joined.push((start, end, kib)),
        }
    }
    let guest = joined.iter().max_by_key(|(start, end, _)| end - start).map_or(0, |m| m.2);
    joined.iter().map(|m| m.2).sum::<u64>() - guest
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
    let sample = Sample { seconds: start.elapsed().as_secs_f64(), kib: resident(&child) };
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
    candidates.retain(|candidate| !candidate.samples.is_empty());
    println!("\n{:20} {:>8} {:>8} {:>8} {:>10}", "median of", "seconds", "least", "ratio", "KiB");
    let seconds = |c: &Candidate| c.samples.iter().map(|s| s.seconds).collect::<Vec<_>>();
    let first = median(seconds(&candidates[0]));
    for candidate in &candidates {
        let times = seconds(candidate);
        let least = times.iter().copied().fold(f64::INFINITY, f64::min);
        let kib = median(candidate.samples.iter().map(|s| s.kib).collect());
        let middle = median(times);
        println!("{:20} {middle:8.2} {least:8.2} {:8.2} {kib:10}", candidate.name, first / middle);
    }
}
