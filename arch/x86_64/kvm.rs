//! The half of x86-64 that talks to KVM: VM and vCPU creation, SREGS, REGS, CPUID and MSRs, exits.
//!
//! A flat guest with one CPU gets no interrupt controller, so that HLT ends it; more CPUs need
//! local APICs, because the others are started by INIT and SIPI. A kernel with a boot protocol gets
//! the whole platform.

use std::arch::x86_64::__cpuid;

use anyhow::{Context, Result, ensure};
use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KVM_PIT_SPEAKER_DUMMY, Msrs,
    kvm_enable_cap, kvm_guest_debug, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip, kvm_msr_entry, kvm_pit_config, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::boot::{FirstState, Segment, first_state};
use super::io_apic::IoApic;
use super::mode::{Machine, Mode};
use super::registers::{GENERAL, RFLAGS, RIP, Register};
use super::{cpuid, debug, layout};
use crate::arch::new_vm;
use crate::arch::routes::{message_route, set_routes};
use crate::arch::run_page::{Ring, RunPage};
use crate::board::{Board, Extra, Finding, Message, Start};
use crate::exit::{BusAddr, CpuState, Crash, Exit, Stop};
use crate::irq::Redirection;
use crate::kick::Kick;
use crate::memory::GuestRam;
use crate::places::Places;
use crate::run::Run;

/// IA32_MISC_ENABLE (SDM vol. 4): fast strings on; the profiling units that KVM does not emulate
/// marked as unavailable, as KVM itself has it.
const MSR_MISC_ENABLE: kvm_msr_entry = msr(0x1a0, 1 << 12 | 1 << 11 | 1 << 0);
/// IA32_MTRR_DEF_TYPE (SDM vol. 3A, "Memory Cache Control"): enabled, all memory write-back.
const MSR_MTRR_DEF_TYPE: kvm_msr_entry = msr(0x2ff, 1 << 11 | 6);

const fn msr(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, reserved: 0, data }
}

/// Past the highest guest-physical address: what the host's CPU can address.
pub fn address_limit(_: &Kvm) -> u64 {
    // SDM vol. 2A, "CPUID": leaf 0x8000_0008, eax bits 7:0; 36 where the leaf does not exist.
    let bits =
        if __cpuid(0x8000_0000).eax >= 0x8000_0008 { __cpuid(0x8000_0008).eax & 0xff } else { 36 };
    1 << bits.clamp(32, 52)
}

/// Creates the VM.
pub fn create_vm(kvm: &Kvm, _end: u64) -> Result<VmFd> {
    new_vm::create(kvm, 0)
}

/// What all vCPUs are made from.
pub struct Chips {
    /// The leaves that KVM supports.
    cpuid: CpuId,
    cpus: usize,
    machine: Machine,
}

/// Places KVM's own pages and makes the interrupt controllers: all of them where KVM is to have lines,
/// only local APICs for another platform and for a bare machine with more than one CPU, else none. The
/// interval timer is a PC's alone: it costs 15 ms when a machine ends.
pub fn before_vcpus(kvm: &Kvm, vm: &VmFd, cpus: usize, machine: Machine) -> Result<Chips> {
    // The first of KVM's pages, the identity map, is there unless it is moved.
    vm.set_tss_address(layout::KVM_PAGES as usize + 0x1000).context("place the task state")?;
    let platform = machine.has_platform();
    if machine.has_kvm_lines() {
        vm.create_irq_chip().context("create the interrupt controllers")?;
        if machine == Machine::Pc {
            // KVM has port 0x61 too, which tells when the timer's third channel is done.
            let timer = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
            vm.create_pit2(timer)
                .context("create the interval timer (--machine micro has none)")?;
        }
    } else if platform || cpus > 1 {
        let split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
        vm.enable_cap(&split).context("create local APICs")?;
    }
    let mut cpuid =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("read supported CPUID")?;
    // KVM has the timer but leaves it to us to say so.
    if platform && kvm.check_extension(Cap::TscDeadlineTimer) {
        let features = cpuid.as_mut_slice().iter_mut().filter(|leaf| leaf.function == 1);
        features.for_each(|leaf| leaf.ecx |= cpuid::TSC_DEADLINE);
    }
    // Without the room for as many leaves as there could be.
    let cpuid = CpuId::from_entries(cpuid.as_slice()).context("take memory for CPUID")?;
    Ok(Chips { cpuid, cpus, machine })
}

