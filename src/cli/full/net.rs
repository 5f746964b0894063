//! `--net`: what a guest's network is, as an option says it, and what that opens.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result};

use bivisor::devices::net::passt::{self, Forward, Protocol};
use bivisor::devices::net::{Mac, Net, socket, tap};
use bivisor::devices::vhost_user;
use bivisor::virtio::VirtioDevice;
use bivisor::virtio::limit::Rates;

use super::devices::{limit, parts};

/// The forms of the option, for its help.
pub const FORMS: &str =
    "user[,hostfwd=tcp:HOSTPORT:GUESTPORT]…|tap=NAME|fd=N|unix=PATH|vhost-user=PATH";

/// The largest packet that passt takes: the largest that TCP over IPv4 makes on Ethernet (passt(1)).
const USER_MTU: u16 = 65_520;

/// What Linux's driver takes at the least (IPv4's minimum, RFC 791).
const MIN_MTU: u16 = 68;

/// What a network leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    User(Vec<Forward>),
    Tap(String),
    Fd(i32),
    Unix(PathBuf),
    VhostUser(PathBuf),
}

/// A network as an option says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetOptions {
    way: Way,
    mac: Option<Mac>,
    mtu: Option<u16>,
    rates: Rates,
}

impl NetOptions {
    /// Whether a program is started for it.
    pub fn starts_a_program(&self) -> bool {
        matches!(self.way, Way::User(_))
    }

    /// Opens what the guest's network number `index` needs, for a guest with `cpus` CPUs.
    pub fn open(&self, index: usize, cpus: usize) -> Result<Box<dyn VirtioDevice>> {
        let mac = self.mac.unwrap_or(Mac::of(index));
        let what = || match &self.way {
            Way::User(_) => "--net user".to_owned(),
            Way::Tap(name) => format!("--net tap={name}"),
            Way::Fd(fd) => format!("--net fd={fd}"),
            Way::Unix(path) => format!("--net unix={}", path.display()),
            Way::VhostUser(path) => format!("--net vhost-user={}", path.display()),
        };
        let link = match &self.way {
            Way::User(forwards) => passt::start(forwards, self.mtu.unwrap_or(USER_MTU)),
            Way::Tap(name) => tap::open(name, cpus),
            Way::Fd(fd) => socket::inherited(*fd),
            Way::Unix(path) => socket::connect(path),
            Way::VhostUser(path) => {
                let device = vhost_user::net(path, mac, self.mtu).with_context(what)?;
                return Ok(Box::new(device));
            }
        };
        let link = link.with_context(what)?;
        Ok(Box::new(Net::new(link, mac, self.mtu).limited(self.rates)))
    }
}

/// Parses the option.
pub fn net(text: &str) -> Result<NetOptions, String> {
    let mut parts = parts(text).into_iter();
    let way = parts.next().unwrap_or_default();
    let way = match way.split_once('=') {
        None if way == "user" => Way::User(Vec::new()),
        Some(("tap", name)) if !name.is_empty() => Way::Tap(name.into()),
        Some(("unix", path)) if !path.is_empty() => Way::Unix(path.into()),
        Some(("vhost-user", path)) if !path.is_empty() => Way::VhostUser(path.into()),
        Some(("fd", fd)) => Way::Fd(fd.parse().map_err(|_| format!("'{fd}' is not a number"))?),
        _ => {
            return Err(format!(
                "'{way}' is not user, tap=NAME, fd=N, unix=PATH or vhost-user=PATH"
            ));
        }
    };
    let mut net = NetOptions { way, mac: None, mtu: None, rates: Rates::default() };
    for part in parts {
        match (part.split_once('='), &mut net.way) {
            (Some(("mac", address)), _) => net.mac = Some(mac(address)?),
            (Some(("mtu", bytes)), _) => net.mtu = Some(mtu(bytes)?),
            (Some(("iops" | "bandwidth", _)), Way::VhostUser(_)) => {
                return Err(format!("'{part}' is the back end's to say: leave it out"));
            }
            (Some((name @ ("iops" | "bandwidth"), number)), _) => {
                limit(&mut net.rates, name, number)?;
            }
            (Some(("hostfwd", ports)), Way::User(forwards)) => forwards.push(forward(ports)?),
            (Some(("hostfwd", _)), _) => return Err("only user has hostfwd".into()),
            _ => {
                return Err(format!(
                    "'{part}' is not hostfwd=tcp:HOSTPORT:GUESTPORT, mac=ADDRESS, mtu=BYTES, iops=N or bandwidth=SIZE \
                     (a comma in a path is doubled)"
                ));
            }
        }
    }
    Ok(net)
}

/// Six bytes in hexadecimal, between colons, of one station.
fn mac(text: &str) -> Result<Mac, String> {
    let wrong = || format!("'{text}' is not an address such as 02:00:00:00:00:01");
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let hex = |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
        let part = parts.next().filter(hex).ok_or_else(wrong)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
    }
    let mac = Mac(bytes);
    match parts.next() {
        None if mac.is_unicast() => Ok(mac),
        None => Err(format!("{text} is no one's address: use one like 02:00:00:00:00:01")),
        Some(_) => Err(wrong()),
    }
}

fn mtu(text: &str) -> Result<u16, String> {
    let bytes = text.parse().ok().filter(|bytes| *bytes >= MIN_MTU);
    bytes.ok_or_else(|| format!("an mtu of '{text}': use {MIN_MTU} to {}", u16::MAX))
}

