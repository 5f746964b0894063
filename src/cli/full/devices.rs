//! Options that give the guest virtio devices, and what they open.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::builder::{PossibleValuesParser, TypedValueParser};

use bivisor::devices::block::format::Format;
use bivisor::devices::block::raw::{Access, Raw};
use bivisor::devices::block::{Block, Engine};
use bivisor::devices::entropy::Entropy;
use bivisor::devices::vhost_user;
use bivisor::virtio::limit::Rates;
use bivisor::virtio::{Carrier, VirtioDevice};

use super::net::{self, NetOptions};
use super::share::{self, ShareOptions};
use super::vsock::{VsockOptions, vsock};
use crate::cli::parse;

/// The devices of a guest. It finds them in this order: those of one option in the order given.
#[derive(clap::Args)]
pub struct DeviceOptions {
    /// Give the guest this disk (repeatable). The format is what the file's suffix says, or raw; iops and
    /// bandwidth are requests and bytes a second at most; a comma in PATH is doubled
    #[arg(long, value_name = "PATH[,format=raw|qcow2][,readonly][,serial=TEXT][,direct][,backing][,iops=N][,bandwidth=SIZE]|vhost-user=PATH", value_parser = disk)]
    disk: Vec<DiskSource>,
    /// Give the guest an empty disk that is gone afterwards (repeatable; behind those of --disk)
    #[arg(long, value_name = "SIZE", value_parser = parse::size, allow_hyphen_values = true)]
    scratch: Vec<u64>,
    /// Give the guest a network: through passt, a tap device, an inherited descriptor, a Unix socket or
    /// a vhost-user back end (repeatable; also mac=ADDRESS, mtu=BYTES, and frames and bytes a second at most
    /// in each direction by iops=N and bandwidth=SIZE)
    #[arg(long, value_name = net::FORMS, value_parser = net::net)]
    net: Vec<NetOptions>,
    /// Give the guest the host's random bytes
    #[arg(long)]
    rng: bool,
    /// Let programs of guest and host talk by sockets: those of the host through the socket PATH
    #[arg(long, value_name = "CID,unix=PATH", value_parser = vsock, allow_hyphen_values = true)]
    vsock: Option<VsockOptions>,
    /// Share this folder with the guest by virtiofsd (repeatable; in it: mount -t virtiofs TAG /mnt). A comma in DIR is doubled
    #[arg(long, value_name = "TAG=DIR[,readonly]", value_parser = share::share)]
    share: Vec<ShareOptions>,
    /// Have memory that the guest does not use given back, and SIZE taken from it; SIGUSR1 shows figures
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true, default_missing_value = "0", value_parser = parse::size)]
    pub balloon: Option<u64>,
    /// Have the guest find its devices as registers in memory (virtio-mmio) or on a PCI bus [default: pci
    /// for kernels; mmio for flat binaries, for ELF files without a protocol and for multiboot]
    #[arg(long, value_name = "HOW", value_parser = carrier())]
    pub transport: Option<Carrier>,
}

/// A disk as an option says it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum DiskSource {
    File(DiskOptions),
    /// The socket of a back end.
    VhostUser(PathBuf),
}

/// A disk in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct DiskOptions {
    path: PathBuf,
    format: Option<Format>,
    backing: bool,
    access: Access,
    serial: String,
    rates: Rates,
}

/// `mmio` or `pci`.
fn carrier() -> impl TypedValueParser<Value = Carrier> {
    PossibleValuesParser::new(["mmio", "pci"]).map(|word| match word.as_str() {
        "pci" => Carrier::Pci,
        _ => Carrier::Mmio,
    })
}

impl DeviceOptions {
    /// Whether programs are started for them.
    pub fn start_programs(&self) -> bool {
        !self.share.is_empty() || self.net.iter().any(NetOptions::starts_a_program)
    }

    /// The files of disks.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.disk.iter().filter_map(|disk| match disk {
            DiskSource::File(disk) => Some(&*disk.path),
            DiskSource::VhostUser(_) => None,
        })
    }

    /// Opens what the devices need, for a guest with `cpus` CPUs.
    pub fn open(&self, cpus: usize) -> Result<Vec<Box<dyn VirtioDevice>>> {
        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
        for disk in &self.disk {
            devices.push(disk.open(cpus)?);
        }
        for size in &self.scratch {
            let raw = Raw::scratch(*size).with_context(|| format!("--scratch {size}"))?;
            let block = Block::new(Arc::new(raw), "scratch", cpus, Engine::Best);
            devices.push(Box::new(block.named(format!("--scratch {size}"))));
        }
        for (index, net) in self.net.iter().enumerate() {
            devices.push(net.open(index, cpus)?);
        }
        if self.rng {
            devices.push(Box::new(Entropy::new().context("--rng")?));
        }
        if let Some(vsock) = &self.vsock {
            devices.push(vsock.open()?);
        }
        devices.extend(share::open(&self.share)?);
        Ok(devices)
    }
}