/// An I/O APIC of ours, where KVM has none.
pub fn redirection(machine: Machine) -> Option<Box<dyn Redirection>> {
    (!machine.has_kvm_lines()).then(|| Box::<IoApic>::default() as _)
}

/// Wires an input of the I/O APIC.
pub fn wire(vm: &VmFd, event: &EventFd, line: u32) -> Result<()> {
    vm.register_irqfd(event, line).with_context(|| format!("wire interrupt {line}"))
}

/// Makes an input of the interrupt controllers high or low.
pub fn set_line(vm: &VmFd, input: u32, high: bool) -> Result<()> {
    vm.set_irq_line(input, high).with_context(|| format!("set interrupt {input}"))
}

/// Devices that a PCI bus brings: none, since a local APIC takes messages.
pub fn pci_extras(_: &Chips) -> &'static [(Extra, BusAddr)] {
    &[]
}

/// Has interrupt numbers stand for `messages`, and KVM's lines for what it begins with: the inputs of the
/// I/O APIC, and of the 8259s where they have one (Linux v6.12 arch/x86/kvm/irq_comm.c,
/// `default_routing`).
pub fn route(vm: &VmFd, machine: Machine, messages: &[(u32, Message)]) -> Result<()> {
    /// Inputs of one 8259, of which there are two.
    const PIC_INPUTS: u32 = 8;
    let line = |gsi, irqchip, pin| kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip, pin },
        },
        ..Default::default()
    };
    let count = if machine.has_kvm_lines() { layout::MESSAGES } else { 0 };
    let lines = (0..count).flat_map(|gsi| {
        let pic = match gsi / PIC_INPUTS {
            0 => Some(KVM_IRQCHIP_PIC_MASTER),
            1 => Some(KVM_IRQCHIP_PIC_SLAVE),
            _ => None,
        };
        let pic = pic.map(|chip| line(gsi, chip, gsi % PIC_INPUTS));
        [Some(line(gsi, KVM_IRQCHIP_IOAPIC, gsi)), pic].into_iter().flatten()
    });
    let messages = messages.iter().map(|(gsi, message)| message_route(*gsi, message));
    set_routes(vm, lines.chain(messages).collect())
}

/// Nothing waits for the last vCPU here.
pub fn after_vcpus(_: &Chips, _: &[Vcpu]) -> Result<()> {
    Ok(())
}

/// The first vCPU's state.
pub struct Entry(FirstState);

/// Places descriptor and page tables and works out the first registers.
pub fn prepare(
    ram: &GuestRam,
    places: &mut Places,
    board: &Board,
    start: &Start<Mode, Register>,
    chips: &Chips,
) -> Result<Entry> {
    let (state, tables) = first_state(start, board, chips.machine, places)?;
    for (guest_addr, table) in tables {
        ram.write(&table, guest_addr)?;
    }
    Ok(Entry(state))
}

/// One vCPU.
pub struct Vcpu {
    pub(super) fd: VcpuFd,
    page: RunPage,
    /// What a debugger last asked for.
    pub(super) debug: kvm_guest_debug,
}

impl Vcpu {
    /// Creates vCPU number `index`. The first one is ready to run from `entry`; the others wait
    /// for INIT and SIPI.
    pub fn new(vm: &VmFd, chips: &Chips, index: usize, entry: &Entry) -> Result<Self> {
        let mut fd = vm.create_vcpu(index as u64)?;
        let page = RunPage::new(&mut fd);
        let vcpu = Self { fd, page, debug: kvm_guest_debug::default() };
        let mut cpuid = chips.cpuid.clone();
        for entry in cpuid.as_mut_slice() {
            let mut leaf = [entry.eax, entry.ebx, entry.ecx, entry.edx];
            cpuid::adjust(entry.function, entry.index, &mut leaf, index as u32, chips.cpus as u32);
            [entry.eax, entry.ebx, entry.ecx, entry.edx] = leaf;
        }
        vcpu.fd.set_cpuid2(&cpuid).context("write CPUID")?;
        let msrs = [MSR_MISC_ENABLE, MSR_MTRR_DEF_TYPE];
        let list = Msrs::from_entries(&msrs).expect("two entries fit");
        let written = vcpu.fd.set_msrs(&list).context("write MSRs")?;
        ensure!(written == msrs.len(), "KVM refused to write MSR {:#x}", msrs[written].index);
        if index == 0 {
            vcpu.set_first_state(&entry.0)?;
        } else {
            // KVM draws its map of local APICs before it knows the newest vCPU, and anew only when
            // something is set: else the last one would get no INIT until then.
            let apic = vcpu.fd.get_lapic().context("read the local APIC")?;
            vcpu.fd.set_lapic(&apic).context("write the local APIC")?;
        }
        Ok(vcpu)
    }

