//! The types of devices that back ends serve: what of each is the back end's to say, and what ours.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_GEOMETRY,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU,
};

use super::connection::{PATIENCE, connect};
use super::{VhostUser, virtiofsd};
use crate::child::Child;
use crate::devices::net::Mac;

/// What is fixed for a device of a type.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// For messages and traces.
    pub name: &'static str,
    /// Its number (section 5 "Device Types").
    pub id: u32,
    /// Features of the type that are the back end's to offer.
    pub features: u64,
    /// Features of the type that are ours, and no back end's business.
    pub own_features: u64,
    /// Bytes of the configuration space that are the back end's to tell.
    pub config_len: u32,
}

/// Bytes of the longest tag of a shared folder (virtio v1.3, 5.11.4).
pub const TAG_LEN: usize = 36;

/// The file system device (5.11).
const FS: Kind = Kind { name: "virtio-fs", id: 26, features: 0, own_features: 0, config_len: 0 };

/// Its queues (5.11.2): that of urgent requests, and one of requests, which is what every back end
/// has.
const FS_QUEUES: usize = 2;

/// Our choice: the largest request of Linux's driver, with 256 pages and its headers, fits in.
const FS_QUEUE_SIZE: u16 = 512;

/// The block device (5.2). Its configuration space up to where writing zeros is described (5.2.4),
/// which older back ends have too. The driver can't write to it: there is no CONFIG_WCE.
const BLOCK: Kind = Kind {
    name: "virtio-blk",
    id: 2,
    features: 1 << VIRTIO_BLK_F_SIZE_MAX
        | 1 << VIRTIO_BLK_F_SEG_MAX
        | 1 << VIRTIO_BLK_F_GEOMETRY
        | 1 << VIRTIO_BLK_F_RO
        | 1 << VIRTIO_BLK_F_BLK_SIZE
        | 1 << VIRTIO_BLK_F_FLUSH
        | 1 << VIRTIO_BLK_F_TOPOLOGY
        | 1 << VIRTIO_BLK_F_MQ
        | 1 << VIRTIO_BLK_F_DISCARD
        | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
    own_features: 0,
    config_len: 60,
};

/// Where a block device says how many queues it has (5.2.4).
const BLOCK_NUM_QUEUES: std::ops::Range<usize> = 34..36;

/// Our choice: as for disks that are served here.
const BLOCK_QUEUE_SIZE: u16 = 256;
const BLOCK_MOST_QUEUES: usize = 4;

/// The network device (5.1). Without a control queue, which would be ours to serve.
const NET: Kind = Kind {
    name: "virtio-net",
    id: 1,
    features: 1 << VIRTIO_NET_F_CSUM
        | 1 << VIRTIO_NET_F_GUEST_CSUM
        | 1 << VIRTIO_NET_F_GUEST_TSO4
        | 1 << VIRTIO_NET_F_GUEST_TSO6
        | 1 << VIRTIO_NET_F_GUEST_ECN
        | 1 << VIRTIO_NET_F_GUEST_UFO
        | 1 << VIRTIO_NET_F_HOST_TSO4
        | 1 << VIRTIO_NET_F_HOST_TSO6
        | 1 << VIRTIO_NET_F_HOST_ECN
        | 1 << VIRTIO_NET_F_HOST_UFO
        | 1 << VIRTIO_NET_F_MRG_RXBUF,
    own_features: 1 << VIRTIO_NET_F_MAC,
    config_len: 0,
};

/// Our choice: what Linux's drivers use without being told otherwise.
const NET_QUEUE_SIZE: u16 = 256;

/// `folder` of the host, which the guest finds as `tag`, by a virtiofsd that is started for it.
pub fn share(tag: &str, folder: &Path, read_only: bool) -> Result<VhostUser> {
    let (program, socket) = virtiofsd::start(folder, read_only)?;
    match fs(tag, socket, PATIENCE) {
        Ok(mut device) => {
            program.has_begun();
            device.program = Some(program);
            Ok(device)
        }
        Err(error) => Err(why(program, error)),
    }
}

/// What the program said is better than what we saw of it.
fn why(program: Child, error: anyhow::Error) -> anyhow::Error {
    match program.last_words() {
        Some(words) => anyhow::anyhow!("{words}"),
        None => error,
    }
}

/// A file system device with `tag` behind `socket`.
pub fn fs(tag: &str, socket: UnixStream, patience: Duration) -> Result<VhostUser> {
    ensure!(!tag.is_empty() && tag.len() <= TAG_LEN, "a tag has 1 to {TAG_LEN} bytes");
    let mut device = VhostUser::new(FS, format!("share {tag}"), socket, patience)?;
    let mut config = tag.as_bytes().to_vec();
    config.resize(TAG_LEN, 0);
    config.extend((FS_QUEUES as u32 - 1).to_le_bytes());
    device.config = config;
    device.set_queues(vec![FS_QUEUE_SIZE; FS_QUEUES])?;
    Ok(device)
}

/// A disk by the back end that listens at `path`, for a guest with `cpus` CPUs.
pub fn block(path: &Path, cpus: usize) -> Result<VhostUser> {
    block_on(title(path), connect(path)?, cpus, PATIENCE)
}

/// The same behind `socket`.
pub fn block_on(
    title: String,
    socket: UnixStream,
    cpus: usize,
    patience: Duration,
) -> Result<VhostUser> {
    let mut device = VhostUser::new(BLOCK, title, socket, patience)?;
    let field = &mut device.config[BLOCK_NUM_QUEUES];
    let has = match device.connection.features() & 1 << VIRTIO_BLK_F_MQ {
        0 => 1,
        _ => usize::from(u16::from_le_bytes([field[0], field[1]])),
    };
    let count = has.min(cpus).clamp(1, BLOCK_MOST_QUEUES);
    field.copy_from_slice(&(count as u16).to_le_bytes());
    device.set_queues(vec![BLOCK_QUEUE_SIZE; count])?;
    Ok(device)
}

/// A network by the back end that listens at `path`, with the address `mac`. A driver is told `mtu`.
pub fn net(path: &Path, mac: Mac, mtu: Option<u16>) -> Result<VhostUser> {
    net_on(title(path), connect(path)?, (mac, mtu), PATIENCE)
}

/// The same behind `socket`.
pub fn net_on(
    title: String,
    socket: UnixStream,
    (mac, mtu): (Mac, Option<u16>),
    patience: Duration,
) -> Result<VhostUser> {
    let mut kind = NET;
    if mtu.is_some() {
        kind.own_features |= 1 << VIRTIO_NET_F_MTU;
    }
    let mut device = VhostUser::new(kind, title, socket, patience)?;
    // 5.1.4: the address, the status, which is not offered, one pair of queues, and the MTU.
    let mut config = mac.0.to_vec();
    config.extend([0, 0, 1, 0]);
    config.extend(mtu.unwrap_or(0).to_le_bytes());
    device.config = config;
    device.set_queues(vec![NET_QUEUE_SIZE; 2])?;
    Ok(device)
}

fn title(path: &Path) -> String {
    format!("vhost-user={}", path.display())
}
