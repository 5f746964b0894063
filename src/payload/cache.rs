//! Unpacked kernels, kept under the user's cache directory: `$XDG_CACHE_HOME/bivisor`, or
//! `~/.cache/bivisor`.
//!
//! Whatever goes wrong here is no error: then there is no cache. A file is found by the hash of what
//! was packed, and believed only if its own hash is right, it is ours, and nobody else may write it.
//! Files are made under another name and renamed, so that none is half there. The folder is opened
//! once and names are looked up in it alone: a symbolic link is never followed.
//!
//! ```text
//! 0               len     whole pages                                                     + 80
//! | the unpacked  | zeros | trailer: magic, key, len, hash; checked: during which boot, when |
//! ```
//!
//! The content starts at 0 and zeros fill its last page, so that it can be mapped as it is.
//!
//! To hash a kernel takes as long as to load it. So a file says when that was done, and has that time as
//! the one of its last change: as long as both are the same nobody has written to it, and as long as the
//! host has not booted since, nothing that was written can be lost.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::Payload;

/// Our choice: room for about ten kernels.
const LIMIT: u64 = 512 << 20;
/// The largest page of any host: content and zeros fill whole ones.
const PAGE: u64 = 64 * 1024;
/// The trailer's first bytes; the last one counts versions of the layout.
const MAGIC: &[u8; 8] = b"bvcache\x02";
const TRAILER: usize = 80;
/// Where the trailer says when the hash was found right.
const CHECKED: usize = 56;
/// What the names of whole files end with; unfinished ones have another end.
const WHOLE: &str = ".unpacked";
const UNFINISHED: &str = ".new";
/// Our choice: a writer that took longer has died.
const STALE: Duration = Duration::from_secs(600);
/// Read at a time, to check a hash: small enough for a CPU's cache.
const CHUNK: usize = 256 * 1024;

/// What an unpacked image is found by: a hash of the packed bytes, and their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    hash: u128,
    len: u64,
}

impl Key {
    /// The key of what `packed` unpacks to.
    pub fn of(packed: &[u8]) -> Self {
        Self { hash: xxh3_128(packed), len: packed.len() as u64 }
    }

    /// The key of what `len` bytes of `payload` unpack to, which are not kept in memory.
    pub fn at(payload: &Payload, at: u64, len: u64) -> Result<Self> {
        if let Some(packed) = payload.slice(at, len) {
            return Ok(Self::of(packed));
        }
        let read = |part: &mut [u8], from| payload.read_at(part, at + from, "packed kernel");
        Ok(Self { hash: hash_by_parts(len, read)?, len })
    }

    fn name(self) -> String {
        format!("{:032x}-{:x}{WHOLE}", self.hash, self.len)
    }
}

/// A folder of unpacked images.
#[derive(Debug)]
pub struct Cache {
    folder: OwnedFd,
    limit: u64,
}

impl Cache {
    /// The user's cache, which is made if need be.
    pub fn of_user() -> Option<Self> {
        let folder = Self::folder_of_user()?;
        // There already, or the next call fails.
        let _ = folder.parent().map(|base| rustix::fs::mkdir(base, Mode::RWXU));
        Self::open(&folder, LIMIT)
    }

