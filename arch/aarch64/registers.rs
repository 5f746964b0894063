//! Names of registers that `--reg` sets and verdicts show, and KVM's ids of them.
//!
//! Source: KVM API, KVM_SET_ONE_REG, "ARM64 registers have the following id bit patterns";
//! Arm ARM DDI 0487 L.a, "D24 AArch64 System Register Descriptions".

/// `KVM_REG_ARM64 | KVM_REG_SIZE_U64`.
const ARM64_U64: u64 = 0x6030_0000_0000_0000;
/// `KVM_REG_ARM_CORE`, `KVM_REG_ARM64_SYSREG`.
const CORE: u64 = 0x0010_0000;
const SYSREG: u64 = 0x0013_0000;

/// The id of the field at this byte offset of `struct kvm_regs` (31 general registers, sp, pc,
/// pstate, sp_el1, elr_el1, spsr), counted in 32-bit words.
const fn core(byte_offset: u64) -> u64 {
    ARM64_U64 | CORE | (byte_offset / 4)
}

/// The id of a system register by its encoding in MRS.
const fn system(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    ARM64_U64 | SYSREG | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

/// General register x`n`.
pub const fn x(n: u64) -> u64 {
    core(8 * n)
}
/// SP_EL0: the `sp` of KVM's structure.
pub const SP_EL0: u64 = core(31 * 8);
/// The program counter.
pub const PC: u64 = core(32 * 8);
/// The processor state.
pub const PSTATE: u64 = core(33 * 8);
/// SP_EL1: the stack pointer that a guest starts with.
pub const SP_EL1: u64 = core(34 * 8);
/// ELR_EL1: where the last exception came from.
pub const ELR_EL1: u64 = core(35 * 8);
/// SPSR_EL1: the processor state before the last exception.
pub const SPSR_EL1: u64 = core(36 * 8);

/// `KVM_REG_SIZE_U32` and `KVM_REG_SIZE_U128` instead of `KVM_REG_SIZE_U64`.
const U64_TO_U32: u64 = 0x0010_0000_0000_0000;
const U64_TO_U128: u64 = 0x0010_0000_0000_0000;
/// Byte offset of `struct user_fpsimd_state` in `struct kvm_regs`: after five SPSRs, aligned to 16.
const FP_REGS: u64 = 336;

/// Floating-point register v`n` of a vCPU without SVE.
pub const fn v(n: u64) -> u64 {
    core(FP_REGS + 16 * n) + U64_TO_U128
}

/// `KVM_REG_ARM64_SVE` with the size `KVM_REG_SIZE_U2048`, instead of a core register of 64 bits.
const SVE: u64 = 0x6080_0000_0015_0000;
/// Bytes of a vector register as KVM hands it over: the most that the architecture allows.
pub const Z_LEN: usize = 256;

/// Vector register z`n` of a vCPU with SVE (`KVM_REG_ARM64_SVE_ZREG`, slice 0). Its first 16 bytes
/// are v`n`, for which KVM then refuses the id of its own.
pub const fn z(n: u64) -> u64 {
    SVE | n << 5
}
/// Floating-point status.
pub const FPSR: u64 = core(FP_REGS + 32 * 16) - U64_TO_U32;
/// Floating-point control.
pub const FPCR: u64 = core(FP_REGS + 32 * 16 + 4) - U64_TO_U32;

/// Translation tables and their control.
pub const TTBR0_EL1: u64 = system(3, 0, 2, 0, 0);
pub const TTBR1_EL1: u64 = system(3, 0, 2, 0, 1);
pub const TCR_EL1: u64 = system(3, 0, 2, 0, 2);
/// System control: is the MMU on?
pub const SCTLR_EL1: u64 = system(3, 0, 1, 0, 0);

/// Exception syndrome: what the last exception was.
pub const ESR_EL1: u64 = system(3, 0, 5, 2, 0);
/// Access to floating point and to SVE.
pub const CPACR_EL1: u64 = system(3, 0, 1, 0, 2);
/// Its value that traps nothing: FPEN, and ZEN where there is SVE.
pub const fn cpacr(sve: bool) -> u64 {
    0b11 << 20 | if sve { 0b11 << 16 } else { 0 }
}
/// Base of the exception vectors.
pub const VBAR_EL1: u64 = system(3, 0, 12, 0, 0);

/// The general registers' names.
const GENERAL: [&str; 31] = [
    "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14",
    "x15", "x16", "x17", "x18", "x19", "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27",
    "x28", "x29", "x30",
];

/// Names for messages.
pub const REGISTER_NAMES: &str = "x0-x30 sp sp_el0 pc pstate";

/// One register: KVM's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(pub u64);

/// The register called `name`, and its width in bits. `sp` is the one in use at EL1h: SP_EL1.
pub fn register(name: &str) -> Option<(Register, u32)> {
    let id = match name {
        "sp" => SP_EL1,
        "sp_el0" => SP_EL0,
        "pc" => PC,
        "pstate" => PSTATE,
        _ => x(GENERAL.iter().position(|known| *known == name)? as u64),
    };
    Some((Register(id), 64))
}

/// What a verdict shows, in the order in which people read it.
pub fn shown() -> impl Iterator<Item = (&'static str, u64)> {
    const REST: [(&str, u64); 11] = [
        ("sp_el1", SP_EL1),
        ("sp_el0", SP_EL0),
        ("pc", PC),
        ("pstate", PSTATE),
        ("esr_el1", ESR_EL1),
        ("elr_el1", ELR_EL1),
        ("far_el1", system(3, 0, 6, 0, 0)),
        ("vbar_el1", VBAR_EL1),
        ("sctlr_el1", SCTLR_EL1),
        ("ttbr0_el1", TTBR0_EL1),
        ("ttbr1_el1", TTBR1_EL1),
    ];
    let general = GENERAL.into_iter().enumerate().map(|(n, name)| (name, x(n as u64)));
    general.chain(REST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_that_the_kernel_documents() {
        for (id, expected) in [
            (x(0), 0x6030_0000_0010_0000),
            (x(30), 0x6030_0000_0010_003c),
            (SP_EL0, 0x6030_0000_0010_003e),
            (PC, 0x6030_0000_0010_0040),
            (PSTATE, 0x6030_0000_0010_0042),
            (SP_EL1, 0x6030_0000_0010_0044),
            (SPSR_EL1, 0x6030_0000_0010_0048),
            (v(0), 0x6040_0000_0010_0054),
            (v(31), 0x6040_0000_0010_00d0),
            (z(0), 0x6080_0000_0015_0000),
            (z(31), 0x6080_0000_0015_03e0),
            (FPSR, 0x6020_0000_0010_00d4),
            (FPCR, 0x6020_0000_0010_00d5),
            // MPIDR_EL1, the kernel's own example.
            (system(3, 0, 0, 0, 5), 0x6030_0000_0013_c005),
        ] {
            assert_eq!(id, expected);
        }
    }

    #[test]
    fn every_name_is_known_and_no_other() {
        for (name, expected) in [
            ("x0", Some(x(0))),
            ("x30", Some(x(30))),
            ("sp", Some(SP_EL1)),
            ("pc", Some(PC)),
            ("x31", None),
            ("x", None),
            ("w0", None),
            ("rax", None),
            ("x00", None),
            ("", None),
        ] {
            assert_eq!(register(name), expected.map(|id| (Register(id), 64)), "{name}");
        }
    }
}
