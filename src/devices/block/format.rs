//! The formats that a disk can have, and how one is chosen: by the user, or by the file's name.
//! Never by what is in the file, since a guest wrote that.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;

use super::disk::Disk;
use super::qcow2::Qcow2;
use super::raw::{Access, Raw};

/// A disk's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The file's bytes are the disk.
    Raw,
    /// QEMU's qcow2.
    Qcow2,
}

impl Format {
    /// The formats by name.
    pub const NAMED: [(&'static str, Format); 2] = [("raw", Self::Raw), ("qcow2", Self::Qcow2)];

    /// The format with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMED.iter().find(|(known, _)| *known == name).map(|(_, format)| *format)
    }

    /// The format that the name of a file says it has.
    pub fn of_name(path: &Path) -> Self {
        let suffix = path.extension().and_then(|suffix| suffix.to_str()).unwrap_or_default();
        Self::named(&suffix.to_lowercase()).unwrap_or(Self::Raw)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// Opens a disk of this format, with the files behind it if `backing`.
    pub fn open(self, path: &Path, access: Access, backing: bool) -> Result<Arc<dyn Disk>> {
        Ok(match self {
            Self::Raw => Arc::new(Raw::open(path, access)?),
            Self::Qcow2 => Arc::new(Qcow2::open(path, access, backing)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_the_format_and_the_rest_is_raw() {
        for (name, expected) in [
            ("a.qcow2", Format::Qcow2),
            ("a.QCOW2", Format::Qcow2),
            ("a.raw", Format::Raw),
            ("a.img", Format::Raw),
            ("qcow2", Format::Raw),
            ("a.qcow2/b", Format::Raw),
        ] {
            assert_eq!(Format::of_name(Path::new(name)), expected, "{name}");
        }
    }
}