    fn set_first_state(&self, state: &FirstState) -> Result<()> {
        let mut sregs = self.fd.get_sregs().context("read SREGS")?;
        let system = &state.system;
        {
            let kvm_sregs { cs, ds, es, fs, gs, ss, .. } = &mut sregs;
            for (to, from) in [cs, ds, es, fs, gs, ss].into_iter().zip(&system.segments) {
                *to = kvm_segment_of(from);
            }
        }
        if let Some((base, limit)) = system.gdt {
            (sregs.gdt.base, sregs.gdt.limit) = (base, limit);
            // No interrupt table: the guest brings its own, or an exception is its end.
            (sregs.idt.base, sregs.idt.limit) = (0, 0);
        }
        [sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer] = system.control;
        self.fd
            .set_sregs(&sregs)
            .context("write SREGS (are the segments and control registers valid?)")?;
        let mut regs = kvm_regs::default();
        for (to, from) in general(&mut regs).into_iter().zip(state.general) {
            *to = from;
        }
        self.fd.set_regs(&regs).context("write REGS")
    }

    /// What makes this vCPU leave the guest.
    pub fn kick(&mut self) -> Kick {
        self.page.kick()
    }

    /// The ring of coalesced writes.
    pub fn ring(&self, page: usize) -> Ring {
        self.page.ring(page)
    }
}

/// The general registers in the order of [`GENERAL`].
#[rustfmt::skip]
pub(super) fn general(regs: &mut kvm_regs) -> [&mut u64; GENERAL.len()] {
    let kvm_regs {
        rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags,
    } = regs;
    [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags]
}

/// The first fields of `kvm_run.io`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Io {
    direction: u8,
    size: u8,
}

fn kvm_segment_of(segment: &Segment) -> kvm_segment {
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind,
        present: 1,
        dpl: 0,
        db: segment.db.into(),
        s: 1,
        l: segment.long.into(),
        g: segment.granular().into(),
        ..Default::default()
    }
}

impl Run for Vcpu {
    fn run(&mut self) -> Result<Exit<'_>> {
        // kvm-ioctls gives all items of a string access in one slice and drops their width.
        let width = |page: RunPage| {
            // SAFETY: called when KVM just reported KVM_EXIT_IO.
            usize::from(unsafe { page.member::<Io>() }.size)
        };
        Ok(match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                Exit::Write { at: BusAddr::port(port.into()), width: width(self.page), data }
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                Exit::Read { at: BusAddr::port(port.into()), width: width(self.page), data }
            }
            Ok(VcpuExit::Hlt) => Exit::Stop(Stop::Halt),
            Ok(VcpuExit::Shutdown) => Exit::Stop(Stop::Crash(Crash::new("triple fault"))),
            Ok(VcpuExit::Debug(told)) => {
                let registers = debug::DebugRegisters(self.debug.arch.debugreg);
                Exit::Trap(debug::trap(told.exception, told.dr6, &registers))
            }
            other => return self.page.decode(other),
        })
    }

    fn state(&self) -> Result<CpuState> {
        let general = general(&mut self.fd.get_regs().context("read REGS")?).map(|value| *value);
        let sregs = self.fd.get_sregs().context("read SREGS")?;
        let mut registers: Vec<_> = GENERAL.into_iter().zip(general).collect();
        registers.extend([
            ("cs", sregs.cs.selector.into()),
            ("ds", sregs.ds.selector.into()),
            ("es", sregs.es.selector.into()),
            ("ss", sregs.ss.selector.into()),
            ("cr0", sregs.cr0),
            ("cr2", sregs.cr2),
            ("cr3", sregs.cr3),
            ("cr4", sregs.cr4),
            ("efer", sregs.efer),
        ]);
        // Without a local APIC in KVM there is no such state to read.
        let waiting = match self.fd.get_mp_state().map(|state| state.mp_state) {
            Ok(KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED) => ", waiting for SIPI",
            Ok(KVM_MP_STATE_HALTED) => ", halted",
            _ => "",
        };
        let mode = mode_name(&sregs, general[RFLAGS]);
        let mode = format!("{mode}, ring {}{waiting}", sregs.cs.dpl);
        let linear = match sregs.efer & EFER_LMA != 0 && sregs.cs.l != 0 {
            true => general[RIP],
            false => sregs.cs.base.wrapping_add(general[RIP]) & 0xffff_ffff,
        };
        let translation = self.fd.translate_gva(linear).ok().filter(|t| t.valid != 0);
        let pc_guest_addr = translation.map(|t| t.physical_address);
        Ok(CpuState { pc: general[RIP], pc_guest_addr, mode, registers })
    }
}

