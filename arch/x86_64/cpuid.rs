//! CPUID: what KVM supports, told apart for each vCPU.
//!
//! Source: SDM vol. 2A, "CPUID", ed. 083; AMD64 APM vol. 3, appendix E.4.

/// The answer to one CPUID leaf: eax, ebx, ecx, edx.
pub type Leaf = [u32; 4];

/// Leaf 1 ecx: the local APIC's timer can wait for a value of the time-stamp counter.
pub const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ecx: a hypervisor is there, whose own leaves begin at 0x4000_0000 (Linux
/// Documentation/virt/kvm/x86/cpuid.rst). KVM leaves it to us to say so.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 edx: the package has room for several logical processors.
const HTT: u32 = 1 << 28;

/// Adjusts the `leaf` that KVM supports for `function`, `index` so that vCPU number `cpu` of
/// `cpus` finds its own APIC id and its siblings: one package, one thread per core.
pub fn adjust(function: u32, index: u32, leaf: &mut Leaf, cpu: u32, cpus: u32) {
    let [eax, ebx, ecx, edx] = leaf;
    // Bits of the APIC id that tell the package's cores apart.
    let width = cpus.next_power_of_two().trailing_zeros();
    match function {
        1 => {
            *ebx = *ebx & 0xffff | cpus.min(0xff) << 16 | (cpu & 0xff) << 24;
            *ecx |= HYPERVISOR;
            *edx = if cpus > 1 { *edx | HTT } else { *edx & !HTT };
        }
        // Extended topology: threads of a core (type 1), then cores of a package (type 2).
        0xb | 0x1f => {
            (*eax, *ebx, *ecx) = match index {
                0 => (0, 1, 1 << 8),
                1 => (width, cpus, 2 << 8 | 1),
                _ => (0, 0, index),
            };
            *edx = cpu;
        }
        // AMD: the extended APIC id, a core of its own.
        0x8000_001e => {
            *eax = cpu;
            *ebx = cpu & 0xff;
            *ecx = 0;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vcpu_finds_its_own_apic_id() {
        let mut leaf = [0, 0x0102_0803, 0, HTT];
        adjust(1, 0, &mut leaf, 3, 4);
        assert_eq!(leaf, [0, 0x0304_0803, HYPERVISOR, HTT]);
        adjust(1, 0, &mut leaf, 0, 1);
        assert_eq!(leaf, [0, 0x0001_0803, HYPERVISOR, 0]);
        for (index, expected) in [(0, [0, 1, 0x100, 2]), (1, [3, 5, 0x201, 2]), (2, [0, 0, 2, 2])] {
            let mut leaf = [9; 4];
            adjust(0xb, index, &mut leaf, 2, 5);
            assert_eq!(leaf, expected);
        }
        let mut leaf = [1, 2, 3, 4];
        adjust(7, 0, &mut leaf, 3, 4);
        assert_eq!(leaf, [1, 2, 3, 4]);
    }
}