    /// Where that one is, whether it exists or not.
    pub fn folder_of_user() -> Option<PathBuf> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
        Some(base.join("bivisor"))
    }

    /// The cache in `folder`, which is made if need be, of at most `limit` bytes.
    pub fn open(folder: &Path, limit: u64) -> Option<Self> {
        let _ = rustix::fs::mkdir(folder, Mode::RWXU);
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(CWD, folder, flags, Mode::empty()).ok()?;
        let status = rustix::fs::fstat(&folder).ok()?;
        is_ours(status.st_uid, status.st_mode).then_some(Self { folder, limit })
    }

    /// The image with this key, and its length in bytes. The file is longer.
    pub fn find(&self, key: Key) -> Option<(File, u64)> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = |how| rustix::fs::openat(&self.folder, key.name(), flags | how, Mode::empty());
        // Who may not write it checks it each time.
        let file = File::from(open(OFlags::RDWR).or_else(|_| open(OFlags::RDONLY)).ok()?);
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || !is_ours(metadata.uid(), metadata.mode()) {
            return None;
        }
        let mut trailer = [0; TRAILER];
        let end = metadata.len().checked_sub(TRAILER as u64)?;
        file.read_exact_at(&mut trailer, end).ok()?;
        let (what, checked) = trailer.split_at(CHECKED);
        let len = u64::from_le_bytes(trailer[32..40].try_into().ok()?);
        let hash = u128::from_le_bytes(trailer[40..CHECKED].try_into().ok()?);
        if len.checked_next_multiple_of(PAGE) != Some(end) || what != describe(key, len, hash) {
            return None;
        }
        let boot = boot();
        let changed = (metadata.mtime(), metadata.mtime_nsec());
        let is_checked =
            boot.is_some_and(|boot| changed.1 == 0 && checked == when(boot, changed.0));
        if is_checked {
            // What was used last is removed last. A read-only file system keeps no such order.
            let _ = set_times(&file, Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT });
        } else {
            let found = hash_by_parts(len, |part, at| file.read_exact_at(part, at)).ok()?;
            if found != hash {
                return None;
            }
            let _ = boot.map(|boot| mark_checked(&file, end, boot));
        }
        Some((file, len))
    }

    /// Keeps `unpacked` under `key`, and gives the file that it is in now.
    pub fn keep(&self, key: Key, unpacked: &[u8]) -> Option<File> {
        let len = unpacked.len() as u64;
        let total = len.checked_next_multiple_of(PAGE)? + TRAILER as u64;
        // A file beyond the user's limit is a signal that kills, not an error.
        let most = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
        if total > self.limit || most.is_some_and(|most| total > most) {
            return None;
        }
        self.make_room(total);
        let name = format!("{:016x}{UNFINISHED}", RandomState::new().hash_one(key.hash));
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(&self.folder, &name, flags, mode).ok()?;
        let kept = self.write(File::from(file), key, unpacked).and_then(|file| {
            rustix::fs::renameat(&self.folder, &name, &self.folder, key.name()).ok()?;
            Some(file)
        });
        if kept.is_none() {
            let _ = rustix::fs::unlinkat(&self.folder, &name, AtFlags::empty());
        }
        kept
    }

    fn write(&self, mut file: File, key: Key, unpacked: &[u8]) -> Option<File> {
        let len = unpacked.len() as u64;
        let zeros = vec![0; (len.next_multiple_of(PAGE) - len) as usize];
        file.write_all(unpacked).ok()?;
        file.write_all(&zeros).ok()?;
        file.write_all(&describe(key, len, xxh3_128(unpacked))).ok()?;
        file.write_all(&[0; TRAILER - CHECKED]).ok()?;
        let _ = boot().map(|boot| mark_checked(&file, len.next_multiple_of(PAGE), boot));
        Some(file)
    }

    /// Removes what was used least recently until `wanted` more bytes fit, and what a writer that
    /// died left behind. A guest that runs from a removed file keeps it.
    fn make_room(&self, wanted: u64) {
        let Ok(folder) = rustix::fs::Dir::read_from(&self.folder) else { return };
        let mut kept = Vec::new();
        for entry in folder.flatten() {
            let name = entry.file_name().to_owned();
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let Ok(status) = rustix::fs::statat(&self.folder, &name, flags) else { continue };
            let begun = SystemTime::UNIX_EPOCH + Duration::from_secs(status.st_mtime.max(0) as u64);
            let unfinished = name.to_bytes().ends_with(UNFINISHED.as_bytes());
            if unfinished && begun.elapsed().is_ok_and(|age| age > STALE) {
                let _ = rustix::fs::unlinkat(&self.folder, &name, AtFlags::empty());
            } else if name.to_bytes().ends_with(WHOLE.as_bytes()) {
                kept.push((status.st_atime, status.st_atime_nsec, status.st_size as u64, name));
            }
        }
        kept.sort();
        let mut total: u64 = kept.iter().map(|(_, _, size, _)| size).sum();
        for (_, _, size, name) in kept {
            if total.saturating_add(wanted) <= self.limit {
                break;
            }
            if rustix::fs::unlinkat(&self.folder, &name, AtFlags::empty()).is_ok() {
                total -= size;
            }
        }
    }
}

/// True if what belongs to `owner` and has this mode can't have been changed by anybody else.
fn is_ours(owner: u32, mode: u32) -> bool {
    owner == rustix::process::geteuid().as_raw() && mode & 0o022 == 0
}

/// The hash of `len` bytes, of which `read` gives those at an offset.
fn hash_by_parts<E>(len: u64, read: impl Fn(&mut [u8], u64) -> Result<(), E>) -> Result<u128, E> {
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < len {
        let part = (len - at).min(CHUNK as u64) as usize;
        read(&mut buffer[..part], at)?;
        hash.update(&buffer[..part]);
        at += part as u64;
    }
    Ok(hash.digest128())
}

/// The trailer up to [`CHECKED`].
fn describe(key: Key, len: u64, hash: u128) -> [u8; CHECKED] {
    let mut trailer = [0; CHECKED];
    trailer[..8].copy_from_slice(MAGIC);
    trailer[8..24].copy_from_slice(&key.hash.to_le_bytes());
    trailer[24..32].copy_from_slice(&key.len.to_le_bytes());
    trailer[32..40].copy_from_slice(&len.to_le_bytes());
    trailer[40..].copy_from_slice(&hash.to_le_bytes());
    trailer
}

/// The rest of it: a second (since 1970) of the time between two boots.
fn when(boot: u128, second: i64) -> [u8; TRAILER - CHECKED] {
    let mut checked = [0; TRAILER - CHECKED];
    checked[..16].copy_from_slice(&boot.to_le_bytes());
    checked[16..].copy_from_slice(&second.to_le_bytes());
    checked
}

/// A number that the host has drawn when it booted (random(4)).
fn boot() -> Option<u128> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    u128::from_str_radix(&text.trim().replace('-', ""), 16).ok()
}

/// Has the file whose trailer begins at `end` say that its hash was right just now.
fn mark_checked(file: &File, end: u64, boot: u128) -> std::io::Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let second = now.as_secs() as i64;
    file.write_all_at(&when(boot, second), end + CHECKED as u64)?;
    // A whole second, which every file system keeps, and which a write hardly ever leaves.
    set_times(file, Timespec { tv_sec: second, tv_nsec: 0 })
}

/// The file was used now, and changed then.
fn set_times(file: &File, changed: Timespec) -> std::io::Result<()> {
    let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    Ok(rustix::fs::futimens(file, &Timestamps { last_access, last_modification: changed })?)
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
