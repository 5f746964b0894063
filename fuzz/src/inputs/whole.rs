//! A whole machine, whose guest the input is.

use std::cell::RefCell;

use bivisor::machine::player::Player;
use bivisor::virtio::Carrier;

thread_local! {
    static PLAYER: RefCell<Option<Player>> = const { RefCell::new(None) };
}

/// Plays `bytes` to a machine by this carrier, which must have its devices afterwards.
pub fn play(bytes: &[u8], carrier: Carrier) {
    PLAYER.with_borrow_mut(|player| {
        let player = player.get_or_insert_with(|| Player::new(carrier).expect("KVM"));
        player.play(bytes);
        // One of them each time: a start is what takes longest.
        let device = bytes.len() % player.devices();
        assert!(player.recovers(device), "device {device}");
    });
}

/// Virtio devices of the machine.
const DEVICES: u8 = 13;

/// Steps of a script that begin a device, make a request to it, have the host act, and read or write a
/// register of a device on the bus: see [`Player::play`].
fn begin(device: u8, features: u8) -> Vec<u8> {
    vec![3 | features << 3, device]
}

fn request(device: u8, queue: u8, (kind, data): (u8, u16), header: &[u8]) -> Vec<u8> {
    let [high, low] = data.to_be_bytes();
    [&[6 | queue << 3, device, kind, high, low, header.len() as u8], header].concat()
}

fn host(what: u8, len: u8, bytes: &[u8]) -> Vec<u8> {
    [&[7, 0, what, len], bytes].concat()
}

fn write(place: u8, offset: u8, value: u8) -> Vec<u8> {
    vec![0, 0, place, offset, value]
}

fn read(place: u8, offset: u8) -> Vec<u8> {
    vec![1, 0, place, offset]
}

/// A packet of a guest's socket (virtio v1.3, 5.10.6).
fn packet(ports: [u32; 2], op: u8, flags: u8) -> Vec<u8> {
    let mut packet = [3u64.to_le_bytes(), 2u64.to_le_bytes()].concat();
    packet.extend(ports.iter().flat_map(|port| port.to_le_bytes()));
    packet.extend([8, 0, 0, 0, 1, 0, op, 0, flags, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0]);
    packet.extend(b"contents");
    packet
}

/// Kinds of requests: a header alone, with data to be read, with room, and room alone; the last two with an
/// outcome; and an answer to a packet.
const ALONE: u8 = 4;
const GIVEN: u8 = 2;
const FILLED: u8 = 2 | 0x10;
const ROOM: u8 = 1 | 0x10;
const ANSWER: u8 = 4 | 8;

/// What drivers do with each device, and hosts meanwhile.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for device in 0..DEVICES {
        // Two buffers in queue 1: one to read, one to write.
        let chain = [0x4d, device, 0, 0, 16, 0x80, 0, 64];
        seeds.push([begin(device, 0), chain.into(), chain.into()].concat());
    }
    // Disks: each type of request, at the beginning and at the end, with any features.
    for device in [0, 1, 5, 8, 10] {
        for features in 0..4 {
            let mut script = begin(device, features);
            for kind in [0, 1, 4, 8, 11, 13, 5] {
                let mut header = [0; 16];
                header[0] = kind;
                let data = if [0, 8].contains(&kind) { FILLED } else { GIVEN };
                script.extend(request(device, 0, (data, 512), &header));
                script.extend(request(device, 1, (data, 16), &header));
                header[9] = 0xff;
                script.extend(request(device, 0, (data, 1024), &header));
            }
            seeds.push(script);
        }
    }
    // Networks: buffers, frames of both sides, an empty header in front of each.
    for (device, what) in [(2, 0), (6, 1)] {
        for features in 0..4 {
            let rooms = request(device, 0, (ROOM, 2000), &[]).repeat(4);
            let sent = request(device, 1, (0, 100), &[0; 12]).repeat(3);
            let frame = host(what, 60, &[1; 60]).repeat(3);
            let small = request(device, 0, (ROOM, 40), &[]);
            let late = [host(what, 255, &[2; 255]), small.repeat(8)].concat();
            seeds.push([begin(device, features), rooms, frame, sent, late].concat());
        }
    }
    // Sockets, to the host and from it.
    let vsock = |queue, what: (u8, u16), header: &[u8]| request(4, queue, what, header);
    let (room, heard) = (vsock(0, (ROOM, 1024), &[]), host(4, 20, &[b'x'; 20]));
    let say = |op, flags| vsock(1, (ALONE, 0), &packet([1000, 1], op, flags));
    let open = [begin(4, 0), room.clone(), say(1, 0), host(6, 0, &[])].concat();
    let talk = [say(5, 0), heard.clone(), room.clone(), say(6, 0), say(7, 0)].concat();
    for end in [say(4, 3), say(4, 1), say(3, 0), host(5, 0, &[]), say(9, 0)] {
        seeds.push([open.clone(), talk.clone(), end, room.clone(), say(5, 0)].concat());
    }
    let answer = |op, flags| vsock(1, (ANSWER, 0), &packet([0, 0], op, flags));
    let reached = [begin(4, 0), room.clone(), host(3, 52, &[]), answer(2, 0)].concat();
    for end in [answer(4, 3), answer(3, 0), host(5, 0, &[])] {
        let talk = [room.clone(), heard.clone(), answer(5, 0), answer(6, 0), room.clone()].concat();
        seeds.push([reached.clone(), talk, end, room.clone()].concat());
    }
    // The console: what is typed, what is printed, and the control queues.
    for features in [0, 1] {
        let rooms = [request(11, 0, (ROOM, 64), &[]), request(11, 2, (ROOM, 64), &[])].concat();
        let told = [[0, 0, 0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 3, 0, 1, 0], [0, 0, 0, 0, 6, 0, 1, 0]];
        let told = told.map(|told| request(11, 3, (ALONE, 0), &told)).concat();
        let typed = host(2, 5, b"typed");
        let shown = request(11, 1, (ALONE, 0), b"shown\n");
        let all = [begin(11, features), rooms.repeat(3), told, typed, shown, rooms].concat();
        seeds.push(all);
    }
    // The balloon: pages, statistics, what is given back, and who asks.
    let stats = [0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 4, 0, 0, 0, 32, 0, 0, 0, 0, 0];
    let pages = [0x80, 1, 0, 0, 0x81, 1, 0, 0, 0, 3, 0, 0];
    let balloon = |queue, kind, header: &[u8]| request(12, queue, (kind, 4096), header);
    let asked = [balloon(2, ALONE, &stats), host(7, 0, &[]), balloon(2, ALONE, &stats)].concat();
    let given = [balloon(0, ALONE, &pages), balloon(1, ALONE, &pages), balloon(3, ROOM, &[])];
    seeds.push([begin(12, 0), given.concat(), asked, host(7, 0, &[])].concat());
    seeds.push([begin(3, 0), request(3, 0, (ROOM, 100), &[]).repeat(2)].concat());
    seeds.push([begin(3, 0), request(3, 0, (ALONE, 0), &[1]), begin(3, 0)].concat());
    // Registers, each place's first ones.
    for place in 0..40 {
        let typed = host(2, 3, b"abc");
        let writes = (0..64).flat_map(|offset| write(place, offset, 0xff));
        let reads = (0..64).flat_map(|offset| read(place, offset));
        let small = (0..64).flat_map(|offset| write(place, offset, 3));
        seeds.push(typed.into_iter().chain(writes).chain(reads).chain(small).collect());
    }
    seeds
}
