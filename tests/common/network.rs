//! Network interfaces that a test has for itself.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use super::stock::guests;

/// Gives this thread and what it starts network interfaces of their own.
pub fn own_interfaces() {
    // SAFETY: unshare takes flags only.
    let own = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(own, 0, "{}", std::io::Error::last_os_error());
    busybox("ip link set lo up");
}

/// Runs one of busybox's programs.
pub fn busybox(line: &str) {
    let status = Command::new(guests().join("busybox")).args(line.split(' ')).status().unwrap();
    assert!(status.success(), "{line}: {status}");
}

/// if_tun.h: TUNSETIFF and TUNSETPERSIST; IFF_TAP with IFF_NO_PI, and IFF_MULTI_QUEUE.
const TUNSETIFF: u32 = 0x4004_54ca;
const TUNSETPERSIST: u32 = 0x4004_54cb;
const TAP: u16 = 0x1002;
/// For `tap`: several queues.
pub const MULTI_QUEUE: u16 = 0x0100;

/// A tap device, for as long as its interfaces' thread lives, with an address.
pub fn tap(name: &str, flags: u16, address: &str) {
    let tun = fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&(TAP | flags).to_ne_bytes());
    // SAFETY: the request reads an `ifreq`, which has 40 bytes.
    let made = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF as _, &mut request) };
    // SAFETY: the request takes a number.
    let kept = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETPERSIST as _, 1) };
    assert_eq!((made, kept), (0, 0), "{}", std::io::Error::last_os_error());
    busybox(&format!("ip addr add {address} dev {name}"));
    busybox(&format!("ip link set {name} up"));
}

/// The test may make interfaces.
pub fn interfaces() -> Option<String> {
    super::root().or_else(|| {
        let tun = Path::new("/dev/net/tun").exists();
        (!tun).then(|| "no /dev/net/tun here (modprobe tun)".into())
    })
}
