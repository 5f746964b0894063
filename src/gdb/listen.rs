//! Where gdb connects: a TCP port or a Unix socket.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::bound_socket::BoundSocket;

/// How long gdb has to take an answer. Our choice: one that reads nothing for so long is gone, and
/// the end of a run waits no longer for it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`.
    Tcp(String),
    /// The path of a socket to be made.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(at) => write!(f, "tcp:{at}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A listening socket. That of a path is removed with it.
pub struct Listener {
    socket: Socket,
    /// Where it really listens: a port of 0 has become another.
    address: Address,
}

enum Socket {
    Tcp(TcpListener),
    Unix(BoundSocket),
}

impl Listener {
    /// Listens at `address`. An error names it.
    pub fn open(address: &Address) -> Result<Self> {
        let what = || format!("--gdb {address}");
        let (socket, address) = match address {
            Address::Tcp(at) => {
                let listener = TcpListener::bind(at).with_context(what)?;
                listener.set_nonblocking(true).with_context(what)?;
                let local = listener.local_addr().with_context(what)?;
                (Socket::Tcp(listener), Address::Tcp(local.to_string()))
            }
            Address::Unix(path) => {
                let socket = BoundSocket::new(path).with_context(what)?;
                (Socket::Unix(socket), address.clone())
            }
        };
        Ok(Self { socket, address })
    }

    /// What makes gdb connect.
    pub fn command(&self) -> String {
        match &self.address {
            Address::Tcp(at) => format!("gdb -ex 'target remote {at}'"),
            Address::Unix(path) => format!("gdb -ex 'target remote {}'", path.display()),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The connection that waits, if one does.
    pub(crate) fn accept(&self) -> io::Result<Option<File>> {
        match &self.socket {
            Socket::Tcp(listener) => match listener.accept() {
                Ok((stream, _)) => {
                    // Packets are small, and each waits for its answer.
                    stream.set_nodelay(true)?;
                    stream.set_write_timeout(Some(PATIENCE))?;
                    Ok(Some(File::from(OwnedFd::from(stream))))
                }
                // It has gone again.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
                Err(error) => Err(error),
            },
            Socket::Unix(socket) => {
                let Some(stream) = socket.accept()? else { return Ok(None) };
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Some(File::from(OwnedFd::from(stream))))
            }
        }
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match &self.socket {
            Socket::Tcp(listener) => listener.as_raw_fd(),
            Socket::Unix(socket) => socket.as_raw_fd(),
        }
    }
}
