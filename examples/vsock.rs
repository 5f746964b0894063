//! `vsock listen PORT [COMMAND…]` and `vsock connect CID PORT`: streams between a Linux guest and
//! its host, from inside the guest. Host programs use `--vsock`'s socket instead: no module needed.
//!
//! `connect` copies standard input to the other side and the other side to standard output, and
//! passes the end of either on. `listen` does the same with the first that connects; with a COMMAND
//! it goes on for ever and runs it for each, several at once, with the connection as its standard
//! input and output: `vsock listen 22 cat` echoes, `vsock listen 22 sh` gives the host a shell.
//!
//! Build it for the guest with `cargo build --release --example vsock --target
//! $(uname -m)-unknown-linux-musl` and put it into the initial RAM disk. The guest needs the driver,
//! which may be a module (vmw_vsock_virtio_transport).

use std::io::{self, Error, ErrorKind, Read, Result, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |text: &String| text.parse::<u32>().map_err(|_| usage());
    match &arguments[..] {
        [word, port] if word == "listen" => copy(accept(&listen(number(port)?)?)?),
        [word, port, program, arguments @ ..] if word == "listen" => {
            let socket = listen(number(port)?)?;
            loop {
                serve(accept(&socket)?, program, arguments)?;
            }
        }
        [word, cid, port] if word == "connect" => copy(connect(number(cid)?, number(port)?)?),
        _ => Err(usage()),
    }
}

fn usage() -> Error {
    Error::new(ErrorKind::InvalidInput, "usage: vsock listen PORT [COMMAND…] | connect CID PORT")
}

/// Standard input there, and what comes from there to standard output, until both have ended.
fn copy(stream: UnixStream) -> Result<()> {
    let mut there = stream.try_clone()?;
    let sender = thread::spawn(move || {
        // Who does not read any more may still have something to say.
        let _ = move_all(&mut io::stdin().lock(), &mut there);
        let _ = there.shutdown(Shutdown::Write);
    });
    move_all(&mut &stream, &mut io::stdout().lock())?;
    sender.join().expect("it does not panic");
    Ok(())
}

fn move_all(from: &mut impl Read, to: &mut impl Write) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return to.flush(),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(&buffer[..count])?;
    }
}

/// Runs `program` with the connection as its standard input and output.
fn serve(stream: UnixStream, program: &str, arguments: &[String]) -> Result<()> {
    let input = Stdio::from(OwnedFd::from(stream.try_clone()?));
    let output = Stdio::from(OwnedFd::from(stream));
    let mut child = Command::new(program).args(arguments).stdin(input).stdout(output).spawn()?;
    thread::spawn(move || child.wait());
    Ok(())
}

fn listen(port: u32) -> Result<OwnedFd> {
    let socket = socket()?;
    let address = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the pointer and the length are those of one address.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LEN) })?;
    // SAFETY: takes a descriptor and a number.
    check(unsafe { libc::listen(socket.as_raw_fd(), 128) })?;
    Ok(socket)
}

fn accept(socket: &OwnedFd) -> Result<UnixStream> {
    let (fd, null) = (socket.as_raw_fd(), std::ptr::null_mut());
    // SAFETY: the address of who connects is not asked for.
    let stream = check(unsafe { libc::accept4(fd, null, null.cast(), libc::SOCK_CLOEXEC) })?;
    // SAFETY: the call above just made it.
    Ok(unsafe { UnixStream::from_raw_fd(stream) })
}

fn connect(cid: u32, port: u32) -> Result<UnixStream> {
    let socket = socket()?;
    let address = address(cid, port);
    // SAFETY: the pointer and the length are those of one address.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), LEN) })?;
    Ok(UnixStream::from(socket))
}

/// Bytes of an address.
const LEN: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all-zero is a valid address.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    (address.svm_cid, address.svm_port) = (cid, port);
    address
}

/// A socket; what std's Unix streams do with theirs goes for it as well.
fn socket() -> Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: takes numbers.
    let socket = check(unsafe { libc::socket(libc::AF_VSOCK, kind, 0) })?;
    // SAFETY: the call above just made it.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

fn check(result: libc::c_int) -> Result<libc::c_int> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}
