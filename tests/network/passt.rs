//! Networks through Debian's passt, without root: what it carries, and what becomes of a guest without it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Stdio;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use libtest_mimic::Trial;
use tempfile::TempDir;

use super::common::network::{busybox, interfaces, own_interfaces, tap};
use super::common::stock::{
    CLOUD, PATIENCE, add_program, boot, guests, whole_kernels, with_drivers, works,
};
use super::common::{cases, folder, kvm, long, wait};
use super::{data, exchange, guest, network_root, serve, shows, small_guest};

/// Debian's passt is here.
fn passt_fetched() -> Option<String> {
    let there = guests().join("passt/passt").is_file();
    (!there).then(|| "no passt here (cross/test fetches it)".into())
}

/// A folder with Debian's passt, which needs its own libraries.
fn install(folder: &TempDir) {
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
    install(&folder);
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
    install(&folder);
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
    install(&folder);
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

fn without_passt_its_package_is_named() {
    let folder = folder();
    let ran = small_guest(&folder, folder.path(), "user");
    let expected = "bivisor: --net user: there is no passt here: install it (apt install passt)\n";
    assert_eq!((ran.status, ran.stderr.as_str()), (125, expected));
}

pub fn trials() -> Vec<Trial> {
    cases! {
        passt_connects_guest_and_host, kvm, passt_fetched, whole_kernels, interfaces;
        a_server_in_the_guest_answers_on_a_port_of_the_host, kvm, passt_fetched, whole_kernels, interfaces;
        long_passt_connects_a_guest_with_a_pci_bus, kvm, passt_fetched, whole_kernels, interfaces, long;
        passt_says_why_it_does_not_start, passt_fetched, interfaces;
        without_passt_its_package_is_named;
    }
}
