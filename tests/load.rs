//! Load on disks and networks: fio and iperf3 of Debian's packages in stock guests, and what a request
//! costs in exits.

mod common;

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use common::network::{interfaces, own_interfaces, tap};
use common::stock::{
    CLOUD, PROLOGUE, boot, fetched, guests, program, root, whole_kernels, with_drivers, works,
};
use common::{Ran, cases, folder, kvm, long};
use tempfile::TempDir;

/// What each of these guests begins with: a disk with the tools, `tool NAME ARGUMENT…` and the disk
/// for data.
const TOOLS: &str = "mkdir /tools /tmp
mount -t ext4 -o ro,noload /dev/vda /tools
tool() { tree=/tools/$1; shift; $tree/loader --library-path $tree $tree/${tree##*/} \"$@\"; }
";

/// A disk with fio and iperf3.
fn tools(folder: &TempDir) -> PathBuf {
    let disk = folder.path().join("tools.img");
    File::create(&disk).unwrap().set_len(160 << 20).unwrap();
    let load = guests().join("load-tools");
    works("mke2fs", &["-q", "-F", "-t", "ext4", "-d"], &[&load, &disk]);
    disk
}

/// A guest with the tools that does `script` and ends well; `words` are more options.
fn guest(folder: &TempDir, script: &str, words: &str) -> Ran {
    let root = root(&format!("{PROLOGUE}{TOOLS}{script}poweroff -f\n"));
    let root = with_drivers(root, &["virtio_blk", "failover", "virtio_net"]);
    let disk = tools(folder);
    let run = boot(CLOUD, &root).words("--memory 256M --cmdline quiet --timings --disk").arg(&disk);
    let ran = run.words(words).finish();
    assert_eq!(ran.status, 0, "{}\n{}", ran.stderr, ran.text());
    ran
}

/// Requests of fio's, and the exits of the machine's whole life.
fn requests_and_exits(ran: &Ran) -> (u64, u64) {
    let text = ran.text();
    let issued = text.split("issued rwts: total=").skip(1).map(|rest| {
        let numbers = rest.split_whitespace().next().unwrap().split(',');
        numbers.map(|number| number.parse::<u64>().unwrap()).sum::<u64>()
    });
    let exits = ran.stderr.lines().filter_map(|line| line.strip_prefix("exits of vCPU"));
    let exits = exits.map(|line| line.split_whitespace().last().unwrap().parse::<u64>().unwrap());
    (issued.sum(), exits.sum())
}

/// Sequential and random, one at a time and 32: fio reads back what it wrote.
fn fio_reads_what_it_wrote(disk: &str) {
    let mut script = String::new();
    for (pattern, depth) in [("write", 1), ("randwrite", 32), ("randwrite", 1), ("write", 32)] {
        script += &format!(
            "tool fio --name=job --filename=/dev/vdb --direct=1 --ioengine=libaio --bs=4k --size=1m --eta=never \
             --rw={pattern} --iodepth={depth} --verify=crc32c --verify_fatal=1 && echo verified\n"
        );
    }
    let ran = guest(&folder(), &script, disk);
    let text = ran.text();
    assert_eq!(
        text.matches("verified\n").count() + text.matches("verified\r").count(),
        4,
        "{text}"
    );
}

fn long_fio_on_a_raw_disk() {
    fio_reads_what_it_wrote("--scratch 64M");
}

fn long_fio_on_a_qcow2_disk() {
    let folder = folder();
    let disk = folder.path().join("data.qcow2");
    works("qemu-img", &["create", "-q", "-f", "qcow2"], &[&disk, "64M".as_ref()]);
    fio_reads_what_it_wrote(&format!("--transport mmio --disk {}", disk.display()));
    works("qemu-img", &["check", "-q", "-f", "qcow2"], &[&disk]);
}

/// The promise is one exit for five requests when 32 are under way. What the boot and fio's start take
/// is known from a guest that does little else.
fn long_many_requests_share_an_exit() {
    const REQUESTS: u64 = 3000;
    let [few, many] = [100, 100 + REQUESTS].map(|count| {
        let script = format!(
            "tool fio --name=job --filename=/dev/vdb --direct=1 --ioengine=libaio --bs=4k \
             --eta=never --output=/tmp/said --rw=randread --iodepth=32 --number_ios={count}; grep rwts /tmp/said\n"
        );
        let ran = guest(&folder(), &script, "--scratch 64M");
        let (requests, exits) = requests_and_exits(&ran);
        assert!(requests >= count, "{}", ran.text());
        (requests, exits)
    });
    let (requests, exits) = (many.0 - few.0, many.1.saturating_sub(few.1));
    println!("{exits} exits for {requests} requests");
    assert!(exits * 5 < requests, "{exits} exits for {requests} requests: {few:?}, {many:?}");
}

/// Ends when it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn long_iperf3_both_ways() {
    own_interfaces();
    tap("tap0", 0, "10.0.0.1/24");
    let mut server = program("load-tools/iperf3");
    let server = server.arg("-s").stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let _server = Server(server.expect("start iperf3"));
    let script = "ip link set lo up; ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 up
until ping -c 1 -W 1 10.0.0.1 >/dev/null; do :; done
tool iperf3 -c 10.0.0.1 -n 32M && tool iperf3 -c 10.0.0.1 -n 32M -R && echo both ways
";
    for transport in ["pci", "mmio"] {
        let ran = guest(&folder(), script, &format!("--net tap=tap0 --transport {transport}"));
        let text = ran.text();
        assert!(text.contains("both ways"), "{transport}: {text}");
        println!("{transport}: {text}");
    }
}

fn main() {
    common::conclude(cases![
        long_many_requests_share_an_exit, kvm, fetched, whole_kernels, long;
        long_fio_on_a_raw_disk, kvm, fetched, whole_kernels, long;
        long_fio_on_a_qcow2_disk, kvm, fetched, whole_kernels, long;
        long_iperf3_both_ways, kvm, fetched, whole_kernels, interfaces, long;
    ]);
}
