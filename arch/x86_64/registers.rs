//! Names of registers that `--reg` sets and verdicts show.
//!
//! Source of the names: SDM vol. 1, "Basic Program Execution Registers".

/// The general registers, in the order of `struct kvm_regs`.
pub const GENERAL: [&str; 18] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "rip", "rflags",
];
/// Index in [`GENERAL`] of the register in which multiboot passes its magic number.
pub const RAX: usize = 0;
/// Index in [`GENERAL`] of the register in which PVH passes its start info, and multiboot its
/// information.
pub const RBX: usize = 1;
/// Index in [`GENERAL`] of the register in which Linux finds its zero page.
pub const RSI: usize = 4;
/// Index of the stack pointer in [`GENERAL`].
pub const RSP: usize = 6;
/// Index of the instruction pointer in [`GENERAL`].
pub const RIP: usize = 16;
/// Index of the flags in [`GENERAL`].
pub const RFLAGS: usize = 17;

/// The segment registers, in the order of [`super::boot::SystemRegisters::segments`].
pub const SEGMENTS: [&str; 6] = ["cs", "ds", "es", "fs", "gs", "ss"];
/// Index of the code segment in [`SEGMENTS`].
pub const CS: usize = 0;

/// The control registers that can be set.
pub const CONTROL: [&str; 4] = ["cr0", "cr3", "cr4", "efer"];

/// Names for messages.
pub const REGISTER_NAMES: &str = "rax rbx rcx rdx rsi rdi rsp rbp r8-r15 rip rflags (and eax, ax, …) cs ds es fs gs ss cr0 cr3 cr4 efer";

/// One register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// By its index in [`GENERAL`].
    General(usize),
    /// By its index in [`SEGMENTS`]; its selector.
    Segment(usize),
    /// By its index in [`CONTROL`].
    Control(usize),
}

/// The register called `name`, and its width in bits.
pub fn register(name: &str) -> Option<(Register, u32)> {
    let index = |names: &[&str], name: &str| names.iter().position(|n| *n == name);
    if let Some(i) = index(&SEGMENTS, name) {
        return Some((Register::Segment(i), 16));
    }
    if let Some(i) = index(&CONTROL, name) {
        return Some((Register::Control(i), 64));
    }
    if let Some(i) = index(&GENERAL, name) {
        return Some((Register::General(i), 64));
    }
    // Shorter names of the eight old registers, the instruction pointer and the flags.
    let (base, bits) = match name.strip_prefix('e') {
        Some(rest) => (rest, 32),
        None => (name, 16),
    };
    let i = index(&GENERAL, &format!("r{base}")).filter(|i| *i < 8 || *i >= RIP)?;
    Some((Register::General(i), bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_and_its_short_forms_are_known() {
        for (name, expected) in [
            ("rax", Some((Register::General(0), 64))),
            ("eax", Some((Register::General(0), 32))),
            ("ax", Some((Register::General(0), 16))),
            ("esp", Some((Register::General(6), 32))),
            ("ip", Some((Register::General(RIP), 16))),
            ("eflags", Some((Register::General(RFLAGS), 32))),
            ("r15", Some((Register::General(15), 64))),
            ("cs", Some((Register::Segment(CS), 16))),
            ("efer", Some((Register::Control(3), 64))),
            ("e15", None),
            ("15", None),
            ("x0", None),
            ("", None),
            ("e", None),
            ("RAX", None),
        ] {
            assert_eq!(register(name), expected, "{name}");
        }
    }
}
