//! Guest RAM: its ranges, the host memory behind them, and KVM's slots.
//!
//! RAM is mapped but never touched here, so a guest costs the host only what it uses. It is private,
//! or shared where another program serves a device. What lies where inside RAM is
//! [`crate::places`]' to say.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    ReadVolatile,
};

use crate::host_memory::HostMemory;
use crate::layout_check::Region;
use crate::mapped::Mapped;
use crate::sys;

/// A range of guest RAM: first address and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// First guest-physical address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

impl RamRange {
    /// Past the last byte.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// Ranges that a machine can have. Our choice: more than any board, and few enough that every host
/// has slots left for what an architecture adds.
pub const MAX_RANGES: usize = 256;

/// Ranges that another program takes (vhost-user protocol, "Memory regions description").
pub const MAX_SHARED_RANGES: usize = 8;

/// Sorts `ranges` and refuses what can't be guest RAM: empty, unaligned to `page` bytes, past
/// `limit` (exclusive), overlapping each other or one of the machine's own windows.
pub fn check_ranges(
    mut ranges: Vec<RamRange>,
    page: u64,
    limit: u64,
    windows: &[Region],
) -> Result<Vec<RamRange>> {
    ensure!(ranges.len() <= MAX_RANGES, "{} ranges, use at most {MAX_RANGES}", ranges.len());
    ranges.sort_by_key(|range| range.start);
    let mut end = 0;
    for range in &ranges {
        let RamRange { start, len } = *range;
        ensure!(len > 0, "RAM at {start:#x} is empty, give it at least {page} bytes");
        ensure!(
            start.is_multiple_of(page) && len.is_multiple_of(page),
            "RAM at {start:#x} of {len:#x} bytes is not aligned: both must be multiples of {page:#x}"
        );
        ensure!(
            start.checked_add(len).is_some_and(|end| end <= limit),
            "RAM at {start:#x} of {len:#x} bytes ends past {limit:#x}, \
             the end of the guest's address space here"
        );
        ensure!(
            start >= end,
            "RAM at {start:#x} overlaps the RAM before it, which ends at {end:#x}"
        );
        end = range.end();
        if let Some(w) = windows.iter().find(|w| w.start < end && start < w.end()) {
            bail!(
                "RAM {start:#x}..{end:#x} covers the {} at {:#x}..{:#x}: leave that range out",
                w.name,
                w.start,
                w.end()
            );
        }
    }
    Ok(ranges)
}

/// How the bytes of an image or an initial RAM disk come into RAM from a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageMemory {
    /// They are read into RAM, which has huge pages.
    #[default]
    Copy,
    /// Whole pages are mapped, so that guests with the same files share them. Those of RAM that is
    /// shared with another program are copied all the same: it would not see what is mapped over it.
    Map,
}

/// A range of RAM as another program can have it.
#[derive(Clone, Copy, Debug)]
pub struct SharedRange<'a> {
    /// Where the guest has it.
    pub range: RamRange,
    /// Where this process has it.
    pub host_addr: u64,
    /// What to map, from its first byte.
    pub file: BorrowedFd<'a>,
}

/// All RAM of one guest.
pub struct GuestRam {
    // Dropped before what it points to.
    memory: GuestMemoryMmap,
    mapped: Mutex<Vec<Mapped>>,
    host: Vec<HostMemory>,
    ranges: Vec<RamRange>,
    images: ImageMemory,
}

impl GuestRam {
    /// Maps host memory for `ranges`, which [`check_ranges`] has passed.
    pub fn new(ranges: Vec<RamRange>) -> Result<Self> {
        Self::of(ranges, HostMemory::new)
    }

    /// Maps memory that other programs can have too, as [`Self::shared_ranges`] says; of at most
    /// [`MAX_SHARED_RANGES`].
    pub fn shared(ranges: Vec<RamRange>) -> Result<Self> {
        ensure!(
            ranges.len() <= MAX_SHARED_RANGES,
            "{} ranges of RAM, but vhost-user back ends take {MAX_SHARED_RANGES}: use fewer (--ram)",
            ranges.len()
        );
        Self::of(ranges, HostMemory::shared)
    }

    fn of(ranges: Vec<RamRange>, make: fn(usize) -> io::Result<HostMemory>) -> Result<Self> {
        let mut host = Vec::with_capacity(ranges.len());
        let mut regions = Vec::with_capacity(ranges.len());
        for range in &ranges {
            let what = || format!("reserve {} MiB for the guest's RAM", range.len >> 20);
            let memory = make(range.len as usize).with_context(what)?;
            let region = GuestRegionMmap::new(memory.region()?, GuestAddress(range.start));
            regions.push(region.context("RAM ends past the address space")?);
            host.push(memory);
        }
        let memory = GuestMemoryMmap::from_regions(regions).context("collect the guest's RAM")?;
        let images = ImageMemory::default();
        Ok(Self { memory, mapped: Mutex::default(), host, ranges, images })
    }

