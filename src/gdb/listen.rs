//! Where gdb connects: a TCP port or a Unix socket.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

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
    /// With the file's device and number.
    Unix(UnixListener, (u64, u64)),
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
                let listener =
                    UnixListener::bind(path).map_err(|e| refused(path, e)).with_context(what)?;
                listener.set_nonblocking(true).with_context(what)?;
                let file = fs::symlink_metadata(path).with_context(what)?;
                (Socket::Unix(listener, (file.dev(), file.ino())), address.clone())
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
        let accepted: io::Result<OwnedFd> = match &self.socket {
            Socket::Tcp(listener) => listener.accept().and_then(|(stream, _)| {
                // Packets are small, and each waits for its answer.
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(stream.into())
            }),
            Socket::Unix(listener, _) => listener.accept().and_then(|(stream, _)| {
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(stream.into())
            }),
        };
        match accepted {
            Ok(stream) => Ok(Some(File::from(stream))),
            // It has gone again.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match &self.socket {
            Socket::Tcp(listener) => listener.as_raw_fd(),
            Socket::Unix(listener, _) => listener.as_raw_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let (Socket::Unix(_, ours), Address::Unix(path)) = (&self.socket, &self.address)
            && fs::symlink_metadata(path).is_ok_and(|file| (file.dev(), file.ino()) == *ours)
        {
            // Nothing can be done about a file that can't be removed.
            let _ = fs::remove_file(path);
        }
    }
}

/// Why no socket could be made at `path`, with the mend.
fn refused(path: &Path, error: io::Error) -> anyhow::Error {
    if error.kind() != io::ErrorKind::AddrInUse {
        return error.into();
    }
    match fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => anyhow!(
            "a socket is there already: remove it if no other bivisor uses it, or choose another path"
        ),
        _ => anyhow!("something is there already: choose another path"),
    }
}
