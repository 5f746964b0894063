//! x86-64 guests: 16-bit real, 32-bit protected and 64-bit long mode, a PC's ports.
//!
//! Pure, tested on any host: everything but `kvm` and `gdb`: [`layout`], [`boot`], [`cpuid`],
//! [`registers`], [`paging`], [`debug`], the boot protocols. With ioctls: `kvm` and `gdb`.

pub mod acpi;
mod bios;
pub mod boot;
pub mod cpuid;
pub mod debug;
#[cfg(target_arch = "x86_64")]
pub mod gdb;
mod handover;
mod io_apic;
#[cfg(target_arch = "x86_64")]
pub mod kvm;
pub mod layout;
pub mod linux;
mod mode;
pub mod multiboot;
pub mod paging;
pub mod pvh;
pub mod registers;
mod ways;

pub use debug::{BREAKPOINT, DebugRegisters, debug_registers};
pub use mode::{Machine, Mode};
pub use registers::{REGISTER_NAMES, Register, register};
pub use ways::RULES;

/// The name in target triples.
pub const NAME: &str = "x86_64";

/// rax in `struct ucontext` (Linux v6.12 arch/x86/include/uapi/asm/sigcontext.h): the fourteenth register
/// behind the 40 bytes of flags, link and stack.
pub const SIGNAL_RESULT: usize = 40 + 13 * 8;

/// This machine in `struct seccomp_data` (Linux v6.12 include/uapi/linux/audit.h: the ELF machine, 64 bits wide,
/// the least significant byte first).
pub const AUDIT: u32 = 0xc000_0000 | EM_X86_64 as u32;

/// `e_machine` values (System V ABI, chapter 4).
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
