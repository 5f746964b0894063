//! `--initrd-dir`: a directory as an archive in memory, the same bytes for the same content.
//!
//! Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst (newc cpio). Owners are
//! root, times are zero, inode numbers count from 1 and names are sorted, so what the archive says
//! does not depend on who packs it, where and when.

use std::fs::{self, File, FileType, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use cpio::newc::{Builder, trailer};
use rustix::fs::{major, minor};

/// A file of this name at the top would end the archive.
const TRAILER: &str = "TRAILER!!!";
/// Bytes that an entry takes beside its name and its content (buffer-format.rst, "Header").
const HEADER: u64 = 110;

/// An archive while it grows.
struct Pack {
    bytes: Vec<u8>,
    /// Bytes that it may have.
    limit: u64,
    entries: u32,
}

/// Packs what lies in the directory `top`, without following links, into an archive of `limit`
/// bytes at the most.
pub fn pack(top: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut pack = Pack { bytes: Vec::new(), limit, entries: 0 };
    // Entries that are still to be packed, the next one last; a directory comes before its content.
    let mut waiting = sorted(top, "")?;
    while let Some((path, name)) = waiting.pop() {
        let metadata = fs::symlink_metadata(&path).with_context(|| path.display().to_string())?;
        pack.add(&path, &name, &metadata).with_context(|| path.display().to_string())?;
        if metadata.is_dir() {
            waiting.extend(sorted(&path, &format!("{name}/"))?);
        }
    }
    pack.bytes = trailer(pack.bytes).context("write the archive's end")?;
    Ok(pack.bytes)
}

/// What lies in `folder`, last name first, with the names that the archive has for it.
fn sorted(folder: &Path, prefix: &str) -> Result<Vec<(PathBuf, String)>> {
    let list = || -> Result<_> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let file_name = entry.file_name();
            let Some(name) = file_name.to_str() else {
                bail!("{file_name:?} in it is not UTF-8: rename it");
            };
            entries.push((entry.path(), format!("{prefix}{name}")));
        }
        entries.sort_unstable_by(|a, b| b.1.cmp(&a.1));
        Ok(entries)
    };
    list().with_context(|| folder.display().to_string())
}

impl Pack {
    fn add(&mut self, path: &Path, name: &str, metadata: &Metadata) -> Result<()> {
        ensure!(name != TRAILER, "this name would end the archive: rename it");
        self.entries = self.entries.checked_add(1).context("more entries than an archive has")?;
        let kind = metadata.file_type();
        let links = if kind.is_dir() { 2 } else { 1 };
        let entry = Builder::new(name).ino(self.entries).mode(metadata.mode()).nlink(links);
        match () {
            () if kind.is_file() => self.add_file(path, name, entry),
            () if kind.is_symlink() => {
                let target = fs::read_link(path)?;
                let target = target.as_os_str().as_bytes();
                self.write(entry, name, target.len() as u64, target)
            }
            () if is_device(kind) => {
                let device = metadata.rdev();
                let entry = entry.rdev_major(major(device)).rdev_minor(minor(device));
                self.write(entry, name, 0, io::empty())
            }
            () if kind.is_dir() || kind.is_fifo() => self.write(entry, name, 0, io::empty()),
            () => bail!("is a socket, which no archive holds: leave it out"),
        }
    }

    fn add_file(&mut self, path: &Path, name: &str, entry: Builder) -> Result<()> {
        // It may have become something else since it was looked at, such as a pipe or a link.
        let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        let metadata = file.metadata()?;
        ensure!(metadata.is_file(), "changed while it was read: pack it when it rests");
        self.write(entry, name, metadata.len(), file)
    }

    /// Adds `entry` with `len` bytes of `content`, if there is room.
    fn write(&mut self, entry: Builder, name: &str, len: u64, content: impl Read) -> Result<()> {
        let used = self.bytes.len() as u64 + HEADER + name.len() as u64;
        let fits = used.checked_add(len).is_some_and(|end| end <= self.limit);
        ensure!(fits, "the archive would be larger than the guest's RAM: give it more (--memory)");
        let size = u32::try_from(len).context("4 GiB or more don't fit into an archive's entry")?;
        let mut writer = entry.write(std::mem::take(&mut self.bytes), size);
        let copied = io::copy(&mut content.take(len), &mut writer)?;
        ensure!(copied == len, "shrank while it was read: pack it when it rests");
        self.bytes = writer.finish()?;
        Ok(())
    }
}

