//! Networks of stock kernels: over the stream protocol, over a tap device of this host, and through
//! passt ([`passt`]). Each test has network interfaces of its own, so that none is left and none is in the way.

mod common;
#[path = "network/passt.rs"]
mod passt;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::thread::{self, JoinHandle};

use common::network::{MULTI_QUEUE, busybox, interfaces, own_interfaces, tap};
use common::stock::{CLOUD, PATIENCE, PROLOGUE, boot, fetched, root, whole_kernels, with_drivers};
use common::{Ran, Run, bivisor, folder, kvm, wait};
use tempfile::TempDir;

/// What these guests can do.
const BEGIN: &str = "mkfifo /quiet; exec 9<>/quiet
bits() { for bit; do cut -c $((bit + 1)) /sys/bus/virtio/devices/virtio0/features; done | tr -d '\\n'; }
up() { ip link set lo up; ip addr add $1 dev eth0; ip link set eth0 up; }
";

/// Bytes of what is sent. Our choice: many times what all buffers on the way hold.
const LEN: usize = 2 << 20;

/// Bytes in which nothing can be in another's place.
fn data() -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        // Numerical Recipes, "An Even Quicker Generator".
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..LEN).map(|_| next()).collect()
}

/// A root folder with drivers, `data` in a file, and an init that does `script` and switches off.
fn network_root(script: &str, data: &[u8]) -> TempDir {
    let root = root(&format!("{PROLOGUE}{BEGIN}{script}\npoweroff -f\n"));
    let root = with_drivers(root, &["failover", "virtio_net"]);
    fs::write(root.path().join("data"), data).unwrap();
    root
}

/// A guest with `root` and the network `net`.
fn guest(root: &TempDir, net: &str) -> Run {
    boot(CLOUD, root).words("--cmdline quiet --memory 256M --net").arg(net)
}

/// What a guest that ended well showed.
fn said(ran: &Ran) -> String {
    assert_eq!(ran.status, 0, "{ran:?}");
    ran.text().replace('\r', "")
}

fn shows(ran: &Ran, what: &str) {
    assert!(said(ran).contains(what), "no {what}: {ran:?}");
}

/// Takes one connection, sends `data` or else takes the other end's, and gives what came: the guest's
/// nc stops when it has nothing more to expect.
fn serve(address: &str, data: Vec<u8>) -> JoinHandle<Vec<u8>> {
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut got = Vec::new();
        if !data.is_empty() {
            stream.write_all(&data).unwrap();
            // passt of 2023 tells no end of the other direction after that of this one.
            return got;
        }
        stream.read_to_end(&mut got).expect("read what the guest sends");
        got
    })
}

/// Pings `host` until it answers, and says so.
fn reach(host: &str) -> String {
    format!("until ping -c 1 -W 1 {host} > /dev/null; do :; done; echo reached\n")
}

/// What a guest does with `host`: sends the data, and compares what it gets.
fn exchange(host: &str, ports: [u16; 2]) -> String {
    format!(
        "until nc {host} {} < /data; do sleep 1; done
until nc {host} {} <&9 > /got; do sleep 1; done
cmp /data /got && echo got it whole
",
        ports[0], ports[1]
    )
}

/// A guest on a tap device: what it and the host's kernel send each other, with and without several
/// queues.
fn over_tap(flags: u16, cpus: usize, show: &str, expected: &str) {
    own_interfaces();
    tap("tap0", flags, "10.0.0.1/24");
    let data = data();
    let (to, from) = (serve("10.0.0.1:7001", Vec::new()), serve("10.0.0.1:7002", data.clone()));
    let (reach, exchange) = (reach("10.0.0.1"), exchange("10.0.0.1", [7001, 7002]));
    let script = format!("up 10.0.0.2/24\n{show}\n{reach}{exchange}");
    let root = network_root(&script, &data);
    let ran = guest(&root, "tap=tap0").words(&format!("--cpus {cpus}")).finish();
    shows(&ran, expected);
    shows(&ran, "reached\n");
    shows(&ran, "got it whole\n");
    assert!(to.join().unwrap() == data, "the host gets what the guest sends");
    from.join().unwrap();
}

/// Checksums, segmentation both ways, mergeable buffers, MAC and MTU.
fn a_tap_device_carries_offloaded_frames() {
    let show = "echo offers=$(bits 0 1 5 7 8 11 12 15 16) $(cat /sys/class/net/eth0/address)";
    over_tap(0, 1, show, "offers=111111111 02:62:76:00:00:00\n");
}

fn a_tap_device_with_several_queues() {
    let show = "echo queues=$(ls /sys/class/net/eth0/queues | wc -w) $(bits 17 22)";
    over_tap(MULTI_QUEUE, 2, show, "queues=4 11\n");
}