/// `tcp:[ADDRESS:]HOSTPORT:GUESTPORT`, or `udp:…`. Without an address only this host reaches it.
fn forward(text: &str) -> Result<Forward, String> {
    let wrong = || format!("'{text}' is not tcp:HOSTPORT:GUESTPORT or udp:HOSTPORT:GUESTPORT");
    let mut parts = text.split(':');
    let protocol = match parts.next() {
        Some("tcp") => Protocol::Tcp,
        Some("udp") => Protocol::Udp,
        _ => return Err(wrong()),
    };
    let rest: Vec<_> = parts.collect();
    let (host, host_port, guest_port) = match rest[..] {
        [host_port, guest_port] => (Ipv4Addr::LOCALHOST, host_port, guest_port),
        // As others write it, and without an address: every one.
        ["", host_port, guest_port] => (Ipv4Addr::UNSPECIFIED, host_port, guest_port),
        [host, host_port, guest_port] => (
            host.parse().map_err(|_| format!("'{host}' is not an IPv4 address"))?,
            host_port,
            guest_port,
        ),
        _ => return Err(wrong()),
    };
    let port = |text: &str| match text.parse() {
        Ok(0) | Err(_) => Err(format!("'{text}' is not a port: use 1 to 65535")),
        Ok(port) => Ok(port),
    };
    Ok(Forward { protocol, host, host_port: port(host_port)?, guest_port: port(guest_port)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(way: Way) -> NetOptions {
        NetOptions { way, mac: None, mtu: None, rates: Rates::default() }
    }

    // HOSTILE 41: values of MAC and MTU.
    #[test]
    fn hostile_41_networks() {
        let user = || plain(Way::User(Vec::new()));
        let forwarded = |protocol, host, host_port, guest_port| {
            let host = Ipv4Addr::from(host);
            let forward = Forward { protocol, host, host_port, guest_port };
            Some(plain(Way::User(vec![forward])))
        };
        let (tcp, udp, here) = (Protocol::Tcp, Protocol::Udp, [127, 0, 0, 1]);
        let addressed = |bytes| Some(NetOptions { mac: Some(Mac(bytes)), ..user() });
        let sized = |mtu| Some(NetOptions { mtu: Some(mtu), ..user() });
        for (text, expected) in [
            ("user", Some(user())),
            ("tap=tap0,iops=9,bandwidth=1M", {
                let rates = Rates { operations: Some(9), bytes: Some(1 << 20) };
                Some(NetOptions { rates, ..plain(Way::Tap("tap0".into())) })
            }),
            ("user,bandwidth=0", None),
            ("vhost-user=/run/n,iops=9", None),
            ("tap=tap0", Some(plain(Way::Tap("tap0".into())))),
            ("unix=a,,b", Some(plain(Way::Unix("a,b".into())))),
            ("fd=3", Some(plain(Way::Fd(3)))),
            ("vhost-user=/run/n", Some(plain(Way::VhostUser("/run/n".into())))),
            ("vhost-user=", None),
            ("user,hostfwd=tcp:5555:22", forwarded(tcp, here, 5555, 22)),
            ("user,hostfwd=udp:53:5353", forwarded(udp, here, 53, 5353)),
            ("user,hostfwd=tcp::5555:22", forwarded(tcp, [0; 4], 5555, 22)),
            ("user,hostfwd=tcp:192.0.2.1:5555:22", forwarded(tcp, [192, 0, 2, 1], 5555, 22)),
            ("user,mac=02:00:00:00:00:ff", addressed([2, 0, 0, 0, 0, 255])),
            ("user,mac=52:54:00:12:34:56", addressed([0x52, 0x54, 0, 0x12, 0x34, 0x56])),
            ("user,mtu=68", sized(68)),
            ("user,mtu=65535", sized(65535)),
            ("", None),
            ("slirp", None),
            ("user=1", None),
            ("tap", None),
            ("tap=", None),
            ("unix=", None),
            ("fd=", None),
            ("fd=x", None),
            ("tap=tap0,hostfwd=tcp:1:2", None),
            ("user,", None),
            ("user,fast", None),
            ("user,hostfwd=5555:22", None),
            ("user,hostfwd=sctp:5555:22", None),
            ("user,hostfwd=tcp:5555", None),
            ("user,hostfwd=tcp:0:22", None),
            ("user,hostfwd=tcp:65536:22", None),
            ("user,hostfwd=tcp:5555:-1", None),
            ("user,hostfwd=tcp:host:5555:22", None),
            ("user,hostfwd=tcp:1:2:3:4", None),
            ("user,mac=", None),
            ("user,mac=00:00:00:00:00:00", None),
            ("user,mac=01:00:00:00:00:01", None),
            ("user,mac=ff:ff:ff:ff:ff:ff", None),
            ("user,mac=02:00:00:00:00", None),
            ("user,mac=02:00:00:00:00:01:02", None),
            ("user,mac=2:0:0:0:0:1", None),
            ("user,mac=02:00:00:00:00:0g", None),
            ("user,mac=02:00:00:00:00:+1", None),
            ("user,mtu=67", None),
            ("user,mtu=0", None),
            ("user,mtu=65536", None),
            ("user,mtu=-1", None),
        ] {
            assert_eq!(net(text).ok(), expected, "{text}");
        }
    }
}
