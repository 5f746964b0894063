//! How long a stock kernel takes from the start of the monitor's process to the guest's first line
//! from user space, and what the monitor keeps in memory beside the guest's own pages: bivisor
//! with each way of `--image-memory`, and with the kernel packed as the distribution has it; other monitors
//! with the same kernel, unpacked, and the same initial RAM disk. With one vCPU and with two, all in turn.
//!
//! `cross/bench ARCH boot` runs it in an emulated host, with QEMU 7.2.

#[allow(dead_code, reason = "not all is needed here")]
mod common;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use bivisor::payload::Payload;
use bivisor::payload::image::{Image, Unpacking};
use common::peers::{self, Boot};
use common::report::Measure;
use common::smaps::Mappings;
use common::{bivisor_with, guests, initrd, rounds, terminal};

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
    command: Box<dyn Fn(&Boot) -> Command>,
    samples: Vec<Sample>,
}

fn sample(mut command: Command) -> Option<Sample> {
    let (_upper, input) = terminal();
    command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
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
    let seconds = start.elapsed().as_secs_f64();
    let kib = Mappings::of(child.id()).joined().beside_largest().resident;
    child.kill().expect("end a monitor");
    child.wait().expect("a monitor ends");
    Some(Sample { seconds, kib })
}

/// The kernel `packed` as a file in `folder` that every monitor can enter; itself where it is that already.
fn unpacked(folder: &Path, packed: &Path) -> PathBuf {
    let payload = Payload::open(packed).expect("open the kernel");
    let unpacking = Unpacking { limit: 1 << 30, cache: None, kernels: true };
    let image = Image::read(payload, &unpacking).expect("recognise the kernel");
    // What is not in memory is the file as it is.
    let Payload::Memory(bytes) = image.bytes else { return packed.into() };
    let path = folder.join("kernel");
    fs::write(&path, bytes).expect("write the kernel");
    path
}

fn boots(boot: &Boot, rounds: usize) {
    let mut candidates = Vec::new();
    let mut add = |name: &str, command: Box<dyn Fn(&Boot) -> Command>| {
        candidates.push(Candidate { name: name.into(), command, samples: Vec::new() });
    };
    // The first is what the others are compared with.
    peers::all().into_iter().for_each(|(name, command)| add(name, command));
    let own = |kernel: &Path, words: &str| {
        let (kernel, words) = (kernel.to_owned(), words.to_owned());
        let command = move |boot: &Boot| {
            let initrd = boot.initrd.as_deref().expect("it was given");
            bivisor_with(&kernel, initrd, &format!("--cpus {} {words}", boot.cpus))
        };
        Box::new(command)
    };
    add("bivisor", own(&boot.kernel, ""));
    add("bivisor --image-memory map", own(&boot.kernel, "--image-memory map"));
    let packed = guests().join("cloud");
    if packed != boot.kernel {
        add("bivisor, the kernel packed", own(&packed, ""));
    }
    for round in 0..rounds {
        // What one leaves in the host's memory is not always the same one's to bear.
        let turn = round % candidates.len();
        let (first, rest) = candidates.split_at_mut(turn);
        for candidate in rest.iter_mut().chain(first) {
            if let Some(sample) = sample((candidate.command)(boot)) {
                let (name, seconds) = (&candidate.name, sample.seconds);
                println!("{round:3} {name:28} {seconds:6.2} s {:7} KiB", sample.kib);
                candidate.samples.push(sample);
            }
        }
    }
    let title = format!("stock kernel, vCPUs: {}", boot.cpus);
    let mut time = Measure::new(format!("{title}: start to first line from user space"), "s", true);
    let mut memory =
        Measure::new(format!("{title}: resident beside the guest's pages"), "KiB", true);
    for Candidate { name, samples, .. } in &candidates {
        time.add(name, samples.iter().map(|sample| sample.seconds).collect());
        memory.add(name, samples.iter().map(|sample| sample.kib as f64).collect());
    }
    time.tell();
    memory.tell();
}

fn main() {
    let folder = tempfile::tempdir().expect("make a temporary folder");
    let init = "#!/bin/busybox sh\necho The guest is up.\nexec sleep 1000\n";
    // As large as a distribution's.
    let packed = guests().join("cloud");
    let ballast = fs::read(&packed).expect("cross/bench fetches it");
    let initrd = initrd(folder.path(), init, |root| {
        fs::write(root.join("ballast"), &ballast).expect("fill the archive");
    });
    let kernel = unpacked(folder.path(), &packed);
    for cpus in [1, 2] {
        let (folder, kernel) = (folder.path().into(), kernel.clone());
        let initrd = Some(initrd.clone());
        boots(&Boot { folder, kernel, initrd, cpus }, rounds(10));
    }
}
