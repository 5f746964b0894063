//! What is left to this process once its guest runs. A guest that finds a fault in a device has the
//! thread that it runs on, and nothing that a thread of a monitor does not need: system calls by a
//! list for each kind of thread ([`calls`]), files by landlock ([`files`]), no capability, and no way
//! to get one back.
//!
//! A thread confines itself, and what it starts inherits that, so threads that serve devices are
//! not started by the vCPU that asks for them but by the event loop ([`Crew`]). The first call that is
//! refused ends the guest, with its name ([`refused`]).

pub mod calls;
mod crew;
mod files;
mod filter;
pub mod refused;

use std::cell::RefCell;
use std::io;
use std::mem::{self, ManuallyDrop};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use vmm_sys_util::eventfd::EventFd;

pub use crew::Crew;

/// What becomes of a call that is on no list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It is refused, and ends the guest.
    #[default]
    On,
    /// There are no lists.
    Off,
    /// It is carried out, and the kernel's log has it (seccomp(2), SECCOMP_RET_LOG).
    Log,
}

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Runs a vCPU.
    Vcpu,
    /// Waits for the end, and starts other threads.
    EventLoop,
    /// Runs the only vCPU, and begins and ends the process.
    Alone,
    /// Serves a disk.
    Block,
    /// Serves a network card.
    Net,
    /// Serves sockets between guest and host.
    Vsock,
    /// Serves a queue of another device.
    Device,
    /// Reads the console's input.
    Input,
    /// Reads what a program says that serves the guest.
    Listener,
    /// Talks to a debugger.
    Debugger,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Vcpu,
        Self::EventLoop,
        Self::Alone,
        Self::Block,
        Self::Net,
        Self::Vsock,
        Self::Device,
        Self::Input,
        Self::Listener,
        Self::Debugger,
    ];

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vcpu => "vCPU",
            Self::EventLoop => "event loop",
            Self::Alone => "only",
            Self::Block => "disk",
            Self::Net => "network",
            Self::Vsock => "vsock",
            Self::Device => "device",
            Self::Input => "input",
            Self::Listener => "listener",
            Self::Debugger => "debugger",
        }
    }
}

/// What the process does after a reset of its guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Again {
    /// It ends.
    #[default]
    Never,
    /// It builds another machine, from these files and what is open by then: the event loop may open
    /// them, and whatever a machine is built with.
    Build(Vec<PathBuf>),
    /// The same, with programs that it starts. Those must not be confined, so the event loop is not.
    BuildWithPrograms,
}

/// The sandbox of a process. Threads enter it one by one, and none leaves it.
pub struct Sandbox {
    mode: Mode,
    again: Again,
    known: Mutex<Known>,
    /// Landlock's rules, if this kernel has landlock.
    rules: OnceLock<Option<OwnedFd>>,
    filters: [OnceLock<filter::Program>; Kind::ALL.len()],
}

/// What a thread fails at that can't be confined.
const ENTER: &str = "enter the sandbox (--sandbox off runs without)";

/// What has to be ended with the guest.
#[derive(Default)]
struct Known {
    /// Programs that serve it, each the leader of its group.
    programs: Vec<u32>,
    /// Sockets that listen for it.
    sockets: Vec<PathBuf>,
}

/// The sandbox of a thread, and who starts threads for it.
struct Here {
    sandbox: Arc<Sandbox>,
    crew: Option<Arc<Crew>>,
}

thread_local! {
    // Nothing that is dropped with its thread: to have that done, a static program makes six system
    // calls at its start. `Left` does it.
    static HERE: RefCell<ManuallyDrop<Option<Here>>> =
        const { RefCell::new(ManuallyDrop::new(None)) };
}

/// What a thread knows of its sandbox from now on.
fn set_here(here: Option<Here>) {
    let before = HERE.with_borrow_mut(|place| mem::replace(&mut **place, here));
    drop(before);
}

/// Forgets the thread's sandbox when the thread is done.
struct Left;

impl Drop for Left {
    fn drop(&mut self) {
        set_here(None);
    }
}

impl Sandbox {
    /// A sandbox that nobody has entered; none where there is to be none.
    pub fn new(mode: Mode, again: Again) -> Option<Arc<Self>> {
        (mode != Mode::Off).then(|| {
            let (known, rules) = (Mutex::default(), OnceLock::new());
            Arc::new(Self { mode, again, known, rules, filters: Default::default() })
        })
    }

    /// Has threads that this one starts from now on with [`spawn`] enter it.
    pub fn surround(self: &Arc<Self>) {
        set_here(Some(Here { sandbox: self.clone(), crew: None }));
    }

