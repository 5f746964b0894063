//! What the guest prints, on its way to a file of the host.
//!
//! Output is gathered and written a line at a time: one system call, not one per byte. Whoever
//! adds a line's end writes; what stays without one is written by the event loop a few
//! milliseconds later. A reader that is slow stops the vCPU in its write, never the event loop.
//! A device that prints from a thread of its own never writes: the event loop does, at once after a
//! line's end, and tells when there is room for more.

use std::fs::File;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use vmm_sys_util::eventfd::EventFd;

use super::Nature;
use super::watch::Watch;
use crate::exit::Stop;
use crate::{bell, sys};

/// Our choice: what a pipe takes at once without blocking when it is ready (pipe(7), PIPE_BUF).
const OUTPUT_LEN: usize = 4096;

/// How long a line without an end may wait to be seen; a person does not notice.
pub const PATIENCE: Duration = Duration::from_millis(5);

/// The console's output side, shared by the devices that print and the event loop.
pub struct Output {
    file: File,
    name: String,
    nature: Nature,
    pending: Mutex<Pending>,
    /// Whether bytes are pending, for the event loop, which must not wait for the lock: a vCPU may
    /// hold that while it waits for a slow reader.
    unwritten: AtomicBool,
    /// What is pending should not wait: a line has ended, or there is no room.
    hurried: AtomicBool,
    /// A device waits for room, and is told by this.
    starved: AtomicBool,
    room: OnceLock<EventFd>,
    /// Wakes the event loop.
    wake: Arc<EventFd>,
    stopping: Arc<AtomicBool>,
}

struct Pending {
    bytes: Vec<u8>,
    watch: Option<Watch>,
    /// What [`Output::offer`] has seen, for the event loop to end the machine.
    stop: Option<Stop>,
}

