//! The host's side of a played machine: devices of every type, what each needs of the host, and what the
//! host does to them while the guest does its part.

use std::fs::{self, File};
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use rustix::fs::{OFlags, fcntl_setfl};

use super::{Script, own_path};
use crate::board::{Does, StopRegister};
use crate::bus::Device;
use crate::config::{Config, ConsoleDevice};
use crate::console::Console;
use crate::devices::block::disk::Disk;
use crate::devices::block::format::Format;
use crate::devices::block::qcow2::Qcow2;
use crate::devices::block::raw::{Access, Raw};
use crate::devices::block::{Block, Engine};
use crate::devices::cmos::{self, Cmos};
use crate::devices::debug_console::{DebugConsole, Shown};
use crate::devices::entropy::Entropy;
use crate::devices::fixed_events::{self, FixedEvents};
use crate::devices::message_frame::{self, MessageFrame};
use crate::devices::net::link::Link;
use crate::devices::net::{Mac, Net, passt, socket, tap, tun};
use crate::devices::pci_address::{self, PciAddress};
use crate::devices::pl011::{self, Pl011};
use crate::devices::rtc::{self, Pl031};
use crate::devices::serial::{self, Serial};
use crate::devices::vhost_user::peer::{Traits, idle};
use crate::devices::vhost_user::{self, VhostUser, block_on, fs, net_on};
use crate::devices::vsock::Vsock;
use crate::exit::BusAddr;
use crate::irq::{Irq, Level};
use crate::machine::Machine;
use crate::sys;
use crate::virtio::Carrier;
use crate::virtio::limit::Rates;

/// The guest's address for sockets, and the host's port that somebody listens at.
pub const CID: u32 = 3;
pub const PORT: u32 = 1;

/// Where devices go that only the other architecture's machines have. Our choice: far above all others.
const OTHERS: u64 = 1 << 45;

/// Programs of the host with a connection, at the most.
const PROGRAMS: usize = 4;

/// How long a back end may take. Our choice: on an emulated host one may be slow.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the host holds.
pub struct Host {
    network: UnixStream,
    datagrams: UnixDatagram,
    typing: PipeWriter,
    vsock: PathBuf,
    listener: UnixListener,
    programs: Vec<UnixStream>,
    /// The device that a program serves which may give up on a guest like this.
    pub foreign: Option<usize>,
}

impl Host {
    /// Gives the machine to be its devices.
    pub fn equip(config: &mut Config, carrier: Carrier) -> Result<Self> {
        let path = own_path("played");
        let (ours, network) = UnixStream::pair()?;
        let link = socket::inherited(ours.as_raw_fd())?;
        // There is no room for one more among registers in memory.
        let link = by_passt(carrier)?.unwrap_or(link);
        network.set_nonblocking(true)?;
        drain(network.try_clone()?);
        let (ours, datagrams) = UnixDatagram::pair()?;
        let packets = socket::inherited(ours.as_raw_fd())?;
        datagrams.set_nonblocking(true)?;
        let (reader, typing) = io::pipe()?;
        fcntl_setfl(typing.as_fd(), OFlags::NONBLOCK)?;
        let input = File::from(OwnedFd::from(reader));
        config.console = Console::new(File::create("/dev/null")?, Some(input));
        let listener = UnixListener::bind(port(&path))?;
        listener.set_nonblocking(true)?;
        let disk = Arc::new(Raw::scratch(1 << 20)?);
        let often = Rates { operations: Some(100_000), bytes: Some(1 << 30) };
        let read_only = Access { read_only: true, ..Access::default() };
        let direct = Access { direct: true, ..Access::default() };
        // Not every file system can do without the host's cache.
        let direct = raw(&path, direct).or_else(|_| raw(&path, Access::default()))?;
        let back_end = |len| idle(Traits { config: vec![0; len], ..Traits::default() });
        config.devices = vec![
            Box::new(Block::new(disk.clone(), "played", 1, Engine::Best)),
            Box::new(Block::new(disk, "played", 2, Engine::Threads).limited(often)),
            Box::new(Net::new(link, Mac::of(0), None)),
            Box::new(Entropy::new()?),
            Box::new(Vsock::new(CID, &path)?),
            Box::new(Block::new(qcow2(&path)?, "played", 1, Engine::Best)),
            Box::new(Net::new(packets, Mac::of(1), Some(1500)).limited(often)),
            Box::new(fs("played", back_end(0), PATIENCE)?),
            Box::new(block_on("played".into(), back_end(60), 2, PATIENCE)?),
            Box::new(net_on("played".into(), back_end(0), (Mac::of(2), Some(1500)), PATIENCE)?),
            Box::new(Block::new(raw(&path, read_only)?, "played", 1, Engine::Threads)),
            Box::new(Block::new(direct, "played", 1, Engine::Best)),
        ];
        if let Some(tap) = own_tap() {
            config.devices.push(Box::new(Net::new(tap, Mac::of(3), None)));
        }
        let foreign = by_virtiofsd()?.map(|device| {
            config.devices.push(Box::new(device));
            config.devices.len() - 1
        });
        config.console_device = ConsoleDevice::Virtio;
        config.balloon = Some(1 << 20);
        let programs = Vec::new();
        Ok(Self { network, datagrams, typing, vsock: path, listener, programs, foreign })
    }

