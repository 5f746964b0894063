//! The half of aarch64 that talks to KVM: VM and vCPU creation, core registers, exits.
//!
//! vCPUs are created powered off but for the first (KVM_ARM_VCPU_POWER_OFF); PSCI's CPU_ON, which
//! KVM answers itself, starts them. Everything a guest does to a device is MMIO.

use anyhow::{Context, Result};
use kvm_bindings::{
    KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_INIT, KVM_ARM_VCPU_PMU_V3_IRQ,
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_SVE, KVM_CAP_ARM_NISV_TO_USER,
    KVM_EXIT_ARM_NISV, KVM_MEM_READONLY, KVM_MP_STATE_STOPPED, KVM_VM_TYPE_ARM_IPA_SIZE_MASK,
    kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
    kvm_enable_cap, kvm_userspace_memory_region, kvm_vcpu_init,
};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use linux_loader::configurator::{BootConfigurator, BootParams, fdt::FdtBootConfigurator};
use vm_memory::{GuestAddress, MmapRegion, VolatileMemory};
use vmm_sys_util::eventfd::EventFd;

use super::fdt::{Gic, device_tree};
use super::features::Features;
use super::gic::Chip;
pub use super::gic::route;
use super::mode::{Machine, Mode, PSTATE_EL1H, SCTLR_M, mode_name};
use super::registers::{self, Register, x};
use super::{debug, layout, vectors};
use crate::arch::new_vm;
use crate::arch::run_page::{Ring, RunPage};
use crate::board::{Board, Extra, Finding, Start};
use crate::exit::{BusAddr, CpuState, Crash, Exit, Stop};
use crate::irq::Redirection;
use crate::kick::Kick;
use crate::memory::{GuestRam, MAX_RANGES};
use crate::places::Places;
use crate::run::Run;

/// Address bits of a guest where KVM does not let us choose (KVM API, KVM_CREATE_VM).
const DEFAULT_IPA_BITS: u32 = 40;

/// Bits of guest-physical addresses that a host with this limit (0: it tells none) can give.
fn ipa_bits(limit: i32) -> u32 {
    match limit {
        bits @ 32..=52 => bits as u32,
        _ => DEFAULT_IPA_BITS,
    }
}

/// Past the highest guest-physical address.
pub fn address_limit(kvm: &Kvm) -> u64 {
    1 << ipa_bits(kvm.get_host_ipa_limit())
}

/// Creates the VM, with just enough address bits for `end`: fewer levels of stage-2 tables.
pub fn create_vm(kvm: &Kvm, end: u64) -> Result<VmFd> {
    let needed = u64::BITS - end.max(1 << 32).leading_zeros();
    let limit = kvm.get_host_ipa_limit();
    let bits = needed.min(ipa_bits(limit));
    let kind = if limit == 0 { 0 } else { bits & KVM_VM_TYPE_ARM_IPA_SIZE_MASK };
    let vm = new_vm::create(kvm, kind.into())?;
    // An access that KVM can't decode for us comes as an exit and not as an error of KVM_RUN.
    // Without the capability (Linux before 5.5) it still ends the guest.
    let _ = vm.enable_cap(&kvm_enable_cap { cap: KVM_CAP_ARM_NISV_TO_USER, ..Default::default() });
    Ok(vm)
}

/// What all vCPUs are made from.
pub struct Chips {
    gic: Chip,
    target: kvm_vcpu_init,
    features: Features,
    /// Host memory behind [`layout::VECTORS`].
    _vectors: MmapRegion,
}

/// The slot of the exception vectors: past those of RAM, which count from zero.
const VECTORS_SLOT: u32 = MAX_RANGES as u32;

/// Gives the guest exception vectors to begin with.
fn add_vectors(vm: &VmFd) -> Result<MmapRegion> {
    let table = vectors::table();
    let memory = MmapRegion::new(layout::VECTORS.len as usize)?;
    memory.as_volatile_slice().copy_from(&table);
    let slot = kvm_userspace_memory_region {
        slot: VECTORS_SLOT,
        flags: KVM_MEM_READONLY,
        guest_phys_addr: layout::VECTORS.start,
        memory_size: layout::VECTORS.len,
        userspace_addr: memory.as_ptr() as u64,
    };
    // SAFETY: the slot is exactly the mapping that is kept in `Chips`; when the machine drops it,
    // no vCPU is left that could reach it.
    unsafe { vm.set_user_memory_region(slot) }?;
    Ok(memory)
}

