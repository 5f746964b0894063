//! `exit STATUS`: ends the machine with a status, from inside a Linux guest, as root.
//!
//! Build it for the guest with `cargo build --release --example exit --target
//! $(uname -m)-unknown-linux-musl` and put it into the initial RAM disk.

use std::io::{Error, Result};

fn main() -> Result<()> {
    let status: u32 = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    write(status)?;
    Err(Error::other("nobody listens at the exit register: is this a guest of bivisor?"))
}

/// The exit register is a port there.
#[cfg(target_arch = "x86_64")]
fn write(status: u32) -> Result<()> {
    const PORT: u16 = 0xf4;
    // SAFETY: asks for the right to use four ports.
    if unsafe { libc::ioperm(PORT.into(), 4, 1) } != 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the write ends the machine, or nobody listens.
    unsafe { std::arch::asm!("out dx, eax", in("dx") PORT, in("eax") status) };
    Ok(())
}

/// The exit register is in memory there.
#[cfg(target_arch = "aarch64")]
fn write(status: u32) -> Result<()> {
    use std::os::fd::AsRawFd;
    let memory = std::fs::File::options().read(true).write(true).open("/dev/mem")?;
    let (fd, prot) = (memory.as_raw_fd(), libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: maps the register's page where there is room.
    let page =
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, libc::MAP_SHARED, fd, 0x0911_0000) };
    if page == libc::MAP_FAILED {
        return Err(Error::last_os_error());
    }
    // SAFETY: the page is mapped, and the write ends the machine.
    unsafe { page.cast::<u32>().write_volatile(status) };
    Ok(())
}
