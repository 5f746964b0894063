//! KVM's table of interrupt routes (KVM API, KVM_SET_GSI_ROUTING), as far as all architectures have
//! it. It is replaced as a whole.

use anyhow::{Context, Result};
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;

use crate::board::Message;

/// An entry that has number `gsi` stand for `message`.
pub fn message_route(gsi: u32, message: &Message) -> kvm_irq_routing_entry {
    let msi = kvm_irq_routing_msi {
        address_lo: message.guest_addr as u32,
        address_hi: (message.guest_addr >> 32) as u32,
        data: message.data,
        ..Default::default()
    };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
        ..Default::default()
    }
}

/// Replaces the table.
pub fn set_routes(vm: &VmFd, entries: Vec<kvm_irq_routing_entry>) -> Result<()> {
    let table = KvmIrqRouting::from_entries(&entries);
    let table = table.with_context(|| format!("make a table of {} routes", entries.len()))?;
    vm.set_gsi_routing(&table).context("set the interrupt routes")
}
