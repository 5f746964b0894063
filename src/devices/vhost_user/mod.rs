//! Devices whose queues another program serves, the back end (vhost-user protocol, QEMU's
//! docs/interop/vhost-user.rst): what a driver sets up is passed on to it, with the guest's RAM.
//!
//! ```text
//! vCPU ── notification ──▶ eventfd in KVM ──▶ back end ──▶ rings and buffers, in shared RAM
//! guest ◀── interrupt ◀── Calls, a worker ◀── eventfd ◀──────┘
//! ```
//!
//! [`connection`]: what is said to a back end; [`kinds`]: the types of devices; [`virtiofsd`]: the back
//! end that bivisor starts itself, for shared folders; [`calls`]: the worker. This file passes the
//! life of a device on.
//!
//! The eventfd of a notification is the back end's alone, so no exit and no thread of ours is on that
//! way. On the way back there is a thread where a transport has more to do for an interrupt than KVM
//! does for an eventfd: registers in memory have a status to be set.
//!
//! A back end sees all of the guest's RAM: it is trusted as far as the guest is concerned, but not to
//! answer, to answer well, or to live.

mod calls;
mod connection;
mod kinds;
#[cfg(any(test, fuzzing))]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) mod peer;
#[cfg(test)]
mod tests;
mod virtiofsd;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use vmm_sys_util::eventfd::EventFd;

use self::calls::Calls;
use self::connection::Connection;
use self::kinds::Kind;
pub use self::kinds::{TAG_LEN, block, net, share};
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub use self::kinds::{block_on, fs, net_on};
use crate::child::Child;
use crate::notice;
use crate::virtio::queue::{self, Queue};
use crate::virtio::worker::Work;
use crate::virtio::{ConfigChange, VirtioDevice, read_from};

/// The device.
pub struct VhostUser {
    kind: Kind,
    /// What the back end is, for messages.
    title: String,
    connection: Connection,
    config: Vec<u8>,
    queues: Vec<u16>,
    /// The queues that the back end serves.
    running: Vec<usize>,
    /// The back end is to end, or that it has ended was told: it is no news.
    over: Arc<AtomicBool>,
    /// The back end, if it is ours.
    program: Option<Child>,
}

impl VhostUser {
    /// A device of the type `kind` behind `socket`. A conversation may take `patience`.
    fn new(kind: Kind, title: String, socket: UnixStream, patience: Duration) -> Result<Self> {
        let mut connection = Connection::new(socket, patience)?;
        ensure!(
            connection.features() & 1 << VIRTIO_F_VERSION_1 != 0,
            "the back end is older than virtio 1.0: use a newer one"
        );
        let config = match kind.config_len {
            0 => Vec::new(),
            len => connection.config(len)?,
        };
        let (queues, running, over) = (Vec::new(), Vec::new(), Arc::default());
        Ok(Self { kind, title, connection, config, queues, running, over, program: None })
    }

    /// Of the features of its type, those that the back end has.
    fn type_features(&self) -> u64 {
        self.kind.features & self.connection.features()
    }

    /// Sets its queues' sizes, if the back end can have as many.
    fn set_queues(&mut self, queues: Vec<u16>) -> Result<()> {
        let most = self.connection.queues();
        ensure!(
            queues.len() as u64 <= most,
            "the back end has no more than {most} of {} queues: start it with more",
            queues.len()
        );
        self.queues = queues;
        Ok(())
    }

    fn begin(&mut self, features: u64, queues: Vec<Queue>) -> Result<Calls> {
        let event = |queue: &Queue| match queue.used_event() {
            Some(event) => event.try_clone(),
            None => EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC),
        };
        let calls = queues.iter().map(event).collect::<Result<Vec<_>, _>>();
        let calls = calls.context("create an eventfd")?;
        let socket = self.connection.watched()?;
        self.connection.start(features, &queues, &calls)?;
        self.running = queues.iter().map(Queue::index).collect();
        let (title, over) = (self.title.clone(), self.over.clone());
        let ours = |(queue, _): &(Queue, _)| queue.used_event().is_none();
        let calls = queues.into_iter().zip(calls).filter(ours).collect();
        Ok(Calls { calls, socket, title, over })
    }
}

impl VirtioDevice for VhostUser {
    fn name(&self) -> &'static str {
        self.kind.name
    }

    fn id(&self) -> u32 {
        self.kind.id
    }

    fn features(&self) -> u64 {
        self.type_features() | self.kind.own_features
    }

    fn ring_features(&self) -> u64 {
        queue::FEATURES & self.connection.features()
    }

    fn shares_ram(&self) -> bool {
        true
    }

    fn queues(&self) -> Vec<u16> {
        self.queues.clone()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.config, offset, data);
    }

    fn start(
        &mut self,
        features: u64,
        queues: Vec<Queue>,
        _: ConfigChange,
    ) -> Result<Vec<Box<dyn Work>>> {
        let calls = self.begin(features, queues).with_context(|| self.title.clone())?;
        Ok(vec![Box::new(calls)])
    }

    fn stop(&mut self) {
        let running = std::mem::take(&mut self.running);
        if self.over.load(Ordering::Acquire) {
            self.connection.close();
        } else if let Err(error) = self.connection.stop(&running) {
            self.over.store(true, Ordering::Release);
            notice::say(&format!("{}: {}: {error:#}", self.kind.name, self.title));
        }
    }
}

impl Drop for VhostUser {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(program) = &self.program {
            program.expect_end();
        }
        self.connection.close();
    }
}
