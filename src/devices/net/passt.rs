//! User-mode networking by the program passt (passt(1)), which speaks for the guest with ordinary
//! sockets of the host: no root, no set-up.
//!
//! It is started with one end of a pair of sockets, goes to the background once it is ready, and
//! ends when the other end is closed, however we end.

use std::io::{self, Read};
use std::net::{Ipv4Addr, Shutdown};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::io::{FdFlags, fcntl_setfd};

use super::link::Link;
use super::socket;
use crate::sys;

const PROGRAM: &str = "passt";

/// How long it may take to end. Our choice: it does nothing but close files then.
const PATIENCE: Duration = Duration::from_secs(2);

/// A protocol whose ports can be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host that is the guest's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Of which protocol.
    pub protocol: Protocol,
    /// The host's address at which it is open.
    pub host: Ipv4Addr,
    /// The host's port.
    pub host_port: u16,
    /// The guest's.
    pub guest_port: u16,
}

impl Forward {
    /// As options for passt.
    fn options(&self) -> [String; 2] {
        let option = match self.protocol {
            Protocol::Tcp => "--tcp-ports",
            Protocol::Udp => "--udp-ports",
        };
        [option.into(), format!("{}/{}:{}", self.host, self.host_port, self.guest_port)]
    }
}

/// Starts passt for a guest whose packets have up to `mtu` bytes.
pub fn start(forwards: &[Forward], mtu: u16) -> Result<Link> {
    let (ours, its) = UnixStream::pair().context("make a pair of sockets")?;
    fcntl_setfd(&its, FdFlags::empty()).context("pass a socket on")?;
    let mut command = Command::new(PROGRAM);
    command.args(["--quiet", "--fd", &its.as_raw_fd().to_string(), "--mtu", &mtu.to_string()]);
    command.args(forwards.iter().flat_map(Forward::options));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            anyhow::anyhow!("there is no {PROGRAM} here: install it (apt install {PROGRAM})")
        }
        _ => anyhow::anyhow!("start {PROGRAM}: {error}"),
    })?;
    drop(its);
    // It ends when it has started another one in the background, or failed.
    let status = child.wait().with_context(|| format!("wait for {PROGRAM}"))?;
    if !status.success() {
        let mut said = String::new();
        let mut stderr = child.stderr.take().expect("it is piped");
        // Whatever is there tells more than nothing.
        let _ = stderr.read_to_string(&mut said);
        bail!("{PROGRAM}: {}", reason(&said).unwrap_or(&status.to_string()));
    }
    let watched = ours.try_clone().context("copy a descriptor")?;
    let mut link = socket::streaming(PROGRAM.into(), ours.into())?;
    link.mtu = Some(mtu);
    link.keeps = Some(Box::new(Running(watched)));
    Ok(link)
}

/// What a failed passt said of it, among notes about its log.
fn reason(said: &str) -> Option<&str> {
    let mut lines = said.lines().map(str::trim);
    lines.rfind(|line| !line.is_empty() && !line.contains("to syslog"))
}

/// Our end of the connection. Dropped, passt ends, and its ports are free.
struct Running(UnixStream);

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing to do about one that does not end. Not both directions: the wait would be over.
        let _ = self.0.shutdown(Shutdown::Write);
        let mut fds = [sys::poll_entry(&self.0, 0)];
        let _ = sys::poll(&mut fds, Some(PATIENCE));
    }
}
