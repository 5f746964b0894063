//! The mode and the kind of machine that a guest starts in.

use super::layout;
use crate::board::Takes;
use crate::memory::RamRange;

/// The mode that a guest starts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 16 bits, segments of 64 KiB at 16 times their selector.
    Real,
    /// 32 bits, flat segments of 4 GiB, no paging.
    Protected,
    /// 64 bits, the first 4 GiB mapped onto themselves.
    Long,
    /// As above, by the 64-bit Linux boot protocol.
    Linux,
    /// 32 bits, by the 32-bit Linux boot protocol.
    Linux32,
    /// Real mode, by the 16-bit Linux boot protocol.
    Linux16,
    /// 32 bits, by the PVH boot protocol.
    Pvh,
    /// 32 bits, by the multiboot 1 protocol.
    Multiboot,
}

impl Mode {
    /// The modes that can be asked for, by name. The others are an image's own: `--entry-protocol`.
    pub const NAMED: &[(&str, Self)] =
        &[("real", Self::Real), ("protected", Self::Protected), ("long", Self::Long)];

    /// What a guest that starts so finds around it: what was asked for, else what it expects. What
    /// speaks Linux's protocol without being Linux was made for PCs: a boot loader, a memory test.
    pub fn machine(self, asked: Option<Machine>, takes: Takes) -> Machine {
        let is_linux = matches!(takes, Takes::Ramdisk { is_linux: true, .. });
        let expected = match self {
            Self::Real | Self::Protected | Self::Long => Machine::Bare,
            Self::Linux | Self::Linux32 if is_linux => Machine::Micro,
            Self::Pvh => Machine::Micro,
            Self::Linux | Self::Linux32 | Self::Linux16 | Self::Multiboot => Machine::Pc,
        };
        match asked.unwrap_or(expected) {
            Machine::Micro if is_linux => Machine::Linux,
            machine => machine,
        }
    }

    /// RAM that belongs to a PC's firmware, as far as such a guest knows.
    pub fn avoids(self) -> &'static [RamRange] {
        match self {
            Self::Real | Self::Protected | Self::Long => &[],
            Self::Linux | Self::Linux32 | Self::Linux16 | Self::Pvh | Self::Multiboot => {
                &[layout::FIRST_PAGE, layout::LEGACY]
            }
        }
    }

    pub(super) fn is_64_bit(self) -> bool {
        matches!(self, Self::Long | Self::Linux)
    }
}

/// The kind of machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// No interrupt controllers with one CPU: HLT ends it.
    Bare,
    /// Interrupt controllers and ACPI, and nothing that is old.
    Micro,
    /// The same, with an I/O APIC of KVM's: Linux accesses it 200 times when it starts, and seldom
    /// ends so soon that KVM's costs time.
    Linux,
    /// As above, and what a PC has had since 1984: interval timer, interrupt controllers of its
    /// time, CMOS.
    Pc,
}

impl Machine {
    /// The machines that can be asked for, by name.
    pub const NAMED: &[(&str, Self)] = &[("micro", Self::Micro), ("pc", Self::Pc)];

    /// True if KVM has lines, which lead to its own I/O APIC. It costs 15 ms when a machine ends within
    /// 40 ms; one of ours costs an exit for each access.
    pub(super) fn has_kvm_lines(self) -> bool {
        matches!(self, Self::Linux | Self::Pc)
    }

    /// True if it has interrupt controllers and ACPI tables. HLT then waits for an interrupt.
    pub fn has_platform(self) -> bool {
        self != Self::Bare
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_finds_what_it_expects_unless_another_machine_was_asked_for() {
        use Machine::{Bare, Linux, Micro, Pc};
        let ramdisk = |is_linux| Takes::Ramdisk { is_linux, cmdline: 1, below: 1 };
        for (mode, takes, expected, with_micro) in [
            (Mode::Real, Takes::Nothing, Bare, Micro),
            (Mode::Long, Takes::Nothing, Bare, Micro),
            (Mode::Linux, ramdisk(true), Linux, Linux),
            (Mode::Linux, ramdisk(false), Pc, Micro),
            (Mode::Linux32, ramdisk(false), Pc, Micro),
            (Mode::Linux16, ramdisk(true), Pc, Linux),
            (Mode::Pvh, ramdisk(true), Linux, Linux),
            (Mode::Pvh, ramdisk(false), Micro, Micro),
            (Mode::Multiboot, Takes::Modules { below: 1 }, Pc, Micro),
        ] {
            let machine = |asked| mode.machine(asked, takes);
            let found = [machine(None), machine(Some(Micro)), machine(Some(Pc))];
            assert_eq!(found, [expected, with_micro, Pc], "{mode:?} {takes:?}");
        }
    }
}
