//! What a debugger needs of a vCPU, with KVM's ioctls: registers, addresses, stops.
//!
//! gdb is told that this is a 64-bit machine, whatever mode the guest is in, because a connection
//! can't change that later. Addresses are linear: in real mode the base of CS is not added to the
//! `rip` that gdb shows.

use std::array::from_fn;

use anyhow::{Context, Result};
use gdbstub_arch::x86::reg::{X86_64CoreRegs, X86SegmentRegs, X87FpuInternalRegs};
use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_BP, KVM_GUESTDBG_INJECT_DB,
    KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP, kvm_guest_debug,
    kvm_guest_debug_arch, kvm_sregs,
};
use kvm_ioctls::{Kvm, VmFd};

use super::debug::{DebugRegisters, SLOTS};
use super::kvm::{EFER_LMA, Vcpu, general};
use super::paging::Paging;
use super::registers::{RFLAGS, RIP};
use crate::debug::{Slots, Trap};
use crate::memory::GuestRam;

/// What gdb is told about the architecture.
pub type GdbArch = gdbstub_arch::x86::X86_64_SSE;

/// The sixteen general registers in gdb's order, by their index in KVM's, which has `rsp` before
/// `rbp`.
const GDB_ORDER: [usize; 16] = [0, 1, 2, 3, 4, 5, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

/// Words of 32 bits in an XSAVE area (SDM vol. 1, "XSAVE Area", and the table of FXSAVE's 64-bit format): control
/// and status; tags and opcode; the last instruction and operand; MXCSR; the registers, four words each.
const CONTROL: usize = 0;
const TAG: usize = 1;
const INSTRUCTION: usize = 2;
const OPERAND: usize = 4;
const MXCSR: usize = 6;
const ST: usize = 8;
const XMM: usize = 40;
/// Which parts are in use (XSTATE_BV), and these two of them.
const USED: usize = 128;
const X87_AND_SSE: u32 = 0b11;

/// Debug registers that can be used: every CPU has them.
pub fn debug_slots(_: &Kvm, _: &VmFd) -> Slots {
    SLOTS
}

/// Code that was written is seen by every CPU: caches are coherent (SDM vol. 3A, "Handling Self-
/// and Cross-Modifying Code").
pub fn code_written(_: &GuestRam, _: u64, _: usize) {}

impl Vcpu {
    /// The registers that gdb shows.
    pub fn gdb_registers(&self) -> Result<X86_64CoreRegs> {
        let values = general(&mut self.fd.get_regs().context("read REGS")?).map(|value| *value);
        let sregs = self.fd.get_sregs().context("read SREGS")?;
        let area = self.fd.get_xsave().context("read the FPU")?.region;
        let selector = |segment: kvm_bindings::kvm_segment| segment.selector.into();
        Ok(X86_64CoreRegs {
            regs: GDB_ORDER.map(|index| values[index]),
            // The upper half is reserved.
            eflags: values[RFLAGS] as u32,
            rip: values[RIP],
            segments: X86SegmentRegs {
                cs: selector(sregs.cs),
                ss: selector(sregs.ss),
                ds: selector(sregs.ds),
                es: selector(sregs.es),
                fs: selector(sregs.fs),
                gs: selector(sregs.gs),
            },
            st: from_fn(|n| {
                let bytes = wide(&area, ST + 4 * n).to_le_bytes();
                bytes[..10].try_into().expect("ten bytes")
            }),
            fpu: X87FpuInternalRegs {
                fctrl: area[CONTROL] & 0xffff,
                fstat: area[CONTROL] >> 16,
                ftag: full_tag(area[TAG] as u8),
                fiseg: area[INSTRUCTION + 1],
                fioff: area[INSTRUCTION],
                foseg: area[OPERAND + 1],
                fooff: area[OPERAND],
                fop: area[TAG] >> 16,
            },
            xmm: from_fn(|n| wide(&area, XMM + 4 * n)),
            mxcsr: area[MXCSR],
        })
    }

    /// Sets what differs in `wanted`: setting registers has side effects. A selector is set without
    /// the descriptor that it names; in real mode, with its base.
    pub fn set_gdb_registers(&self, wanted: &X86_64CoreRegs) -> Result<()> {
        let old = self.gdb_registers()?;
        let core = |registers: &X86_64CoreRegs| (registers.regs, registers.eflags, registers.rip);
        if core(wanted) != core(&old) {
            let mut regs = self.fd.get_regs().context("read REGS")?;
            let places = general(&mut regs);
            for (index, value) in GDB_ORDER.into_iter().zip(wanted.regs) {
                *places[index] = value;
            }
            *places[RFLAGS] = wanted.eflags.into();
            *places[RIP] = wanted.rip;
            self.fd.set_regs(&regs).context("write REGS")?;
        }
        if wanted.segments != old.segments {
            self.set_selectors(&wanted.segments)?;
        }
        let float = |registers: &X86_64CoreRegs| {
            let X86_64CoreRegs { st, fpu, xmm, mxcsr, .. } = registers.clone();
            (st, fpu, xmm, mxcsr)
        };
        if float(wanted) != float(&old) {
            self.set_float(wanted)?;
        }
        Ok(())
    }

    fn set_selectors(&self, wanted: &X86SegmentRegs) -> Result<()> {
        const CR0_PE: u64 = 1;
        let mut sregs = self.fd.get_sregs().context("read SREGS")?;
        let real = sregs.cr0 & CR0_PE == 0;
        let kvm_sregs { cs, ss, ds, es, fs, gs, .. } = &mut sregs;
        let X86SegmentRegs { cs: a, ss: b, ds: c, es: d, fs: e, gs: f } = *wanted;
        for (segment, value) in [cs, ss, ds, es, fs, gs].into_iter().zip([a, b, c, d, e, f]) {
            // Selectors have 16 bits.
            if u32::from(segment.selector) != value {
                segment.selector = value as u16;
                if real {
                    segment.base = u64::from(segment.selector) << 4;
                }
            }
        }
        self.fd.set_sregs(&sregs).context("write SREGS")
    }

    /// Not by KVM_SET_FPU: it leaves registers that the guest has not used yet as unused, and so
    /// they are zero again when it runs.
    fn set_float(&self, wanted: &X86_64CoreRegs) -> Result<()> {
        let mut xsave = self.fd.get_xsave().context("read the FPU")?;
        let area = &mut xsave.region;
        let X87FpuInternalRegs { fctrl, fstat, ftag, fiseg, fioff, foseg, fooff, fop } =
            wanted.fpu.clone();
        // The registers behind some of these have 16 bits.
        area[CONTROL] = fctrl & 0xffff | fstat << 16;
        area[TAG] = u32::from(short_tag(ftag)) | fop << 16;
        area[INSTRUCTION..][..4].copy_from_slice(&[fioff, fiseg, fooff, foseg]);
        area[MXCSR] = wanted.mxcsr;
        for (n, value) in wanted.st.iter().enumerate() {
            let mut bytes = wide(area, ST + 4 * n).to_le_bytes();
            bytes[..10].copy_from_slice(value);
            set_wide(area, ST + 4 * n, u128::from_le_bytes(bytes));
        }
        for (n, value) in wanted.xmm.iter().enumerate() {
            set_wide(area, XMM + 4 * n, *value);
        }
        area[USED] |= X87_AND_SSE;
        // SAFETY: KVM reads no more than the structure has, since we never asked for features whose
        // state is larger (Linux v6.12 Documentation/arch/x86/xstate.rst).
        unsafe { self.fd.set_xsave(&xsave) }.context("write the FPU")
    }

    /// The linear address of the next instruction.
    pub fn code_address(&self) -> Result<u64> {
        let rip = self.fd.get_regs().context("read REGS")?.rip;
        let sregs = self.fd.get_sregs().context("read SREGS")?;
        Ok(match sregs.efer & EFER_LMA != 0 && sregs.cs.l != 0 {
            true => rip,
            false => sregs.cs.base.wrapping_add(rip) & 0xffff_ffff,
        })
    }

    /// The guest-physical address of a linear one, if it is mapped.
    pub fn translate(&self, ram: &GuestRam, linear: u64) -> Result<Option<u64>> {
        let kvm_sregs { cr0, cr3, cr4, efer, .. } = self.fd.get_sregs().context("read SREGS")?;
        let read = |at, width| {
            let mut bytes = [0; 8];
            ram.read(&mut bytes[..width], at).ok()?;
            Some(u64::from_le_bytes(bytes))
        };
        Ok(Paging { cr0, cr3, cr4, efer }.translate(linear, read))
    }

    /// Has KVM stop the vCPU after one instruction, at INT3 and for `registers`, from the next run
    /// on.
    pub fn debug(&mut self, step: bool, software: bool, registers: &DebugRegisters) -> Result<()> {
        let mut control = 0;
        if step {
            control |= KVM_GUESTDBG_SINGLESTEP;
        }
        if software {
            control |= KVM_GUESTDBG_USE_SW_BP;
        }
        if *registers != DebugRegisters::default() {
            control |= KVM_GUESTDBG_USE_HW_BP;
        }
        if control != 0 {
            control |= KVM_GUESTDBG_ENABLE;
        }
        self.debug = kvm_guest_debug {
            control,
            pad: 0,
            arch: kvm_guest_debug_arch { debugreg: registers.0 },
        };
        if step {
            // Else a step under a running timer ends in its interrupt. Linux before 5.15 has no
            // such thing.
            let control = control | KVM_GUESTDBG_BLOCKIRQ;
            if self.fd.set_guest_debug(&kvm_guest_debug { control, ..self.debug }).is_ok() {
                return Ok(());
            }
        }
        self.fd.set_guest_debug(&self.debug).context("debug a vCPU (KVM_SET_GUEST_DEBUG)")
    }

    /// Gives the guest the exception that `trap` took from it.
    pub fn give_back(&mut self, trap: Trap) -> Result<()> {
        let inject = match trap {
            Trap::Software => KVM_GUESTDBG_INJECT_BP,
            _ => KVM_GUESTDBG_INJECT_DB,
        };
        let control = self.debug.control | KVM_GUESTDBG_ENABLE | inject;
        let debug = kvm_guest_debug { control, ..self.debug };
        self.fd.set_guest_debug(&debug).context("give the guest its debug exception")
    }
}

/// Four words of an area, the lowest first.
fn wide(area: &[u32], at: usize) -> u128 {
    area[at..at + 4].iter().rev().fold(0, |value, word| value << 32 | u128::from(*word))
}

fn set_wide(area: &mut [u32], at: usize, value: u128) {
    for (n, word) in area[at..at + 4].iter_mut().enumerate() {
        *word = (value >> (32 * n)) as u32;
    }
}

/// The FPU's tags with two bits a register (SDM vol. 1, "x87 FPU Tag Word"), as far as one bit
/// tells: valid, or empty.
fn full_tag(short: u8) -> u32 {
    (0..8).filter(|n| short >> n & 1 == 0).map(|n| 0b11 << (2 * n)).sum()
}

/// The same with one bit a register: not empty.
fn short_tag(full: u32) -> u8 {
    (0..8).filter(|n| full >> (2 * n) & 0b11 != 0b11).map(|n| 1u8 << n).sum()
}
