//! The in-kernel interrupt controller: GICv3 where the host has it, else GICv2.
//!
//! Source: KVM API, "devices/arm-vgic-v3.rst", "devices/arm-vgic-its.rst" and "devices/arm-vgic.rst". It is initialised after
//! the last vCPU: KVM refuses new vCPUs from then on.

use anyhow::{Context, Result, ensure};
use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_IRQ_ROUTING_IRQCHIP,
    KVM_MSI_VALID_DEVID, KVM_VGIC_ITS_ADDR_TYPE, KVM_VGIC_V2_ADDR_TYPE_CPU,
    KVM_VGIC_V2_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST,
    kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip,
};
use kvm_ioctls::{DeviceFd, VmFd};

use super::fdt::Gic;
use super::layout;
use super::mode::Machine;
use crate::arch::routes::{message_route, set_routes};
use crate::board::Message;

/// The controller of one machine.
pub struct Chip {
    device: DeviceFd,
    /// The interrupt translation service, where the version has one.
    its: Option<DeviceFd>,
    /// Its version.
    pub version: Gic,
}

impl Chip {
    /// Creates it and says where it lies.
    pub fn new(vm: &VmFd, cpus: usize) -> Result<Self> {
        let create =
            |kind| vm.create_device(&mut kvm_create_device { type_: kind, fd: 0, flags: 0 });
        let (device, version) = match create(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3) {
            Ok(device) => (device, Gic::V3),
            Err(_) => {
                let device = create(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2).context(
                    "create an interrupt controller (this KVM has neither GICv3 nor GICv2)",
                )?;
                (device, Gic::V2)
            }
        };
        let its = match version {
            Gic::V3 => Some(
                create(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS)
                    .context("create an interrupt translation service")?,
            ),
            Gic::V2 => None,
        };
        let chip = Self { device, its, version };
        let (distributor, rest) = match version {
            Gic::V3 => (KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST),
            Gic::V2 => (KVM_VGIC_V2_ADDR_TYPE_DIST, KVM_VGIC_V2_ADDR_TYPE_CPU),
        };
        let region = match version {
            Gic::V3 => layout::GIC_REDISTRIBUTORS,
            Gic::V2 => layout::GIC_CPU_INTERFACE,
        };
        let limit = match version {
            Gic::V3 => (region.len / layout::GIC_REDISTRIBUTOR_LEN) as usize,
            // Arm IHI 0048, "GICD_ITARGETSRn": one bit for each CPU.
            Gic::V2 => 8,
        };
        ensure!(
            cpus <= limit,
            "--cpus {cpus}: this host's interrupt controller serves at most {limit}"
        );
        set_address(&chip.device, distributor, layout::GIC_DISTRIBUTOR.start)?;
        set_address(&chip.device, rest, region.start)?;
        if let Some(its) = &chip.its {
            set_address(its, KVM_VGIC_ITS_ADDR_TYPE, layout::GIC_ITS.start)?;
        }
        Ok(chip)
    }

    /// Once every vCPU exists: sets the number of interrupts and initialises it.
    pub fn initialise(&self) -> Result<()> {
        let interrupts = layout::INTERRUPTS;
        set(&self.device, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &raw const interrupts as u64)
            .context("set the number of interrupts")?;
        for device in [Some(&self.device), self.its.as_ref()].into_iter().flatten() {
            set(device, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT.into(), 0)
                .context("initialise the interrupt controller")?;
        }
        self.configure()
    }

    /// Has the guest find levels where it expects them: KVM begins with edges alone.
    fn configure(&self) -> Result<()> {
        /// The first of the registers; the same in both versions.
        const GICD_ICFGR: u32 = 0xc00;
        for register in 0..layout::INTERRUPTS / layout::CONFIGURED {
            let value = layout::icfgr(register);
            if value != layout::EDGES {
                let offset = GICD_ICFGR + 4 * register;
                let addr = &raw const value as u64;
                set(&self.device, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, offset.into(), addr)
                    .context("say which interrupts are levels")?;
            }
        }
        Ok(())
    }
}

/// Has interrupt numbers stand for `messages`, and lines for shared interrupts, as KVM begins. A
/// message to the GICv2m frame is a line of KVM's, which knows no frame; others are for the
/// interrupt translation service, which asks who sends them.
pub fn route(vm: &VmFd, _: Machine, messages: &[(u32, Message)]) -> Result<()> {
    let line = |gsi, pin| kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip: 0, pin },
        },
        ..Default::default()
    };
    let lines = (0..layout::MESSAGES).map(|spi| line(spi, spi));
    let messages = messages.iter().map(|(gsi, message)| {
        if let Some(spi) = layout::frame_spi(message.guest_addr, message.data) {
            return line(*gsi, spi);
        }
        let mut entry = message_route(*gsi, message);
        entry.flags = KVM_MSI_VALID_DEVID;
        entry.u.msi.__bindgen_anon_1.devid = message.sender;
        entry
    });
    set_routes(vm, lines.chain(messages).collect())
}

fn set_address(device: &DeviceFd, part: u32, guest_addr: u64) -> Result<()> {
    set(device, KVM_DEV_ARM_VGIC_GRP_ADDR, part.into(), &raw const guest_addr as u64)
        .with_context(|| format!("place the interrupt controller at {guest_addr:#x}"))
}

/// Sets one attribute; `addr` is the address of its value in this process.
fn set(device: &DeviceFd, group: u32, attr: u64, addr: u64) -> Result<(), kvm_ioctls::Error> {
    device.set_device_attr(&kvm_device_attr { group, attr, addr, flags: 0 })
}