pub(super) const EFER_LMA: u64 = 1 << 10;

/// The mode in words (SDM vol. 3A, "Modes of Operation").
fn mode_name(sregs: &kvm_sregs, rflags: u64) -> &'static str {
    const CR0_PE: u64 = 1;
    const RFLAGS_VM: u64 = 1 << 17;
    match (sregs.cr0 & CR0_PE != 0, sregs.efer & EFER_LMA != 0, sregs.cs.l != 0) {
        (false, ..) => "real mode",
        (true, false, _) if rflags & RFLAGS_VM != 0 => "virtual-8086 mode",
        (true, false, _) => "protected mode",
        (true, true, false) => "compatibility mode",
        (true, true, true) => "64-bit mode",
    }
}

/// What only an x86-64 host has to tell.
pub fn findings(kvm: &Kvm) -> Vec<Finding> {
    let backend = ["intel", "amd", "pvm"]
        .into_iter()
        .find(|name| std::path::Path::new(&format!("/sys/module/kvm_{name}")).exists());
    let backend = match backend {
        Some("intel") => "VMX (kvm_intel)",
        Some("amd") => "SVM (kvm_amd)",
        Some(_) => "PVM (kvm_pvm): ring 0 of a guest is emulated",
        None => "unknown (KVM is built into the kernel, or this is another one)",
    };
    let yes_no = |cap| if kvm.check_extension(cap) { "yes" } else { "no" };
    vec![
        Finding::new("back-end", backend),
        Finding::new("host-is-a-guest", hypervisor()),
        Finding::new("irqchip", yes_no(Cap::Irqchip)),
        Finding::new("split-irqchip", yes_no(Cap::SplitIrqchip)),
        Finding::new("pit", yes_no(Cap::Pit2)),
        Finding::new("tsc-deadline-timer", yes_no(Cap::TscDeadlineTimer)),
        Finding::new("unrestricted-guest", unrestricted_guest()),
    ]
}

/// Whose guest this host is, by the CPUID leaf that hypervisors share.
fn hypervisor() -> String {
    if __cpuid(1).ecx >> 31 & 1 == 0 {
        return "no".into();
    }
    let leaf = __cpuid(0x4000_0000);
    let name: Vec<u8> =
        [leaf.ebx, leaf.ecx, leaf.edx].iter().flat_map(|r| r.to_le_bytes()).collect();
    match name.as_slice() {
        b"TCGTCGTCGTCG" => "yes, emulated (QEMU TCG)".into(),
        b"KVMKVMKVM\0\0\0" => "yes, of KVM".into(),
        b"Microsoft Hv" => "yes, of Hyper-V".into(),
        b"VMwareVMware" => "yes, of VMware".into(),
        b"XenVMMXenVMM" => "yes, of Xen".into(),
        other => format!("yes, of {}", String::from_utf8_lossy(other).escape_default()),
    }
}

/// Whether VMX runs real mode without emulation.
fn unrestricted_guest() -> &'static str {
    match std::fs::read_to_string("/sys/module/kvm_intel/parameters/unrestricted_guest") {
        Ok(text) if text.starts_with('Y') => "yes",
        Ok(_) => "no: real mode is emulated",
        Err(_) => "not a question here",
    }
}
