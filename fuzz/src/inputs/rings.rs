//! A driver that puts any buffers into the rings of a device, and looks only whether it goes on.

use std::cell::RefCell;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bivisor::devices::block::raw::Raw;
use bivisor::devices::block::{Block, Engine};
use bivisor::devices::net::{Mac, Net, socket};
use bivisor::devices::vsock::Vsock;
use bivisor::machine::player::Script;
use bivisor::virtio::VirtioDevice;
use bivisor::virtio::driver::{Buffer, Driver};

/// Where buffers lie. Our choice: few pages, so that they overlap.
const POOL: u64 = 0x1000;
const POOL_LEN: u64 = 0x4000;

/// How long a device has to take what it was given. Our choice: some buffers wait for events that
/// never come, which is not an error.
const PATIENCE: Duration = Duration::from_micros(300);

/// Status bit of a device that needs a reset (virtio v1.3, 2.1).
const NEEDS_RESET: u32 = 64;
const STATUS: u32 = 0x70;

thread_local! {
    static DRIVER: RefCell<Option<Driver>> = const { RefCell::new(None) };
}

/// Plays `bytes` to the device that `make` makes the first time: chains of up to four buffers, in
/// queues of any number, with content of the input's.
pub fn play(bytes: &[u8], make: impl Fn() -> Box<dyn VirtioDevice>) {
    DRIVER.with_borrow_mut(|driver| {
        let driver = driver.get_or_insert_with(|| Driver::new(make()));
        driver.start(u64::MAX);
        let queues = driver.device.transport().queue_count();
        let mut input = Script(bytes);
        while !input.0.is_empty() {
            let first = input.number(1) as usize;
            let (queue, count) = (first % queues, 1 + first / 64);
            let mut buffers = Vec::new();
            for _ in 0..count {
                let how = input.number(1);
                // Mostly in the pool; now and then anywhere.
                let at = match how & 0x3f {
                    0x3f => input.number(8),
                    _ => POOL + input.number(2) % POOL_LEN,
                };
                let len = input.number(if how & 0x40 == 0 { 1 } else { 2 }) as u32;
                if how & 0x80 != 0 {
                    buffers.push(Buffer::Writable(at, len));
                } else {
                    let content = input.bytes(len as usize);
                    // Outside of RAM there is nothing to write to.
                    let _ = driver.ram.write(content, at);
                    buffers.push(Buffer::Readable(at, len));
                }
            }
            driver.send(queue, &buffers);
            let until = Instant::now() + PATIENCE;
            while driver.used(queue).is_none() && Instant::now() < until {
                if driver.get(STATUS) & NEEDS_RESET != 0 {
                    driver.start(u64::MAX);
                    break;
                }
            }
        }
    });
}

/// A raw disk of 1 MiB, which is gone with the process.
pub fn block() -> Box<dyn VirtioDevice> {
    let disk = Arc::new(Raw::scratch(1 << 20).expect("a temporary file"));
    Box::new(Block::new(disk, "fuzz", 1, Engine::Best))
}

/// A network whose other end reads all and says nothing.
pub fn net() -> Box<dyn VirtioDevice> {
    let (ours, mut peer) = UnixStream::pair().expect("a pair of sockets");
    let link = socket::inherited(ours.as_raw_fd()).expect("a socket");
    std::thread::spawn(move || {
        let mut frames = [0; 1 << 16];
        while peer.read(&mut frames).is_ok_and(|count| count > 0) {}
    });
    Box::new(Net::new(link, Mac::of(0), None))
}

/// Sockets whose path nobody listens at.
pub fn vsock() -> Box<dyn VirtioDevice> {
    let path = std::env::temp_dir().join(format!("bivisor-fuzz-{}", std::process::id()));
    Box::new(Vsock::new(3, &path).expect("a path"))
}

/// What a driver might well send: a request of each kind, a frame, a packet.
pub fn seeds() -> Vec<Vec<u8>> {
    let buffer = |write: bool, at: u16, len: u8, content: &[u8]| {
        let mut bytes = vec![if write { 0x80 } else { 0 }];
        bytes.extend(at.to_be_bytes());
        bytes.push(len);
        bytes.extend(content);
        bytes
    };
    let request = |kind: u8, data: Vec<u8>| {
        let mut header = [0; 16];
        header[0] = kind;
        [vec![128], buffer(false, 0, 16, &header), data, buffer(true, 64, 1, &[])].concat()
    };
    let mut seeds: Vec<Vec<u8>> =
        (0..14).map(|kind| request(kind, buffer(kind % 2 == 0, 512, 200, &[1; 200]))).collect();
    // To the transmit queue: a header and a frame; and a packet that asks for a connection.
    let frame = buffer(false, 0, 100, &[0; 100]);
    seeds.push([vec![1], frame].concat());
    let mut packet = [0; 44];
    packet[0] = 3;
    packet[8] = 2;
    (packet[16], packet[28], packet[30]) = (1, 1, 1);
    seeds.push([vec![1], buffer(false, 0, 44, &packet)].concat());
    seeds
}
