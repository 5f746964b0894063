//! What is said to a back end, by the `vhost` crate, and how long an answer may take.
//!
//! The crate waits for ever. So each conversation has a deadline, past which the connection is shut
//! down: that ends the wait. A connection on which something went wrong is not used again, since
//! nobody knows what the next answer would belong to.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use vhost::vhost_user::message::{
    VHOST_USER_MAX_VRINGS, VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Error as UserError, Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestRam;
use crate::sandbox::{self, Kind};
use crate::virtio::queue::Queue;

/// How long a conversation may take. Our choice: a back end that has just been started takes a
/// second or two on an emulated host, and one that runs takes none.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Whether rings are switched on and off, and whether there are protocol features at all.
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// A connection to a back end that has told what it can do.
pub struct Connection {
    frontend: Frontend,
    socket: UnixStream,
    patience: Duration,
    lost: bool,
    features: u64,
    protocol: VhostUserProtocolFeatures,
    queues: u64,
}

/// Connects to who listens at `path`.
pub fn connect(path: &Path) -> Result<UnixStream> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    );
    let socket = socket.context("make a socket")?;
    let address = SocketAddrUnix::new(path).context("the path of a socket")?;
    match rustix::net::connect(&socket, &address) {
        // unix(7): others wait to be accepted, as many as are allowed to.
        Err(Errno::AGAIN) => bail!("connect to it: nobody accepts (does it serve another guest?)"),
        other => other.context("connect to it (does the back end listen there?)")?,
    }
    let socket = UnixStream::from(socket);
    socket.set_nonblocking(false).context("set a socket to block")?;
    Ok(socket)
}

impl Connection {
    /// Asks the back end behind `socket` what it can do. Each conversation may take `patience`.
    pub fn new(socket: UnixStream, patience: Duration) -> Result<Self> {
        let copy = socket.try_clone().context("copy a descriptor")?;
        let frontend = Frontend::from_stream(copy, VHOST_USER_MAX_VRINGS);
        let protocol = VhostUserProtocolFeatures::empty();
        let (lost, features, queues) = (false, 0, VHOST_USER_MAX_VRINGS);
        let mut new = Self { frontend, socket, patience, lost, features, protocol, queues };
        new.talk(Self::introduce)?;
        Ok(new)
    }

    fn introduce(&mut self) -> Result<()> {
        let frontend = &mut self.frontend;
        frontend.set_owner().step("SET_OWNER")?;
        self.features = frontend.get_features().step("GET_FEATURES")?;
        if self.features & PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        let offered = frontend.get_protocol_features().step("GET_PROTOCOL_FEATURES")?;
        self.protocol = offered
            & (VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::CONFIG);
        frontend.set_protocol_features(self.protocol).step("SET_PROTOCOL_FEATURES")?;
        if self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        if self.protocol.contains(VhostUserProtocolFeatures::MQ) {
            self.queues = frontend.get_queue_num().step("GET_QUEUE_NUM")?;
        }
        Ok(())
    }

    /// The features that it offers, of all kinds.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Queues that it can have at the most.
    pub fn queues(&self) -> u64 {
        self.queues
    }

    /// The first `len` bytes of its configuration space.
    pub fn config(&mut self, len: u32) -> Result<Vec<u8>> {
        ensure!(
            self.protocol.contains(VhostUserProtocolFeatures::CONFIG),
            "the back end does not tell its configuration space (protocol feature CONFIG)"
        );
        self.talk(|own| {
            let (flags, room) = (VhostUserConfigFlags::empty(), vec![0; len as usize]);
            Ok(own.frontend.get_config(0, len, flags, &room).step("GET_CONFIG")?.1)
        })
    }

    /// Has the back end serve `queues` for a driver that accepted `features`. It learns of
    /// notifications as KVM tells them, and writes to one of `calls` for each queue.
    pub fn start(&mut self, features: u64, queues: &[Queue], calls: &[EventFd]) -> Result<()> {
        let Some(ram) = queues.first().map(|queue| queue.ram().clone()) else {
            bail!("the driver set up no queue");
        };
        // What can be the driver's fault comes first: the connection is none the worse for it.
        let table = memory_table(&ram)?;
        let rings = queues.iter().map(rings).collect::<Result<Vec<_>>>()?;
        let enables = self.features & PROTOCOL_FEATURES;
        self.talk(|own| {
            let frontend = &mut own.frontend;
            let features = features & own.features | enables;
            frontend.set_features(features).step("SET_FEATURES")?;
            frontend.set_mem_table(&table).step("SET_MEM_TABLE")?;
            for ((queue, rings), call) in queues.iter().zip(&rings).zip(calls) {
                let index = queue.index();
                frontend.set_vring_num(index, rings.queue_size).step("SET_VRING_NUM")?;
                frontend.set_vring_base(index, 0).step("SET_VRING_BASE")?;
                frontend.set_vring_addr(index, rings).step("SET_VRING_ADDR")?;
                frontend.set_vring_call(index, call).step("SET_VRING_CALL")?;
                frontend.set_vring_kick(index, queue.kick()).step("SET_VRING_KICK")?;
            }
            for queue in queues.iter().filter(|_| enables != 0) {
                frontend.set_vring_enable(queue.index(), true).step("SET_VRING_ENABLE")?;
            }
            Ok(())
        })
    }

