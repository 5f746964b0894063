//! `--vsock`: the guest's address, and the socket by which programs of the host reach its programs.

use std::path::PathBuf;

use anyhow::{Context, Result};

use bivisor::devices::vsock::Vsock;
use bivisor::virtio::VirtioDevice;

/// What the option says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockOptions {
    cid: u32,
    path: PathBuf,
}

impl VsockOptions {
    /// The device.
    pub fn open(&self) -> Result<Box<dyn VirtioDevice>> {
        let what = || format!("--vsock {},unix={}", self.cid, self.path.display());
        Ok(Box::new(Vsock::new(self.cid, &self.path).with_context(what)?))
    }
}

/// `CID,unix=PATH`. A comma in the path is a comma: nothing follows it.
pub fn vsock(text: &str) -> Result<VsockOptions, String> {
    let (cid, rest) = text.split_once(',').ok_or("not CID,unix=PATH")?;
    let digits = cid.bytes().all(|byte| byte.is_ascii_digit());
    let cid = cid.parse().ok().filter(|_| digits).ok_or(format!("'{cid}' is no CID"))?;
    match rest.strip_prefix("unix=") {
        Some(path) if !path.is_empty() => Ok(VsockOptions { cid, path: path.into() }),
        _ => Err(format!("'{rest}' is not unix=PATH")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let good = |cid, path: &str| Some(VsockOptions { cid, path: path.into() });
        for (text, expected) in [
            ("3,unix=a", good(3, "a")),
            ("3,unix=a,b=c", good(3, "a,b=c")),
            ("4294967295,unix=/a b", good(u32::MAX, "/a b")),
            ("4294967296,unix=a", None),
            ("-3,unix=a", None),
            ("+3,unix=a", None),
            (",unix=a", None),
            ("3,unix=", None),
            ("3,tcp=a", None),
            ("3,a", None),
            ("3", None),
            ("", None),
        ] {
            assert_eq!(vsock(text).ok(), expected, "{text}");
        }
    }

    // HOSTILE 42: addresses that no guest can have, and paths that no socket can.
    #[test]
    fn hostile_42_addresses_and_paths() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        for (cid, path, reason) in [
            (0, path.clone(), "at least 3"),
            (2, path.clone(), "at least 3"),
            (u32::MAX, path.clone(), "less than 4294967295"),
            (3, folder.path().join("x".repeat(108)), "at most 107"),
            (3, folder.path().into(), "something is there already"),
            (3, folder.path().join("no/socket"), "No such file"),
        ] {
            let error = VsockOptions { cid, path }.open().err().expect("refused");
            assert!(format!("{error:#}").contains(reason), "{error:#}");
        }
        assert!(VsockOptions { cid: 3, path: path.clone() }.open().is_ok());
        assert!(!path.exists());
    }
}
