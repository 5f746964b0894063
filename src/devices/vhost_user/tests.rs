//! Devices by vhost-user, driven through their registers, with a back end of these tests.

mod hostile;

use std::time::Duration;

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;

use super::kinds::{block_on, fs, net_on};
use super::peer::*;
use super::*;
use crate::devices::net::Mac;
use crate::memory::{GuestRam, RamRange};
use crate::sys;
use crate::virtio::Interrupt;
use crate::virtio::driver::{Buffer, Driver};
use crate::virtio::transport::{Area, Half, Transport};

/// How long a back end may take here, if it is a good one.
const PATIENCE: Duration = Duration::from_secs(20);

/// The queue of requests.
const REQUESTS: usize = 1;

/// Where buffers lie.
const ROOM: u64 = 0x1_0000;

fn share(traits: Traits) -> (Driver, Peer) {
    let (peer, socket) = good(traits);
    (Driver::new(Box::new(fs("tag", socket, PATIENCE).unwrap())), peer)
}

/// The requests so far.
fn asked(peer: &Peer) -> Vec<u32> {
    peer.requests.try_iter().map(|message| message.request).collect()
}

/// The back end fills what the driver offers, and the driver is interrupted.
fn serves(driver: &mut Driver) {
    driver.ram.write(&[0; 64], ROOM).unwrap();
    assert_eq!(driver.request(REQUESTS, &[Buffer::Writable(ROOM, 60)]), 60);
    assert_eq!(driver.ram.peek(ROOM + 58, 4), [FILL, FILL, 0, 0]);
}

#[test]
fn a_driver_and_a_back_end_share_rings() {
    let (mut driver, peer) = share(Traits::default());
    let introduction =
        [SET_OWNER, GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM];
    assert_eq!(asked(&peer), introduction);
    assert_eq!(driver.offered(), VERSION_1 | EVENT_IDX | INDIRECT);
    let mut config = b"tag".to_vec();
    config.resize(36, 0);
    config.extend([1, 0, 0, 0]);
    assert_eq!(driver.config(0, 41), [&config[..], &[0]].concat());

    driver.start(EVENT_IDX);
    for _ in 0..40 {
        serves(&mut driver);
    }
    let ring =
        [SET_VRING_NUM, SET_VRING_BASE, SET_VRING_ADDR, SET_VRING_CALL, SET_VRING_KICK].repeat(2);
    let start = [SET_FEATURES, SET_MEM_TABLE].into_iter().chain(ring).chain([SET_VRING_ENABLE; 2]);
    let messages: Vec<_> = peer.requests.try_iter().collect();
    let requests = messages.iter().map(|message| message.request);
    assert!(requests.eq(start), "{messages:x?}");
    let accepted = (PROTOCOL | VERSION_1 | EVENT_IDX).to_le_bytes();
    assert_eq!(messages[0].payload, accepted);
    // One range, at 0, of all RAM.
    let table = &messages[1].payload;
    assert_eq!((table[0], &table[8..16]), (1, &[0; 8][..]));
    assert_eq!(table[16..24], driver.ram_len().to_le_bytes());
}

#[test]
fn a_reset_stops_the_rings_and_the_next_driver_finds_them_new() {
    let (mut driver, peer) = share(Traits::default());
    for _ in 0..3 {
        driver.start(0);
        serves(&mut driver);
        asked(&peer);
        driver.set(VIRTIO_MMIO_STATUS, 0);
        let (off, base) = (SET_VRING_ENABLE, GET_VRING_BASE);
        assert_eq!(asked(&peer), [off, base, off, base]);
    }
    drop(driver);
    peer.thread.join().expect("it ends with the connection");
}

/// A transport for which an interrupt is an eventfd and nothing else.
struct Events(EventFd);

impl Interrupt for Events {
    fn used(&self, _: usize) {
        panic!("the back end does that");
    }

    fn changed(&self) {}

    fn used_event(&self, _: usize) -> Option<&EventFd> {
        Some(&self.0)
    }
}

/// A device on such a transport, with RAM in two ranges that touch at [`SEAM`].
fn with_events(event: &EventFd) -> (Transport, Arc<GuestRam>, Peer) {
    let (peer, socket) = good(Traits::default());
    let device = Box::new(fs("tag", socket, PATIENCE).unwrap());
    let ranges = [(0, SEAM), (SEAM, 1 << 20)].map(|(start, len)| RamRange { start, len });
    let ram = Arc::new(GuestRam::shared(ranges.to_vec()).unwrap());
    let events = Arc::new(Events(event.try_clone().unwrap()));
    (Transport::new(device, ram.clone(), events).unwrap(), ram, peer)
}

const SEAM: u64 = 0x8_0000;

/// What a driver does up to where its queue of requests runs, with a table of descriptors there.
fn start(transport: &mut Transport, table: u64) {
    transport.reset();
    transport.select_driver_features(1);
    transport.accept_features((VERSION_1 >> 32) as u32);
    transport.select_queue(REQUESTS as u32);
    transport.set_queue_size(4);
    let rings = [(Area::Descriptors, table), (Area::Driver, 0x2000), (Area::Device, 0x3000)];
    for (area, at) in rings {
        transport.set_queue_address(area, Half::Low, at as u32);
    }
    transport.set_queue_ready(true);
    // Acknowledged, with a driver, which is ready with features that are agreed on.
    transport.set_status(1 | 2 | 8 | 4);
}

