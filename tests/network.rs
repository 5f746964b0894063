//! Networks of stock kernels: over the stream protocol, over a tap device of this host, and through
//! passt. Each test has network interfaces of its own, so that none is left and none is in the way.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::network::{MULTI_QUEUE, busybox, interfaces, own_interfaces, tap};
use common::stock::{
    CLOUD, PATIENCE, PROLOGUE, add_program, boot, fetched, guests, root, whole_kernels,
    with_drivers, works,
};
use common::{Ran, Run, bivisor, folder, kvm, long, wait};
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

/// Debian's passt is here.
fn passt_fetched() -> Option<String> {
    let there = guests().join("passt/passt").is_file();
    (!there).then(|| "no passt here (cross/test fetches it)".into())
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

fn without_passt_its_package_is_named() {
    let folder = folder();
    let ran = small_guest(&folder, folder.path(), "user");
    let expected = "bivisor: --net user: there is no passt here: install it (apt install passt)\n";
    assert_eq!((ran.status, ran.stderr.as_str()), (125, expected));
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

/// A folder with Debian's passt, which needs its own libraries.
fn passt(folder: &TempDir) {
    add_program(folder.path(), "passt");
    // Started by root, it becomes nobody, whom an emulated host does not know.
    if !Path::new("/etc/passwd").exists() {
        fs::create_dir_all("/etc").unwrap();
        fs::write("/etc/passwd", "nobody:x:65534:65534:nobody:/:/bin/false\n").unwrap();
    }
}

/// Interfaces as of a host that is on a network.
fn connected() {
    own_interfaces();
    tap("up0", 0, "192.0.2.2/24");
    busybox("ip route add default via 192.0.2.1");
}

fn passt_says_why_it_does_not_start() {
    connected();
    let folder = folder();
    passt(&folder);
    let _taken = TcpListener::bind("127.0.0.1:5555").unwrap();
    let ran = small_guest(&folder, folder.path(), "user,hostfwd=tcp:5555:22");
    assert_eq!(ran.status, 125, "{ran:?}");
    assert!(ran.stderr.starts_with("bivisor: --net user: passt: "), "{ran:?}");
    assert!(ran.stderr.contains("5555") && ran.stderr.lines().count() == 1, "{ran:?}");
}

fn passt_connects_guest_and_host() {
    over_passt("mmio");
}

fn long_passt_connects_a_guest_with_a_pci_bus() {
    over_passt("pci");
}

fn over_passt(transport: &str) {
    connected();
    let folder = folder();
    passt(&folder);
    let data = data();
    let (to, from) = (serve("127.0.0.1:7001", Vec::new()), serve("127.0.0.1:7002", data.clone()));
    let script = format!(
        "up 192.0.2.2/24\nip route add default via 192.0.2.1\necho mtu=$(cat /sys/class/net/eth0/mtu)\n{}{}",
        exchange("192.0.2.1", [7001, 7002]),
        // Datagrams for a port that nobody listens at.
        "until [ $(awk '/^Udp:/ { n = $3 } END { print n }' /proc/net/snmp) -gt 0 ]; do :; done\n"
    );
    let root = network_root(&script, &data);
    let net = "user,hostfwd=tcp:5555:80,hostfwd=udp:5556:5353";
    let mut run = guest(&root, net).arg("--transport").arg(transport);
    run.command.env("PATH", folder.path());
    let run = thread::spawn(|| run.finish());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    while !run.is_finished() {
        // Until passt listens there, it is refused.
        let _ = socket.send_to(b"for the guest", "127.0.0.1:5556");
        thread::sleep(Duration::from_millis(100));
    }
    assert!(to.join().unwrap() == data, "the host gets what the guest sends");
    from.join().unwrap();
    let ran = run.join().unwrap();
    for text in ["mtu=65520\n", "got it whole\n"] {
        shows(&ran, text);
    }
}

/// Answers one question for a name (RFC 1035, 4.1) with the address 198.51.100.7.
fn name_server() -> JoinHandle<()> {
    let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    thread::spawn(move || {
        let mut question = [0; 512];
        let (len, asker) = socket.recv_from(&mut question).expect("a question");
        // The same with one answer: the name of the question, type A, class IN, a time to live.
        let mut answer = question[..len].to_vec();
        answer[2..4].copy_from_slice(&[0x81, 0x80]);
        answer[7] = 1;
        answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 51, 100, 7]);
        socket.send_to(&answer, asker).unwrap();
    })
}

