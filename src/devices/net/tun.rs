//! The requests of Linux's tap devices (Linux v6.12 Documentation/networking/tuntap.rst and
//! include/uapi/linux/if_tun.h).

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;

/// Requests: `_IOW('T', number, int)`, but for `TUNGETIFF`, `_IOR('T', 210, unsigned int)`.
const TUNSETIFF: u32 = 0x4004_54ca;
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
const TUNGETIFF: u32 = 0x8004_54d2;
const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;
const TUNSETQUEUE: u32 = 0x4004_54d9;

/// It carries frames, not packets.
pub const IFF_TAP: u16 = 0x0002;
/// Without four bytes about the protocol in front.
pub const IFF_NO_PI: u16 = 0x1000;
/// With a header in front.
pub const IFF_VNET_HDR: u16 = 0x4000;
/// It may be opened several times.
pub const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;

/// Frames may come without a checksum.
pub const TUN_F_CSUM: u32 = 0x01;
/// TCP over IPv4 may come in parts that are to be cut.
pub const TUN_F_TSO4: u32 = 0x02;
/// TCP over IPv6 may.
pub const TUN_F_TSO6: u32 = 0x04;

/// Bytes of an interface's name with the zero behind it (netdevice(7), `IFNAMSIZ`).
pub const NAME_LEN: usize = 16;

/// `struct ifreq` (netdevice(7)), with the only member that is used here.
#[repr(C)]
#[derive(Default)]
struct Request {
    name: [u8; NAME_LEN],
    flags: u16,
    rest: [u8; 22],
}

impl Request {
    /// Up to 15 bytes of `name`.
    fn set_name(&mut self, name: &str) {
        let room = &mut self.name[..NAME_LEN - 1];
        for (to, from) in room.iter_mut().zip(name.bytes()) {
            *to = from;
        }
    }
}

// The union's largest member is an `ifmap`, of 24 bytes.
const _: () = assert!(size_of::<Request>() == NAME_LEN + 24);

/// Opens /dev/net/tun, for [`attach`].
pub fn open() -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")
}

/// True if there is an interface `name`.
pub fn exists(name: &str) -> bool {
    let Ok(name) = CString::new(name) else { return false };
    // SAFETY: the string ends with a zero byte and lives past the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes `tun` one of the queues of the tap device `name`, of up to 15 bytes.
pub fn attach(tun: &File, name: &str, flags: u16) -> io::Result<()> {
    let mut request = Request { flags, ..Request::default() };
    request.set_name(name);
    // SAFETY: TUNSETIFF reads and writes an `ifreq`, which `request` is.
    checked(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF as _, &mut request) })
}

/// Switches the interface `name` on (netdevice(7), SIOCSIFFLAGS).
#[cfg(any(test, fuzzing))]
pub fn set_up(name: &str) -> io::Result<()> {
    const SIOCSIFFLAGS: u32 = 0x8914;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let mut request = Request { flags: libc::IFF_UP as u16, ..Request::default() };
    request.set_name(name);
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`, which `request` is.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCSIFFLAGS as _, &request) })
}

/// The name and the flags of the device that `tun` is a queue of; an error if it is none.
pub fn identify(tun: &impl AsFd) -> io::Result<(String, u16)> {
    let mut request = Request::default();
    let fd = tun.as_fd().as_raw_fd();
    // SAFETY: TUNGETIFF writes an `ifreq`, which `request` is.
    checked(unsafe { libc::ioctl(fd, TUNGETIFF as _, &mut request) })?;
    let name = request.name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok((String::from_utf8_lossy(name).into_owned(), request.flags))
}

/// Has headers of `len` bytes in front of frames.
pub fn set_header_len(tun: &impl AsFd, len: usize) -> io::Result<()> {
    let len = len as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    checked(unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), TUNSETVNETHDRSZ as _, &len) })
}

/// Sets what frames may come with, `TUN_F_…`.
pub fn set_offloads(tun: &impl AsFd, offloads: u32) -> io::Result<()> {
    let fd = tun.as_fd().as_raw_fd();
    // SAFETY: TUNSETOFFLOAD takes a number.
    checked(unsafe { libc::ioctl(fd, TUNSETOFFLOAD as _, libc::c_ulong::from(offloads)) })
}

/// Switches one of several queues on or off.
pub fn enable_queue(tun: &impl AsFd, on: bool) -> io::Result<()> {
    let flags = if on { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
    let request = Request { flags, ..Request::default() };
    // SAFETY: TUNSETQUEUE reads an `ifreq`, which `request` is.
    checked(unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), TUNSETQUEUE as _, &request) })
}