    /// Does something as the script says: to a network, a console, sockets or the balloon.
    pub fn act(&mut self, machine: &Machine, script: &mut Script<'_>) {
        let what = script.number(1);
        let len = script.number(1) as usize;
        // What nobody takes at once is lost: a host that is slow is no part of this.
        match what % 8 {
            0 => {
                let frame = script.bytes(len);
                let _ = self.network.write(&[&(len as u32).to_be_bytes()[..], frame].concat());
                // One that was cut short by the end of the script has its length all the same.
                let _ = self.network.write(&vec![0; len - frame.len()]);
            }
            1 => drop(self.datagrams.send(script.bytes(len))),
            2 => drop(self.typing.write(script.bytes(len))),
            3 if self.programs.len() < PROGRAMS => {
                let Ok(mut program) = UnixStream::connect(&self.vsock) else { return };
                let _ = program.set_nonblocking(true);
                let _ = program.write(format!("CONNECT {len}\n").as_bytes());
                self.programs.push(program);
            }
            4 => {
                let bytes = script.bytes(len);
                let which = what as usize >> 4;
                if let Some(program) = self.programs.get_mut(which % PROGRAMS) {
                    let _ = program.read(&mut [0; 512]);
                    let _ = program.write(bytes);
                }
            }
            5 if len < self.programs.len() => drop(self.programs.swap_remove(len)),
            6 if self.programs.len() < PROGRAMS => {
                let Ok((program, _)) = self.listener.accept() else { return };
                let _ = program.set_nonblocking(true);
                self.programs.push(program);
            }
            7 if len == 0 => machine.balloon.iter().for_each(|balloon| balloon.ask()),
            7 => while self.datagrams.recv(&mut [0; 64]).is_ok() {},
            _ => {}
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Nobody else has it.
        let _ = fs::remove_file(port(&self.vsock));
    }
}

/// Where a program listens that the guest reaches by port number [`PORT`].
fn port(vsock: &Path) -> PathBuf {
    PathBuf::from(format!("{}_{PORT}", vsock.display()))
}

/// Reads all that comes.
fn drain(mut peer: UnixStream) {
    thread::spawn(move || {
        let mut frames = [0; 1 << 16];
        loop {
            match peer.read(&mut frames) {
                Ok(0) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut fds = [sys::poll_entry(&peer, libc::POLLIN)];
                    let _ = sys::poll(&mut fds, None);
                }
                Err(_) => return,
                Ok(_) => {}
            }
        }
    });
}

