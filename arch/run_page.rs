//! The page that KVM shares with us for each vCPU (`struct kvm_run`), and the exits that every
//! architecture decodes alike.
//!
//! kvm-ioctls hands most of an exit over; what it leaves out is read from the page itself.
//!
//! Source: KVM API (Linux Documentation/virt/kvm/api.rst), "The kvm_run structure".

use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use kvm_bindings::{
    KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring, kvm_run,
    kvm_run__bindgen_ty_1,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::exits;
use crate::exit::{BusAddr, Exit};
use crate::kick::Kick;

/// `kvm_run.internal`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Internal {
    suberror: u32,
    ndata: u32,
    data: [u64; 16],
}

/// The page of one vCPU. Kept beside the `VcpuFd` that it came from, never longer.
#[derive(Clone, Copy)]
pub struct RunPage(*mut kvm_run);

// SAFETY: the page belongs to the vCPU that it is kept beside, and moves with it.
unsafe impl Send for RunPage {}

impl RunPage {
    /// The page of `fd`.
    pub fn new(fd: &mut VcpuFd) -> Self {
        Self(fd.get_kvm_run())
    }

    /// The member of the exit's union that `T` describes.
    ///
    /// # Safety
    ///
    /// KVM must just have reported the exit to which that member belongs.
    pub unsafe fn member<T: Copy>(self) -> T {
        const { assert!(size_of::<T>() <= size_of::<kvm_run__bindgen_ty_1>()) };
        // SAFETY: the page is mapped as long as the vCPU lives; no reference is made.
        let union = unsafe { &raw const (*self.0).__bindgen_anon_1 };
        // SAFETY: every member of a C union begins where the union does, and `T` is no larger than
        // the union; the caller vouches that KVM wrote this one.
        unsafe { union.cast::<T>().read() }
    }

    /// The raw exit reason.
    fn exit_reason(self) -> u32 {
        // SAFETY: the page is mapped as long as the vCPU lives.
        unsafe { (*self.0).exit_reason }
    }

    /// What makes this vCPU leave the guest.
    pub fn kick(self) -> Kick {
        // SAFETY: the page is mapped as long as the vCPU lives; no reference is made.
        let immediate_exit = unsafe { &raw mut (*self.0).immediate_exit };
        // SAFETY: the machine keeps its vCPUs until nobody kicks them any more.
        unsafe { Kick::new(immediate_exit) }
    }

    /// The ring of the VM's coalesced writes, which lies behind the page; hosts have pages of `page` bytes.
    pub fn ring(self, page: usize) -> Ring {
        let start = self.0.wrapping_byte_add(KVM_COALESCED_MMIO_PAGE_OFFSET as usize * page);
        let len = page - size_of::<kvm_coalesced_mmio_ring>();
        Ring { ring: start.cast(), capacity: len / size_of::<kvm_coalesced_mmio>() }
    }

    /// Decodes what the architecture has no meaning of its own for.
    pub fn decode<'a>(self, result: Result<VcpuExit<'a>, kvm_ioctls::Error>) -> Result<Exit<'a>> {
        Ok(match result {
            Ok(VcpuExit::MmioWrite(addr, data)) => {
                Exit::Write { at: BusAddr::memory(addr), width: data.len(), data }
            }
            Ok(VcpuExit::MmioRead(addr, data)) => {
                Exit::Read { at: BusAddr::memory(addr), width: data.len(), data }
            }
            Ok(VcpuExit::Intr) => Exit::Interrupted,
            Ok(VcpuExit::SystemEvent(kind, _)) => Exit::Stop(exits::system_event(kind)),
            Ok(VcpuExit::FailEntry(reason, _)) => Exit::Stop(exits::fail_entry(reason)),
            Ok(VcpuExit::InternalError) => {
                // SAFETY: KVM just reported KVM_EXIT_INTERNAL_ERROR.
                let error = unsafe { self.member::<Internal>() };
                let len = error.data.len().min(error.ndata as usize);
                Exit::Stop(exits::internal_error(error.suberror, &error.data[..len]))
            }
            Ok(VcpuExit::MemoryFault { gpa, .. }) => Exit::Stop(exits::memory_fault(Some(gpa))),
            Ok(_) => Exit::Stop(exits::unknown(self.exit_reason())),
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => Exit::Interrupted,
                libc::EFAULT => Exit::Stop(exits::memory_fault(None)),
                _ => return Err(error).context("run a vCPU"),
            },
        })
    }
}

/// Bytes that KVM keeps of coalesced writes (KVM API, "The kvm_run structure": a ring whose `last` is KVM's
/// and whose `first` is ours, one entry always free). All of a VM's vCPUs share one. Only read once KVM has said
/// that it has one, and while there is a vCPU.
pub struct Ring {
    ring: *mut kvm_coalesced_mmio_ring,
    /// Entries.
    capacity: usize,
}

// SAFETY: the ring is not a thread's: KVM adds to it from any vCPU's, and who takes has it to itself.
unsafe impl Send for Ring {}

impl Ring {
    /// The most that it ever holds.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    fn first(&self) -> &AtomicU32 {
        // SAFETY: the ring is mapped as long as the vCPU lives, aligned as a page is.
        let first = unsafe { &raw mut (*self.ring).first };
        // SAFETY: as above; KVM only reads it, and we only by this.
        unsafe { AtomicU32::from_ptr(first) }
    }

    fn last(&self) -> &AtomicU32 {
        // SAFETY: the ring is mapped as long as the vCPU lives, aligned as a page is.
        let last = unsafe { &raw mut (*self.ring).last };
        // SAFETY: as above; KVM writes it at once, as a whole.
        unsafe { AtomicU32::from_ptr(last) }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.first().load(Ordering::Relaxed) == self.last().load(Ordering::Acquire)
    }

    /// The oldest write's first byte, which makes room.
    pub fn pop(&mut self) -> Option<u8> {
        if self.is_empty() {
            return None;
        }
        // Nobody but us writes it.
        let first = self.first().load(Ordering::Relaxed) as usize % self.capacity;
        // SAFETY: the ring is mapped as long as the vCPU lives; no reference is made.
        let entries =
            unsafe { (&raw const (*self.ring).coalesced_mmio).cast::<kvm_coalesced_mmio>() };
        let entry = entries.wrapping_add(first).cast::<u8>();
        let byte = entry.wrapping_add(offset_of!(kvm_coalesced_mmio, data));
        // SAFETY: within the ring's page; KVM had written it before it moved `last`.
        let byte = unsafe { byte.read() };
        self.first().store(((first + 1) % self.capacity) as u32, Ordering::Release);
        Some(byte)
    }
}
