//! The network device (virtio v1.3, 5.1): frames between the guest and a link.
//!
//! ```text
//! guest ── transmit queue ──▶ transmit ── Sink ──▶ stream | packets ──▶ socket, passt | tap
//! guest ◀── receive queue ── room ◀── receive ◀── Source ──┘
//! ```
//!
//! [`header`]: what is in front of each frame; [`link`]: what the device is connected to; [`stream`]
//! and [`packets`]: the two ways in which frames are kept apart; [`tap`] over [`tun`], [`socket`]
//! and [`passt`]: what is opened; [`room`]: the guest's buffers for frames; [`receive`], [`transmit`]
//! and [`control`]: the workers.
//!
//! Each direction has a thread. Neither reads or sends more than the other end takes: what has to
//! wait, waits in the socket, in the tap device or in the guest's own queue.

mod control;
mod header;
pub mod link;
mod packets;
pub mod passt;
mod receive;
mod room;
pub mod socket;
mod stream;
pub mod tap;
#[cfg(test)]
mod tests;
mod transmit;
pub(crate) mod tun;

use std::io;

use anyhow::{Context, Result};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};

use self::control::Control;
use self::link::{Carrier, Link};
use self::receive::Receive;
use self::room::Room;
use self::transmit::Transmit;
use crate::sandbox::Kind;
use crate::virtio::chain::Chain;
use crate::virtio::limit::{Gate, Limit, Rates};
use crate::virtio::queue::Queue;
use crate::virtio::worker::Work;
use crate::virtio::{ConfigChange, VirtioDevice, read_from};

/// Its number (5.1.1).
const ID: u32 = 1;

/// Our choice: what Linux's drivers use without being told otherwise.
const QUEUE_SIZE: u16 = 256;

/// Our choice: the driver asks one thing at a time.
const CONTROL_SIZE: u16 = 16;

/// What is offered where frames have headers on the link.
const OFFLOADS: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6;

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// That of a guest's network number `index`, unless it is said: locally administered (IEEE 802,
    /// "Universal and local addresses"), and always the same, so that a guest's own configuration
    /// finds its network again.
    pub fn of(index: usize) -> Self {
        let [.., high, low] = (index as u32).to_be_bytes();
        Self([0x02, b'b', b'v', 0, high, low])
    }

    /// True if it is one station's, as a device's must be.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

/// The device.
pub struct Net {
    link: Link,
    mac: Mac,
    mtu: Option<u16>,
    carrier: Carrier,
    /// To the guest, and from it.
    limits: [Option<Limit>; 2],
}

impl Net {
    /// A network device on `link` with the address `mac`. A driver is told `mtu`, or else what the
    /// link knows of it.
    pub fn new(link: Link, mac: Mac, mtu: Option<u16>) -> Self {
        let carrier = Carrier::new(link.name.clone());
        let mtu = mtu.or(link.mtu);
        Self { link, mac, mtu, carrier, limits: [None, None] }
    }

    /// With no more than this in a second, in each direction.
    pub fn limited(self, rates: Rates) -> Self {
        Self { limits: [Limit::new(rates), Limit::new(rates)], ..self }
    }

    fn pairs(&self) -> usize {
        self.link.pairs.len()
    }
}

impl VirtioDevice for Net {
    fn name(&self) -> &'static str {
        "virtio-net"
    }

    fn id(&self) -> u32 {
        ID
    }

    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn features(&self) -> u64 {
        let mut features =
            1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS | 1 << VIRTIO_NET_F_MRG_RXBUF;
        if self.mtu.is_some() {
            features |= 1 << VIRTIO_NET_F_MTU;
        }
        if self.link.tap.is_some() {
            features |= OFFLOADS;
        }
        if self.pairs() > 1 {
            features |= 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;
        }
        features
    }

    fn queues(&self) -> Vec<u16> {
        let mut queues = vec![QUEUE_SIZE; 2 * self.pairs()];
        if self.pairs() > 1 {
            queues.push(CONTROL_SIZE);
        }
        queues
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let status = if self.carrier.is_up() { VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac.0);
        config[6..8].copy_from_slice(&status.to_le_bytes());
        config[8..10].copy_from_slice(&(self.pairs() as u16).to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        read_from(&config, offset, data);
    }

    fn start(
        &mut self,
        features: u64,
        queues: Vec<Queue>,
        config: ConfigChange,
    ) -> Result<Vec<Box<dyn Work>>> {
        let accepted = |feature: u32| features & 1 << feature != 0;
        // 5.1.5: the first pair alone, until the driver asks for more.
        self.carrier.set_pairs(1);
        // A link that is gone can't be set to anything; that it is, its workers have told.
        if let Some(tap) = self.link.tap.as_ref().filter(|_| self.carrier.is_up()) {
            tap.set_features(features).context("set what the link may leave to the guest")?;
            tap.set_pairs(1).context("set the queues that the link uses")?;
        }
        // 5.1.2: where the control queue is.
        let pairs = if accepted(VIRTIO_NET_F_MQ) { self.pairs() } else { 1 };
        let receiver =
            |queue: &&Queue| queue.index().is_multiple_of(2) && queue.index() < 2 * pairs;
        let receivers = queues.iter().filter(receiver);
        let receivers = receivers.map(|queue| queue.kick().try_clone());
        let mut receivers = receivers.collect::<io::Result<Vec<_>>>().context("copy an eventfd")?;
        let mut works: Vec<Box<dyn Work>> = Vec::new();
        for queue in queues {
            let (index, chain) = (queue.index(), Chain::new(queue.ram()));
            let (carrier, config) = (self.carrier.clone(), config.clone());
            let pair = self.link.pairs.get(index / 2).filter(|_| index < 2 * pairs);
            let gate = Gate::new(&self.limits[index % 2])?;
            match (pair, index % 2) {
                (Some(pair), 0) => works.push(Box::new(Receive {
                    source: pair.source.clone(),
                    room: Room::new(queue, accepted(VIRTIO_NET_F_MRG_RXBUF)),
                    carrier,
                    config,
                    features,
                    gate,
                    watched: false,
                })),
                (Some(pair), _) => works.push(Box::new(Transmit {
                    sink: pair.sink.clone(),
                    queue,
                    chain,
                    carrier,
                    config,
                    features,
                    gate,
                    watched: false,
                })),
                (None, _) if index == 2 * pairs && accepted(VIRTIO_NET_F_CTRL_VQ) => {
                    let Some(tap) = self.link.tap.clone() else { continue };
                    let receivers = std::mem::take(&mut receivers);
                    works.push(Box::new(Control { queue, chain, tap, carrier, receivers, pairs }));
                }
                // Queues that the driver set up and has no use for.
                (None, _) => {}
            }
        }
        Ok(works)
    }
}
