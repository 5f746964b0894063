//! A Unix socket that listens at a path of its own: the file must not exist before, and is gone
//! afterwards, unless it has become somebody else's meanwhile.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, ensure};

use crate::sandbox;

/// Bytes of the longest path that a socket can have (unix(7): 108 with a zero at the end).
pub const PATH_MAX: usize = 107;

/// A listening socket, which does not block.
pub struct BoundSocket {
    listener: UnixListener,
    path: PathBuf,
    /// The file's device and number.
    file: (u64, u64),
}

impl BoundSocket {
    /// Listens at `path`. An error tells the mend, but not the path.
    pub fn new(path: &Path) -> Result<Self> {
        let len = path.as_os_str().len();
        ensure!(len <= PATH_MAX, "the path has {len} bytes, a socket's has at most {PATH_MAX}");
        let listener = UnixListener::bind(path).map_err(|error| refused(path, error))?;
        listener.set_nonblocking(true)?;
        let file = fs::symlink_metadata(path)?;
        sandbox::bound(path);
        Ok(Self { listener, path: path.into(), file: (file.dev(), file.ino()) })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The connection that waits, if one does.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            // It has gone again.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsRawFd for BoundSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        let ours = |file: fs::Metadata| (file.dev(), file.ino()) == self.file;
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            // Nothing can be done about a file that can't be removed.
            let _ = fs::remove_file(&self.path);
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

#[cfg(test)]
mod tests {
    use super::*;

    // HOSTILE 42 and 47: paths.
    #[test]
    fn hostile_42_only_a_path_that_is_free_is_taken_and_only_our_file_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let refused = |path: &Path| format!("{:#}", BoundSocket::new(path).err().unwrap());
        let socket = BoundSocket::new(&path).unwrap();
        assert!(refused(&path).contains("a socket is there already"));
        assert!(socket.accept().unwrap().is_none());
        drop(socket);
        assert!(!path.exists());
        fs::write(&path, "").unwrap();
        assert!(refused(&path).contains("something is there already"));
        assert!(refused(&path.join("below")).contains("Not a directory"));
        assert!(refused(&folder.path().join("no/socket")).contains("No such file"));
        assert!(refused(&folder.path().join("x".repeat(108))).contains("at most 107"));

        fs::remove_file(&path).unwrap();
        let socket = BoundSocket::new(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "somebody else's").unwrap();
        drop(socket);
        assert_eq!(fs::read(&path).unwrap(), b"somebody else's");
    }
}