impl Output {
    /// Output to `file`, which messages call `name`; `wake` is signalled when bytes wait for
    /// [`Output::flush_ready`], and a write that a slow reader holds up is given up once
    /// `stopping` is set.
    pub fn new(
        (file, name, nature): (File, String, Nature),
        wake: Arc<EventFd>,
        stopping: Arc<AtomicBool>,
        watch: Option<Watch>,
    ) -> Self {
        let pending = Pending { bytes: Vec::with_capacity(OUTPUT_LEN), watch, stop: None };
        Self {
            file,
            name,
            nature,
            pending: Mutex::new(pending),
            unwritten: AtomicBool::new(false),
            hurried: AtomicBool::new(false),
            starved: AtomicBool::new(false),
            room: OnceLock::new(),
            wake,
            stopping,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds `bytes`. May block until the host's reader has room; breaks when it is gone, and when
    /// a text that is watched for is complete.
    pub fn push(&self, bytes: &[u8]) -> ControlFlow<Stop> {
        let mut pending = self.lock();
        let mut flow = ControlFlow::Continue(());
        for &byte in bytes {
            pending.bytes.push(byte);
            flow = pending.watch.as_mut().map_or(flow, |watch| watch.see(byte));
            if byte == b'\n' || pending.bytes.len() >= OUTPUT_LEN {
                // A failure to write it comes before what was in it.
                self.write_out(&mut pending.bytes)?;
            }
            if flow.is_break() {
                break;
            }
        }
        let unwritten = !pending.bytes.is_empty();
        if !self.unwritten.swap(unwritten, Ordering::AcqRel) && unwritten {
            // A full counter (EAGAIN) wakes as well as a write to it.
            let _ = self.wake.write(1);
        }
        flow
    }

    /// Has `room` signalled when there is room again after [`Output::offer`] took too little. The
    /// first call counts.
    pub fn tell_of_room(&self, room: EventFd) {
        let _ = self.room.set(room);
    }

    /// Adds of `bytes` what there is room for, and gives how many. Does not wait for the host's
    /// reader: the event loop writes, and it also ends the machine for a text that is watched for.
    pub fn offer(&self, bytes: &[u8]) -> usize {
        let mut pending = self.lock();
        let mut hurry = false;
        let mut count = 0;
        for &byte in bytes {
            if pending.stop.is_some() {
                // The machine is about to end, with what was printed before.
                count = bytes.len();
                break;
            }
            if pending.bytes.len() >= OUTPUT_LEN {
                self.starved.store(true, Ordering::Release);
                hurry = true;
                break;
            }
            pending.bytes.push(byte);
            count += 1;
            let flow = pending.watch.as_mut().map(|watch| watch.see(byte));
            pending.stop = flow.and_then(ControlFlow::break_value);
            hurry |= byte == b'\n' || pending.stop.is_some();
        }
        let news = [
            !pending.bytes.is_empty() && !self.unwritten.swap(true, Ordering::AcqRel),
            hurry && !self.hurried.swap(true, Ordering::AcqRel),
        ];
        drop(pending);
        if news.contains(&true) {
            // A full counter (EAGAIN) wakes as well as a write to it.
            let _ = self.wake.write(1);
        }
        count
    }

    /// What waits should be written as soon as the descriptor is ready.
    pub fn hurries(&self) -> bool {
        self.hurried.load(Ordering::Acquire)
    }

    /// What of the output was timed.
    pub fn moments(&self) -> Vec<(String, Instant)> {
        self.lock().watch.as_ref().map(Watch::moments).unwrap_or_default()
    }

    /// The last line that was printed, if it was watched for.
    pub fn last_line(&self) -> Option<String> {
        self.lock().watch.as_ref().map(Watch::last_line)
    }

    /// Writes `pending`, all of it unless the machine is stopping meanwhile.
    fn write_out(&self, pending: &mut Vec<u8>) -> ControlFlow<Stop> {
        while !pending.is_empty() {
            match self.write_some(pending, pending.len()) {
                Ok(true) => {}
                // Interrupted: perhaps by the kick that tells that the machine stops, or by the bell
                // that tells that there has to be an event loop, which then writes the rest.
                Ok(false) if self.stopping.load(Ordering::Acquire) || bell::has_rung() => break,
                Ok(false) => {
                    let mut fds = [sys::poll_entry(&self.file, libc::POLLOUT)];
                    let _ = sys::poll(&mut fds, None);
                }
                Err(stop) => return ControlFlow::Break(stop),
            }
        }
        ControlFlow::Continue(())
    }

    /// Writes from the first `len` bytes of `pending` what is taken at once. Tells whether any
    /// were, and clears them all when they can't be written.
    fn write_some(&self, pending: &mut Vec<u8>, len: usize) -> Result<bool, Stop> {
        let error = match (&self.file).write(&pending[..len]) {
            Ok(written) => {
                pending.drain(..written);
                self.tell_starved();
                return Ok(true);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !self.deserted() => {
                return Ok(false);
            }
            Err(error) => error,
        };
        pending.clear();
        self.tell_starved();
        match self.nature {
            // Nobody reads, and nobody need.
            Nature::Pty => Ok(true),
            Nature::Files | Nature::Standard => Err(Stop::Failed(self.failure(error))),
        }
    }

    /// Tells a device that waits for room that there is some.
    fn tell_starved(&self) {
        if self.starved.swap(false, Ordering::AcqRel)
            && let Some(room) = self.room.get()
        {
            let _ = room.write(1);
        }
    }

    /// True of a pseudo-terminal that nobody has opened.
    fn deserted(&self) -> bool {
        let mut fds = [sys::poll_entry(&self.file, libc::POLLOUT)];
        self.nature == Nature::Pty
            && sys::poll(&mut fds, Some(Duration::ZERO)).is_ok()
            && fds[0].revents & libc::POLLHUP != 0
    }

    /// The descriptor to wait on before [`Output::flush_ready`], while bytes wait.
    pub fn waiting(&self) -> Option<BorrowedFd<'_>> {
        self.unwritten.load(Ordering::Acquire).then(|| self.file.as_fd())
    }

    /// Writes what waits, when the descriptor is ready: does not block.
    pub fn flush_ready(&self) -> ControlFlow<Stop> {
        // A locked buffer is one that a vCPU is writing to right now; it is tried again.
        let Ok(mut pending) = self.pending.try_lock() else { return ControlFlow::Continue(()) };
        let len = pending.bytes.len().min(OUTPUT_LEN);
        let result = self.write_some(&mut pending.bytes, len);
        let done = pending.bytes.is_empty();
        self.unwritten.store(!done, Ordering::Release);
        if done {
            self.hurried.store(false, Ordering::Release);
        }
        match (result, pending.stop.take()) {
            (Err(stop), _) => ControlFlow::Break(stop),
            (Ok(_), Some(stop)) if done => ControlFlow::Break(stop),
            (Ok(_), stop) => {
                pending.stop = stop;
                ControlFlow::Continue(())
            }
        }
    }

    /// Words for output that could not be written.
    fn failure(&self, error: io::Error) -> anyhow::Error {
        let mend = match error.kind() {
            io::ErrorKind::BrokenPipe => "is its reader gone?",
            io::ErrorKind::StorageFull => "make room, or send it elsewhere",
            _ => "where does it go?",
        };
        anyhow!("write the guest's output to {}: {error} ({mend})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::console::watch::Wanted;

    fn pipe() -> (io::PipeReader, File) {
        let (reader, writer) = io::pipe().unwrap();
        (reader, File::from(OwnedFd::from(writer)))
    }

    fn output(file: File, wake: &Arc<EventFd>, watch: Option<Watch>) -> Output {
        let what = (file, "test".into(), Nature::Files);
        Output::new(what, wake.clone(), Arc::default(), watch)
    }

    #[test]
    fn a_line_is_one_write_and_the_rest_waits_for_the_event_loop() {
        let (mut reader, file) = pipe();
        let wake = Arc::new(EventFd::new(0).unwrap());
        let output = output(file, &wake, None);
        let mut buffer = [0; 64];
        assert!(output.push(b"line\nre").is_continue());
        let read = reader.read(&mut buffer).unwrap();
        assert_eq!(&buffer[..read], b"line\n");
        assert!(output.push(b"st").is_continue());
        assert_eq!(wake.read().unwrap(), 1, "one wake-up, however many bytes wait");
        assert!(output.waiting().is_some());
        assert!(output.flush_ready().is_continue());
        let read = reader.read(&mut buffer).unwrap();
        assert_eq!(&buffer[..read], b"rest");
        assert!(output.waiting().is_none());
        drop(reader);
        assert!(output.push(b"lost\n").is_break());
    }

    #[test]
    fn a_watched_text_breaks_and_is_still_written() {
        let (mut reader, file) = pipe();
        let wake = Arc::new(EventFd::new(0).unwrap());
        let watch = Watch::new(&Wanted { expect: &["login:".into()], ..Wanted::default() });
        let output = output(file, &wake, watch);
        assert!(output.push(b"log").is_continue());
        let stop = output.push(b"in: never").break_value();
        assert!(matches!(stop, Some(Stop::Expected)), "{stop:?}");
        assert!(output.waiting().is_some());
        assert!(output.flush_ready().is_continue());
        drop(output);
        assert_eq!(io::read_to_string(&mut reader).unwrap(), "login:");
    }

    #[test]
    fn a_pseudo_terminal_that_nobody_reads_takes_everything() {
        let (file, _) = crate::terminal::open_pty().unwrap();
        let wake = Arc::new(EventFd::new(0).unwrap());
        let what = (file, "pty".into(), Nature::Pty);
        let output = Output::new(what, wake, Arc::default(), None);
        let line = [b"x".repeat(99), b"\n".to_vec()].concat();
        for _ in 0..5000 {
            assert!(output.push(&line).is_continue());
        }
        assert!(output.waiting().is_none());
    }
}