    /// Makes what the first threads that enter need, while files can still be opened: the event loop's
    /// and the vCPUs', or the one that is both and `alone`. `wake` is written to when something is
    /// refused. `true` if this thread, the event loop's, is then confined
    /// as far as all are, and all that it starts: they enter as heirs.
    pub fn prepare(&self, wake: &EventFd, alone: bool) -> Result<bool> {
        refused::catch(wake.as_raw_fd()).context("catch refused system calls")?;
        if self.rules.get().is_none() && self.mode == Mode::On {
            let rules = files::rules(&self.again, &self.known().sockets).context("landlock")?;
            let _ = self.rules.set(rules);
        }
        // Threads enter at the same time, and would wait for each other's allocations.
        let first: &[Kind] = if alone { &[Kind::Alone] } else { &[Kind::Vcpu, Kind::EventLoop] };
        for kind in first {
            self.filter(*kind);
        }
        let stays_free = self.is_free(Kind::EventLoop);
        if !is_inside() && !stays_free {
            self.confine().context(ENTER)?;
        }
        Ok(!stays_free)
    }

    /// Confines this thread, for good; once. `heir` says that it was started from inside: then most of
    /// that is done. `crew` starts threads for it from now on.
    pub fn enter(self: &Arc<Self>, kind: Kind, heir: bool, crew: Option<&Arc<Crew>>) -> Result<()> {
        if !is_inside() && !self.is_free(kind) {
            refused::set_kind(kind);
            let confined = if heir { Ok(()) } else { self.confine() };
            let filtered = confined.and_then(|()| filter::install(self.filter(kind)));
            filtered.context(ENTER)?;
        }
        set_here(Some(Here { sandbox: self.clone(), crew: crew.cloned() }));
        Ok(())
    }

    /// Such threads are not confined.
    fn is_free(&self, kind: Kind) -> bool {
        kind == Kind::EventLoop && self.again == Again::BuildWithPrograms
    }

    /// Does to this thread what is the same for all kinds.
    fn confine(&self) -> Result<()> {
        set_no_new_privs(true).context("no new privileges")?;
        if self.mode == Mode::On {
            if let Some(rules) = self.rules.get().and_then(Option::as_ref) {
                files::restrict_self(rules).context("landlock")?;
            }
            // One that has changed its user can't be ended without.
            let kept = match self.known().programs.is_empty() {
                true => CapabilitySet::empty(),
                false => CapabilitySet::KILL,
            };
            drop_capabilities(kept).context("drop capabilities")?;
        }
        Ok(())
    }

    /// The filter of such threads, made once.
    fn filter(&self, kind: Kind) -> &filter::Program {
        let place = Kind::ALL.iter().position(|known| *known == kind).expect("it is one of them");
        self.filters[place].get_or_init(|| {
            let again = kind == Kind::EventLoop && self.again != Again::Never;
            let rules = calls::allowed(kind, again, &self.known().programs);
            filter::compile(&rules, self.mode)
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// True if this thread has entered its sandbox.
pub fn is_inside() -> bool {
    refused::kind().is_some()
}

/// Without any of root's powers but `kept`, of those that there are.
fn drop_capabilities(kept: CapabilitySet) -> rustix::io::Result<()> {
    // None at all is what any thread may have, without a look at what it has.
    let left = match kept.is_empty() {
        true => kept,
        false => rustix::thread::capabilities(None)?.permitted & kept,
    };
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: left, permitted: left, inheritable })
}

/// Tells this thread's sandbox, if it has one, of a program that serves the guest and is to be ended
/// with it.
pub fn started(program: u32) {
    note(|known| known.programs.push(program));
}

/// Tells it of a socket that is to be removed.
pub fn bound(socket: &Path) {
    note(|known| known.sockets.push(socket.into()));
}

fn note(what: impl FnOnce(&mut Known)) {
    HERE.with_borrow(|here| {
        if let Some(here) = &**here {
            what(&mut here.sandbox.known());
        }
    });
}

/// Starts a thread of this kind in this thread's sandbox, if it has one.
pub fn spawn(
    kind: Kind,
    name: String,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let here = HERE
        .with_borrow(|here| here.as_ref().map(|here| (here.sandbox.clone(), here.crew.clone())));
    let Some((sandbox, crew)) = here else {
        return thread::Builder::new().name(name).spawn(body);
    };
    let theirs = crew.clone();
    let confined = move |heir| {
        let _left = Left;
        match sandbox.enter(kind, heir, theirs.as_ref()) {
            Ok(()) => body(),
            Err(error) => refused::fail(error),
        }
    };
    match crew {
        Some(crew) => crew.start(name, Box::new(confined)),
        None => {
            let heir = is_inside();
            thread::Builder::new().name(name).spawn(move || confined(heir))
        }
    }
}