impl DiskSource {
    /// Opens the disk, for a guest with `cpus` CPUs.
    fn open(&self, cpus: usize) -> Result<Box<dyn VirtioDevice>> {
        match self {
            Self::File(disk) => {
                let what = || format!("--disk {}", disk.path.display());
                let format = disk.format.unwrap_or_else(|| Format::of_name(&disk.path));
                let opened = format.open(&disk.path, disk.access, disk.backing);
                let opened = opened.with_context(what)?;
                let block = Block::new(opened, &disk.serial, cpus, Engine::Best);
                let name = disk.path.display().to_string();
                Ok(Box::new(block.limited(disk.rates).named(name)))
            }
            Self::VhostUser(path) => {
                let what = || format!("--disk vhost-user={}", path.display());
                Ok(Box::new(vhost_user::block(path, cpus).with_context(what)?))
            }
        }
    }
}

/// The parts of `text` between commas; a doubled one is a comma.
pub fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c != ',' {
            parts.last_mut().expect("never empty").push(c);
        } else if rest.next_if_eq(&',').is_some() {
            parts.last_mut().expect("never empty").push(',');
        } else {
            parts.push(String::new());
        }
    }
    parts
}

/// Sets what `name`, iops or bandwidth, may be in a second.
pub fn limit(rates: &mut Rates, name: &str, number: &str) -> Result<(), String> {
    let value = parse::size(number)?;
    if value == 0 {
        return Err(format!("{name}=0: leave it out, or let something through"));
    }
    match name {
        "iops" => rates.operations = Some(value),
        _ => rates.bytes = Some(value),
    }
    Ok(())
}

/// `PATH`, then options, each behind a comma; or `vhost-user=PATH`.
fn disk(text: &str) -> Result<DiskSource, String> {
    let mut parts = parts(text).into_iter();
    let path = parts.next().unwrap_or_default();
    if let Some(socket) = path.strip_prefix("vhost-user=") {
        return match (socket, parts.next()) {
            ("", _) => Err("the path of the back end's socket is missing".into()),
            (_, Some(part)) => Err(format!("'{part}' is the back end's to say: leave it out")),
            (socket, None) => Ok(DiskSource::VhostUser(socket.into())),
        };
    }
    if path.is_empty() {
        return Err("the path is missing".into());
    }
    let mut disk = DiskOptions { path: path.into(), ..DiskOptions::default() };
    for part in parts {
        match part.split_once('=') {
            None if part == "readonly" => disk.access.read_only = true,
            None if part == "direct" => disk.access.direct = true,
            None if part == "backing" => disk.backing = true,
            Some(("format", name)) => {
                let format = Format::named(name);
                disk.format = Some(format.ok_or(format!("{part}: the formats are raw and qcow2"))?);
            }
            Some(("serial", serial)) if serial.len() <= 20 => disk.serial = serial.into(),
            Some((name @ ("iops" | "bandwidth"), number)) => limit(&mut disk.rates, name, number)?,
            Some(("serial", _)) => return Err(format!("{part}: at most 20 bytes")),
            _ => {
                return Err(format!(
                    "'{part}' is not format=raw, format=qcow2, readonly, serial=TEXT, direct, backing, iops=N or \
                     bandwidth=SIZE \
                     (a comma in the path is doubled)"
                ));
            }
        }
    }
    Ok(DiskSource::File(disk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks() {
        let file = |disk: DiskOptions| Some(DiskSource::File(disk));
        let path = |path: &str| DiskOptions { path: path.into(), ..DiskOptions::default() };
        let read_only = Access { read_only: true, ..Access::default() };
        let rates = Rates { operations: Some(100), bytes: Some(2 << 20) };
        for (text, expected) in [
            ("a", file(path("a"))),
            ("a,,b", file(path("a,b"))),
            ("a,format=qcow2", file(DiskOptions { format: Some(Format::Qcow2), ..path("a") })),
            ("a,backing", file(DiskOptions { backing: true, ..path("a") })),
            ("a,format=vmdk", None),
            ("a,readonly", file(DiskOptions { access: read_only, ..path("a") })),
            ("a,iops=100,bandwidth=2M", file(DiskOptions { rates, ..path("a") })),
            ("a,iops=0", None),
            ("a,bandwidth=-1", None),
            ("a,serial=x=y", file(DiskOptions { serial: "x=y".into(), ..path("a") })),
            ("", None),
            (",readonly", None),
            ("a,", None),
            ("a,fast", None),
            ("a,readonly=1", None),
            ("a,serial=123456789012345678901", None),
            ("vhost-user=/run/b,,d", Some(DiskSource::VhostUser("/run/b,d".into()))),
            ("vhost-user=", None),
            ("vhost-user=/run/d,readonly", None),
            ("./vhost-user=x", file(path("./vhost-user=x"))),
        ] {
            assert_eq!(disk(text).ok(), expected, "{text}");
        }
    }
}
