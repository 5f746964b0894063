//! A back end for tests and fuzzing, which speaks the protocol byte by byte, so that it can also speak it
//! wrong. It reaches the guest's RAM through the file that it was sent, and fills what a driver offers.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::devices::value;
use crate::sys;

/// Requests (vhost-user protocol, "Front-end message types").
pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const GET_PROTOCOL_FEATURES: u32 = 15;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const GET_QUEUE_NUM: u32 = 17;
pub const SET_VRING_ENABLE: u32 = 18;
pub const GET_CONFIG: u32 = 24;

/// Header flags: version 1, an answer, and that one is wanted.
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// Feature bits: protocol features, version 1, event indices, indirect descriptors.
pub const PROTOCOL: u64 = 1 << 30;
pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT: u64 = 1 << 28;

/// Protocol features.
pub const MQ: u64 = 1;
pub const REPLY_ACK: u64 = 1 << 3;
pub const CONFIG: u64 = 1 << 9;

/// What every chain gets.
pub const FILL: u8 = 0x5a;

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub request: u32,
    pub flags: u32,
    pub payload: Vec<u8>,
}

/// What comes back for it.
pub enum Answer {
    /// These bytes, behind a header that fits.
    Payload(Vec<u8>),
    /// These bytes, and then the end of the connection.
    Last(Vec<u8>),
    /// Nothing.
    None,
    /// The end of the connection.
    Close,
}

/// What a back end is.
#[derive(Clone, Debug)]
pub struct Traits {
    pub features: u64,
    pub protocol: u64,
    pub queues: u64,
    pub config: Vec<u8>,
}

impl Default for Traits {
    fn default() -> Self {
        let features = PROTOCOL | VERSION_1 | EVENT_IDX | INDIRECT;
        Self { features, protocol: MQ | REPLY_ACK | CONFIG, queues: 2, config: Vec::new() }
    }
}

impl Traits {
    /// The answer of a back end that keeps to the protocol.
    pub fn answer(&self, message: &Message) -> Answer {
        let number = match message.request {
            GET_FEATURES => self.features,
            GET_PROTOCOL_FEATURES => self.protocol,
            GET_QUEUE_NUM => self.queues,
            GET_VRING_BASE => {
                let mut state = message.payload.clone();
                state[4] = 7;
                return Answer::Payload(state);
            }
            GET_CONFIG => {
                let mut config = message.payload[..12].to_vec();
                let len = message.payload.len() - 12;
                config.extend(self.config.iter().copied().chain([0; 256]).take(len));
                return Answer::Payload(config);
            }
            _ if message.flags & NEED_REPLY != 0 => 0,
            _ => return Answer::None,
        };
        Answer::Payload(number.to_le_bytes().to_vec())
    }
}

/// A back end's thread, and what it was asked.
pub struct Peer {
    pub requests: Receiver<Message>,
    pub thread: JoinHandle<()>,
}

/// A back end that answers as `answer` says, and our end of the connection to it.
pub fn peer(answer: impl FnMut(&Message) -> Answer + Send + 'static) -> (Peer, UnixStream) {
    back_end(answer, true)
}

/// A back end that keeps to the protocol and leaves the guest's rings alone, whatever is in them.
pub fn idle(traits: Traits) -> UnixStream {
    back_end(move |message| traits.answer(message), false).1
}

fn back_end(
    answer: impl FnMut(&Message) -> Answer + Send + 'static,
    serves: bool,
) -> (Peer, UnixStream) {
    let (ours, its) = UnixStream::pair().unwrap();
    let (told, requests) = channel();
    let (rings, files) = (Vec::new(), Vec::new());
    let back_end = BackEnd { socket: its, told, ram: None, rings, on: false, files, serves };
    let thread = thread::spawn(move || back_end.run(answer));
    (Peer { requests, thread }, ours)
}

/// A back end that keeps to the protocol.
pub fn good(traits: Traits) -> (Peer, UnixStream) {
    peer(move |message| traits.answer(message))
}

#[derive(Default)]
struct Ring {
    size: u16,
    /// In the front end's addresses: descriptors, used ring, available ring.
    at: [u64; 3],
    next: u16,
    kick: Option<File>,
    call: Option<File>,
    enabled: bool,
}

struct BackEnd {
    socket: UnixStream,
    told: Sender<Message>,
    /// The first range of RAM: its file, and the front end's address of it.
    ram: Option<(File, u64)>,
    rings: Vec<Ring>,
    /// Rings run without being switched on: there are no protocol features.
    on: bool,
    files: Vec<File>,
    /// It looks at the rings.
    serves: bool,
}