/// A qcow2 image on top of a raw one, both without a name.
fn qcow2(path: &Path) -> Result<Arc<dyn Disk>> {
    let named = |suffix: &str| PathBuf::from(format!("{}.{suffix}", path.display()));
    let (base, image) = (named("raw"), named("qcow2"));
    fs::write(&base, vec![0x5a; 1 << 16])?;
    let file = File::options().read(true).write(true).create_new(true).open(&image)?;
    let name = base.display().to_string();
    Qcow2::create(file, 1 << 20, 1 << 12, Some((&name, "raw")))?;
    let disk = Format::Qcow2.open(&image, Access::default(), true);
    fs::remove_file(&base)?;
    fs::remove_file(&image)?;
    disk
}

/// A raw disk in a file without a name.
fn raw(path: &Path, access: Access) -> Result<Arc<dyn Disk>> {
    let file = PathBuf::from(format!("{}.raw", path.display()));
    fs::write(&file, vec![0xa5; 1 << 16])?;
    let disk = Format::Raw.open(&file, access, false);
    fs::remove_file(&file)?;
    disk
}

/// A tap device of two queues in a network of its own, which is gone with it; none where that may not be.
fn own_tap() -> Option<Link> {
    const NAME: &str = "played0";
    let open = || {
        // SAFETY: this thread alone gets another network.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return None;
        }
        let first = tun::open().ok()?;
        let flags = tun::IFF_TAP | tun::IFF_NO_PI | tun::IFF_VNET_HDR | tun::IFF_MULTI_QUEUE;
        tun::attach(&first, NAME, flags).ok()?;
        let link = tap::open(NAME, 2).ok()?;
        tun::set_up(NAME).ok()?;
        Some(link)
    };
    thread::spawn(open).join().ok().flatten()
}

/// Whether programs of the host are to serve devices.
fn has_programs() -> bool {
    std::env::var_os("BIVISOR_PLAYED_PROGRAMS").is_some()
}

fn by_passt(carrier: Carrier) -> Result<Option<Link>> {
    (has_programs() && carrier == Carrier::Mmio).then(|| passt::start(&[], 1500)).transpose()
}

/// What it serves is empty, and gone once it has begun.
fn by_virtiofsd() -> Result<Option<VhostUser>> {
    let share = || {
        let folder = own_path("shared");
        fs::create_dir(&folder)?;
        let device = vhost_user::share("played", &folder, true);
        fs::remove_dir(&folder)?;
        device
    };
    has_programs().then(share).transpose()
}

/// Puts devices on the bus that machines of one architecture or with some option have.
pub fn add_others(machine: &mut Machine) -> Result<()> {
    let (output, input) = (machine.output.clone(), machine.input.clone());
    let level = || Level::new(|_| {});
    let debug = |shown| DebugConsole::new(Some(output.clone()), Some(input.clone()), shown);
    let uart = Pl011::new(output.clone(), input.clone(), level());
    let serial = Serial::new(output.clone(), input.clone(), Irq::none());
    let cmos = Cmos::new(machine.ram.ranges());
    let frame = MessageFrame::new(0x8000, 64, 32, |_| {});
    let at = BusAddr::port(0);
    let (name, does) = ("reset control", Does::Reset);
    let within = StopRegister { name, at, len: 1, mask: 4, value: 4, does, reads: 0 };
    let address = PciAddress::new(within, at);
    let others: [(u64, &'static str, Box<dyn Device>); 9] = [
        (pl011::LEN, "PL011", Box::new(uart)),
        (rtc::LEN, "PL031", Box::new(Pl031::default())),
        (cmos::LEN, "CMOS", Box::new(cmos)),
        (fixed_events::LEN, "ACPI events", Box::new(FixedEvents::default())),
        (pci_address::LEN, "PCI address", Box::new(address)),
        (message_frame::LEN, "message frame", Box::new(frame)),
        (serial::LEN, "serial port", Box::new(serial)),
        (8, "debug console", Box::new(debug(Shown::Bytes))),
        (8, "debug console", Box::new(debug(Shown::Numbers))),
    ];
    for (index, (len, name, device)) in others.into_iter().enumerate() {
        let at = BusAddr::memory(OTHERS + index as u64 * 0x1_0000);
        machine.bus.insert(at, len, name, device)?;
    }
    Ok(())
}
