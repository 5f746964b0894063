//! A PCI bus with its host bridge (PCI Local Bus Specification 3.0; PCI Express Base Specification
//! 6.0, 7.2.2 "PCI Express Enhanced Configuration Access Mechanism").
//!
//! ```text
//! vCPU ── configuration ──▶ host ──▶ Function::read_config, write_config ──▶ config
//! vCPU ── memory ────────▶ host ──▶ the function whose base address register says so
//! guest ◀── message ── eventfd in KVM ◀── msix
//! ```
//!
//! [`config`]: a function's configuration space; [`msix`]: its interrupts; [`host`]: the bus. What
//! lies on it are virtio devices ([`crate::virtio::pci`]).

pub mod config;
pub mod host;
pub mod msix;

use crate::layout_check::Region;

/// The vendor of virtio devices and of what QEMU made up (the PCI ID repository, "Red Hat, Inc.").
pub const VENDOR_VIRTIO: u16 = 0x1af4;
/// See [`VENDOR_VIRTIO`].
pub const VENDOR_QEMU: u16 = 0x1b36;

/// One function of a device: all of ours have one only.
pub trait Function: Send {
    /// Reads the configuration space from `register` on; what is not there reads as zeros.
    fn read_config(&mut self, register: usize, data: &mut [u8]);

    /// Writes to it. What can't be written stays.
    fn write_config(&mut self, register: usize, data: &[u8]);

    /// The addresses that it answers at, if it does.
    fn memory(&self) -> Option<Region> {
        None
    }

    /// One read in its memory.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    /// One write in its memory.
    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}
