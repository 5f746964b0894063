//! What a debugger needs of a vCPU, with KVM's ioctls: registers, addresses, stops.

use std::sync::LazyLock;

use anyhow::{Context, Result};
use gdbstub::arch::Arch;
use gdbstub_arch::aarch64::reg::AArch64CoreRegs;
use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW, KVM_GUESTDBG_USE_SW_BP,
    kvm_guest_debug, kvm_guest_debug_arch,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::debug::{DebugRegisters, exception_entry};
use super::gdb_registers::{GdbRegisters, description, signature_masks};
use super::kvm::Vcpu;
use super::paging::Paging;
use super::registers::{
    ELR_EL1, ESR_EL1, FPCR, FPSR, PC, PSTATE, SCTLR_EL1, SP_EL0, SP_EL1, SPSR_EL1, TCR_EL1,
    TTBR0_EL1, TTBR1_EL1, VBAR_EL1, Z_LEN, v, x, z,
};
use crate::debug::{Slots, Trap};
use crate::memory::GuestRam;

/// What gdb is told about the architecture: no system registers, of which gdb would show hundreds.
pub enum GdbArch {}

impl Arch for GdbArch {
    type Usize = u64;
    type Registers = GdbRegisters;
    type RegId = ();
    type BreakpointKind = usize;

    fn target_description_xml() -> Option<&'static str> {
        static XML: LazyLock<String> = LazyLock::new(description);
        Some(&XML)
    }
}

/// Debug registers that can be used, as KVM tells.
pub fn debug_slots(kvm: &Kvm, vm: &VmFd) -> Slots {
    // Older kernels answer only for the whole of KVM.
    let count = |cap| {
        let counts = [vm.check_extension_int(cap), kvm.check_extension_int(cap)];
        counts.into_iter().find(|count| *count > 0).unwrap_or(0) as usize
    };
    Slots { breakpoints: count(Cap::DebugHwBps), watchpoints: count(Cap::DebugHwWps) }
}

/// Makes code that was written visible to the guest: cleaned out of the data cache, and dropped
/// from the instruction caches (Arm ARM, "B2.4.4 Concurrent modification and execution of
/// instructions").
pub fn code_written(ram: &GuestRam, guest_addr: u64, len: usize) {
    // The smallest line that there is: more work than needed, and right everywhere.
    const LINE: u64 = 16;
    let end = guest_addr.saturating_add(len as u64);
    let lines = (guest_addr & !(LINE - 1)..end).step_by(LINE as usize);
    let lines = lines.filter_map(|at| ram.backend().get_host_address(GuestAddress(at)).ok());
    for line in lines.clone() {
        // SAFETY: the address is one of the guest's RAM, which is mapped; no content changes.
        unsafe { std::arch::asm!("dc cvau, {}", in(reg) line, options(nostack)) };
    }
    // SAFETY: a barrier has no operands.
    unsafe { std::arch::asm!("dsb ish", options(nostack)) };
    for line in lines {
        // SAFETY: as above.
        unsafe { std::arch::asm!("ic ivau, {}", in(reg) line, options(nostack)) };
    }
    // SAFETY: barriers have no operands.
    unsafe { std::arch::asm!("dsb ish", "isb", options(nostack)) };
}

/// The stack pointer in use (Arm ARM, "C5.2.18 SPSel"): EL1h has its own.
fn stack_pointer(pstate: u64) -> u64 {
    const EL1H: u64 = 0b0101;
    if pstate & 0xf == EL1H { SP_EL1 } else { SP_EL0 }
}

impl Vcpu {
    /// The registers that gdb shows.
    pub fn gdb_registers(&self) -> Result<GdbRegisters> {
        let pstate = self.register(PSTATE)?;
        let mut core = AArch64CoreRegs {
            sp: self.register(stack_pointer(pstate))?,
            pc: self.register(PC)?,
            // The upper half is reserved but for what gdb does not know.
            cpsr: pstate as u32,
            fpcr: u32::from_le_bytes(self.read_register(FPCR)?),
            fpsr: u32::from_le_bytes(self.read_register(FPSR)?),
            ..AArch64CoreRegs::default()
        };
        for (n, register) in core.x.iter_mut().enumerate() {
            *register = self.register(x(n as u64))?;
        }
        for (n, register) in core.v.iter_mut().enumerate() {
            *register = self.vector(n as u64)?;
        }
        let masks = match self.features.pointer_authentication {
            true => signature_masks(self.register(TCR_EL1)?),
            false => [0; 4],
        };
        Ok(GdbRegisters { core, masks })
    }

