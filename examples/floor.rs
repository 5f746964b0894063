//! The floor: the least that a monitor has to do for an embedded guest, with 32 MiB. It asks KVM for
//! nothing else and can't fail well. What bivisor takes beyond this is its own doing.
//!
//! `floor [GUEST [EXITS]]` runs the guest `hello`, or another one, until it ends itself or has made so
//! many exits. `benches/start.rs` runs it.

#![cfg_attr(not(test), no_main)]
#![cfg_attr(test, allow(dead_code, reason = "there is nothing to test"))]

use std::ffi::{CStr, c_char, c_int};
use std::ptr::null_mut;

use bivisor::guests;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

const RAM_LEN: usize = 32 << 20;

/// Bytes of output that are written together.
const SHOWN_LEN: usize = 64;

#[cfg(target_arch = "x86_64")]
mod machine {
    use super::{VcpuFd, VmFd};

    pub const RAM: u64 = 0;
    pub const LOAD: u64 = 0x1000;
    pub const CONSOLE: u64 = 0x3f8;
    pub const EXIT: u64 = 0xf4;

    /// In real mode, at the image's first byte.
    pub fn begin(_: &VmFd, vcpu: &VcpuFd) {
        let mut sregs = vcpu.get_sregs().expect("read registers");
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).expect("write registers");
        // Bit 1 is always set (Intel SDM volume 1, 3.4.3).
        let regs = kvm_bindings::kvm_regs { rip: LOAD, rflags: 2, ..Default::default() };
        vcpu.set_regs(&regs).expect("write registers");
    }
}

#[cfg(target_arch = "aarch64")]
mod machine {
    use super::{VcpuFd, VmFd};

    pub const RAM: u64 = 0x4000_0000;
    pub const LOAD: u64 = 0x4008_0000;
    pub const CONSOLE: u64 = 0x0910_0000;
    pub const EXIT: u64 = 0x0911_0000;

    /// KVM API 4.68: the program counter among the core registers.
    const PC: u64 = 0x6030_0000_0010_0040;

    /// At the image's first byte; all else is as KVM_ARM_VCPU_INIT leaves it.
    pub fn begin(vm: &VmFd, vcpu: &VcpuFd) {
        let mut init = kvm_bindings::kvm_vcpu_init::default();
        vm.get_preferred_target(&mut init).expect("ask for the vCPU's kind");
        vcpu.vcpu_init(&init).expect("initialise the vCPU");
        vcpu.set_one_reg(PC, &LOAD.to_le_bytes()).expect("write the program counter");
    }
}

/// Where the guest wrote, and what.
fn written(exit: VcpuExit<'_>) -> (u64, &[u8]) {
    match exit {
        VcpuExit::IoOut(port, bytes) => (port.into(), bytes),
        VcpuExit::MmioWrite(addr, bytes) => (addr, bytes),
        other => panic!("the floor knows no {other:?}"),
    }
}

fn show(bytes: &[u8]) {
    // SAFETY: pointer and length are those of one slice.
    unsafe { libc::write(1, bytes.as_ptr().cast(), bytes.len()) };
}

/// The arguments: the guest's image, and how many exits it may make.
///
/// # Safety
///
/// `arguments` must point to `count` strings that end with a zero byte, and stay.
unsafe fn wanted(count: c_int, arguments: *const *const c_char) -> (&'static [u8], u64) {
    // SAFETY: the caller's promise.
    let arguments = unsafe { std::slice::from_raw_parts(arguments, count as usize) };
    let argument = |index: usize| {
        // SAFETY: as above.
        let text = arguments.get(index).map(|text| unsafe { CStr::from_ptr(*text) });
        text.map(|text| text.to_str().expect("an argument is text"))
    };
    let guest = guests::find(argument(1).unwrap_or("hello")).expect("no such guest");
    let exits = argument(2).map_or(u64::MAX, |count| count.parse().expect("a number of exits"));
    (guest.image, exits)
}

/// Called by the C library: Rust's own start is not needed, and no part of a floor.
#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn main(count: c_int, arguments: *const *const c_char) -> c_int {
    // SAFETY: the C library's promise.
    let (image, exits) = unsafe { wanted(count, arguments) };
    let kvm = Kvm::new().expect("open /dev/kvm");
    let vm = kvm.create_vm().expect("create a VM");
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: without MAP_FIXED a new mapping harms no other.
    let ram = unsafe { libc::mmap(null_mut(), RAM_LEN, prot, flags, -1, 0) };
    assert_ne!(ram, libc::MAP_FAILED, "map RAM");
    let place = ram.wrapping_byte_add((machine::LOAD - machine::RAM) as usize).cast::<u8>();
    // SAFETY: an embedded guest is a few KiB, and lies within 32 MiB from there.
    unsafe { image.as_ptr().copy_to_nonoverlapping(place, image.len()) };
    let region = kvm_userspace_memory_region {
        guest_phys_addr: machine::RAM,
        memory_size: RAM_LEN as u64,
        userspace_addr: ram as u64,
        ..Default::default()
    };
    // SAFETY: the mapping stays until the process ends.
    unsafe { vm.set_user_memory_region(region) }.expect("add a memory slot");
    let mut vcpu = vm.create_vcpu(0).expect("create a vCPU");
    machine::begin(&vm, &vcpu);

    let (mut shown, mut len) = ([0; SHOWN_LEN], 0);
    for _ in 0..exits {
        let (place, bytes) = written(vcpu.run().expect("run the vCPU"));
        match place {
            machine::CONSOLE => {
                for byte in bytes {
                    shown[len] = *byte;
                    len += 1;
                    if len == SHOWN_LEN {
                        show(&shown);
                        len = 0;
                    }
                }
            }
            machine::EXIT => break,
            _ => {}
        }
    }
    if len > 0 {
        show(&shown[..len]);
    }
    // SAFETY: ends the process, and with it all that it has.
    unsafe { libc::_exit(0) }
}
