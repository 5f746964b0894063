//! The files that a job needs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::Job;

/// A file to send.
pub struct Sent {
    pub from: PathBuf,
    pub to: PathBuf,
    /// Names the bytes, whatever path they lie at: this machine's words for "unchanged".
    pub key: String,
    pub mode: u32,
    pub size: u64,
}

pub fn list(job: &Job) -> Result<Vec<Sent>, String> {
    let mut files = Vec::new();
    for (from, to) in &job.files {
        add(from, to, &mut files)?;
    }
    for tree in &job.trees {
        walk(tree, &mut files)?;
    }
    Ok(files)
}

fn add(from: &Path, to: &Path, files: &mut Vec<Sent>) -> Result<(), String> {
    let data = fs::metadata(from).map_err(|e| format!("read {}: {e}", from.display()))?;
    if !data.is_file() {
        return Err(format!("read {}: not a file", from.display()));
    }
    let key = format!(
        "{:x}.{:x}.{:x}.{:x}.{:x}.{:x}.{:x}",
        data.dev(),
        data.ino(),
        data.size(),
        data.mtime(),
        data.mtime_nsec(),
        data.ctime(),
        data.ctime_nsec()
    );
    let (from, to) = (from.to_path_buf(), to.to_path_buf());
    files.push(Sent { from, to, key, mode: data.mode() & 0o7777, size: data.size() });
    Ok(())
}

/// A file, or the files below a folder, each at the path that it has here. What cargo or
/// version control or cross/ put there is left out.
fn walk(path: &Path, files: &mut Vec<Sent>) -> Result<(), String> {
    let data = fs::metadata(path).map_err(|e| format!("read {}: {e}", path.display()))?;
    if data.is_file() {
        return add(path, path, files);
    }
    let entries = fs::read_dir(path).map_err(|e| format!("read {}: {e}", path.display()))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let kind = entry.file_type().ok();
        let wanted = kind.is_some_and(|kind| kind.is_dir() || kind.is_file());
        if wanted && ![".git", ".cache", "target"].iter().any(|left_out| name == *left_out) {
            walk(&entry.path(), files)?;
        }
    }
    Ok(())
}
