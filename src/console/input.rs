//! The host's input, on its way to the guest.
//!
//! Input is read only once the guest has looked for it (a guest that never reads leaves a shell
//! loop's standard input alone), by a thread of its own, into a small queue: when it is full the
//! host's pipe is what waits. After the last byte the guest gets one [`EOT`].
//!
//! A guest that polls asks its device, which asks [`Input::look`] and [`Input::next`]. A device
//! whose guest waits for interrupts is told of new bytes as a [`Listener`]. The order of locks is
//! the listeners', a device's, the queue's: so a device may call anything here but
//! [`Input::listen`] while it is locked, and what it is told it is told without the queue's lock.
//!
//! A terminal is read even when the queue is full, since the key that quits must work with a guest
//! that takes nothing; what does not fit then is dropped, as a terminal itself does it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::Nature;
use super::keys::{Keys, Press};
use crate::sandbox::{self, Kind};
use crate::{sys, terminal};

/// What the guest reads after the input's last byte: "end of transmission" (ASCII 4), which a
/// terminal sends for Ctrl-D and every tty driver takes for an end of file.
pub const EOT: u8 = 4;

/// Our choice: a page, enough that a pasted text needs few wake-ups.
const INPUT_LEN: usize = 4096;

/// Our choice: what may be typed or pasted ahead of a guest that does not read, from a terminal.
const TYPED_LEN: usize = 64 * 1024;

/// How often a terminal is asked whether it is ours again, or has somebody at its other side.
const RETRY: Duration = Duration::from_millis(200);

/// A device that takes input without being asked by its guest.
pub trait Listener: Send + Sync {
    /// Bytes are waiting, or the input has ended.
    fn input_arrived(&self);
}

/// The console's input side, shared by the devices that read and the reading thread.
pub struct Input {
    queue: Mutex<Queue>,
    /// Signalled when the queue is empty again, or the machine stops.
    changed: Condvar,
    /// Whether [`Input::next`] has something, without a lock: guests look often.
    ready: AtomicBool,
    started: AtomicBool,
    /// Not owned: the devices own the input.
    listeners: Mutex<Vec<Weak<dyn Listener>>>,
    reader: Mutex<Option<JoinHandle<()>>>,
    nature: Nature,
}

struct Queue {
    /// From a pipe at most [`INPUT_LEN`], and what a device put back: the reading thread waits
    /// until it is empty. From a terminal at most [`TYPED_LEN`].
    bytes: VecDeque<u8>,
    /// What the reading thread will read, and what ends it; taken at the guest's first look.
    source: Option<(File, Arc<EventFd>)>,
    /// The host's input has ended, and the guest has not been told yet.
    ended: bool,
    /// The machine is stopping.
    stopping: bool,
}

