//! Files that are mapped into guest RAM, and what happens when one shrinks.
//!
//! A page that the file no longer has can't be had. Where the guest touches it, `KVM_RUN` fails
//! (EFAULT); where the monitor does, the host sends SIGBUS (mmap(2)). The handler here puts a page
//! of zeros in its place, so that neither the monitor nor another guest in the process dies of it.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::sys;

/// Places that are mapped at a time, in all machines of a process. Our choice: a kernel has a few
/// parts, and what is not mapped is copied.
const MOST: usize = 64;

/// A place that is mapped: first byte and past the last (host addresses); zeros if there is none.
struct Place {
    start: AtomicUsize,
    end: AtomicUsize,
}

static PLACES: [Place; MOST] =
    [const { Place { start: AtomicUsize::new(0), end: AtomicUsize::new(0) } }; MOST];

/// Bytes of a page, for the handler, which may not ask for it.
static PAGE: AtomicUsize = AtomicUsize::new(0);

/// A part of a file over a part of guest RAM. The memory stays mapped when this is dropped: it
/// belongs to the RAM.
pub struct Mapped {
    file: File,
    /// Past the part's last byte in the file.
    end: u64,
    place: &'static Place,
}

impl Mapped {
    /// Maps `len` bytes of `file` at `offset` privately over the host memory at `address`, all
    /// multiples of the page size; `None` where there are too many already.
    ///
    /// # Safety
    ///
    /// The memory is a private mapping that stays for as long as the result, and nobody has
    /// references into it.
    pub unsafe fn new(
        file: &File,
        offset: u64,
        len: usize,
        address: *mut u8,
    ) -> io::Result<Option<Self>> {
        static HANDLER: Once = Once::new();
        let mut installed = Ok(());
        HANDLER.call_once(|| installed = install_handler());
        installed?;
        let file = file.try_clone()?;
        let start = address.addr();
        let free = |place: &&Place| {
            place.start.compare_exchange(0, start, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let Some(place) = PLACES.iter().find(free) else { return Ok(None) };
        place.end.store(start + len, Ordering::Release);
        // From here on dropping it frees the place.
        let mapped = Self { end: offset + len as u64, place, file };
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let (fd, offset) = (mapped.file.as_raw_fd(), offset as libc::off_t);
        // SAFETY: it replaces memory that the caller gives for it.
        let result = unsafe { libc::mmap(address.cast(), len, prot, flags, fd, offset) };
        if result == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Some(mapped))
    }

    /// What became of the file, if it no longer has all that is mapped.
    pub fn loss(&self) -> Option<String> {
        let len = self.file.metadata().map_or(0, |metadata| metadata.size());
        (len < self.end).then(|| {
            let link = fs::read_link(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
            let name = link.map_or("a file".into(), |path| path.display().to_string());
            format!(
                "{name}, which is mapped into its RAM, shrank to {len} bytes: \
                 leave it alone, or use --image-memory copy"
            )
        })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.place.end.store(0, Ordering::Release);
        self.place.start.store(0, Ordering::Release);
    }
}

fn install_handler() -> io::Result<()> {
    // SAFETY: zeros are a valid sigaction: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = bus_error;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    PAGE.store(sys::page_size() as usize, Ordering::Release);
    // SAFETY: the handler does only what a handler may.
    match unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Puts zeros where a file has no page any more. Any other cause is left to kill the process, as
/// without a handler.
extern "C" fn bus_error(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes what belongs to the signal.
    let info = unsafe { &*info };
    // SAFETY: SIGBUS comes with an address.
    let address = unsafe { info.si_addr() }.addr();
    let inside = PLACES.iter().any(|place| {
        let (start, end) = (place.start.load(Ordering::Acquire), place.end.load(Ordering::Acquire));
        start <= address && address < end
    });
    let page = PAGE.load(Ordering::Acquire);
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let start = (address & !(page - 1)) as *mut libc::c_void;
    let replaced = inside && {
        // SAFETY: the page belongs to a place that this module has mapped.
        unsafe { libc::mmap(start, page, prot, flags, -1, 0) != libc::MAP_FAILED }
    };
    if !replaced {
        // SAFETY: what caused the signal will cause it again, and then nobody handles it.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{Bytes, VolatileMemory};

    use super::*;
    use crate::host_memory::HostMemory;

    #[test]
    fn hostile_22_a_file_that_shrinks_leaves_zeros_and_is_named() {
        let page = sys::page_size() as usize;
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![7; 2 * page]).unwrap();
        let memory = HostMemory::new(4 * page).unwrap();
        let region = memory.region().unwrap();
        let address = region.as_ptr();
        // SAFETY: the memory is this test's alone, which only looks at it through `region`.
        let mapped = unsafe { Mapped::new(file.as_file(), 0, 2 * page, address) };
        let mapped = mapped.unwrap().expect("there is room for one");
        let byte = |at| region.get_slice(at, 1).unwrap().read_obj::<u8>(0).unwrap();
        assert_eq!([byte(0), byte(2 * page - 1), byte(2 * page)], [7, 7, 0]);
        assert_eq!(mapped.loss(), None);
        region.get_slice(0, 1).unwrap().write_obj(9u8, 0).unwrap();

        file.as_file().set_len(page as u64).unwrap();
        assert_eq!([byte(0), byte(page - 1), byte(page), byte(2 * page - 1)], [9, 7, 0, 0]);
        let loss = mapped.loss().expect("the file shrank");
        let name = file.path().display().to_string();
        assert!(loss.starts_with(&format!("{name}, which")), "{loss}");
        assert_eq!(std::fs::read(file.path()).unwrap()[0], 7, "guests never write to the file");
    }
}