fn is_device(kind: FileType) -> bool {
    kind.is_char_device() || kind.is_block_device()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use cpio::newc::Reader;
    use tempfile::TempDir;

    use super::*;

    const LIMIT: u64 = 1 << 20;

    fn tree() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path();
        fs::create_dir_all(top.join("bin/deep")).unwrap();
        fs::write(top.join("bin/sh"), b"#!\n").unwrap();
        fs::set_permissions(top.join("bin/sh"), PermissionsExt::from_mode(0o755)).unwrap();
        fs::write(top.join("bin/deep/empty"), b"").unwrap();
        fs::write(top.join("bin.d"), b"x").unwrap();
        symlink("bin/sh", top.join("init")).unwrap();
        symlink(".", top.join("loop")).unwrap();
        folder
    }

    #[test]
    fn an_archive_holds_everything_in_order_and_nothing_of_its_packer() {
        let folder = tree();
        let archive = pack(folder.path(), LIMIT).unwrap();
        let mut rest = archive.as_slice();
        let mut entries = Vec::new();
        loop {
            let mut reader = Reader::new(rest).unwrap();
            let entry = reader.entry().clone();
            assert_eq!((entry.uid(), entry.gid(), entry.mtime()), (0, 0, 0), "{}", entry.name());
            if entry.is_trailer() {
                break;
            }
            let mut content = String::new();
            reader.read_to_string(&mut content).unwrap();
            entries.push((entry.name().to_owned(), entry.mode() & 0o170_000, content));
            rest = reader.finish().unwrap();
        }
        let entries: Vec<_> = entries
            .iter()
            .map(|(name, kind, text)| (name.as_str(), *kind, text.as_str()))
            .collect();
        const FOLDER: u32 = libc::S_IFDIR;
        const FILE: u32 = libc::S_IFREG;
        const LINK: u32 = libc::S_IFLNK;
        let expected = [
            ("bin", FOLDER, ""),
            ("bin/deep", FOLDER, ""),
            ("bin/deep/empty", FILE, ""),
            ("bin/sh", FILE, "#!\n"),
            ("bin.d", FILE, "x"),
            ("init", LINK, "bin/sh"),
            ("loop", LINK, "."),
        ];
        assert_eq!(entries, expected);
        let again = tree();
        assert_eq!(pack(again.path(), LIMIT).unwrap(), archive, "packed elsewhere, later");
    }

    #[test]
    fn what_no_archive_can_hold_is_refused_by_name() {
        type Make = fn(&Path);
        let cases: [(Make, u64, &str); 5] = [
            (|top| drop(UnixListener::bind(top.join("s")).unwrap()), LIMIT, "is a socket"),
            (|top| fs::write(top.join(TRAILER), b"").unwrap(), LIMIT, "would end the archive"),
            (|top| fs::write(top.join("big"), [0; 4096]).unwrap(), 4096, "larger than the guest's"),
            (
                |top| File::create(top.join("huge")).unwrap().set_len(1 << 32).unwrap(),
                1 << 40,
                "4 GiB or more",
            ),
            (
                |top| fs::write(top.join(std::ffi::OsStr::from_bytes(b"\xff")), b"").unwrap(),
                LIMIT,
                "is not UTF-8",
            ),
        ];
        for (make, limit, problem) in cases {
            let folder = tempfile::tempdir().unwrap();
            make(folder.path());
            let error = format!("{:#}", pack(folder.path(), limit).unwrap_err());
            assert!(error.contains(problem), "{error}");
            assert!(error.starts_with(folder.path().to_str().unwrap()), "{error}");
        }
        let error = pack(Path::new("/nowhere"), LIMIT).unwrap_err();
        assert!(format!("{error:#}").starts_with("/nowhere"), "{error:#}");
    }
}
