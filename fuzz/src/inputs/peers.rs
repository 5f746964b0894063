//! What the host's side says to devices: the other end of a network, programs that reach for a guest's
//! sockets, and a vhost-user back end.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bivisor::devices::net::{Mac, Net, socket};
use bivisor::devices::vhost_user;
use bivisor::devices::vsock::Vsock;
use bivisor::machine::player::{Script, own_path};
use bivisor::virtio::VirtioDevice;
use bivisor::virtio::driver::{Buffer, Driver};

/// Where the guest's buffers lie, and the bytes of each.
const POOL: u64 = 0x1000;
const BUFFER: u64 = 0x1000;

/// Buffers that it offers. Our choice: half a queue of the driver's.
const BUFFERS: u64 = 8;

/// How long a device has to act on what it was told. Our choice: longer than it takes.
const PATIENCE: Duration = Duration::from_millis(2);

const RX: usize = 0;
const TX: usize = 1;

/// VIRTIO_NET_F_MRG_RXBUF (virtio v1.3, 5.1.3), and where the device says whether its link is up.
const MERGED: u64 = 1 << 15;
const LINK_STATUS: u64 = 6;

/// Bytes of a frame's beginning: its length, and the rest of it.
fn frame(len: u32, bytes: &[u8]) -> Vec<u8> {
    [&len.to_be_bytes(), bytes].concat()
}

pub fn net_seeds() -> Vec<Vec<u8>> {
    let whole = frame(60, &[1; 60]);
    let streams = [
        whole.repeat(3),
        [frame(3, &[1; 3]), whole.clone(), frame(9000, &[2; 100])].concat(),
        frame(u32::MAX, &[]),
        [frame(0, &[]), frame(5000, &[3; 5000]), whole].concat(),
    ];
    let each = streams.into_iter().enumerate();
    each.map(|(index, stream)| [vec![index as u8, 8], stream].concat()).collect()
}

/// Says `bytes` to a network device by a stream; the first ones say what buffers its driver has.
pub fn net(bytes: &[u8]) {
    let mut script = Script(bytes);
    let merged = script.number(1) & 1 != 0;
    let len = 16 * script.number(1) as u32;
    let (ours, mut peer) = UnixStream::pair().expect("a pair of sockets");
    let link = socket::streaming("fuzz".into(), ours.into()).expect("a socket");
    let mut driver = Driver::new(Box::new(Net::new(link, Mac::of(0), None)));
    driver.start(if merged { u64::MAX } else { !MERGED });
    let offer = |driver: &mut Driver, index: u64| {
        let at = POOL + index % BUFFERS * BUFFER;
        driver.send(RX, &[Buffer::Writable(at, len)]);
    };
    (0..BUFFERS).for_each(|index| offer(&mut driver, index));
    // Little enough for the socket.
    let _ = peer.write_all(&script.0[..script.0.len().min(1 << 16)]);
    drop(peer);
    let until = Instant::now() + PATIENCE;
    let mut index = 0;
    while driver.config(LINK_STATUS, 1)[0] & 1 != 0 && Instant::now() < until {
        while driver.used(RX).is_some() {
            offer(&mut driver, index);
            index += 1;
        }
        std::thread::yield_now();
    }
}

pub fn vsock_seeds() -> Vec<Vec<u8>> {
    let write = |text: &[u8]| [&[1, text.len() as u8], text].concat();
    let (connect, listen, close) = (vec![0], vec![4, 0, 0], vec![2, 0]);
    // Operations of packets (virtio v1.3, 5.10.6): 2 responds, 3 resets, 4 shuts down, 5 has bytes.
    let packet = |op: u8| vec![3, op, 0, 0xff, 0];
    let hello = [connect.clone(), write(b"CONNECT 52\n"), listen.clone()].concat();
    let open = [hello.clone(), packet(2), write(b"some bytes"), listen.clone()].concat();
    vec![
        [hello.clone(), packet(3), close.clone()].concat(),
        [open.clone(), packet(5), packet(6), packet(7), packet(4), listen.clone()].concat(),
        [open, close, listen].concat(),
        [connect.clone(), write(b"CONNECT x\n")].concat(),
        [connect.clone(), write(b"CONN"), write(b"ECT 1\nabc"), connect].concat(),
    ]
}

/// Has programs of the host reach for a guest's, and the guest answer, as `bytes` say.
pub fn vsock(bytes: &[u8]) {
    let path = own_path("reached");
    let mut driver = Driver::new(Box::new(Vsock::new(3, &path).expect("a path")));
    driver.start(u64::MAX);
    let mut programs: Vec<UnixStream> = Vec::new();
    let mut script = Script(bytes);
    // The last packet for the guest.
    let mut last = vec![0; HEADER];
    for index in 0..BUFFERS / 2 {
        driver.send(RX, &[Buffer::Writable(POOL + index * BUFFER, BUFFER as u32)]);
    }
    while !script.0.is_empty() {
        match script.number(1) % 5 {
            0 if programs.len() < 4 => programs.extend(connect(&path)),
            1 => {
                let len = script.number(1) as usize;
                let text = script.bytes(len);
                if let Some(mut program) = programs.last() {
                    let _ = program.write(text);
                }
            }
            2 => {
                let which = script.number(1) as usize;
                if which < programs.len() {
                    let mut program = programs.swap_remove(which);
                    let _ = program.read(&mut [0; 256]);
                }
            }
            3 => {
                let at = POOL + BUFFERS * BUFFER;
                let packet = answer(&last, &mut script);
                driver.ram.write(&packet, at).expect("it is in RAM");
                driver.send(TX, &[Buffer::Readable(at, packet.len() as u32)]);
                settle(&mut driver, TX);
            }
            _ => {
                if let Some((head, _)) = settle(&mut driver, RX) {
                    let at = POOL + u64::from(head) % (BUFFERS / 2) * BUFFER;
                    last = driver.ram.peek(at, HEADER);
                    driver.send(RX, &[Buffer::Writable(at, BUFFER as u32)]);
                }
            }
        }
    }
}

