//! Copies one disk onto another that is all zeros, so that zeros need no room there.

use std::sync::Arc;

use anyhow::{Context, Result};

use bivisor::devices::block::disk::Disk;
use bivisor::memory::{GuestRam, RamRange};
use bivisor::pieces::Pieces;
use bivisor::sys;

/// Bytes that are read at once. Our choice: large enough that the calls don't count.
const PART: u64 = 4 << 20;

/// Bytes that are left out together when all are zero. Our choice: a cluster of qcow2, and more
/// than a block of any file system.
const GRAIN: u64 = 1 << 16;

/// Copies `from` to `to`, which is as large and empty; tells `progress` the bytes that are done.
pub fn copy(from: &dyn Disk, to: &dyn Disk, mut progress: impl FnMut(u64)) -> Result<()> {
    // Disks read into guest RAM, so there is some, without a guest.
    let page = sys::page_size();
    let ram = GuestRam::new(vec![RamRange { start: 0, len: PART.next_multiple_of(page) }])?;
    let ram = Arc::new(ram);
    let mut pieces = Pieces::new(ram.clone());
    let mut bytes = vec![0; GRAIN as usize];
    let mut done = 0;
    while done < from.size() {
        let len = PART.min(from.size() - done);
        pieces.clear();
        pieces.push(0, len as usize).expect("as much RAM as that");
        from.read(&mut pieces, done).with_context(|| format!("read {len} bytes at {done}"))?;
        for at in (0..len).step_by(GRAIN as usize) {
            let count = GRAIN.min(len - at);
            let bytes = &mut bytes[..count as usize];
            ram.read(bytes, at)?;
            if bytes.iter().all(|byte| *byte == 0) {
                continue;
            }
            pieces.clear();
            pieces.push(at, count as usize).expect("a part of it");
            to.write(&mut pieces, done + at)
                .with_context(|| format!("write {count} bytes at {}", done + at))?;
        }
        done += len;
        progress(done);
    }
    Ok(())
}