/// Ends the passt of this test, by the interfaces that it shares with it and with no other test, as the kernel
/// does when memory runs out.
fn kill_passt() {
    let interfaces = fs::read_link("/proc/thread-self/ns/net").unwrap();
    let is_ours = |process: &fs::DirEntry| {
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains("--tcp-ports")
            && fs::read_link(process.path().join("ns/net")).is_ok_and(|its| its == interfaces)
    };
    let processes = fs::read_dir("/proc").unwrap().flatten().filter(is_ours);
    let names = processes.map(|process| process.file_name().into_string().unwrap());
    let pids: Vec<i32> = names.map(|name| name.parse().unwrap()).collect();
    assert_eq!(pids.len(), 1, "passt runs");
    // SAFETY: kill takes plain integers and checks them.
    unsafe { libc::kill(pids[0], libc::SIGKILL) };
}

/// The command that people come with: many CPUs, much memory, a disk, and a port of the host that leads
/// to a server in the guest. All of it without root, but for the interfaces of this test. Without its passt the
/// guest's cable is unplugged, its user is told, and the rest goes on.
fn a_server_in_the_guest_answers_on_a_port_of_the_host() {
    connected();
    let folder = folder();
    passt(&folder);
    let disk = folder.path().join("vm.qcow2");
    works("qemu-img", &["create", "-q", "-f", "qcow2"], &[&disk, "64M".as_ref()]);
    let script = "up 192.0.2.2/24
ip route add default via 192.0.2.1
nslookup -type=a vm.test 192.0.2.1
mkdir /www; echo from disk $(cat /sys/block/vda/size) and $(nproc) CPUs > /www/index.html
httpd -p 80 -h /www; echo serving
until [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do sleep 0.1; done; echo no carrier
dd if=/dev/vda bs=512 count=1 of=/dev/null && echo the disk answers";
    let names = name_server();
    let root = with_drivers(network_root(script, b""), &["virtio_blk"]);
    let mut run = boot(CLOUD, &root).words("--cmdline quiet --cpus 8 --memory 8192M --disk");
    run = run.arg(&disk).words("--net user,hostfwd=tcp:5555:80");
    let mut command = run.command;
    command.env("PATH", folder.path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("start bivisor");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut seen = String::new();
    let serving = lines.any(|line| {
        seen += &line;
        line.contains("serving")
    });
    if !serving || !seen.contains("198.51.100.7") {
        panic!("{seen}: {:?}", std::io::read_to_string(child.stderr.take().unwrap()));
    }
    let mut stream = TcpStream::connect("127.0.0.1:5555").unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    assert!(answer.contains("from disk 131072 and 8 CPUs"), "{read:?} {answer:?}");
    kill_passt();
    let rest: Vec<_> = lines.collect();
    assert!(rest.iter().any(|line| line.contains("no carrier")), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("the disk answers")), "{rest:?}");
    assert_eq!(wait(&mut child, PATIENCE), Some(0));
    let told = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert!(told.contains("passt: ") && told.contains("the guest's network is down"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    names.join().unwrap();
}

fn main() {
    common::conclude(common::cases! {
        a_tap_device_carries_offloaded_frames, kvm, fetched, whole_kernels, interfaces;
        a_tap_device_with_several_queues, kvm, fetched, whole_kernels, interfaces;
        a_tap_device_goes_down_up_and_away, kvm, fetched, whole_kernels, interfaces;
        two_guests_talk_over_a_stream, kvm, fetched, whole_kernels;
        passt_connects_guest_and_host, kvm, passt_fetched, whole_kernels, interfaces;
        a_server_in_the_guest_answers_on_a_port_of_the_host, kvm, passt_fetched, whole_kernels, interfaces;
        long_passt_connects_a_guest_with_a_pci_bus, kvm, passt_fetched, whole_kernels, interfaces, long;
        passt_says_why_it_does_not_start, passt_fetched, interfaces;
        without_passt_its_package_is_named;
        links_that_are_not_there_are_named;
    })
}
