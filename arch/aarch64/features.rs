//! What a vCPU has beyond the base of its architecture: what KVM leaves out unless it is asked for.
//!
//! A guest finds all of it in its ID registers. Only the PMU's interrupt has to be told to it.
//!
//! Source: KVM API, KVM_ARM_VCPU_INIT, "Possible features".

/// `KVM_ARM_VCPU_*`, as bits of `kvm_vcpu_init.features[0]`.
const PMU_V3: u32 = 1 << 3;
const SVE: u32 = 1 << 4;
const PTRAUTH_ADDRESS: u32 = 1 << 5;
const PTRAUTH_GENERIC: u32 = 1 << 6;

/// Features that a host may or may not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Counters of events, with an interrupt.
    pub pmu: bool,
    /// Vectors of a length that the CPU chooses.
    pub sve: bool,
    /// Pointers that carry a signature.
    pub pointer_authentication: bool,
}

impl Features {
    /// Each with the name that `check` has for it.
    pub fn named(self) -> [(&'static str, bool); 3] {
        let Self { pmu, sve, pointer_authentication } = self;
        [("pmu", pmu), ("sve", sve), ("pointer-authentication", pointer_authentication)]
    }

    /// The bits that ask KVM for them.
    pub fn bits(self) -> u32 {
        let mut bits = 0;
        if self.pmu {
            bits |= PMU_V3;
        }
        if self.sve {
            bits |= SVE;
        }
        if self.pointer_authentication {
            // Both or neither: KVM can't trap them apart.
            bits |= PTRAUTH_ADDRESS | PTRAUTH_GENERIC;
        }
        bits
    }

    /// For messages: the names of those that are there.
    pub fn list(self) -> String {
        let there = self.named().into_iter().filter(|(_, there)| *there);
        let names: Vec<_> = there.map(|(name, _)| name).collect();
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_feature_has_its_bits_and_its_name() {
        let none = Features::default();
        for (features, bits, list) in [
            (none, 0, ""),
            (Features { pmu: true, ..none }, 0x08, "pmu"),
            (Features { sve: true, ..none }, 0x10, "sve"),
            (Features { pointer_authentication: true, ..none }, 0x60, "pointer-authentication"),
            (Features { pmu: true, sve: true, ..none }, 0x18, "pmu, sve"),
        ] {
            assert_eq!((features.bits(), features.list().as_str()), (bits, list));
        }
    }
}
