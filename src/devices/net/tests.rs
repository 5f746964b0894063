//! The network device, driven through its registers, with a peer at the other end of a socket.

mod hostile;

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::{Duration, Instant};

use super::header::{Header, LEN};
use super::*;
use crate::virtio::driver::{Buffer, Driver};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Where buffers lie that the device writes to, and those that it reads.
const ROOM: u64 = 0x1_0000;
const FRAME: u64 = 0x6_0000;

const EVENT_IDX: u64 = 1 << 29;
const INDIRECT: u64 = 1 << 28;
const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;

/// A driver whose device leads to the peer.
fn with_stream(features: u64) -> (Driver, UnixStream) {
    with_limited_stream(features, Rates::default())
}

fn with_limited_stream(features: u64, rates: Rates) -> (Driver, UnixStream) {
    let (ours, peer) = UnixStream::pair().unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let link = socket::streaming("test".into(), ours.into()).unwrap();
    let device = Net::new(link, Mac::of(0), None).limited(rates);
    let mut driver = Driver::new(Box::new(device));
    driver.start(features);
    (driver, peer)
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(7).wrapping_add(seed)).collect()
}

fn put(peer: &mut UnixStream, frame: &[u8]) {
    let mut bytes = (frame.len() as u32).to_be_bytes().to_vec();
    bytes.extend(frame);
    peer.write_all(&bytes).unwrap();
}

fn get(peer: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    peer.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    peer.read_exact(&mut frame).unwrap();
    frame
}

/// Waits for a frame in `count` buffers of `len` bytes from `ROOM`; gives its bytes.
fn received(driver: &mut Driver, count: usize, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for index in 0..count {
        let (_, written) = driver.wait_for_used(RECEIVE);
        bytes.extend(driver.ram.peek(ROOM + (index * len) as u64, written as usize));
    }
    let header: [u8; LEN] = bytes[..LEN].try_into().unwrap();
    let expected = Header { num_buffers: count as u16, ..Header::default() };
    assert_eq!(Header::parse(&header), expected);
    bytes.split_off(LEN)
}

/// Gives the device room: `count` buffers of `len` bytes from `ROOM`.
fn give(driver: &mut Driver, count: usize, len: usize) {
    for index in 0..count {
        driver.offer(RECEIVE, &[Buffer::Writable(ROOM + (index * len) as u64, len as u32)]);
    }
    driver.notify(RECEIVE);
}

/// Sends `bytes` as a chain of its own, header and all.
fn send(driver: &mut Driver, bytes: &[u8]) {
    driver.ram.write(bytes, FRAME).unwrap();
    driver.request(TRANSMIT, &[Buffer::Readable(FRAME, bytes.len() as u32)]);
}

fn with_header(header: Header, frame: &[u8]) -> Vec<u8> {
    [&header.bytes()[..], frame].concat()
}

#[test]
fn frames_go_both_ways_whole() {
    for features in [0, EVENT_IDX, EVENT_IDX | INDIRECT | MERGEABLE] {
        let (mut driver, mut peer) = with_stream(features);
        for (seed, len) in [14, 60, 1514, 9000].into_iter().enumerate() {
            let sent = frame(len, seed as u8);
            // The header apart, and in one piece with the frame.
            let bytes = with_header(Header::default(), &sent);
            driver.ram.write(&bytes, FRAME).unwrap();
            let (head, rest) = (12, len as u32 / 2);
            let last = len as u32 - rest;
            let at = FRAME + u64::from(head);
            driver.request(
                TRANSMIT,
                &[
                    Buffer::Readable(FRAME, head),
                    Buffer::Readable(at, rest),
                    Buffer::Readable(at + u64::from(rest), last),
                ],
            );
            assert_eq!(get(&mut peer), sent);
            send(&mut driver, &bytes);
            assert_eq!(get(&mut peer), sent);

            give(&mut driver, 1, 0x4000);
            put(&mut peer, &sent);
            assert_eq!(received(&mut driver, 1, 0x4000), sent);
        }
    }
}