#[test]
fn a_back_end_interrupts_by_itself_where_the_transport_lets_it() {
    let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let (mut transport, ram, _peer) = with_events(&event);
    // A descriptor that may be written, and it is available.
    let words = [ROOM as u32, 0, 16, 2];
    let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    ram.write(&words, 0x1000).unwrap();
    ram.write(&[0, 0, 1, 0, 0, 0], 0x2000).unwrap();
    start(&mut transport, 0x1000);
    transport.notify(REQUESTS as u32);
    let mut fds = [sys::poll_entry(&event, libc::POLLIN)];
    sys::poll(&mut fds, Some(PATIENCE)).unwrap();
    assert_eq!(event.read().unwrap(), 1);
    assert_eq!(ram.peek(ROOM + 15, 2), [FILL, 0]);
}

#[test]
fn a_ring_across_two_ranges_of_ram_is_no_back_ends_to_follow() {
    let (mut transport, _ram, peer) = with_events(&EventFd::new(libc::EFD_NONBLOCK).unwrap());
    asked(&peer);
    let needs_reset = |transport: &Transport| transport.status() & 64 != 0;
    for (table, works) in [(SEAM - 16, false), (SEAM - 64, true), (SEAM - 48, false), (SEAM, true)]
    {
        start(&mut transport, table);
        assert_eq!(needs_reset(&transport), !works, "{table:#x}");
        assert_eq!(asked(&peer).contains(&SET_VRING_ADDR), works, "{table:#x}");
    }
}

#[test]
fn an_old_back_end_has_no_rings_to_switch_on() {
    let (mut driver, peer) = share(Traits { features: VERSION_1, ..Traits::default() });
    assert_eq!(asked(&peer), [SET_OWNER, GET_FEATURES]);
    assert_eq!(driver.offered(), VERSION_1, "features of rings are the back end's");
    driver.start(0);
    serves(&mut driver);
    drop(driver);
    let asked = asked(&peer);
    assert!(!asked.contains(&SET_VRING_ENABLE), "{asked:?}");
}

#[test]
fn a_disk_is_what_its_back_end_says() {
    let (config_wce, mq, read_only) = (1 << 11, 1 << 12, 1 << 5);
    let mut config: Vec<u8> = (1..=60).collect();
    for (queues, cpus, expected) in [(1, 4, 1), (3, 4, 3), (3, 2, 2), (9, 8, 4), (0, 1, 1)] {
        config[34..36].copy_from_slice(&[queues, 0]);
        let features = Traits::default().features | config_wce | mq | read_only;
        let traits = Traits { features, queues: 16, config: config.clone(), ..Traits::default() };
        let (_peer, socket) = good(traits);
        let disk = block_on("disk".into(), socket, cpus, PATIENCE).unwrap();
        let mut driver = Driver::new(Box::new(disk));
        assert_eq!(driver.device.transport().queue_count(), expected);
        let own = mq | read_only | VERSION_1 | EVENT_IDX | INDIRECT;
        assert_eq!(driver.offered(), own);
        config[34..36].copy_from_slice(&[expected as u8, 0]);
        assert_eq!(driver.config(0, 60), config);
        driver.start(0);
        assert_eq!(driver.request(0, &[Buffer::Writable(ROOM, 512)]), 512);
    }
    // A back end without the feature has one queue, whatever it says.
    let traits = Traits { config, ..Traits::default() };
    let disk = block_on("disk".into(), good(traits).1, 4, PATIENCE).unwrap();
    assert_eq!(disk.queues().len(), 1);
}

#[test]
fn a_network_has_our_address_and_the_back_ends_offloads() {
    let (csum, mtu, mac, mergeable, control) = (1, 1 << 3, 1 << 5, 1 << 15, 1 << 17);
    for told in [None, Some(9000)] {
        let features = Traits::default().features | csum | mergeable | control;
        let (peer, socket) = good(Traits { features, ..Traits::default() });
        let net = net_on("net".into(), socket, (Mac::of(0), told), PATIENCE).unwrap();
        let mut driver = Driver::new(Box::new(net));
        let own = if told.is_some() { mac | mtu } else { mac };
        let rings = VERSION_1 | EVENT_IDX | INDIRECT;
        assert_eq!(driver.offered(), csum | mergeable | own | rings);
        let [low, high] = told.unwrap_or(0u16).to_le_bytes();
        let config = driver.config(0, 12);
        assert_eq!(config, [2, b'b', b'v', 0, 0, 0, 0, 0, 1, 0, low, high]);
        driver.start(u64::MAX);
        assert_eq!(driver.request(0, &[Buffer::Writable(ROOM, 1500)]), 1500);
        let set = peer.requests.try_iter().find(|message| message.request == SET_FEATURES);
        let accepted = (csum | mergeable | PROTOCOL | rings).to_le_bytes();
        assert_eq!(set.unwrap().payload, accepted, "what is ours is not its business");
    }
}
