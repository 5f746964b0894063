//! Sockets as links: one that a peer listens on, and descriptors that are inherited.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};

use super::link::{Link, Pair};
use super::{packets, stream, tap};
use crate::sys;

/// The peer that listens on the Unix socket at `path`.
pub fn connect(path: &Path) -> Result<Link> {
    let socket = UnixStream::connect(path).context("connect to it (who listens there?)")?;
    streaming(format!("socket {}", path.display()), socket.into())
}

/// The peer at the other end of a stream socket.
pub fn streaming(name: String, socket: OwnedFd) -> Result<Link> {
    set_nonblocking(&socket)?;
    Ok(plain(name, stream::pair(socket)))
}

fn plain(name: String, pair: Pair) -> Link {
    Link { name, pairs: vec![pair], mtu: None, tap: None, keeps: None }
}

fn set_nonblocking(file: &impl AsFd) -> Result<()> {
    let flags = fcntl_getfl(file).context("look at a descriptor")?;
    fcntl_setfl(file, flags | OFlags::NONBLOCK).context("set a descriptor to not block")
}

/// Descriptor number `fd` of this process, which it was started with: a tap device, or a socket
/// whose kind says how it keeps frames apart.
pub fn inherited(fd: i32) -> Result<Link> {
    ensure!(fd > 2, "the first three are standard streams");
    let file = sys::inherited(fd).context("use it (was it passed on?)")?;
    let kind = FileType::from_raw_mode(fstat(&file).context("look at it")?.st_mode);
    let name = format!("descriptor {fd}");
    match kind {
        FileType::Socket => {
            set_nonblocking(&file)?;
            let kind = sys::socket_type(&file).context("look at it")?;
            match kind {
                libc::SOCK_STREAM => streaming(name, file),
                libc::SOCK_SEQPACKET | libc::SOCK_DGRAM => {
                    Ok(plain(name, packets::pair(file, false, None)))
                }
                _ => bail!("it is a socket of another kind than stream, seqpacket or dgram"),
            }
        }
        FileType::CharacterDevice => {
            set_nonblocking(&file)?;
            tap::inherited(file)?.context("it is neither a tap device nor a socket")
        }
        _ => bail!("it is neither a tap device nor a socket"),
    }
}
