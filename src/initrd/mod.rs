//! The initial RAM disk: one or more archives, one behind the other in guest RAM.

pub mod pack;

use anyhow::{Context, Result, ensure};

use crate::memory::{GuestRam, RamRange};
use crate::payload::Payload;
use crate::places::Places;
use crate::sys;

/// Alignment of an archive behind another (Linux Documentation/driver-api/early-userspace/
/// buffer-format.rst: 4 bytes, with zeros in between).
const ARCHIVE_ALIGN: u64 = 4;

/// Places `archives` below `limit`, as high as there is room, and gives their place; nothing for
/// no archive.
pub fn place(
    archives: &[Payload],
    ram: &GuestRam,
    places: &mut Places,
    limit: u64,
) -> Result<Option<RamRange>> {
    if archives.is_empty() {
        return Ok(None);
    }
    let mut offsets = Vec::with_capacity(archives.len());
    let mut len = 0u64;
    for archive in archives {
        let start = len.checked_next_multiple_of(ARCHIVE_ALIGN);
        let end = start.and_then(|start| start.checked_add(archive.len()));
        let (Some(start), Some(end)) = (start, end) else {
            anyhow::bail!("--initrd: the archives are larger than any RAM");
        };
        offsets.push(start);
        len = end;
    }
    let what = "initial RAM disk";
    let room = places.find_below(limit, len, sys::page_size());
    ensure!(
        room.is_some(),
        "--initrd: no room for {} KiB beside the kernel: give the guest more RAM (--memory)",
        len.div_ceil(1024)
    );
    let start = places.take_below(limit, len, sys::page_size(), what)?;
    for (archive, offset) in archives.iter().zip(offsets) {
        archive
            .place(ram, 0, archive.len(), start + offset)
            .with_context(|| format!("load the {what}"))?;
    }
    Ok(Some(RamRange { start, len }))
}