    /// The same RAM, into which files come as `images` says.
    pub fn with_images(self, images: ImageMemory) -> Self {
        Self { images, ..self }
    }

    /// Gives KVM every range, one slot each. Slots come before interrupt chips and vCPUs: one that
    /// is added later waits for a grace period of milliseconds.
    pub fn add_slots(&self, vm: &VmFd) -> Result<()> {
        for (slot, region) in self.memory.iter().enumerate() {
            let start = region.start_addr();
            let userspace_addr =
                self.memory.get_host_address(start).expect("a region holds its own start") as u64;
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                guest_phys_addr: start.0,
                memory_size: region.len(),
                userspace_addr,
                flags: 0,
            };
            // SAFETY: the slot is exactly one mapping of `self.memory`, which the machine drops
            // only after its last vCPU and its VM.
            unsafe { vm.set_user_memory_region(slot) }.with_context(|| {
                format!("give KVM the RAM at {:#x} of {:#x} bytes", start.0, region.len())
            })?;
        }
        Ok(())
    }

    /// The ranges, lowest first.
    pub fn ranges(&self) -> &[RamRange] {
        &self.ranges
    }

    /// The ranges as another program can have them, lowest first; none if RAM is private.
    pub fn shared_ranges(&self) -> Vec<SharedRange<'_>> {
        let ranges = self.ranges.iter().zip(&self.host);
        let shared = ranges.filter_map(|(range, host)| {
            let host_addr = self.host_addr(range.start, range.len as usize)?;
            Some(SharedRange { range: *range, host_addr, file: host.file()? })
        });
        shared.collect()
    }

    fn is_shared(&self) -> bool {
        self.host.iter().any(|host| host.file().is_some())
    }

    /// Where this process has `len` bytes that the guest has at `guest_addr`, if all are in one range
    /// of RAM.
    pub fn host_addr(&self, guest_addr: u64, len: usize) -> Option<u64> {
        let slice = self.memory.get_slice(GuestAddress(guest_addr), len).ok()?;
        Some(slice.ptr_guard().as_ptr().addr() as u64)
    }

    /// What has the host take pages of RAM back (madvise(2)): those of a file stay until they are
    /// cut out of it.
    pub fn give_back_advice(&self) -> libc::c_int {
        if self.is_shared() { libc::MADV_REMOVE } else { libc::MADV_DONTNEED }
    }

    /// Writes `bytes` at `guest_addr`.
    pub fn write(&self, bytes: &[u8], guest_addr: u64) -> Result<()> {
        self.memory
            .write_slice(bytes, GuestAddress(guest_addr))
            .with_context(|| format!("write {} bytes at {guest_addr:#x}", bytes.len()))
    }

    /// Puts `len` bytes of `file` at `offset` into RAM at `guest_addr`, without a buffer in between.
    pub fn load(&self, file: &File, offset: u64, len: u64, guest_addr: u64) -> Result<()> {
        let mapped = match self.images {
            ImageMemory::Map if !self.is_shared() => {
                self.map(file, offset, len, guest_addr).context("map it")?
            }
            _ => 0,
        };
        let mut rest = file;
        rest.seek(SeekFrom::Start(offset + mapped))?;
        self.fill(&mut rest, guest_addr + mapped, len - mapped)
            .with_context(|| format!("read {len} bytes at {offset:#x}"))
    }

    /// Maps the whole pages among the first of `len` bytes, and gives their bytes; none where file
    /// and RAM don't agree in their alignment.
    fn map(&self, file: &File, offset: u64, len: u64, guest_addr: u64) -> io::Result<u64> {
        let page = sys::page_size();
        let len = len - len % page;
        let aligned = guest_addr.is_multiple_of(page) && offset.is_multiple_of(page);
        let place = self.memory.get_slice(GuestAddress(guest_addr), len as usize).ok();
        let Some(place) = place.filter(|_| aligned && len > 0) else { return Ok(0) };
        // SAFETY: the slice is a part of one of our own mappings, which outlive `self.mapped`; nobody
        // has references into guest RAM.
        let mapped =
            unsafe { Mapped::new(file, offset, len as usize, place.ptr_guard_mut().as_ptr())? };
        let mut all = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(mapped.map_or(0, |mapped| {
            all.push(mapped);
            len
        }))
    }

    /// Which file that is mapped here has shrunk, if one has.
    pub fn loss(&self) -> Option<String> {
        let all = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().find_map(Mapped::loss)
    }

    /// Fills `bytes` from `guest_addr`.
    pub fn read(&self, bytes: &mut [u8], guest_addr: u64) -> Result<()> {
        self.memory
            .read_slice(bytes, GuestAddress(guest_addr))
            .with_context(|| format!("read {} bytes at {guest_addr:#x}", bytes.len()))
    }

    /// Reads `len` bytes from `source` straight into RAM at `guest_addr`.
    pub fn fill(&self, source: &mut impl ReadVolatile, guest_addr: u64, len: u64) -> Result<()> {
        self.memory.read_exact_volatile_from(GuestAddress(guest_addr), source, len as usize)?;
        Ok(())
    }

    /// Up to `len` bytes from `guest_addr`: fewer where RAM ends, none where there is no RAM.
    pub fn peek(&self, guest_addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let read = self.memory.read(&mut bytes, GuestAddress(guest_addr)).unwrap_or(0);
        bytes.truncate(read);
        bytes
    }

    /// Leaves it out of core dumps of this process, with what is mapped into it by now: it is the guest's.
    pub fn leave_out_of_dumps(&self) {
        self.host.iter().for_each(HostMemory::leave_out_of_dumps);
    }

    /// The vm-memory view, for crates that speak it.
    pub fn backend(&self) -> &GuestMemoryMmap {
        &self.memory
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;

    fn check(ranges: &[(u64, u64)]) -> Result<Vec<RamRange>> {
        let ranges = ranges.iter().map(|&(start, len)| RamRange { start, len }).collect();
        let window = Region { name: "window", start: 0x8000, len: 0x1000 };
        check_ranges(ranges, 0x1000, 1 << 40, &[window])
    }

    #[test]
    fn files_that_come_into_shared_ram_are_seen_by_who_shares_it() {
        let page = sys::page_size();
        let ranges = vec![RamRange { start: page, len: 4 * page }];
        assert!(GuestRam::new(ranges.clone()).unwrap().shared_ranges().is_empty());
        let ram = GuestRam::shared(ranges.clone()).unwrap().with_images(ImageMemory::Map);
        let mut image = tempfile::tempfile().unwrap();
        image.write_all(&vec![7; 2 * page as usize]).unwrap();
        ram.load(&image, 0, 2 * page, 2 * page).unwrap();
        let shared = ram.shared_ranges();
        assert_eq!(shared.iter().map(|shared| shared.range).collect::<Vec<_>>(), ranges);
        let host_addr = |guest_addr, len| ram.host_addr(guest_addr, len);
        assert_eq!(host_addr(2 * page, 9), Some(shared[0].host_addr + page));
        assert_eq!([host_addr(0, 1), host_addr(5 * page - 1, 2)], [None; 2]);
        let file = File::from(shared[0].file.try_clone_to_owned().unwrap());
        let mut bytes = [9; 2];
        file.read_exact_at(&mut bytes, page - 1).unwrap();
        assert_eq!(bytes, [0, 7]);
        let many = (0..9).map(|index| RamRange { start: 2 * index * page, len: page });
        let error = GuestRam::shared(many.collect()).err().unwrap().to_string();
        assert!(error.starts_with("9 ranges of RAM"), "{error}");
    }

    #[test]
    fn good_ranges_come_back_sorted() {
        let sorted = check(&[(0x9000, 0x1000), (0, 0x8000), (0xa000, 0x1000)]).unwrap();
        assert_eq!(sorted.iter().map(|r| r.start).collect::<Vec<_>>(), [0, 0x9000, 0xa000]);
        assert!(check(&[((1 << 40) - 0x1000, 0x1000)]).is_ok());
    }

    #[test]
    fn each_bad_range_is_refused_with_its_numbers() {
        for (ranges, message) in [
            (&[(0u64, 0u64)][..], "RAM at 0x0 is empty"),
            (&[(0x10, 0x1000)], "RAM at 0x10 of 0x1000 bytes is not aligned"),
            (&[(0, 0x1001)], "RAM at 0x0 of 0x1001 bytes is not aligned"),
            (&[(0, 0x2000), (0x1000, 0x1000)], "RAM at 0x1000 overlaps"),
            (&[(0, 0x9000)], "RAM 0x0..0x9000 covers the window at 0x8000..0x9000"),
            (&[(1 << 40, 0x1000)], "ends past 0x10000000000"),
            (&[(u64::MAX - 0xfff, 0x1000)], "ends past"),
        ] {
            let error = check(ranges).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
