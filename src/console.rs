//! The guest's console on the host: where its output goes and where its input comes from.
//!
//! Output is gathered and written a line at a time: one system call, not one per byte. Whoever
//! adds a line's end writes; what stays without one is written by the event loop a few
//! milliseconds later. A reader that is slow stops the vCPU in its write, never the event loop.
//!
//! Input is read only once the guest has looked for it (a guest that never reads leaves a shell
//! loop's standard input alone), by a thread of its own, into a small queue: when it is full the
//! host's pipe is what waits. After the last byte the guest gets one [`EOT`].

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::anyhow;
use vmm_sys_util::eventfd::EventFd;

use crate::exit::Stop;
use crate::sys;

/// What the guest reads after the input's last byte: "end of transmission" (ASCII 4), which a
/// terminal sends for Ctrl-D and every tty driver takes for an end of file.
pub const EOT: u8 = 4;

/// Our choice: what a pipe takes at once without blocking when it is ready (pipe(7), PIPE_BUF).
const OUTPUT_LEN: usize = 4096;

/// Our choice: a page, enough that a pasted text needs few wake-ups.
const INPUT_LEN: usize = 4096;

/// How long a line without an end may wait to be seen; a person does not notice.
pub const PATIENCE: Duration = Duration::from_millis(5);

/// The host files of a console.
pub struct Console {
    /// Where the guest's output goes.
    pub output: File,
    /// Where the guest's input comes from; without it the guest sees an end of file at once.
    pub input: Option<File>,
}

/// The console's output side, shared by the devices that print and the event loop.
pub struct Output {
    file: File,
    pending: Mutex<Vec<u8>>,
    /// Whether `pending` holds anything, for the event loop, which must not wait for its lock: a
    /// vCPU may hold that while it waits for a slow reader.
    unwritten: AtomicBool,
    /// Wakes the event loop.
    wake: Arc<EventFd>,
    stopping: Arc<AtomicBool>,
}

