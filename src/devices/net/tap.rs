//! A tap device as a link: frames with headers, so that checksums and the cutting of large frames
//! are left to whoever is last to need them.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
};

use super::header;
use super::link::Link;
use super::packets;
use super::tun;

/// The most queues. Our choice, as for disks: what a host's cores have to spare.
const MAX_QUEUES: usize = 4;

/// The tap device `name`, which must exist, with a queue for each of `cpus`, but not too many.
pub fn open(name: &str, cpus: usize) -> Result<Link> {
    ensure!(name.len() < tun::NAME_LEN, "an interface's name has at most 15 bytes");
    // Made by opening, it would be there without an address, and gone with the guest.
    ensure!(
        tun::exists(name),
        "there is no interface {name}: make it \
         (ip tuntap add {name} mode tap user $USER vnet_hdr multi_queue)"
    );
    let queues = cpus.clamp(1, MAX_QUEUES);
    // A device that is kept has either one queue or room for several, as it was made.
    let tuns = match attach_all(name, queues) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => attach_one(name, queues),
        other => other,
    };
    let tuns = tuns.map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => anyhow!(
            "{name} is not yours: make it so \
             (ip tuntap add {name} mode tap user $USER vnet_hdr multi_queue)"
        ),
        Some(libc::EBUSY) => anyhow!("another process uses {name}: end that one first"),
        Some(libc::ENOENT | libc::ENODEV) => {
            anyhow!("there is no /dev/net/tun: load its module (modprobe tun)")
        }
        _ => anyhow!("open {name}: {error}"),
    })?;
    link(name, tuns.into_iter().map(OwnedFd::from).collect(), true)
}

const FLAGS: u16 = tun::IFF_TAP | tun::IFF_NO_PI | tun::IFF_VNET_HDR;

fn attach_all(name: &str, queues: usize) -> io::Result<Vec<fs::File>> {
    let flags = if queues > 1 { FLAGS | tun::IFF_MULTI_QUEUE } else { FLAGS };
    let attach = |_| {
        let tun = tun::open()?;
        tun::attach(&tun, name, flags)?;
        Ok(tun)
    };
    (0..queues).map(attach).collect()
}

/// One queue, of a device that was made the other way.
fn attach_one(name: &str, queues: usize) -> io::Result<Vec<fs::File>> {
    let tun = tun::open()?;
    let flags = if queues > 1 { FLAGS } else { FLAGS | tun::IFF_MULTI_QUEUE };
    tun::attach(&tun, name, flags)?;
    Ok(vec![tun])
}

/// A tap device that somebody else has opened; `None` if `file` is none.
pub fn inherited(file: OwnedFd) -> Result<Option<Link>> {
    let Ok((name, flags)) = tun::identify(&file) else { return Ok(None) };
    ensure!(flags & tun::IFF_TAP != 0, "{name} carries packets, not frames: use a tap device");
    if flags & tun::IFF_NO_PI == 0 {
        bail!("{name} was opened without IFF_NO_PI: open it with that flag");
    }
    link(&name, vec![file], flags & tun::IFF_VNET_HDR != 0).map(Some)
}

fn link(name: &str, queues: Vec<OwnedFd>, headers: bool) -> Result<Link> {
    if headers {
        for queue in &queues {
            tun::set_header_len(queue, header::LEN).context("set the length of headers")?;
        }
    }
    let mtu = fs::read_to_string(format!("/sys/class/net/{name}/mtu"));
    let mtu = mtu.ok().and_then(|text| text.trim().parse().ok());
    let copies = queues.iter().map(OwnedFd::try_clone).collect::<io::Result<Vec<_>>>();
    let copies = copies.context("copy a descriptor")?;
    let pairs = queues.into_iter().map(|queue| packets::pair(queue, headers, mtu)).collect();
    let tap = headers.then(|| Arc::new(Tap { queues: copies }));
    Ok(Link { name: format!("tap {name}"), pairs, mtu, tap, keeps: None })
}

/// What can be set of a tap device, beside frames.
pub struct Tap {
    queues: Vec<OwnedFd>,
}

impl Tap {
    /// The driver has accepted `features`: frames may come with what they allow.
    pub fn set_features(&self, features: u64) -> io::Result<()> {
        let accepted = |feature: u32| features & 1 << feature != 0;
        let mut offloads = 0;
        // 5.1.3.1: the others are nothing without the first.
        if accepted(VIRTIO_NET_F_GUEST_CSUM) {
            offloads |= tun::TUN_F_CSUM;
            for (feature, offload) in [
                (VIRTIO_NET_F_GUEST_TSO4, tun::TUN_F_TSO4),
                (VIRTIO_NET_F_GUEST_TSO6, tun::TUN_F_TSO6),
            ] {
                offloads |= if accepted(feature) { offload } else { 0 };
            }
        }
        // They are the device's, whatever queue they are set through.
        tun::set_offloads(&self.queues[0], offloads)
    }

    /// The driver uses the first `count` pairs of queues.
    pub fn set_pairs(&self, count: usize) -> io::Result<()> {
        for (index, queue) in self.queues.iter().enumerate().skip(1) {
            match tun::enable_queue(queue, index < count) {
                // It is that already.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                other => other?,
            }
        }
        Ok(())
    }
}
