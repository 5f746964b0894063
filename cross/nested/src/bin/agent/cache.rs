//! Files by key, of which a job gets copies.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nested::{CHUNK, sys};

/// Our choice: past this, files that no job of the moment needs are dropped.
const CACHE_LIMIT: u64 = 512 << 20;

/// A file that a job wants at `path`; its bytes lie in the cache under `key`.
pub struct Wanted {
    pub key: String,
    pub path: PathBuf,
    pub mode: u32,
    pub size: u64,
}

/// Copies a file out of the cache, without its holes.
pub fn put(wanted: &Wanted, path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let from = File::open(cached(&wanted.key))?;
    let to = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut piece = vec![0; 16 * CHUNK];
    let mut at = 0;
    while let Some(start) = sys::next_data(&from, at) {
        let count = from.read_at(&mut piece, start)?;
        to.write_all_at(&piece[..count], start)?;
        at = start + count as u64;
    }
    to.set_permissions(fs::Permissions::from_mode(wanted.mode))
}

pub fn cached(key: &str) -> PathBuf {
    Path::new("/cache").join(key)
}

/// Empties the cache once it is large; called while no job needs it.
pub fn trim() {
    let files: Vec<_> = fs::read_dir("/cache").into_iter().flatten().flatten().collect();
    let sizes = files.iter().map(|file| file.metadata().map_or(0, |data| data.len()));
    if sizes.sum::<u64>() > CACHE_LIMIT {
        for file in files {
            fs::remove_file(file.path()).ok();
        }
    }
}
