//! The mode that a guest starts in, and what PSTATE says about where it is.
//!
//! Source: Arm ARM DDI 0487 L.a, "C5.2.19 SPSR_EL1" and "D1.2 Exception levels".

use crate::board::Takes;
use crate::memory::RamRange;

/// The mode that a guest starts in: there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// EL1 with the MMU off and interrupts masked.
    El1,
}

impl Mode {
    /// All modes by name.
    pub const NAMED: &[(&str, Self)] = &[("el1", Self::El1)];

    /// The kind of machine: there is one.
    pub fn machine(self, _: Option<Machine>, _: Takes) -> Machine {
        Machine::Micro
    }

    /// Nothing needs to be left free.
    pub fn avoids(self) -> &'static [RamRange] {
        &[]
    }
}

/// The kind of machine: there is one, without anything that is old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// An interrupt controller, and a device tree that tells everything.
    Micro,
}

impl Machine {
    /// All machines by name.
    pub const NAMED: &[(&str, Self)] = &[("micro", Self::Micro)];

    /// True: it always has an interrupt controller.
    pub fn has_platform(self) -> bool {
        true
    }
}

/// PSTATE of a first vCPU: EL1h, debug, SError, IRQ and FIQ masked (Linux v6.12
/// Documentation/arch/arm64/booting.rst asks for it, and KVM starts vCPUs so).
pub const PSTATE_EL1H: u64 = 0x3c5;

/// SCTLR_EL1.M: the MMU is on.
pub const SCTLR_M: u64 = 1 << 0;

/// Where the CPU is, in words.
pub fn mode_name(pstate: u64) -> &'static str {
    const AARCH32: u64 = 1 << 4;
    match pstate & 0xf {
        _ if pstate & AARCH32 != 0 => "AArch32",
        0x0 => "EL0t",
        0x4 => "EL1t",
        0x5 => "EL1h",
        0x8 => "EL2t",
        0x9 => "EL2h",
        _ => "an exception level that does not exist",
    }
}

/// The affinity that KVM gives vCPU number `index` (Linux arch/arm64/kvm, `reset_mpidr`: 16 CPUs a
/// group, so that GICv3 can reach each with one SGI register write): the fields of MPIDR_EL1 that
/// PSCI and the device tree use.
pub fn affinity(index: usize) -> u64 {
    let index = index as u64;
    (index & 0xf) | (index >> 4 & 0xff) << 8 | (index >> 12 & 0xff) << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn affinities_count_to_15_and_then_carry() {
        for (index, expected) in [(0, 0), (15, 15), (16, 0x100), (255, 0xf0f), (4096, 0x1_0000)] {
            assert_eq!(affinity(index), expected);
        }
    }

    #[test]
    fn the_start_state_is_el1h() {
        assert_eq!(mode_name(PSTATE_EL1H), "EL1h");
        assert_eq!(mode_name(0x10), "AArch32");
    }
}
