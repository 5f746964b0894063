//! Unpacked kernels, kept under the user's cache directory: `$XDG_CACHE_HOME/bivisor`, or
//! `~/.cache/bivisor`.
//!
//! Whatever goes wrong here is no error: then there is no cache. A file is found by the hash of what
//! was packed, and believed only if its own hash is right, it is ours, and nobody else may write it.
//! Files are made under another name and renamed, so that none is half there. The folder is opened
//! once and names are looked up in it alone: a symbolic link is never followed.
//!
//! ```text
//! 0               len     whole pages           + 56
//! | the unpacked  | zeros | trailer: magic, key, len, hash |
//! ```
//!
//! The content starts at 0 and zeros fill its last page, so that it can be mapped as it is.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Our choice: room for about ten kernels.
const LIMIT: u64 = 512 << 20;
/// The largest page of any host: content and zeros fill whole ones.
const PAGE: u64 = 64 * 1024;
/// The trailer's first bytes; the last one counts versions of the layout.
const MAGIC: &[u8; 8] = b"bvcache\x01";
const TRAILER: usize = 56;
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
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.folder, key.name(), flags, Mode::empty()).ok()?;
        let file = File::from(file);
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || !is_ours(metadata.uid(), metadata.mode()) {
            return None;
        }
        let mut trailer = [0; TRAILER];
        let end = metadata.len().checked_sub(TRAILER as u64)?;
        file.read_exact_at(&mut trailer, end).ok()?;
        let len = u64::from_le_bytes(trailer[32..40].try_into().ok()?);
        if len.checked_next_multiple_of(PAGE) != Some(end)
            || trailer != make_trailer(key, len, hash_of(&file, len)?)
        {
            return None;
        }
        // What was used last is removed last. A read-only file system keeps no such order.
        let _ = file.set_modified(SystemTime::now());
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
        file.write_all(&make_trailer(key, len, xxh3_128(unpacked))).ok()?;
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
            let used = SystemTime::UNIX_EPOCH + Duration::from_secs(status.st_mtime.max(0) as u64);
            let unfinished = name.to_bytes().ends_with(UNFINISHED.as_bytes());
            if unfinished && used.elapsed().is_ok_and(|age| age > STALE) {
                let _ = rustix::fs::unlinkat(&self.folder, &name, AtFlags::empty());
            } else if name.to_bytes().ends_with(WHOLE.as_bytes()) {
                kept.push((status.st_mtime, status.st_mtime_nsec, status.st_size as u64, name));
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

/// The hash of the first `len` bytes of `file`.
fn hash_of(file: &File, len: u64) -> Option<u128> {
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < len {
        let part = (len - at).min(CHUNK as u64) as usize;
        file.read_exact_at(&mut buffer[..part], at).ok()?;
        hash.update(&buffer[..part]);
        at += part as u64;
    }
    Some(hash.digest128())
}

fn make_trailer(key: Key, len: u64, hash: u128) -> [u8; TRAILER] {
    let mut trailer = [0; TRAILER];
    trailer[..8].copy_from_slice(MAGIC);
    trailer[8..24].copy_from_slice(&key.hash.to_le_bytes());
    trailer[24..32].copy_from_slice(&key.len.to_le_bytes());
    trailer[32..40].copy_from_slice(&len.to_le_bytes());
    trailer[40..56].copy_from_slice(&hash.to_le_bytes());
    trailer
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }
        fn path(&self) -> PathBuf {
            self.0.path().join("bivisor")
        }
        fn cache(&self) -> Cache {
            Cache::open(&self.path(), 1 << 20).unwrap()
        }
        fn files(&self) -> Vec<PathBuf> {
            fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
        }
    }

    fn content((file, len): (File, u64)) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn what_was_kept_is_found_by_its_key_alone() {
        let place = Place::new();
        for bytes in [&b""[..], b"unpacked", &[7; 3 * PAGE as usize]] {
            let key = Key::of(&[b"packed", bytes].concat());
            assert!(place.cache().find(key).is_none());
            place.cache().keep(key, bytes).unwrap();
            assert_eq!(content(place.cache().find(key).unwrap()), bytes);
            assert!(place.cache().find(Key { len: key.len + 1, ..key }).is_none());
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&place.path()), 0o700);
        assert!(place.files().iter().all(|file| mode(file) == 0o600));
    }

    #[test]
    fn the_last_page_is_filled_with_zeros() {
        let place = Place::new();
        let file = place.cache().keep(Key::of(b"packed"), &[0xff; 100]).unwrap();
        let mut rest = vec![1; PAGE as usize - 100];
        file.read_exact_at(&mut rest, 100).unwrap();
        assert!(rest.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_damaged_file_is_not_believed_and_can_be_replaced() {
        let key = Key::of(b"packed");
        let damages: [fn(&mut Vec<u8>); 6] = [
            |bytes| bytes[3] ^= 1,
            |bytes| bytes.truncate(bytes.len() - 1),
            |bytes| bytes.truncate(10),
            |bytes| bytes.clear(),
            |bytes| *bytes.iter_mut().rev().nth(TRAILER - 33).unwrap() ^= 1,
            |bytes| bytes.extend([0; TRAILER]),
        ];
        for damage in damages {
            let place = Place::new();
            place.cache().keep(key, b"unpacked").unwrap();
            let [file] = &place.files()[..] else { panic!("one file is there") };
            let mut bytes = fs::read(file).unwrap();
            damage(&mut bytes);
            fs::write(file, bytes).unwrap();
            assert!(place.cache().find(key).is_none());
            place.cache().keep(key, b"unpacked").unwrap();
            assert_eq!(content(place.cache().find(key).unwrap()), b"unpacked");
        }
    }

    #[test]
    fn hostile_52_links_and_what_others_may_write_are_left_alone() {
        let key = Key::of(b"packed");
        let place = Place::new();
        let elsewhere = place.0.path().join("elsewhere");
        place.cache().keep(key, b"unpacked").unwrap();
        let [file] = &place.files()[..] else { panic!("one file is there") };
        fs::rename(file, &elsewhere).unwrap();
        symlink(&elsewhere, file).unwrap();
        let before = fs::read(&elsewhere).unwrap();
        assert!(place.cache().find(key).is_none(), "a link is not followed");
        place.cache().keep(key, b"replaced").unwrap();
        assert_eq!(fs::read(&elsewhere).unwrap(), before);
        assert_eq!(content(place.cache().find(key).unwrap()), b"replaced");
        fs::set_permissions(file, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(place.cache().find(key).is_none(), "others may have written it");
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Cache::open(&place.path(), 1 << 20).is_none(), "others may write the folder");
        let link = place.0.path().join("link");
        symlink(place.path(), &link).unwrap();
        assert!(Cache::open(&link, 1 << 20).is_none(), "the folder is a link");
        assert!(Cache::open(&elsewhere, 1 << 20).is_none(), "the folder is a file");
        assert!(Cache::open(Path::new("/proc/none/bivisor"), 1 << 20).is_none());
    }

    #[test]
    fn what_was_used_last_stays_when_room_is_needed() {
        let place = Place::new();
        let large = vec![1; 400 << 10];
        let keys = [b"first", b"other", b"third"].map(|packed| Key::of(packed));
        let age = |index: usize, seconds| {
            let file = File::open(place.path().join(keys[index].name())).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
        };
        place.cache().keep(keys[0], &large).unwrap();
        place.cache().keep(keys[1], &large).unwrap();
        age(0, 20);
        age(1, 10);
        assert!(place.cache().find(keys[0]).is_some(), "used just now");
        let stale = place.path().join("0123.new");
        File::create(&stale).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        place.cache().keep(keys[2], &large).unwrap();
        let found = keys.map(|key| place.cache().find(key).is_some());
        assert_eq!(found, [true, false, true]);
        assert!(!stale.exists());
        assert!(place.cache().keep(Key::of(b"huge"), &vec![0; 2 << 20]).is_none());
        assert_eq!(place.files().len(), 2, "what does not fit pushes nothing out");
    }
}
