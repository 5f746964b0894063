//! `--share`: a folder of the host, and what the guest finds it as.

use std::path::PathBuf;

use anyhow::{Context, Result};

use bivisor::devices::vhost_user::{TAG_LEN, share as device};
use bivisor::virtio::VirtioDevice;

use super::devices::parts;

/// What the option says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareOptions {
    tag: String,
    folder: PathBuf,
    read_only: bool,
}

/// The devices of all shares.
pub fn open(shares: &[ShareOptions]) -> Result<Vec<Box<dyn VirtioDevice>>> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for (index, share) in shares.iter().enumerate() {
        let ShareOptions { tag, folder, read_only } = share;
        let what = || format!("--share {tag}={}", folder.display());
        if shares[..index].iter().any(|other| other.tag == *tag) {
            return Err(anyhow::anyhow!("another folder has this tag: give each its own"))
                .with_context(what);
        }
        devices.push(Box::new(device(tag, folder, *read_only).with_context(what)?));
    }
    Ok(devices)
}

/// `TAG=DIR`, then options, each behind a comma.
pub fn share(text: &str) -> Result<ShareOptions, String> {
    let mut parts = parts(text).into_iter();
    let first = parts.next().unwrap_or_default();
    let Some((tag, folder)) = first.split_once('=') else {
        return Err(format!("'{first}' is not TAG=DIR, such as src=/home/me/src"));
    };
    if tag.is_empty() {
        return Err("the tag is missing, such as src in src=/home/me/src".into());
    }
    if tag.len() > TAG_LEN {
        return Err(format!("the tag '{tag}' has {} bytes, use at most {TAG_LEN}", tag.len()));
    }
    if folder.is_empty() {
        return Err("the folder is missing, such as /home/me/src in src=/home/me/src".into());
    }
    let mut share = ShareOptions { tag: tag.into(), folder: folder.into(), read_only: false };
    for part in parts {
        match part.as_str() {
            "readonly" => share.read_only = true,
            _ => return Err(format!("'{part}' is not readonly (a comma in DIR is doubled)")),
        }
    }
    Ok(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        let plain = |tag: &str, folder: &str| ShareOptions {
            tag: tag.into(),
            folder: folder.into(),
            read_only: false,
        };
        let long = "t".repeat(TAG_LEN);
        for (text, expected) in [
            ("src=/a", Some(plain("src", "/a"))),
            ("src=a=b", Some(plain("src", "a=b"))),
            ("src=/a,,b", Some(plain("src", "/a,b"))),
            ("src=/a,readonly", Some(ShareOptions { read_only: true, ..plain("src", "/a") })),
            (&format!("{long}=/a"), Some(plain(&long, "/a"))),
            (&format!("{long}t=/a"), None),
            ("", None),
            ("/a", None),
            ("=/a", None),
            ("src=", None),
            ("src=,readonly", None),
            ("src=/a,", None),
            ("src=/a,readonly=1", None),
            ("src=/a,b", None),
        ] {
            assert_eq!(share(text).ok(), expected, "{text}");
        }
    }
}