/// Bytes of a packet's header (5.10.6).
const HEADER: usize = 44;

/// A program of the host that may not be heard: it must not wait for that.
fn connect(path: &std::path::Path) -> Option<UnixStream> {
    let program = UnixStream::connect(path).ok()?;
    program.set_nonblocking(true).ok()?;
    Some(program)
}

/// What the guest says to `packet`: an operation, its flags, how much it has room for, and so many bytes
/// of its own as the script says.
fn answer(packet: &[u8], script: &mut Script<'_>) -> Vec<u8> {
    let (op, flags, room, len) =
        (script.number(1), script.number(1), script.number(1), script.number(1));
    let [mut from, mut to] = [3u64.to_le_bytes(), 2u64.to_le_bytes()];
    if flags & 0x80 != 0 {
        (from, to) = (to, from);
    }
    // Ports change places.
    let mut answer = [&from[..], &to, &packet[20..24], &packet[16..20]].concat();
    answer.extend((len as u32).to_le_bytes());
    answer.extend([1, 0, op as u8, 0]);
    answer.extend((flags as u32 & 0x7f).to_le_bytes());
    answer.extend((room as u32 * 16).to_le_bytes());
    answer.extend(0u32.to_le_bytes());
    answer.extend(script.bytes(len as usize));
    answer
}

/// Waits for a used chain, though not for long.
fn settle(driver: &mut Driver, queue: usize) -> Option<(u16, u32)> {
    let until = Instant::now() + PATIENCE / 4;
    loop {
        let used = driver.used(queue);
        if used.is_some() || Instant::now() >= until {
            return used;
        }
        std::thread::yield_now();
    }
}

/// Answers of a back end that keeps to the protocol, in the order of the requests of each device.
pub fn vhost_user_seeds() -> Vec<Vec<u8>> {
    let answer = |request: u32, payload: &[u8]| {
        let header = [request, 1 | 1 << 2, payload.len() as u32].map(u32::to_le_bytes).concat();
        [&header, payload].concat()
    };
    let number = |request, number: u64| answer(request, &number.to_le_bytes());
    // GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES has none, GET_QUEUE_NUM.
    let features = [number(1, 1 << 30 | 1 << 32), number(15, 1 | 1 << 3 | 1 << 9), number(17, 2)];
    let config =
        answer(24, &[[0, 0, 0, 0, 60, 0, 0, 0, 0, 0, 0, 0].to_vec(), vec![0; 60]].concat());
    let ok = |requests: &[u32]| requests.iter().flat_map(|r| number(*r, 0)).collect::<Vec<u8>>();
    let ring = [8, 10, 9, 13, 12];
    let start = ok(&[2, 5]);
    let one = [start.clone(), ok(&ring), ok(&[18]), ok(&[18]), number(11, 0)].concat();
    let two = [start, ok(&ring), ok(&ring), ok(&[18, 18]), ok(&[18]), number(11, 0)].concat();
    vec![
        [vec![0], features.concat(), config, one].concat(),
        [vec![1], features.concat(), two.clone()].concat(),
        [vec![2], features.concat(), two].concat(),
        [vec![0], number(1, 1 << 32)].concat(),
        [vec![1], number(1, 1 << 32)].concat(),
    ]
}

/// Is a back end that says `bytes`, whatever it is asked; the first says of what device.
pub fn vhost_user(bytes: &[u8]) {
    let Some((kind, answers)) = bytes.split_first() else { return };
    let (ours, mut back_end) = UnixStream::pair().expect("a pair of sockets");
    // Little enough for the socket.
    let _ = back_end.write_all(&answers[..answers.len().min(1 << 16)]);
    let _ = back_end.shutdown(Shutdown::Write);
    let (title, patience) = ("fuzz".to_string(), Duration::from_secs(5));
    let device = match kind % 3 {
        0 => vhost_user::block_on(title, ours, 4, patience),
        1 => vhost_user::fs("tag", ours, patience),
        _ => vhost_user::net_on(title, ours, (Mac::of(0), Some(1500)), patience),
    };
    let Ok(device) = device else { return };
    let device: Box<dyn VirtioDevice> = Box::new(device);
    let mut driver = Driver::new(device);
    driver.start(u64::MAX);
    driver.config(0, 64);
    driver.set(0x70, 0);
}
