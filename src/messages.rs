//! Interrupts that are messages, through KVM: its table of routes says what each number stands for
//! (KVM API, KVM_SET_GSI_ROUTING), and an eventfd for each number sends it. PCI's are, and lines where KVM
//! has none.
//!
//! A change costs the whole table and a grace period, so it is made when a guest sets a vector up and
//! not when one is sent.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, ensure};
use kvm_ioctls::VmFd;

use crate::arch::{self, layout};
use crate::board::Message;
use crate::irq::{Irq, Vector};

/// Our choice: more than the devices of one bus want. KVM's table has room for 4096
/// (KVM_MAX_IRQ_ROUTES) with the lines.
const MOST: u32 = 1024;

/// What a machine's messages are.
pub struct Messages {
    vm: Arc<VmFd>,
    machine: arch::Machine,
    /// By number, counted from [`layout::MESSAGES`].
    routes: Mutex<Vec<Option<Message>>>,
}

impl Messages {
    /// None yet.
    pub fn new(vm: Arc<VmFd>, machine: arch::Machine) -> Arc<Self> {
        Arc::new(Self { vm, machine, routes: Mutex::default() })
    }

    /// One more interrupt, which says nothing yet.
    pub fn vector(self: &Arc<Self>) -> Result<Vector> {
        let number = {
            let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
            routes.push(None);
            routes.len() as u32 - 1
        };
        ensure!(
            number < MOST,
            "a machine has at most {MOST} interrupts that are messages: give it fewer devices"
        );
        let (irq, event) = Irq::with_event()?;
        let (messages, gsi) = (self.clone(), layout::MESSAGES + number);
        // A guest that leaves its vectors alone pays for none.
        let mut wired = false;
        Ok(Vector::new(irq, move |message| match message {
            Some(message) if messages.route(number, message) => {
                wired = wired || messages.vm.register_irqfd(&event, gsi).is_ok();
                wired
            }
            // Edges wait in the eventfd.
            _ => {
                wired = wired && messages.vm.unregister_irqfd(&event, gsi).is_err();
                message.is_none() && !wired
            }
        }))
    }

    /// Has `number` stand for `message`. KVM may refuse it, as hardware would lose a message to
    /// nowhere; the others go on then.
    fn route(&self, number: u32, message: Message) -> bool {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let index = number as usize;
        routes[index] = Some(message);
        let known = (layout::MESSAGES..).zip(routes.iter());
        let known: Vec<_> = known.filter_map(|(gsi, route)| Some((gsi, (*route)?))).collect();
        let taken = arch::route(&self.vm, self.machine, &known).is_ok();
        if !taken {
            routes[index] = None;
        }
        taken
    }
}