/// What this host's KVM can give vCPUs.
fn features(vm: &VmFd) -> Features {
    let has = |cap| vm.check_extension(cap);
    Features {
        pmu: has(Cap::ArmPmuV3),
        sve: has(Cap::ArmSve),
        pointer_authentication: has(Cap::ArmPtrAuthAddress) && has(Cap::ArmPtrAuthGeneric),
    }
}

/// Creates the interrupt controller and asks for the CPU model that the host prefers, with all
/// that it has.
pub fn before_vcpus(_: &Kvm, vm: &VmFd, cpus: usize, _: Machine) -> Result<Chips> {
    let vectors = add_vectors(vm).context("place the exception vectors")?;
    let gic = Chip::new(vm, cpus)?;
    let mut target = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut target).context("ask for the preferred CPU")?;
    let features = features(vm);
    target.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2 | features.bits();
    Ok(Chips { gic, target, features, _vectors: vectors })
}

/// None: KVM has the lines.
pub fn redirection(_: Machine) -> Option<Box<dyn Redirection>> {
    None
}

/// Wires a shared interrupt of the controller, which must be initialised.
pub fn wire(vm: &VmFd, event: &EventFd, line: u32) -> Result<()> {
    vm.register_irqfd(event, line).with_context(|| format!("wire interrupt {line}"))
}

/// Devices that a PCI bus brings: a frame that takes messages, for a controller that knows none.
pub fn pci_extras(chips: &Chips) -> &'static [(Extra, BusAddr)] {
    match chips.gic.version {
        Gic::V2 => layout::PCI_EXTRAS,
        Gic::V3 => &[],
    }
}

/// Makes a shared interrupt of the controller, which must be initialised, high or low.
pub fn set_line(vm: &VmFd, spi: u32, high: bool) -> Result<()> {
    vm.set_irq_line(layout::irq_line(spi), high).with_context(|| format!("set interrupt {spi}"))
}

/// Initialises the interrupt controller, then the PMUs, which KVM refuses before.
pub fn after_vcpus(chips: &Chips, vcpus: &[Vcpu]) -> Result<()> {
    chips.gic.initialise()?;
    if chips.features.pmu {
        for (index, vcpu) in vcpus.iter().enumerate() {
            vcpu.start_pmu().with_context(|| format!("initialise the PMU of vCPU {index}"))?;
        }
    }
    Ok(())
}

/// The first vCPU's registers: ids and values, in the order in which they are set.
pub struct Entry(Vec<(u64, u64)>);

/// Alignment of the device tree. Our choice: a large page, so that a guest maps it with one entry;
/// 8 bytes (Linux v6.12 Documentation/arch/arm64/booting.rst) where RAM is small.
const FDT_ALIGNS: [u64; 2] = [2 << 20, 8];

/// Places the device tree and works out the first registers.
///
/// It goes above the image and what follows it, so that a flat kernel's zeroed data, whose size
/// nobody knows, does not meet it; a second copy goes to the start of RAM when nothing else is
/// there, where firmware for `virt` looks. A guest whose RAM has no room for it finds x0 = 0.
pub fn prepare(
    ram: &GuestRam,
    places: &mut Places,
    board: &Board,
    start: &Start<Mode, Register>,
    chips: &Chips,
) -> Result<Entry> {
    let Mode::El1 = start.mode;
    let blob = device_tree(board, &start.kernel, chips.gic.version, chips.features)?;
    let len = blob.len() as u64;
    let limit = places.ram_start().saturating_add(layout::FDT_REACH);
    let found = FDT_ALIGNS.into_iter().find_map(|align| {
        let at = places.find_below(limit, len, align);
        at.filter(|at| *at > start.entry)
    });
    let mut registers = vec![
        (registers::PSTATE, PSTATE_EL1H),
        (registers::PC, start.entry),
        (registers::VBAR_EL1, layout::VECTORS.start),
        // What an ordinary compiler makes runs without further ado, SVE if it was told to.
        (registers::CPACR_EL1, registers::cpacr(chips.features.sve)),
    ];
    if let Some(at) = found {
        places.reserve(at, len, "device tree")?;
        write_fdt(ram, &blob, at)?;
        registers.push((x(0), at));
        // Where code for QEMU's `virt` board looks for it, and where RAM begins.
        for at in [layout::RAM_START, places.ram_start()] {
            if places.reserve(at, len, "second device tree").is_ok() {
                write_fdt(ram, &blob, at)?;
            }
        }
    }
    registers.extend(start.registers.iter().map(|(register, value)| (register.0, *value)));
    Ok(Entry(registers))
}

