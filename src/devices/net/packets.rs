//! Frames one at a time, as a tap device or a socket that keeps messages apart gives and takes
//! them; those of a tap device have a header in front.
//!
//! How long a frame is shows only once it is read. What the guest's buffers have no room for lands
//! in a buffer of ours, and waits there for more of them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
};

use super::header::{self, Header, MAX_FRAME, MIN_FRAME};
use super::link::{Pair, Received, Sink, Source, Trouble, closed, would_wait};
use super::room::{Fit, Room};
use crate::pieces::Pieces;

/// Bytes of a frame with the packets that Ethernet has been made for.
const USUAL_FRAME: usize = 1500 + 18;

/// The two directions of `file`, which must not block; with a header in front of each frame if
/// `headers`. Packets of up to `mtu` bytes are usual, if that is known.
pub fn pair(file: OwnedFd, headers: bool, mtu: Option<u16>) -> Pair {
    let file = Arc::new(File::from(file));
    let usual = mtu.map_or(USUAL_FRAME, |mtu| usize::from(mtu) + 18);
    let source = PacketSource {
        file: file.clone(),
        headers,
        usual,
        ahead: usual,
        offloads: false,
        spill: vec![0; MAX_FRAME],
        spilled: None,
    };
    Pair::new(source, PacketSink { file, headers })
}

struct PacketSource {
    file: Arc<File>,
    headers: bool,
    /// Bytes of a frame that the peer does not cut later.
    usual: usize,
    /// Bytes that there is to be room for ahead of a frame.
    ahead: usize,
    /// The driver understands headers.
    offloads: bool,
    /// Ends of frames that there was no room for.
    spill: Vec<u8>,
    spilled: Option<Spilled>,
}

/// A frame whose last `rest` bytes have no room yet.
#[derive(Clone, Copy)]
struct Spilled {
    header: Header,
    len: usize,
    rest: usize,
}

impl Source for PacketSource {
    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn receive(&mut self, room: &mut Room) -> Result<Received, Trouble> {
        if let Some(spilled) = self.spilled {
            return self.deliver(spilled, room);
        }
        if !room.make_any(self.ahead)? {
            return Ok(Received::NoRoom);
        }
        let mut header = [0; header::LEN];
        let front = if self.headers { &mut header[..] } else { &mut [] };
        let (front_len, space) = (front.len(), room.frame().len());
        let read = room.frame().read_between(front, space, &mut self.spill, &*self.file);
        let count = match read {
            Ok(0) => return Err(closed().into()),
            Err(error) if would_wait(&error) => return Ok(Received::Nothing),
            other => other?,
        };
        let len = count.saturating_sub(front_len);
        if len < MIN_FRAME {
            room.give_back();
            return Ok(Received::Dropped);
        }
        let header = if self.offloads { Header::parse(&header) } else { Header::default() };
        let spilled = Spilled { header, len, rest: len.saturating_sub(space) };
        self.deliver(spilled, room)
    }

    fn restart(&mut self, features: u64) {
        let accepted = |feature: u32| features & 1 << feature != 0;
        let large = accepted(VIRTIO_NET_F_GUEST_TSO4) || accepted(VIRTIO_NET_F_GUEST_TSO6);
        self.offloads = self.headers && accepted(VIRTIO_NET_F_GUEST_CSUM);
        self.ahead = if self.headers && large { MAX_FRAME } else { self.usual };
        self.spilled = None;
    }
}

impl PacketSource {
    fn deliver(&mut self, frame: Spilled, room: &mut Room) -> Result<Received, Trouble> {
        self.spilled = None;
        let fit = if frame.rest == 0 { Fit::Now } else { room.make(frame.rest)? };
        match fit {
            Fit::Now => {
                room.frame().write(&self.spill[..frame.rest]);
                room.finish(frame.header, frame.len)?;
                Ok(Received::Frame)
            }
            Fit::Later => {
                self.spilled = Some(frame);
                Ok(Received::NoRoom)
            }
            Fit::Never => {
                room.give_back();
                Ok(Received::Dropped)
            }
        }
    }
}

struct PacketSink {
    file: Arc<File>,
    headers: bool,
}

impl Sink for PacketSink {
    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn send(&mut self, header: &Header, frame: &mut Pieces) -> io::Result<bool> {
        let bytes = header.bytes();
        let front = if self.headers { &bytes[..] } else { &[] };
        match frame.write_after(front, &*self.file) {
            Ok(_) => Ok(true),
            Err(error) if would_wait(&error) => Ok(false),
            Err(error) if is_end(&error) => Err(error),
            // One frame is lost: the interface is down (EIO), there is no memory (ENOBUFS), or the
            // frame is none for this link (EINVAL, EMSGSIZE).
            Err(_) => Ok(true),
        }
    }
}

/// True if `error` says that nothing can be sent any more.
fn is_end(error: &io::Error) -> bool {
    // EBADFD: the tap device was deleted.
    const ENDS: [i32; 6] = [
        libc::EBADFD,
        libc::EPIPE,
        libc::ECONNRESET,
        libc::ENOTCONN,
        libc::ECONNREFUSED,
        libc::ENODEV,
    ];
    error.raw_os_error().is_some_and(|number| ENDS.contains(&number))
}
