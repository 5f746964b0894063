//! The socket device, driven through its registers: connections from both sides, credit, ends;
//! [`hostile`]: whatever else there may be.

mod hostile;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use super::connection::BUFFER_LEN;
use super::packet::*;
use super::*;
use crate::virtio::driver::{Buffer, Driver};

const CID: u32 = 42;

/// Where packets to the device and buffers for those from it lie.
const OUT: u64 = 0x1_0000;
const IN: u64 = 0x4_0000;
const IN_LEN: u32 = 0x1000;

/// What a guest that has room says of it.
const ROOM: u32 = 1 << 16;

/// A guest's driver and its host's folder.
struct Guest {
    driver: Driver,
    folder: tempfile::TempDir,
    /// Buffers for packets are made available again.
    refills: bool,
}

impl Guest {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let device = Vsock::new(CID, &folder.path().join("socket")).unwrap();
        let mut guest = Self { driver: Driver::new(Box::new(device)), folder, refills: true };
        guest.start();
        guest
    }

    fn start(&mut self) {
        self.driver.start(1 << 29);
        for at in 0..16 {
            self.offer(at);
        }
        self.driver.notify(RX);
    }

    /// Makes all buffers that are used available again.
    fn refill(&mut self) {
        while let Some((head, _)) = self.driver.used(RX) {
            self.offer(head);
        }
        self.driver.notify(RX);
    }

    fn offer(&mut self, at: u16) {
        let guest_addr = IN + u64::from(at) * u64::from(IN_LEN);
        assert_eq!(self.driver.offer(RX, &[Buffer::Writable(guest_addr, IN_LEN)]), at);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.path(&format!("socket_{port}"))).unwrap()
    }

    /// A header from the guest's port to the host's.
    fn header(guest: u32, host: u32, op: u16) -> Header {
        Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: guest,
            dst_port: host,
            kind: STREAM,
            op,
            buf_alloc: ROOM,
            ..Header::default()
        }
    }

    fn send(&mut self, header: Header, data: &[u8]) {
        self.driver.ram.write(&[&header.bytes(), data].concat(), OUT).unwrap();
        let len = (HEADER_LEN + data.len()) as u32;
        assert_eq!(self.driver.request(TX, &[Buffer::Readable(OUT, len)]), 0);
    }

    /// Sends data on a connection whose host's side has sent `received` bytes.
    fn write(&mut self, (guest, host): (u32, u32), data: &[u8], received: u32) {
        let header = Self::header(guest, host, OP_RW);
        self.send(Header { len: data.len() as u32, fwd_cnt: received, ..header }, data);
    }

    /// The next packet.
    fn receive(&mut self) -> (Header, Vec<u8>) {
        let (head, written) = self.driver.wait_for_used(RX);
        let bytes =
            self.driver.ram.peek(IN + u64::from(head) * u64::from(IN_LEN), written as usize);
        let (header, data) = bytes.split_first_chunk().unwrap();
        if self.refills {
            self.offer(head);
            self.driver.notify(RX);
        }
        let header = Header::parse(header);
        assert_eq!((header.dst_cid, header.len as usize), (CID.into(), data.len()));
        (header, data.to_vec())
    }

    /// The next packet, which must be of this kind.
    fn expect(&mut self, op: u16) -> Header {
        let (header, _) = self.receive();
        assert_eq!(header.op, op, "{header:?}");
        header
    }

    /// A connection of the guest from `guest` to a listener of the host at `host`.
    fn connect(&mut self, guest: u32, host: u32) -> UnixStream {
        let listener = self.listen(host);
        self.send(Self::header(guest, host, OP_REQUEST), &[]);
        let response = loop {
            // An earlier connection may have asked for room only now.
            match self.receive().0 {
                header if header.op == OP_CREDIT_REQUEST && header.src_port != host => {}
                header => break header,
            }
        };
        assert_eq!(response.op, OP_RESPONSE, "{response:?}");
        assert_eq!((response.src_port, response.dst_port), (host, guest));
        assert_eq!((response.src_cid, response.buf_alloc), (HOST_CID, BUFFER_LEN as u32));
        let stream = listener.accept().unwrap().0;
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        std::fs::remove_file(self.path(&format!("socket_{host}"))).unwrap();
        stream
    }

    fn dial(&self, line: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.path("socket")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        stream
    }
}

