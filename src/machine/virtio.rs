//! Gives a machine its virtio devices, by either carrier, and ties their notifications to KVM.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::devices::Devices;
use crate::arch::layout;
use crate::board::Seat;
use crate::exit::BusAddr;
use crate::irq::{Irq, Vector};
use crate::pci::{Function, host};
use crate::virtio::VirtioDevice;
use crate::virtio::mmio::{self, Mmio};
use crate::virtio::pci::{self, Moved, VirtioPci};

impl Devices<'_> {
    /// The virtio devices behind registers in memory; gives where they lie.
    pub fn insert_virtio(&mut self, devices: Vec<Box<dyn VirtioDevice>>) -> Result<Vec<Seat>> {
        let count = devices.len();
        let insert = |(index, device)| {
            let seat = layout::virtio(index).with_context(|| {
                format!(
                    "{count} disks, networks and other devices: a machine has room for {index}, \
                     and for {} with --transport pci",
                    host::DEVICES - 1
                )
            })?;
            let irq = self.irq(seat.line)?;
            let device: Box<dyn VirtioDevice> = device;
            let name = device.name();
            let device = Mmio::new(device, self.ram.clone(), irq).context(name)?;
            let notify = IoEventAddress::Mmio(seat.at.addr + mmio::NOTIFY);
            for (number, kick) in device.transport().kicks().iter().enumerate() {
                self.vm
                    .register_ioevent(kick, &notify, number as u32)
                    .with_context(|| format!("{name}: have KVM take notifications"))?;
            }
            self.insert(seat.at, seat.len, name, Box::new(device))?;
            Ok(seat)
        };
        devices.into_iter().enumerate().map(insert).collect()
    }

    /// The virtio devices as functions of a PCI bus, in their order behind the host bridge.
    pub fn insert_pci(&mut self, devices: Vec<Box<dyn VirtioDevice>>) -> Result<()> {
        let (count, room) = (devices.len(), host::DEVICES - 1);
        ensure!(
            count <= room,
            "{count} disks, networks and other devices: a PCI bus has room for {room}"
        );
        let layout = layout::PCI;
        let mut functions: Vec<Box<dyn Function>> = vec![Box::new(host::Bridge::default())];
        for device in devices {
            let name = device.name();
            let vector = || match &self.controller {
                Some(controller) => controller.messages.vector(),
                // There is no controller to send it to.
                None => Ok(Vector::new(Irq::none(), |_| false)),
            };
            let vectors = (0..pci::vector_count(&*device)).map(|_| vector());
            let vectors = vectors.collect::<Result<_>>().context(name)?;
            let (ram, number) = (self.ram.clone(), functions.len());
            let function = VirtioPci::new(device, ram, vectors, number, layout.window);
            let mut function = function.context(name)?;
            let kicks = function.transport().kicks().iter().map(EventFd::try_clone);
            let kicks = kicks.collect::<Result<_, _>>().context("copy an eventfd")?;
            function.on_move(notifications(self.vm.clone(), kicks));
            functions.push(Box::new(function));
        }
        let (config, window) = host::bus(functions, layout.window);
        let at = BusAddr::memory(layout.config.start);
        self.insert(at, host::CONFIG_LEN, "PCI configuration", Box::new(config))?;
        let at = BusAddr::memory(layout.window.start);
        self.insert(at, layout.window.len, "PCI devices", Box::new(window))
    }
}

/// Has notifications end in KVM, wherever the guest puts the addresses that they are written to.
fn notifications(vm: Arc<VmFd>, kicks: Vec<EventFd>) -> Moved {
    let address =
        |start: u64, queue: usize| IoEventAddress::Mmio(start + queue as u64 * pci::NOTIFY_STEP);
    let mut taken: Vec<Option<IoEventAddress>> = kicks.iter().map(|_| None).collect();
    Box::new(move |start| {
        for (queue, kick) in kicks.iter().enumerate() {
            if let Some(old) = taken[queue].take() {
                let _ = vm.unregister_ioevent(kick, &old, NoDatamatch);
            }
            // What KVM does not take, such as an address that another device has, comes as an exit.
            if let Some(new) = start.map(|start| address(start, queue))
                && vm.register_ioevent(kick, &new, NoDatamatch).is_ok()
            {
                taken[queue] = Some(new);
            }
        }
    })
}