fn write_fdt(ram: &GuestRam, blob: &[u8], guest_addr: u64) -> Result<()> {
    let params = BootParams {
        header: blob.to_vec(),
        header_start: GuestAddress(guest_addr),
        sections: None,
        sections_start: None,
        modules: None,
        modules_start: None,
    };
    FdtBootConfigurator::write_bootparams(&params, ram.backend())
        .with_context(|| format!("write the device tree at {guest_addr:#x}"))
}

/// One vCPU.
pub struct Vcpu {
    pub(super) fd: VcpuFd,
    page: RunPage,
    pub(super) features: Features,
    /// The syndrome of the last debug exception.
    pub(super) syndrome: u32,
}

impl Vcpu {
    /// Creates vCPU number `index`. The first one is ready to run from `entry`; the others are
    /// powered off until PSCI's CPU_ON.
    pub fn new(vm: &VmFd, chips: &Chips, index: usize, entry: &Entry) -> Result<Self> {
        let mut fd = vm.create_vcpu(index as u64)?;
        let page = RunPage::new(&mut fd);
        let features = chips.features;
        let vcpu = Self { fd, page, features, syndrome: 0 };
        let mut init = chips.target;
        if index > 0 {
            init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
        }
        vcpu.fd.vcpu_init(&init).with_context(|| match features.list().as_str() {
            "" => "initialise it".into(),
            list => format!("initialise it with what this host's KVM offers ({list})"),
        })?;
        if features.sve {
            // Its registers can't be reached before, and it can't run.
            vcpu.fd.vcpu_finalize(&(KVM_ARM_VCPU_SVE as i32)).context("give it SVE registers")?;
        }
        if index == 0 {
            for (id, value) in &entry.0 {
                vcpu.write_register(*id, &value.to_le_bytes())?;
            }
        }
        Ok(vcpu)
    }

    /// Gives the PMU its interrupt, and initialises it (KVM API, "devices/vcpu.rst",
    /// KVM_ARM_VCPU_PMU_V3_CTRL).
    fn start_pmu(&self) -> Result<(), kvm_ioctls::Error> {
        // Its number among all interrupts: private ones of devices begin at 16.
        let interrupt: i32 = 16 + layout::PMU_PPI as i32;
        let at = &raw const interrupt as u64;
        for (attr, addr) in [(KVM_ARM_VCPU_PMU_V3_IRQ, at), (KVM_ARM_VCPU_PMU_V3_INIT, 0)] {
            let (group, attr) = (KVM_ARM_VCPU_PMU_V3_CTRL, attr.into());
            self.fd.set_device_attr(&kvm_device_attr { group, attr, addr, flags: 0 })?;
        }
        Ok(())
    }

    /// What makes this vCPU leave the guest.
    pub fn kick(&mut self) -> Kick {
        self.page.kick()
    }

    /// The ring of coalesced writes.
    pub fn ring(&self, page: usize) -> Ring {
        self.page.ring(page)
    }

    /// The register with this id, of 64 bits.
    pub(super) fn register(&self, id: u64) -> Result<u64> {
        self.read_register(id).map(u64::from_le_bytes)
    }

    /// The register with this id, of `N` bytes.
    pub(super) fn read_register<const N: usize>(&self, id: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fd.get_one_reg(id, &mut bytes).with_context(|| format!("read register {id:#x}"))?;
        Ok(bytes)
    }

    /// Sets the register with this id.
    pub(super) fn write_register(&self, id: u64, bytes: &[u8]) -> Result<()> {
        self.fd.set_one_reg(id, bytes).with_context(|| format!("write register {id:#x}"))?;
        Ok(())
    }
}

/// `kvm_run.arm_nisv`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Nisv {
    esr_iss: u64,
    fault_ipa: u64,
}