fn read(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_program_of_the_host_reaches_one_of_the_guest() {
    let mut guest = Guest::new();
    assert_eq!(guest.driver.config(0, 12), [42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut stream = guest.dial("CONNECT 52\nhello");
    let request = guest.expect(OP_REQUEST);
    assert_eq!((request.src_cid, request.dst_port, request.kind), (HOST_CID, 52, STREAM));
    let ports = (52, request.src_port);
    guest.send(Guest::header(ports.0, ports.1, OP_RESPONSE), &[]);
    let line = format!("OK {}\n", ports.1);
    assert_eq!(read(&mut stream, line.len()), line.as_bytes());
    assert_eq!(guest.receive().1, b"hello");
    guest.write(ports, b"world", 5);
    assert_eq!(read(&mut stream, 5), b"world");

    // The guest has nothing more to send, the host has.
    let half = Header { flags: NO_SEND, ..Guest::header(ports.0, ports.1, OP_SHUTDOWN) };
    guest.send(half, &[]);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    stream.write_all(b"more").unwrap();
    assert_eq!(guest.receive().1, b"more");
    drop(stream);
    assert_eq!(guest.expect(OP_SHUTDOWN).flags, NEITHER);
    guest.send(Guest::header(ports.0, ports.1, OP_RST), &[]);
    // It is forgotten.
    guest.write(ports, b"?", 0);
    guest.expect(OP_RST);
}

#[test]
fn a_program_of_the_guest_reaches_one_of_the_host() {
    let mut guest = Guest::new();
    let mut stream = guest.connect(1000, 7);
    guest.write((1000, 7), b"question", 0);
    assert_eq!(read(&mut stream, 8), b"question");
    stream.write_all(b"answer").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let (header, data) = guest.receive();
    assert_eq!((header.op, header.fwd_cnt, &data[..]), (OP_RW, 8, &b"answer"[..]));
    assert_eq!(guest.expect(OP_SHUTDOWN).flags, NO_SEND);
    guest.write((1000, 7), b"thanks", 6);
    guest.send(Header { flags: NEITHER, ..Guest::header(1000, 7, OP_SHUTDOWN) }, &[]);
    guest.expect(OP_RST);
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "thanks");
}

#[test]
fn the_host_sends_no_more_than_the_guest_has_room_for() {
    let mut guest = Guest::new();
    guest.refills = false;
    let listener = guest.listen(9);
    guest.send(Header { buf_alloc: 100, ..Guest::header(1, 9, OP_REQUEST) }, &[]);
    guest.expect(OP_RESPONSE);
    let mut stream = listener.accept().unwrap().0;
    stream.write_all(&[7; 250]).unwrap();
    assert_eq!(guest.receive().1.len(), 100);
    guest.expect(OP_CREDIT_REQUEST);
    for (room, forwarded, expected) in [(100, 60, 60), (200, 160, 90)] {
        let update = Guest::header(1, 9, OP_CREDIT_UPDATE);
        guest.send(Header { buf_alloc: room, fwd_cnt: forwarded, ..update }, &[]);
        assert_eq!(guest.receive().1.len(), expected, "{room} {forwarded}");
        if expected == 60 {
            guest.expect(OP_CREDIT_REQUEST);
        }
    }
    // HOSTILE 42: room that makes no sense is none; then the guest says the truth.
    for (room, forwarded) in [(0, 250), (u32::MAX, 251), (1000, u32::MAX), (1000, 1 << 31)] {
        let update = Guest::header(1, 9, OP_CREDIT_UPDATE);
        guest.send(Header { buf_alloc: room, fwd_cnt: forwarded, ..update }, &[]);
    }
    stream.write_all(&[8; 10]).unwrap();
    let update = Guest::header(1, 9, OP_CREDIT_REQUEST);
    guest.send(Header { buf_alloc: u32::MAX, fwd_cnt: 250, ..update }, &[]);
    let mut data = Vec::new();
    while data.len() < 10 {
        data.extend(guest.receive().1);
    }
    assert_eq!(data, [8; 10]);
}

#[test]
fn the_guest_may_send_as_much_as_it_was_told_and_all_of_it_arrives() {
    let mut guest = Guest::new();
    let mut stream = guest.connect(1, 2);
    let (mut sent, mut forwarded) = (0usize, 0usize);
    let mut expected = Vec::new();
    const PART: usize = 0x8000;
    // As long as its credit lasts, with a host's program that reads nothing.
    loop {
        while let Some((head, written)) = guest.driver.used(RX) {
            let at = IN + u64::from(head) * u64::from(IN_LEN);
            let bytes = guest.driver.ram.peek(at, written as usize);
            let header = Header::parse(bytes.first_chunk().unwrap());
            assert_eq!(header.op, OP_CREDIT_UPDATE);
            forwarded = header.fwd_cnt as usize;
            guest.offer(head);
        }
        if sent + PART > forwarded + BUFFER_LEN {
            std::thread::sleep(Duration::from_millis(100));
            if guest.driver.used(RX).is_none() {
                break;
            }
            panic!("an update came late: is this host so slow?");
        }
        let part: Vec<u8> = (0..PART).map(|at| (at * 7 + sent / PART) as u8).collect();
        guest.write((1, 2), &part, 0);
        expected.extend(part);
        sent += PART;
    }
    assert!(sent >= BUFFER_LEN, "{sent}");
    // Its end does not overtake what it sent.
    guest.send(Header { flags: NEITHER, ..Guest::header(1, 2, OP_SHUTDOWN) }, &[]);
    guest.expect(OP_RST);
    let mut arrived = Vec::new();
    stream.read_to_end(&mut arrived).unwrap();
    assert!(arrived == expected, "{} of {sent} bytes", arrived.len());
}

#[test]
fn a_reset_of_the_device_closes_all_and_programs_can_wait_for_the_driver() {
    let mut guest = Guest::new();
    let mut stream = guest.connect(1, 2);
    guest.driver.set(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    let _early = guest.dial("CONNECT 5\n");
    guest.start();
    guest.expect(OP_REQUEST);
    let path = guest.path("socket");
    drop(guest.driver);
    assert!(!path.exists());
}