/// Either way, by frames or by bytes: nothing is lost, and it takes its time. Load makes it take longer.
#[test]
fn a_limited_network_takes_its_time() {
    let frames = Rates { operations: Some(100), bytes: None };
    for rates in [frames, Rates { operations: None, bytes: Some(100 * 1000) }] {
        let (mut driver, mut peer) = with_limited_stream(0, rates);
        let sent = frame(1000, 1);
        let began = Instant::now();
        // A burst of ten goes through, and what comes last is paid for later.
        for _ in 0..30 {
            send(&mut driver, &with_header(Header::default(), &sent));
            assert_eq!(get(&mut peer), sent);
        }
        let least = Duration::from_millis(19 * 10);
        assert!(began.elapsed() >= least, "{rates:?}: sent in {:?}", began.elapsed());
        let began = Instant::now();
        for _ in 0..30 {
            give(&mut driver, 1, 0x1000);
            put(&mut peer, &sent);
            assert_eq!(received(&mut driver, 1, 0x1000), sent);
        }
        assert!(began.elapsed() >= least, "{rates:?}: received in {:?}", began.elapsed());
    }
}

#[test]
fn a_frame_is_spread_over_as_many_buffers_as_it_takes() {
    let (mut driver, mut peer) = with_stream(MERGEABLE | EVENT_IDX);
    for (len, count) in [(52, 1), (53, 2), (116, 2), (117, 3), (14 * 64 - 12, 14)] {
        give(&mut driver, count, 64);
        let sent = frame(len, 9);
        put(&mut peer, &sent);
        assert_eq!(received(&mut driver, count, 64), sent, "{len}");
    }
    // The second half of the buffers comes late.
    let sent = frame(8 * 64 - 12, 3);
    give(&mut driver, 4, 64);
    put(&mut peer, &sent);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.used(RECEIVE), None);
    for index in 4..8 {
        driver.offer(RECEIVE, &[Buffer::Writable(ROOM + index * 64, 64)]);
    }
    driver.notify(RECEIVE);
    assert_eq!(received(&mut driver, 8, 64), sent);
}

#[test]
fn a_stream_may_come_byte_by_byte() {
    let (mut driver, mut peer) = with_stream(MERGEABLE);
    give(&mut driver, 8, 64);
    let sent = frame(100, 1);
    let mut bytes = 100u32.to_be_bytes().to_vec();
    bytes.extend(&sent);
    bytes.extend(14u32.to_be_bytes());
    bytes.extend(&sent[..14]);
    for byte in bytes {
        peer.write_all(&[byte]).unwrap();
        std::thread::yield_now();
    }
    assert_eq!(received(&mut driver, 2, 64), sent);
    let (_, written) = driver.wait_for_used(RECEIVE);
    assert_eq!(driver.ram.peek(ROOM + 128 + 12, written as usize - 12), sent[..14]);
}

