//! What carries virtio devices better: how long a stock kernel with one disk and one network takes
//! by each `--transport`, from the start of the process to its first line from user space, until its
//! drivers are loaded, and to read the disk; and how many exits to the program that costs.
//!
//! `cross/bench ARCH transport` runs it in an emulated host.

#[allow(dead_code, reason = "QEMU is no candidate here")]
mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use common::report::Measure;
use common::{bivisor, guests, initrd, rounds};

const DISK_LEN: u64 = 64 << 20;

/// What each figure is called, and the line that ends what it is about.
const MARKS: [(&str, &str); 4] = [
    ("first line", "The guest is up."),
    ("drivers", "Drivers are there."),
    ("4 KiB reads", "Read in small pieces."),
    ("1 MiB reads", "Read in large pieces."),
];

/// Small pieces are read one by one: each costs a notification and an interrupt.
const INIT: &str = "#!/bin/busybox sh
echo The guest is up.
/bin/busybox mkdir -p /sys /dev
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
for module in /modules/*.ko; do insmod $module; done
until [ -b /dev/vda ]; do :; done
echo Drivers are there.
echo 0 > /sys/block/vda/queue/read_ahead_kb
dd if=/dev/vda of=/dev/null bs=4k count=2000 2> /dev/null
echo Read in small pieces.
echo 1024 > /sys/block/vda/queue/read_ahead_kb
dd if=/dev/vda of=/dev/null bs=1M skip=8 2> /dev/null
echo Read in large pieces.
poweroff -f
";

/// Puts what devices need into a guest's `root`.
fn fill(root: &Path) {
    let modules = root.join("modules");
    fs::create_dir(&modules).expect("make a folder");
    let wanted = ["virtio.ko", "virtio_ring", "virtio_mmio", "virtio_pci", "virtio_blk"];
    let wanted = wanted.iter().chain(&["failover", "virtio_net"]);
    for module in fs::read_dir(guests().join("modules")).expect("they are fetched").flatten() {
        let name = module.file_name().to_string_lossy().into_owned();
        if wanted.clone().any(|part| name.contains(part)) {
            fs::copy(module.path(), modules.join(name)).expect("copy a module");
        }
    }
}

/// Seconds of each part, and exits in all.
fn sample(folder: &Path, initrd: &Path, transport: &str) -> ([f64; MARKS.len()], u64) {
    let (disk, socket, verdict) =
        (folder.join("disk.img"), folder.join("net"), folder.join("verdict"));
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).expect("listen");
    let peer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a guest comes");
        let mut frames = [0; 65536];
        while matches!(stream.read(&mut frames), Ok(1..)) {}
    });
    let mut command = bivisor(initrd, &format!("--transport {transport}"));
    command.arg("--disk").arg(disk).arg("--net").arg(format!("unix={}", socket.display()));
    command.arg("--verdict").arg(&verdict).stdin(Stdio::null()).stdout(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().expect("start bivisor");
    let mut lines = BufReader::new(child.stdout.take().expect("it has one")).lines();
    let mut before = 0.0;
    let seconds = MARKS.map(|(_, mark)| {
        let found = lines.any(|line| line.is_ok_and(|line| line.trim_end().ends_with(mark)));
        assert!(found, "the guest never says: {mark}");
        let now = start.elapsed().as_secs_f64();
        now - std::mem::replace(&mut before, now)
    });
    lines.for_each(drop);
    assert!(child.wait().expect("it ends").success());
    peer.join().expect("the peer ends");
    let verdict = fs::read(&verdict).expect("read the verdict");
    let verdict: serde_json::Value = serde_json::from_slice(&verdict).expect("it is JSON");
    (seconds, verdict["exits"]["total"].as_u64().expect("it counts exits"))
}

fn main() {
    let folder = tempfile::tempdir().expect("make a temporary folder");
    let initrd = initrd(folder.path(), INIT, fill);
    let disk = fs::File::create(folder.path().join("disk.img")).expect("make a disk");
    disk.set_len(DISK_LEN).expect("make a disk");
    let mut samples = [("mmio", Vec::new()), ("pci", Vec::new())];
    for round in 0..rounds(10) {
        for (transport, taken) in &mut samples {
            let (seconds, exits) = sample(folder.path(), &initrd, transport);
            println!("{round:3} {transport:5} {seconds:6.2?} {exits} exits");
            taken.push((seconds, exits));
        }
    }
    for (index, (name, _)) in MARKS.iter().enumerate() {
        let mut measure = Measure::new(*name, "s", true);
        for (transport, taken) in &samples {
            measure.add(*transport, taken.iter().map(|(seconds, _)| seconds[index]).collect());
        }
        measure.tell();
    }
    let mut measure = Measure::new("exits to user space", "exits", true);
    for (transport, taken) in &samples {
        measure.add(*transport, taken.iter().map(|(_, exits)| *exits as f64).collect());
    }
    measure.tell();
}