impl BackEnd {
    fn run(mut self, mut answer: impl FnMut(&Message) -> Answer) {
        loop {
            let mut fds = vec![sys::poll_entry(&self.socket, libc::POLLIN)];
            let kicks = self.rings.iter().filter_map(|ring| ring.kick.as_ref());
            fds.extend(kicks.map(|kick| sys::poll_entry(kick, libc::POLLIN)));
            sys::poll(&mut fds, None).unwrap();
            if fds[0].revents != 0 {
                let Some(message) = self.receive() else { return };
                let answer = answer(&message);
                self.take(&message);
                let request = message.request;
                let _ = self.told.send(message);
                let bytes = match answer {
                    Answer::Payload(payload) => {
                        let header = [request, VERSION | REPLY, payload.len() as u32];
                        let mut bytes: Vec<u8> =
                            header.iter().flat_map(|word| word.to_le_bytes()).collect();
                        bytes.extend(payload);
                        bytes
                    }
                    Answer::Last(bytes) => {
                        // A front end that has given up is no error here.
                        let _ = self.socket.write_all(&bytes);
                        return;
                    }
                    Answer::None => continue,
                    Answer::Close => return,
                };
                // A front end that has given up is no error here.
                let _ = self.socket.write_all(&bytes);
            }
            if self.serves {
                self.serve();
            } else {
                self.ring_all();
            }
        }
    }

    /// Says of all rings that something was used, which is no lie that a driver may not be told.
    fn ring_all(&mut self) {
        for ring in &self.rings {
            let _ = ring.kick.as_ref().map(|mut kick| kick.read(&mut [0; 8]));
            let _ = ring.call.as_ref().map(|mut call| call.write(&1u64.to_ne_bytes()));
        }
    }

    fn receive(&mut self) -> Option<Message> {
        let mut header = [0; 12];
        // What is sent with a message comes with its first byte.
        let (count, file) = self.socket.recv_with_fd(&mut header).ok()?;
        self.socket.read_exact(&mut header[count..]).ok()?;
        self.files.clear();
        self.files.extend(file);
        let word = |at: usize| value(&header[at..at + 4]) as u32;
        let mut payload = vec![0; word(8) as usize];
        self.socket.read_exact(&mut payload).ok()?;
        Some(Message { request: word(0), flags: word(4), payload })
    }

    /// Does what a message says.
    fn take(&mut self, message: &Message) {
        let word = |at: usize| value(&message.payload[at..at + 4]) as u32;
        let long = |at: usize| value(&message.payload[at..at + 8]);
        match message.request {
            SET_FEATURES => self.on = long(0) & PROTOCOL == 0,
            SET_MEM_TABLE => self.ram = Some((self.files.remove(0), long(24))),
            SET_VRING_NUM => self.ring(word(0)).size = word(4) as u16,
            SET_VRING_BASE => self.ring(word(0)).next = word(4) as u16,
            SET_VRING_ADDR => self.ring(word(0)).at = [long(8), long(16), long(24)],
            SET_VRING_KICK => self.ring(word(0)).kick = Some(self.files.remove(0)),
            SET_VRING_CALL => self.ring(word(0)).call = Some(self.files.remove(0)),
            SET_VRING_ENABLE => self.ring(word(0)).enabled = word(4) != 0,
            GET_VRING_BASE => *self.ring(word(0)) = Ring::default(),
            _ => {}
        }
    }

    fn ring(&mut self, index: u32) -> &mut Ring {
        let count = index as usize + 1;
        self.rings.resize_with(self.rings.len().max(count), Ring::default);
        &mut self.rings[count - 1]
    }

    /// Fills what is available in all rings.
    fn serve(&mut self) {
        let Some((file, start)) = &self.ram else { return };
        let get = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, at).unwrap();
            value(&bytes)
        };
        let runs = |ring: &&mut Ring| (self.on || ring.enabled) && ring.kick.is_some();
        for ring in self.rings.iter_mut().filter(runs) {
            let [table, used, available] = ring.at.map(|at| at - start);
            let _ = ring.kick.as_ref().unwrap().read(&mut [0; 8]);
            while get(available + 2, 2) as u16 != ring.next {
                let slot = u64::from(ring.next % ring.size);
                let head = get(available + 4 + 2 * slot, 2);
                let (guest_addr, len) = (get(table + 16 * head, 8), get(table + 16 * head + 8, 4));
                file.write_all_at(&vec![FILL; len as usize], guest_addr).unwrap();
                let element = head | len << 32;
                file.write_all_at(&element.to_le_bytes(), used + 4 + 8 * slot).unwrap();
                ring.next = ring.next.wrapping_add(1);
                file.write_all_at(&ring.next.to_le_bytes(), used + 2).unwrap();
                ring.call.as_ref().unwrap().write_all(&1u64.to_ne_bytes()).unwrap();
            }
        }
    }
}