/// HOSTILE 41: a tap device that is down loses frames; one that is deleted is a cable that is pulled.
fn a_tap_device_goes_down_up_and_away() {
    own_interfaces();
    tap("tap0", 0, "10.0.0.1/24");
    let script = "up 10.0.0.2/24
reach() { until ping -c 1 -W 1 10.0.0.1 > /dev/null; do :; done; echo reached $1; read line; }
reach first
ping -c 1 -W 1 10.0.0.1 > /dev/null || echo not reached; read line
reach again
until [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do :; done; echo no carrier
ping -c 1 -W 1 10.0.0.1 > /dev/null || echo not reached";
    let root = network_root(script, b"");
    let mut command = guest(&root, "tap=tap0").command;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("start bivisor");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut stdin = child.stdin.take().unwrap();
    let mut wait_for = |text: &str| {
        let found = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains(text)));
        assert!(found.is_some(), "the guest says '{text}'");
    };
    wait_for("reached first");
    busybox("ip link set tap0 down");
    stdin.write_all(b"\n").unwrap();
    wait_for("not reached");
    busybox("ip link set tap0 up");
    stdin.write_all(b"\n").unwrap();
    wait_for("reached again");
    busybox("ip link del tap0");
    stdin.write_all(b"\n").unwrap();
    wait_for("no carrier");
    wait_for("not reached");
    assert_eq!(wait(&mut child, PATIENCE), Some(0));
    let told = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert!(told.contains("tap tap0: ") && told.contains("the guest's network is down"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
}

/// Carries bytes from each of two guests to the other, once both are there.
fn cable(ends: [UnixListener; 2]) -> JoinHandle<()> {
    thread::spawn(move || {
        let ends = ends.map(|end| end.accept().expect("a guest comes").0);
        let carry = |from: &UnixStream, to: &UnixStream| {
            let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            thread::spawn(move || {
                // A guest that ends is no error.
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            })
        };
        let both = [carry(&ends[0], &ends[1]), carry(&ends[1], &ends[0])];
        both.into_iter().for_each(|one| one.join().unwrap());
    })
}

fn two_guests_talk_over_a_stream() {
    let folder = folder();
    let cable = cable(["a", "b"].map(|name| UnixListener::bind(folder.path().join(name)).unwrap()));
    // Our choice: exits are what takes time here, some for each frame, so there are fewer of them.
    let data = data()[..LEN / 2].to_vec();
    let serves = "up 10.0.0.1/24
nc -l -p 7001 <&9 > /got
nc -l -p 7002 < /data > /dev/null
cmp /data /got && echo got it whole";
    let (reach, exchange) = (reach("10.0.0.1"), exchange("10.0.0.1", [7001, 7002]));
    let asks = format!("up 10.0.0.2/24\n{reach}{exchange}");
    let start = |name: &str, way: &str, script: &str| {
        let root = network_root(script, &data);
        (guest(&root, &format!("{way},mtu=9000,mac=02:00:00:00:00:0{name}")), root)
    };
    let [by_path, open] = ["a", "b"].map(|name| folder.path().join(name));
    let (by_path, _root) = start("a", &format!("unix={}", by_path.display()), serves);
    // One has the socket from whoever has started it.
    const PASSED: i32 = 100;
    let (mut passed, _its_root) = start("b", &format!("fd={PASSED}"), &asks);
    let socket = UnixStream::connect(open).unwrap();
    let fd = socket.as_raw_fd();
    // SAFETY: dup2 takes plain integers and checks them.
    let pass = move || match unsafe { libc::dup2(fd, PASSED) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    };
    // SAFETY: the closure makes one system call.
    unsafe { passed.command.pre_exec(pass) };
    let runs = [by_path, passed].map(|run| thread::spawn(|| run.finish()));
    for run in runs {
        shows(&run.join().unwrap(), "got it whole\n");
    }
    // The cable ends with the last who has an end of it.
    drop(socket);
    cable.join().unwrap();
}

/// `bivisor run` of a small guest with `net`, where it finds the program passt or does not.
fn small_guest(folder: &TempDir, path: &Path, net: &str) -> Ran {
    let mut run = bivisor("run").arg(common::guest_file(folder, "hello")).words("--net").arg(net);
    run.command.env("PATH", path);
    run.finish()
}

fn links_that_are_not_there_are_named() {
    let folder = folder();
    for (net, named) in [
        ("tap=nosuch0", "--net tap=nosuch0: there is no interface nosuch0: make it"),
        ("tap=much-too-long-a-name", "at most 15 bytes"),
        ("unix=/nosuch", "--net unix=/nosuch: connect to it"),
        ("fd=0", "--net fd=0: the first three are standard streams"),
        ("fd=1000", "--net fd=1000: use it (was it passed on?)"),
    ] {
        let ran = small_guest(&folder, folder.path(), net);
        assert!(ran.status == 125 && ran.stderr.contains(named), "{net}: {ran:?}");
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    }
}

fn main() {
    let own = common::cases! {
        a_tap_device_carries_offloaded_frames, kvm, fetched, whole_kernels, interfaces;
        a_tap_device_with_several_queues, kvm, fetched, whole_kernels, interfaces;
        a_tap_device_goes_down_up_and_away, kvm, fetched, whole_kernels, interfaces;
        two_guests_talk_over_a_stream, kvm, fetched, whole_kernels;
        links_that_are_not_there_are_named;
    };
    common::conclude(own.into_iter().chain(passt::trials()).collect())
}
