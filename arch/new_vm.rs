//! A VM that is not there yet, and the one failure of its making that is none.

use anyhow::{Context, Result};
use kvm_ioctls::{Kvm, VmFd};

/// How often it is tried. Our choice: what is pending each time is somebody's doing, and is told then.
const TRIES: u32 = 100;

/// Creates a VM of the type `kind` (KVM API, KVM_CREATE_VM). That gives EINTR as long as anything is pending for
/// this thread, be it only what the kernel does itself on the way out of the call, such as a part of the end of
/// an io_uring: of the disk of the machine that was reset just now (Linux v6.12 mm/mmap.c,
/// `mm_take_all_locks`, and io_uring/io_uring.c, `io_ring_exit_work`).
pub fn create(kvm: &Kvm, kind: u64) -> Result<VmFd> {
    for _ in 1..TRIES {
        match kvm.create_vm_with_type(kind) {
            Err(error) if error.errno() == libc::EINTR => {}
            other => return other.context("create a VM"),
        }
    }
    kvm.create_vm_with_type(kind).context("create a VM")
}