impl Output {
    /// Output to `file`; `wake` is signalled when bytes wait for [`Output::flush_ready`], and a
    /// write that a slow reader holds up is given up once `stopping` is set.
    pub fn new(file: File, wake: Arc<EventFd>, stopping: Arc<AtomicBool>) -> Self {
        let pending = Mutex::new(Vec::with_capacity(OUTPUT_LEN));
        Self { file, pending, unwritten: AtomicBool::new(false), wake, stopping }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds `bytes`. May block until the host's reader has room; breaks when it is gone.
    pub fn push(&self, bytes: &[u8]) -> ControlFlow<Stop> {
        let mut pending = self.lock();
        let mut flow = ControlFlow::Continue(());
        for &byte in bytes {
            pending.push(byte);
            if byte == b'\n' || pending.len() >= OUTPUT_LEN {
                flow = self.write_out(&mut pending);
                if flow.is_break() {
                    break;
                }
            }
        }
        let unwritten = !pending.is_empty();
        if !self.unwritten.swap(unwritten, Ordering::AcqRel) && unwritten {
            // A full counter (EAGAIN) wakes as well as a write to it.
            let _ = self.wake.write(1);
        }
        flow
    }

    /// Writes `pending`, all of it unless the machine is stopping meanwhile.
    fn write_out(&self, pending: &mut Vec<u8>) -> ControlFlow<Stop> {
        while !pending.is_empty() {
            match (&self.file).write(pending) {
                Ok(written) => drop(pending.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    if self.stopping.load(Ordering::Acquire) {
                        break;
                    }
                }
                Err(error) => {
                    pending.clear();
                    return ControlFlow::Break(Stop::Failed(output_error(error)));
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// The descriptor to wait on before [`Output::flush_ready`], while bytes wait.
    pub fn waiting(&self) -> Option<BorrowedFd<'_>> {
        self.unwritten.load(Ordering::Acquire).then(|| self.file.as_fd())
    }

    /// Writes what waits, when the descriptor is ready: does not block.
    pub fn flush_ready(&self) -> ControlFlow<Stop> {
        // A locked buffer is one that a vCPU is writing to right now; it is tried again.
        let Ok(mut pending) = self.pending.try_lock() else { return ControlFlow::Continue(()) };
        let len = pending.len().min(OUTPUT_LEN);
        let flow = match (&self.file).write(&pending[..len]) {
            Ok(written) => {
                pending.drain(..written);
                ControlFlow::Continue(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => ControlFlow::Continue(()),
            Err(error) => {
                pending.clear();
                ControlFlow::Break(Stop::Failed(output_error(error)))
            }
        };
        self.unwritten.store(!pending.is_empty(), Ordering::Release);
        flow
    }
}

/// Words for output that could not be written.
fn output_error(error: io::Error) -> anyhow::Error {
    let mend = match error.kind() {
        io::ErrorKind::BrokenPipe => "is its reader gone?",
        io::ErrorKind::StorageFull => "make room, or send it elsewhere",
        _ => "where does it go?",
    };
    anyhow!("write the guest's output to standard output: {error} ({mend})")
}

/// The console's input side, shared by the devices that read and the reading thread.
pub struct Input {
    queue: Mutex<Queue>,
    /// Signalled when the queue is empty again, or the machine stops.
    changed: Condvar,
}

struct Queue {
    /// At most [`INPUT_LEN`]: the reading thread waits until it is empty.
    bytes: VecDeque<u8>,
    /// What the reading thread will read, and what ends it; taken at the guest's first look.
    source: Option<(File, Arc<EventFd>)>,
    /// The host's input has ended, and the guest has not been told yet.
    ended: bool,
    /// The machine is stopping.
    stopping: bool,
}

impl Input {
    /// Input from `file`, or none at all. `stop` becomes readable when the machine stops.
    pub fn new(file: Option<File>, stop: Arc<EventFd>) -> Arc<Self> {
        let queue = Queue {
            bytes: VecDeque::new(),
            ended: file.is_none(),
            source: file.map(|file| (file, stop)),
            stopping: false,
        };
        Arc::new(Self { queue: Mutex::new(queue), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next byte for the guest, if there is one; [`EOT`] once at the end. Never blocks.
    pub fn next(self: &Arc<Self>) -> Option<u8> {
        let mut queue = self.lock();
        if let Some((file, stop)) = queue.source.take() {
            let input = self.clone();
            let reader = std::thread::Builder::new().name("input".into());
            if reader.spawn(move || input.read_all(file, &stop)).is_err() {
                queue.ended = true;
            }
        }
        let byte = queue.bytes.pop_front();
        if byte.is_some() && queue.bytes.is_empty() {
            self.changed.notify_one();
        }
        byte.or_else(|| std::mem::take(&mut queue.ended).then_some(EOT))
    }

    /// Lets the reading thread end. Whoever calls it makes the `stop` of [`Input::new`] readable.
    pub fn stop(&self) {
        self.lock().stopping = true;
        self.changed.notify_all();
    }

    /// Moves bytes from `file` to the guest until the file or the machine ends. An error is an
    /// end: there is nobody to tell who could mend it.
    fn read_all(&self, mut file: File, stop: &EventFd) {
        let mut buffer = [0; INPUT_LEN];
        // SAFETY: `stop` is open as long as it is borrowed.
        let stop = unsafe { BorrowedFd::borrow_raw(stop.as_raw_fd()) };
        loop {
            let entries = [file.as_fd(), stop].map(|fd| sys::poll_entry(fd, libc::POLLIN));
            let mut fds = entries;
            if sys::poll(&mut fds, None).is_err() || fds[1].revents != 0 {
                return;
            }
            if fds[0].revents == 0 {
                continue;
            }
            let read = match file.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => break,
                Ok(read) => read,
            };
            let mut queue = self.lock();
            queue.bytes.extend(&buffer[..read]);
            let until = |q: &mut Queue| !q.stopping && !q.bytes.is_empty();
            let queue =
                self.changed.wait_while(queue, until).unwrap_or_else(PoisonError::into_inner);
            if queue.stopping {
                return;
            }
        }
        self.lock().ended = true;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn next(input: &Arc<Input>) -> u8 {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(byte) = input.next() {
                return byte;
            }
            assert!(Instant::now() < deadline, "no input within a minute");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn input_comes_whole_and_in_order_and_ends_with_one_eot() {
        let (reader, mut writer) = io::pipe().unwrap();
        let sent: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        let bytes = sent.clone();
        let sender = std::thread::spawn(move || writer.write_all(&bytes));
        let stop = Arc::new(EventFd::new(0).unwrap());
        let input = Input::new(Some(File::from(std::os::fd::OwnedFd::from(reader))), stop);
        let received: Vec<u8> = sent.iter().map(|_| next(&input)).collect();
        assert!(received == sent);
        assert_eq!(next(&input), EOT);
        assert_eq!(input.next(), None);
        sender.join().unwrap().unwrap();
    }

    #[test]
    fn without_a_file_there_is_only_an_eot() {
        let input = Input::new(None, Arc::new(EventFd::new(0).unwrap()));
        assert_eq!((input.next(), input.next()), (Some(EOT), None));
    }

    #[test]
    fn a_line_is_one_write_and_the_rest_waits_for_the_event_loop() {
        let (mut reader, writer) = io::pipe().unwrap();
        let wake = Arc::new(EventFd::new(0).unwrap());
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        let output = Output::new(file, wake.clone(), Arc::default());
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
}