/// An access that the CPU did not describe: a load or store of more than one register, or with
/// write-back (KVM API, KVM_EXIT_ARM_NISV).
fn undescribed(guest_addr: u64) -> Stop {
    Stop::Crash(Crash::new(format!(
        "KVM could not emulate an instruction that reached {guest_addr:#x}, where no RAM is"
    )))
}

impl Run for Vcpu {
    fn run(&mut self) -> Result<Exit<'_>> {
        Ok(match self.fd.run() {
            Ok(VcpuExit::Unsupported(KVM_EXIT_ARM_NISV)) => {
                // SAFETY: KVM just reported KVM_EXIT_ARM_NISV.
                let nisv = unsafe { self.page.member::<Nisv>() };
                Exit::Stop(undescribed(nisv.fault_ipa))
            }
            Ok(VcpuExit::MmioRead(addr, _)) if let Some(what) = vectors::unhandled(addr) => {
                let reason = format!("{what} that the guest does not handle (it set no VBAR_EL1)");
                Exit::Stop(Stop::Crash(Crash::new(reason)))
            }
            Ok(VcpuExit::Debug(told)) => {
                self.syndrome = told.hsr;
                Exit::Trap(debug::trap(told.hsr, told.far))
            }
            // What NISV is without its capability.
            Err(error) if error.errno() == libc::ENOSYS => {
                Exit::Stop(Stop::Crash(Crash::new("KVM could not emulate an instruction")))
            }
            other => return self.page.decode(other),
        })
    }

    fn state(&self) -> Result<CpuState> {
        let registers = registers::shown()
            .map(|(name, id)| Ok((name, self.register(id)?)))
            .collect::<Result<Vec<_>>>()?;
        let mut pc = self.register(registers::PC)?;
        let stopped = self.fd.get_mp_state().is_ok_and(|s| s.mp_state == KVM_MP_STATE_STOPPED);
        let mut mode = match stopped {
            true => "powered off",
            false => mode_name(self.register(registers::PSTATE)?),
        }
        .to_string();
        if (layout::VECTORS.start..layout::VECTORS.end()).contains(&pc) {
            // In our vectors: where the exception came from is what people look for.
            pc = self.register(registers::ELR_EL1)?;
            mode = format!("{mode}, {}", vectors::class(self.register(registers::ESR_EL1)?));
        }
        let mmu_is_on = self.register(registers::SCTLR_EL1)? & SCTLR_M != 0;
        let pc_guest_addr = (!mmu_is_on).then_some(pc);
        Ok(CpuState { pc, pc_guest_addr, mode, registers })
    }
}

/// What only an aarch64 host has to tell.
pub fn findings(kvm: &Kvm) -> Vec<Finding> {
    let mut findings =
        vec![Finding::new("back-end", "EL2"), Finding::new("host-is-a-guest", host_machine())];
    let yes_no = |has| if has { "yes" } else { "no" };
    // In a machine of its own each, since one excludes another. Really created: what kvm-ioctls
    // makes of a mere test owns a descriptor that KVM never gave, and closes it.
    let has = |kind| {
        let mut device = kvm_create_device { type_: kind, fd: 0, flags: 0 };
        yes_no(create_vm(kvm, 0).is_ok_and(|vm| vm.create_device(&mut device).is_ok()))
    };
    findings.extend([
        Finding::new("gicv2", has(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2)),
        Finding::new("gicv3", has(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3)),
        Finding::new("its", has(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS)),
    ]);
    let Ok(vm) = create_vm(kvm, 0) else { return findings };
    findings.push(Finding::new("psci-0.2", yes_no(vm.check_extension(Cap::ArmPsci02))));
    findings.extend(features(&vm).named().map(|(name, has)| Finding::new(name, yes_no(has))));
    findings
}

/// Whether this host is itself a virtual machine, as its device tree tells.
fn host_machine() -> String {
    match std::fs::read("/proc/device-tree/compatible") {
        Ok(names) if names.starts_with(b"linux,dummy-virt") => {
            "yes (linux,dummy-virt: nested, or emulated by QEMU)".into()
        }
        Ok(names) => {
            let first = names.split(|byte| *byte == 0).next().unwrap_or_default();
            format!("no sign of it ({})", String::from_utf8_lossy(first).escape_default())
        }
        Err(_) => "can't be told: the host has no device tree".into(),
    }
}