    /// Floating-point register v`n`: of a vCPU with SVE, the beginning of z`n`.
    fn vector(&self, n: u64) -> Result<u128> {
        if self.features.sve {
            let whole: [u8; Z_LEN] = self.read_register(z(n))?;
            return Ok(u128::from_le_bytes(*whole.first_chunk().expect("it is longer")));
        }
        self.read_register(v(n)).map(u128::from_le_bytes)
    }

    /// Sets floating-point register v`n`. What follows it in z`n` stays as it is.
    fn set_vector(&self, n: u64, value: u128) -> Result<()> {
        if self.features.sve {
            let mut whole: [u8; Z_LEN] = self.read_register(z(n))?;
            whole[..16].copy_from_slice(&value.to_le_bytes());
            return self.write_register(z(n), &whole);
        }
        self.write_register(v(n), &value.to_le_bytes())
    }

    /// Sets what differs in `wanted`.
    pub fn set_gdb_registers(&self, wanted: &GdbRegisters) -> Result<()> {
        let (old, wanted) = (self.gdb_registers()?.core, &wanted.core);
        let pstate = self.register(PSTATE)?;
        let set = |id, old: &[u8], new: &[u8]| match old == new {
            true => Ok(()),
            false => self.write_register(id, new),
        };
        for (n, (old, new)) in old.x.iter().zip(&wanted.x).enumerate() {
            set(x(n as u64), &old.to_le_bytes(), &new.to_le_bytes())?;
        }
        for (n, (old, new)) in old.v.iter().zip(&wanted.v).enumerate() {
            if old != new {
                self.set_vector(n as u64, *new)?;
            }
        }
        let new_pstate = pstate & !0xffff_ffff | u64::from(wanted.cpsr);
        set(stack_pointer(pstate), &old.sp.to_le_bytes(), &wanted.sp.to_le_bytes())?;
        set(PC, &old.pc.to_le_bytes(), &wanted.pc.to_le_bytes())?;
        set(PSTATE, &pstate.to_le_bytes(), &new_pstate.to_le_bytes())?;
        set(FPCR, &old.fpcr.to_le_bytes(), &wanted.fpcr.to_le_bytes())?;
        set(FPSR, &old.fpsr.to_le_bytes(), &wanted.fpsr.to_le_bytes())
    }

    /// The virtual address of the next instruction.
    pub fn code_address(&self) -> Result<u64> {
        self.register(PC)
    }

    /// The guest-physical address of a virtual one, if it is mapped.
    pub fn translate(&self, ram: &GuestRam, virtual_addr: u64) -> Result<Option<u64>> {
        let paging = Paging {
            sctlr: self.register(SCTLR_EL1)?,
            tcr: self.register(TCR_EL1)?,
            ttbr: [self.register(TTBR0_EL1)?, self.register(TTBR1_EL1)?],
        };
        let read = |at| {
            let mut bytes = [0; 8];
            ram.read(&mut bytes, at).ok()?;
            Some(u64::from_le_bytes(bytes))
        };
        Ok(paging.translate(virtual_addr, read))
    }

    /// Has KVM stop the vCPU after one instruction, at BRK and for `registers`, from the next run
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
            control |= KVM_GUESTDBG_USE_HW;
        }
        if control != 0 {
            control |= KVM_GUESTDBG_ENABLE;
        }
        let DebugRegisters { bcr, bvr, wcr, wvr } = *registers;
        let arch = kvm_guest_debug_arch { dbg_bcr: bcr, dbg_bvr: bvr, dbg_wcr: wcr, dbg_wvr: wvr };
        let debug = kvm_guest_debug { control, pad: 0, arch };
        self.fd.set_guest_debug(&debug).context("debug a vCPU (KVM_SET_GUEST_DEBUG)")
    }

    /// Gives the guest the exception that a trap took from it. KVM has no call for that, so the
    /// registers are set as the CPU would have set them.
    pub fn give_back(&mut self, _: Trap) -> Result<()> {
        let pstate = self.register(PSTATE)?;
        let (pc, new) =
            exception_entry(pstate, self.register(VBAR_EL1)?, self.register(SCTLR_EL1)?);
        for (id, value) in [
            (ELR_EL1, self.register(PC)?),
            (SPSR_EL1, pstate),
            (ESR_EL1, self.syndrome.into()),
            (PC, pc),
            (PSTATE, new),
        ] {
            self.write_register(id, &value.to_le_bytes())?;
        }
        Ok(())
    }
}