impl Input {
    /// Input of the bytes `before`, then from `file`, if there is one. `stop` becomes readable when
    /// the machine stops.
    pub fn new(
        before: Vec<u8>,
        file: Option<File>,
        nature: Nature,
        stop: Arc<EventFd>,
    ) -> Arc<Self> {
        let ended = file.is_none();
        let source = file.map(|file| (file, stop));
        let ready = ended || !before.is_empty();
        let queue = Queue { bytes: before.into(), ended, source, stopping: false };
        Arc::new(Self {
            queue: Mutex::new(queue),
            changed: Condvar::new(),
            ready: AtomicBool::new(ready),
            started: AtomicBool::new(ended),
            listeners: Mutex::default(),
            reader: Mutex::default(),
            nature,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `listener` told of every arrival from now on.
    pub fn listen(&self, listener: Weak<dyn Listener>) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
    }

    fn tell(&self) {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.iter().filter_map(Weak::upgrade).for_each(|device| device.input_arrived());
    }

    /// The guest looks for input: is there some? The first look starts the reading.
    pub fn look(self: &Arc<Self>) -> bool {
        if !self.started.load(Ordering::Acquire) {
            self.start();
        }
        self.ready.load(Ordering::Acquire)
    }

    /// Whether the guest has looked.
    #[cfg(test)]
    pub fn is_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    fn start(self: &Arc<Self>) {
        let mut queue = self.lock();
        self.started.store(true, Ordering::Release);
        if let Some((file, stop)) = queue.source.take().filter(|_| !queue.stopping) {
            let input = self.clone();
            let read = move || input.read_all(file, &stop);
            match sandbox::spawn(Kind::Input, "input".into(), read) {
                Ok(reader) => {
                    *self.reader.lock().unwrap_or_else(PoisonError::into_inner) = Some(reader);
                }
                Err(_) => {
                    queue.ended = true;
                    self.ready.store(true, Ordering::Release);
                }
            }
        }
    }

    /// The next byte for the guest, if there is one; [`EOT`] once at the end. Never blocks.
    pub fn next(self: &Arc<Self>) -> Option<u8> {
        let mut byte = [0];
        (self.take(&mut byte) == 1).then_some(byte[0])
    }

    /// Moves the next bytes for the guest into `to`, as many as there are and fit, and tells how
    /// many that were. Never blocks.
    pub fn take(self: &Arc<Self>, to: &mut [u8]) -> usize {
        if !self.look() || to.is_empty() {
            return 0;
        }
        let mut queue = self.lock();
        let mut count = to.len().min(queue.bytes.len());
        for (place, byte) in to.iter_mut().zip(queue.bytes.drain(..count)) {
            *place = byte;
        }
        if queue.bytes.is_empty() {
            self.changed.notify_one();
            if count < to.len() && std::mem::take(&mut queue.ended) {
                to[count] = EOT;
                count += 1;
            }
        }
        self.ready.store(!queue.bytes.is_empty() || queue.ended, Ordering::Release);
        count
    }

    /// Takes back `bytes`, which a device was given and its guest has not read, to be the next.
    pub fn put_back(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut queue = self.lock();
        bytes.iter().rev().for_each(|&byte| queue.bytes.push_front(byte));
        self.ready.store(true, Ordering::Release);
    }

    /// Lets the reading thread end, and leaves the terminal as it was. Whoever calls it makes the
    /// `stop` of [`Input::new`] readable.
    pub fn stop(&self) {
        self.lock().stopping = true;
        self.changed.notify_all();
        if self.nature == Nature::Standard {
            // No thread of ours makes it raw again, see `may_read`.
            terminal::leave();
        }
    }

    /// What was read for the guest and not taken, once the machine has stopped: the reading ends.
    pub fn unread(&self) -> Vec<u8> {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take();
        // What it had to say went into the queue.
        let _ = reader.map(JoinHandle::join);
        self.lock().bytes.drain(..).collect()
    }

    /// Whether signals that stop and continue this process concern a terminal of this input.
    pub fn is_standard(&self) -> bool {
        self.nature == Nature::Standard
    }

    /// Moves bytes from `file` to the guest until the file or the machine ends. An error is an
    /// end: there is nobody to tell who could mend it.
    fn read_all(&self, mut file: File, stop: &EventFd) {
        let mut keys =
            (self.nature == Nature::Standard && terminal::is_one(file.as_fd())).then(Keys::default);
        let mut buffer = [0; INPUT_LEN];
        loop {
            if keys.is_some() && !self.may_read(&file) {
                if wait_for(stop, RETRY) {
                    return;
                }
                continue;
            }
            let mut fds =
                [sys::poll_entry(&file, libc::POLLIN), sys::poll_entry(stop, libc::POLLIN)];
            if sys::poll(&mut fds, None).is_err() || fds[1].revents != 0 {
                return;
            }
            if fds[0].revents == libc::POLLHUP && self.nature == Nature::Pty {
                // Nobody is at its other side now; somebody may come.
                if wait_for(stop, RETRY) {
                    return;
                }
                continue;
            }
            // Meanwhile it may have become somebody else's.
            if fds[0].revents == 0 || keys.is_some() && !self.may_read(&file) {
                continue;
            }
            let read = match file.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) if self.nature == Nature::Pty => continue,
                Ok(0) | Err(_) => break,
                Ok(read) => read,
            };
            let more = match &mut keys {
                Some(keys) => self.type_in(keys, &buffer[..read]),
                None => self.move_in(&buffer[..read]),
            };
            if !more {
                return;
            }
        }
        let mut queue = self.lock();
        queue.ended = true;
        self.ready.store(true, Ordering::Release);
        drop(queue);
        self.tell();
    }

    /// True if the terminal `file` is ours to read, and then it is raw.
    fn may_read(&self, file: &File) -> bool {
        let queue = self.lock();
        !queue.stopping && terminal::enter(file.as_fd())
    }

    /// Hands `bytes` on and waits until they have been taken; false when the machine stops.
    fn move_in(&self, bytes: &[u8]) -> bool {
        let mut queue = self.lock();
        queue.bytes.extend(bytes);
        self.ready.store(true, Ordering::Release);
        drop(queue);
        self.tell();
        let until = |q: &mut Queue| !q.stopping && !q.bytes.is_empty();
        let queue = self.changed.wait_while(self.lock(), until);
        !queue.unwrap_or_else(PoisonError::into_inner).stopping
    }

    /// Hands on what was typed, without the keys that are ours; false when the machine stops.
    fn type_in(&self, keys: &mut Keys, typed: &[u8]) -> bool {
        let mut queue = self.lock();
        let mut help = false;
        for &key in typed {
            match keys.press(key) {
                Press::Typed(bytes) => {
                    let room = TYPED_LEN.saturating_sub(queue.bytes.len());
                    queue.bytes.extend(bytes.iter().take(room));
                }
                Press::Nothing => {}
                Press::Help => help = true,
                // The event loop gets it like one from outside, and ends the machine.
                Press::Quit => sys::signal_process(libc::SIGINT),
            }
        }
        let stopping = queue.stopping;
        let ready = !queue.bytes.is_empty();
        self.ready.fetch_or(ready, Ordering::AcqRel);
        drop(queue);
        if help {
            // Nobody is left to help when standard error can't be written.
            let _ = io::stderr().write_all(super::keys::HELP.as_bytes());
        }
        if ready {
            self.tell();
        }
        !stopping
    }
}

/// Waits for `time` at most; true as soon as `stop` is readable.
fn wait_for(stop: &EventFd, time: Duration) -> bool {
    let mut fds = [sys::poll_entry(stop, libc::POLLIN)];
    sys::poll(&mut fds, Some(time)).is_err() || fds[0].revents != 0
}

#[cfg(test)]
mod tests;
