//! Interrupts that are messages, through KVM: its table of routes says what each number stands for
//! (KVM API, KVM_SET_GSI_ROUTING), and an eventfd for each number sends it.
//!
//! A change costs the whole table and a grace period, so it is made when a guest sets a vector up and
//! not when one is sent.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use crate::arch::{self, layout};
use crate::board::Message;
use crate::irq::{Irq, Vector};

/// Our choice: more than the devices of one bus want. KVM's table has room for 4096
/// (KVM_MAX_IRQ_ROUTES) with the lines.
const MOST: u32 = 1024;

/// What a machine's messages are.
pub struct Messages {
    vm: Arc<VmFd>,
    /// By number, counted from [`layout::MESSAGES`].
    routes: Mutex<Vec<Option<Message>>>,
}

impl Messages {
    /// None yet.
    pub fn new(vm: Arc<VmFd>) -> Arc<Self> {
        Arc::new(Self { vm, routes: Mutex::default() })
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
            "a machine has at most {MOST} of PCI's interrupts: give it fewer devices"
        );
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let event = event.context("create an eventfd")?;
        let irq = Irq::new(event.try_clone().context("copy an eventfd")?);
        let messages = self.clone();
        // A guest that leaves its vectors alone pays for none. KVM keeps what it was given.
        let mut unwired = Some(event);
        Ok(Vector::new(irq, move |message| {
            if let Some(event) = &unwired {
                if messages.vm.register_irqfd(event, layout::MESSAGES + number).is_err() {
                    return false;
                }
                unwired = None;
            }
            messages.route(number, message)
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
        let taken = arch::route(&self.vm, &known).is_ok();
        if !taken {
            routes[index] = None;
        }
        taken
    }
}