/// A sender that does not wait: how much it gets rid of before it would have to.
fn fill(peer: &mut UnixStream, frame: &[u8]) -> usize {
    peer.set_nonblocking(true).unwrap();
    let mut bytes = (frame.len() as u32).to_be_bytes().to_vec();
    bytes.extend(frame);
    let (mut sent, mut last) = (0, Instant::now());
    while last.elapsed() < Duration::from_millis(100) {
        match peer.write(&bytes[sent % bytes.len()..]) {
            Ok(count) => (sent, last) = (sent + count, Instant::now()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        assert!(sent < 64 << 20, "somebody takes what the guest has no room for");
    }
    peer.set_nonblocking(false).unwrap();
    sent
}

#[test]
fn a_guest_without_room_holds_the_sender_up_and_loses_nothing() {
    let (mut driver, mut peer) = with_stream(MERGEABLE);
    let sent = frame(1000, 5);
    let filled = fill(&mut peer, &sent);
    for _ in 0..filled / 1004 {
        give(&mut driver, 1, 2048);
        assert_eq!(received(&mut driver, 1, 2048), sent);
    }
}

#[test]
fn a_peer_that_does_not_read_holds_the_guest_up_and_nothing_is_lost() {
    let (mut driver, mut peer) = with_stream(EVENT_IDX);
    let sent = frame(30_000, 5);
    driver.ram.write(&with_header(Header::default(), &sent), FRAME).unwrap();
    let buffer = [Buffer::Readable(FRAME, 30_012)];
    // Until no chain has come back for a while.
    let (mut offered, mut used, mut last) = (0, 0, Instant::now());
    while last.elapsed() < Duration::from_millis(200) {
        if offered - used < 16 {
            driver.send(TRANSMIT, &buffer);
            offered += 1;
        }
        while driver.used(TRANSMIT).is_some() {
            (used, last) = (used + 1, Instant::now());
        }
        assert!(used < 10_000, "somebody takes what the peer does not read");
    }
    assert_eq!(offered - used, 16);
    for _ in 0..offered {
        assert_eq!(get(&mut peer), sent);
    }
    while used < offered {
        driver.wait_for_used(TRANSMIT);
        used += 1;
    }
}

#[test]
fn a_reset_in_the_middle_of_frames_keeps_the_stream_in_step() {
    let (mut driver, mut peer) = with_stream(EVENT_IDX);
    // Half a frame in, and as much out as the socket takes.
    give(&mut driver, 1, 2048);
    peer.write_all(&1000u32.to_be_bytes()).unwrap();
    peer.write_all(&frame(400, 0)).unwrap();
    let sent = frame(60_000, 5);
    driver.ram.write(&with_header(Header::default(), &sent), FRAME).unwrap();
    for _ in 0..16 {
        driver.send(TRANSMIT, &[Buffer::Readable(FRAME, 60_012)]);
    }
    std::thread::sleep(Duration::from_millis(50));
    driver.start(EVENT_IDX);
    peer.write_all(&frame(600, 0)).unwrap();
    give(&mut driver, 1, 2048);
    let whole = frame(100, 7);
    put(&mut peer, &whole);
    assert_eq!(received(&mut driver, 1, 2048), whole);
    let last = frame(64, 8);
    driver.ram.write(&with_header(Header::default(), &last), FRAME).unwrap();
    driver.send(TRANSMIT, &[Buffer::Readable(FRAME, 76)]);
    let mut count = 0;
    loop {
        let got = get(&mut peer);
        if got.len() == 64 {
            break assert_eq!(got, last);
        }
        assert_eq!(got, sent);
        count += 1;
    }
    assert!(count <= 16);
}

#[test]
fn a_link_that_ends_is_told_and_frames_are_taken_all_the_same() {
    let (mut driver, peer) = with_stream(EVENT_IDX);
    assert_eq!(driver.config(0, 8), [0x02, b'b', b'v', 0, 0, 0, 1, 0]);
    let generation = driver.get(virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG_GENERATION);
    give(&mut driver, 1, 2048);
    drop(peer);
    driver.wait("a link that is down", |driver| driver.config(6, 2) == [0, 0]);
    let now = driver.get(virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG_GENERATION);
    assert_ne!(now, generation);
    for _ in 0..20 {
        send(&mut driver, &with_header(Header::default(), &frame(60, 0)));
    }
    driver.start(EVENT_IDX);
    assert_eq!(driver.config(6, 2), [0, 0]);
    send(&mut driver, &with_header(Header::default(), &frame(60, 0)));
}

/// A driver whose device leads to a socket that keeps frames apart.
fn with_packets(features: u64) -> (Driver, UnixDatagram) {
    let (ours, peer) = UnixDatagram::pair().unwrap();
    let link = socket::inherited(ours.as_raw_fd()).unwrap();
    drop(ours);
    let mut driver = Driver::new(Box::new(Net::new(link, Mac::of(1), Some(9000))));
    driver.start(features);
    (driver, peer)
}

#[test]
fn packets_go_both_ways_and_wait_for_room() {
    let (mut driver, peer) = with_packets(EVENT_IDX | MERGEABLE);
    assert_eq!(driver.config(10, 2), 9000u16.to_le_bytes());
    let sent = frame(1514, 3);
    send(&mut driver, &with_header(Header::default(), &sent));
    let mut got = vec![0; 2000];
    let count = peer.recv(&mut got).unwrap();
    assert_eq!(got[..count], sent);

    // Longer than what there is room for: its end waits for more.
    give(&mut driver, 4, 64);
    peer.send(&frame(8 * 64 - 12, 4)).unwrap();
    peer.send(&frame(20, 5)).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.used(RECEIVE), None);
    for index in 4..8 {
        driver.offer(RECEIVE, &[Buffer::Writable(ROOM + index * 64, 64)]);
    }
    driver.notify(RECEIVE);
    assert_eq!(received(&mut driver, 8, 64), frame(8 * 64 - 12, 4));
    give(&mut driver, 1, 64);
    assert_eq!(received(&mut driver, 1, 64), frame(20, 5));
}