    /// Has the back end leave these rings alone.
    pub fn stop(&mut self, queues: &[usize]) -> Result<()> {
        self.talk(|own| {
            let frontend = &mut own.frontend;
            for index in queues {
                if own.features & PROTOCOL_FEATURES != 0 {
                    frontend.set_vring_enable(*index, false).step("SET_VRING_ENABLE")?;
                }
                // Which ring is at which place does not matter: the driver begins anew.
                frontend.get_vring_base(*index).step("GET_VRING_BASE")?;
            }
            Ok(())
        })
    }

    /// What shows that the back end is gone.
    pub fn watched(&self) -> Result<UnixStream> {
        self.socket.try_clone().context("copy a descriptor")
    }

    /// Ends it, for whoever else has a copy of it too.
    pub fn close(&mut self) {
        self.lost = true;
        // One that is closed already is as good.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    /// One conversation, before its deadline.
    fn talk<T>(&mut self, conversation: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        ensure!(!self.lost, "the back end is gone");
        let deadline = Deadline::new(self.watched()?, self.patience)?;
        let said = conversation(self);
        let missed = deadline.missed();
        if missed || said.is_err() {
            self.close();
        }
        match said {
            Err(_) if missed => {
                Err(anyhow!("the back end does not answer within {:?}", self.patience))
            }
            other => other,
        }
    }
}

/// Shuts a connection down unless it is asked in time whether it did.
struct Deadline {
    in_time: Sender<()>,
    thread: JoinHandle<()>,
    over: Arc<AtomicBool>,
}

impl Deadline {
    fn new(socket: UnixStream, patience: Duration) -> Result<Self> {
        let (in_time, told) = channel();
        let over = Arc::new(AtomicBool::new(false));
        let missed = over.clone();
        let wait = move || {
            if told.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                missed.store(true, Ordering::Release);
                // One that is closed already is as good.
                let _ = socket.shutdown(std::net::Shutdown::Both);
            }
        };
        let thread = sandbox::spawn(Kind::Device, "deadline".into(), wait);
        Ok(Self { in_time, thread: thread.context("start a thread")?, over })
    }

    fn missed(self) -> bool {
        drop(self.in_time);
        // A panic was told when it happened.
        self.thread.join().is_err() || self.over.load(Ordering::Acquire)
    }
}

/// All of RAM, for the back end to map.
fn memory_table(ram: &GuestRam) -> Result<Vec<VhostUserMemoryRegionInfo>> {
    let ranges = ram.shared_ranges();
    ensure!(!ranges.is_empty(), "the guest's RAM is private");
    let region = |shared: &crate::memory::SharedRange<'_>| VhostUserMemoryRegionInfo {
        guest_phys_addr: shared.range.start,
        memory_size: shared.range.len,
        userspace_addr: shared.host_addr,
        mmap_offset: 0,
        mmap_handle: shared.file.as_raw_fd(),
    };
    Ok(ranges.iter().map(region).collect())
}

/// Where the rings of `queue` lie: in our own addresses, by which the back end finds them in the
/// table of RAM. Each must be in one range: the back end sees where it begins, and takes the rest for
/// granted.
fn rings(queue: &Queue) -> Result<VringConfigData> {
    let rings = queue.rings();
    let host = |guest_addr: u64, len: usize| {
        let host_addr = queue.ram().host_addr(guest_addr, len);
        let what =
            || format!("a ring of {len} bytes at {guest_addr:#x} is not in one range of RAM");
        host_addr.with_context(what)
    };
    // virtio v1.3, 2.7 "Split Virtqueues": a descriptor's bytes; those of the rings around elements.
    let size = usize::from(rings.size());
    let (table, available, used) = (16 * size, 6 + 2 * size, 6 + 8 * size);
    Ok(VringConfigData {
        queue_max_size: rings.max_size(),
        queue_size: rings.size(),
        flags: 0,
        desc_table_addr: host(rings.desc_table(), table)?,
        used_ring_addr: host(rings.used_ring(), used)?,
        avail_ring_addr: host(rings.avail_ring(), available)?,
        log_addr: None,
    })
}

/// What became of a message.
trait Step<T> {
    /// With the message's name where it failed, and with what that means.
    fn step(self, message: &str) -> Result<T>;
}

impl<T> Step<T> for vhost::Result<T> {
    fn step(self, message: &str) -> Result<T> {
        self.map_err(|error| match error {
            vhost::Error::VhostUserProtocol(
                UserError::Disconnected | UserError::PartialMessage | UserError::SocketBroken(_),
            ) => anyhow!("{message}: the back end has closed the connection"),
            vhost::Error::VhostUserProtocol(UserError::BackendInternalError) => {
                anyhow!("{message}: the back end refuses it")
            }
            vhost::Error::VhostUserProtocol(
                UserError::InvalidMessage | UserError::OversizedMsg | UserError::IncorrectFds,
            ) => anyhow!("{message}: the back end's answer makes no sense"),
            vhost::Error::VhostUserProtocol(error) => anyhow!("{message}: {error}"),
            error => anyhow!("{message}: {error}"),
        })
    }
}
