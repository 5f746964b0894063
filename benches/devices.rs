//! What disks and networks carry: fio and iperf3 in a stock guest, on the same files and the same
//! tap device, with bivisor and with QEMU in turn.
//!
//! `cross/bench ARCH devices` runs it in an emulated host, with QEMU 7.2. The disk's file is in that
//! host's memory, so what is measured is the way there and not the disk.

#[allow(dead_code, reason = "not all is needed here")]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::report::Measure;
use common::{bivisor, guests, initrd, program, qemu, rounds};

const DISK_LEN: u64 = 64 << 20;

/// What a guest does: a line `row NAME NUMBER` for each row of the table. Sizes and times are our
/// choice: a job of fio is as long as its start in an emulated host.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tools /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
for module in /modules/*.ko; do insmod $module; done
for disk in /sys/block/vd*; do
  read -r serial < $disk/serial
  case $serial in tools) tools=/dev/${disk##*/} ;; data) data=/dev/${disk##*/} ;; esac
done
mount -t ext4 -o ro,noload $tools /tools
tool() { tree=/tools/$1; shift; $tree/loader --library-path $tree $tree/${tree##*/} "$@"; }
job() {
  tool fio --output-format=terse --terse-version=3 --filename=$data --direct=1 --ioengine=libaio \
    --runtime=3 --time_based --name=$1 --rw=$2 --bs=$3 --iodepth=$4 2>/dev/null |
    awk -F';' -v name=$1 '$1 == 3 { print "row", name, $8 + $49 }'
}
job randread-1 randread 4k 1
job randread-32 randread 4k 32
job randwrite-1 randwrite 4k 1
job randwrite-32 randwrite 4k 32
job read-seq read 256k 4
job write-seq write 256k 4
ip link set lo up
ip addr add 10.0.0.2/24 dev eth0
ip link set eth0 up
until ping -c 1 -W 1 10.0.0.1 >/dev/null; do :; done
net() {
  name=$1; shift
  tool iperf3 -c 10.0.0.1 -t 4 -O 1 -f m "$@" | awk -v name=$name '/receiver/ { print "row", name, $7 }'
}
net net-out
net net-in -R
poweroff -f
"#;

/// What runs as long as this value lives.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn works(mut command: Command) {
    let status = command.stdout(Stdio::null()).status();
    assert!(status.as_ref().is_ok_and(|status| status.success()), "{command:?}: {status:?}");
}

fn busybox(line: &str) {
    let mut command = Command::new(guests().join("busybox"));
    command.args(line.split(' '));
    works(command);
}

/// The tools' disk, and one for data.
fn disks(folder: &Path) -> [String; 2] {
    let [tools, data] = ["tools.img", "data.img"].map(|name| folder.join(name));
    File::create(&tools).and_then(|file| file.set_len(160 << 20)).expect("make a disk");
    let mut command = program(&guests().join("disk-tools/mke2fs"), "mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-d"]).arg(guests().join("load-tools")).arg(&tools);
    works(command);
    fs::write(&data, vec![0x5a; DISK_LEN as usize]).expect("make a disk");
    [tools, data].map(|path| path.display().to_string())
}

/// Runs a guest and adds its rows to `rows`.
fn measure(mut command: Command, name: &str, rows: &mut BTreeMap<(String, String), Vec<f64>>) {
    let output = command.stdin(Stdio::null()).output().expect("start a monitor");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut found = 0;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["row", row, number] = words[..]
            && let Ok(number) = number.parse::<f64>()
        {
            println!("{name:12} {row:14} {number:10.1}");
            rows.entry((row.to_owned(), name.to_owned())).or_default().push(number);
            found += 1;
        }
    }
    if found == 0 {
        eprintln!("{name}: no rows: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn main() {
    let folder = tempfile::tempdir().expect("make a temporary folder");
    let initrd = initrd(folder.path(), INIT, |root| {
        let modules = root.join("modules");
        fs::create_dir(&modules).expect("make a folder");
        for entry in fs::read_dir(guests().join("modules")).expect("they are fetched").flatten() {
            fs::copy(entry.path(), modules.join(entry.file_name())).expect("copy a module");
        }
    });
    let [tools, data] = disks(folder.path());
    busybox("tunctl -t bench0");
    busybox("ip addr add 10.0.0.1/24 dev bench0");
    busybox("ip link set bench0 up");
    let mut server = program(&guests().join("load-tools/iperf3"), "iperf3");
    let server = server.arg("-s").stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let _server = Served(server.expect("start iperf3"));

    let own = format!(
        "--disk {tools},serial=tools,readonly --disk {data},serial=data --net tap=bench0 {}",
        std::env::var("BIVISOR_OPTIONS").unwrap_or_default()
    );
    // microvm has its devices on virtio-mmio; virt's users have them on PCI, where a network card would
    // want a ROM to start from.
    let x86_64 = cfg!(target_arch = "x86_64");
    let (bus, rom) = if x86_64 { ("device", "") } else { ("pci", ",romfile=") };
    let peer = format!(
        "-drive if=none,id=t,file={tools},format=raw,readonly=on \
         -device virtio-blk-{bus},drive=t,serial=tools \
         -drive if=none,id=d,file={data},format=raw -device virtio-blk-{bus},drive=d,serial=data \
         -netdev tap,id=n,ifname=bench0,script=no,downscript=no -device virtio-net-{bus},netdev=n{rom}"
    );
    let mut rows = BTreeMap::new();
    for _ in 0..rounds(3) {
        measure(bivisor(&initrd, &own), "bivisor", &mut rows);
        if let Some(command) = qemu(&guests().join("cloud"), Some(&initrd), &peer) {
            measure(command, "QEMU", &mut rows);
        }
    }
    busybox("tunctl -d bench0");
    let names: BTreeSet<_> = rows.keys().map(|(row, _)| row.clone()).collect();
    for row in names {
        let is_disk = row.contains("read") || row.contains("write");
        let unit = if is_disk { "requests/s" } else { "Mbit/s" };
        let mut measure = Measure::new(row.clone(), unit, false);
        for name in ["QEMU", "bivisor"] {
            measure.add(name, rows.remove(&(row.clone(), name.to_owned())).unwrap_or_default());
        }
        measure.tell();
    }
}
