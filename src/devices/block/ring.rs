//! Requests by io_uring: what a driver makes available at once goes to the kernel with one system
//! call, and what the page cache has is done when that returns. Without threads.
//!
//! A write into the page cache is carried out on the spot: the kernel would give each to a thread,
//! and one after the other, which takes longer than the copy.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::request::{Asked, Refused, Request, Server};
use crate::virtio::limit::Gate;
use crate::virtio::queue::Queue;
use crate::virtio::worker::{Watch, Work};

/// Requests that may be under way. Our choice: as many as fill a disk's own queue.
const REQUESTS: u32 = 128;

/// A ring of the kernel's, or why there is none: it is old, forbids it, or has no memory for it. All
/// that it can be asked for is what a disk does with its file: a ring knows no filter of system calls.
pub fn open() -> io::Result<IoUring> {
    let builder = || {
        let mut builder = IoUring::builder();
        builder.setup_r_disabled();
        builder
    };
    // Without interrupts of the CPU when something is done; since Linux 5.19.
    let ring = match builder().setup_coop_taskrun().build(REQUESTS) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => builder().build(REQUESTS),
        other => other,
    }?;
    let allowed = [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE];
    let mut allowed = allowed.map(Restriction::sqe_op);
    ring.submitter().register_restrictions(&mut allowed)?;
    ring.submitter().register_enable_rings()?;
    Ok(ring)
}

/// Where a queue's ring is while no driver uses it: none can be opened once the guest runs.
pub type Berth = Arc<Mutex<Option<IoUring>>>;

/// A ring that goes back to its berth.
struct Moored {
    /// There until it is dropped.
    ring: Option<IoUring>,
    berth: Berth,
}

impl Deref for Moored {
    type Target = IoUring;

    fn deref(&self) -> &IoUring {
        self.ring.as_ref().expect("there until it is dropped")
    }
}

impl DerefMut for Moored {
    fn deref_mut(&mut self) -> &mut IoUring {
        self.ring.as_mut().expect("there until it is dropped")
    }
}

impl Drop for Moored {
    fn drop(&mut self) {
        *self.berth.lock().unwrap_or_else(PoisonError::into_inner) = self.ring.take();
    }
}

/// What the kernel was asked for.
#[derive(Clone, Copy)]
enum Step {
    Read,
    Write,
    Flush,
}

/// A request, and how far it is.
struct Slot {
    request: Request,
    step: Step,
    /// Where the rest of its data is.
    offset: u64,
}

/// The worker of one queue.
pub struct Ring {
    server: Arc<Server>,
    queue: Queue,
    gate: Gate,
    ring: Moored,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Handed to the kernel and not come back.
    under_way: usize,
}

impl Ring {
    /// The worker of `queue`, whose disk has a file; none if there is no ring at `berth`.
    pub fn new(
        queue: Queue,
        server: Arc<Server>,
        gate: Gate,
        berth: &Berth,
    ) -> Result<Self, (Queue, Gate)> {
        let ring = berth.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(ring) = ring else { return Err((queue, gate)) };
        let ring = Moored { ring: Some(ring), berth: berth.clone() };
        let count = queue.size().min(REQUESTS as u16);
        let slot = |_| Slot { request: Request::new(queue.ram()), step: Step::Flush, offset: 0 };
        let slots = (0..count).map(slot).collect();
        let free = (0..count).rev().collect();
        Ok(Self { server, gate, ring, slots, free, under_way: 0, queue })
    }

    fn serve(&mut self) -> Result<()> {
        loop {
            let taken = self.take()?;
            let done = self.reap()?;
            self.queue.signal()?;
            if !taken && !done {
                return Ok(());
            }
        }
    }

    /// Takes what is available, as far as there is room, and hands it to the kernel. `false` if that
    /// was nothing.
    fn take(&mut self) -> Result<bool> {
        let mut taken = false;
        while let Some(&index) = self.free.last() {
            if !self.gate.is_open()? {
                break;
            }
            let slot = &mut self.slots[usize::from(index)];
            if !self.queue.pop(&mut slot.request.chain)? {
                break;
            }
            taken = true;
            self.gate.pass(slot.request.data_len());
            slot.request.prepare()?;
            let outcome = match self.server.asked(&mut slot.request.chain) {
                Ok(asked) => match step(&self.server, &slot.request, &asked) {
                    Some((step, offset)) => {
                        (slot.step, slot.offset) = (step, offset);
                        self.free.pop();
                        self.submit(index)?;
                        continue;
                    }
                    None => self.server.carry_out(asked, &mut slot.request.chain),
                },
                Err(refused) => Err(refused),
            };
            let written = self.server.conclude(&mut slot.request, outcome);
            self.queue.push(slot.request.chain.head, written)?;
        }
        if !self.ring.submission().is_empty() {
            enter(&self.ring, 0)?;
        }
        Ok(taken)
    }

    /// Puts what is next for a slot into the ring, which has room for all of them.
    fn submit(&mut self, index: u16) -> Result<()> {
        let slot = &self.slots[usize::from(index)];
        let file = self.server.disk.file().context("its disk has a file")?;
        let entry = slot.entry(file.file).user_data(index.into());
        // SAFETY: the pieces are guest RAM, which the kernel may write to; they and the list of
        // them stay where they are until the request comes back, which `drop` waits for.
        unsafe { self.ring.submission().push(&entry) }.context("the ring has room")?;
        self.under_way += 1;
        Ok(())
    }

    /// Gives back what the kernel is done with. `false` if that was nothing.
    fn reap(&mut self) -> Result<bool> {
        let (mut done, mut again) = (false, false);
        while let Some(entry) = { self.ring.completion().next() } {
            self.under_way -= 1;
            let index = entry.user_data() as u16;
            let slot = &mut self.slots[usize::from(index)];
            match slot.progress(entry.result()) {
                None => {
                    again = true;
                    self.submit(index)?;
                }
                Some(outcome) => {
                    done = true;
                    let written = self.server.conclude(&mut slot.request, outcome);
                    self.queue.push(slot.request.chain.head, written)?;
                    self.free.push(index);
                }
            }
        }
        if again {
            enter(&self.ring, 0)?;
        }
        Ok(done)
    }
}

/// What the kernel is to be asked for, and where; `None` for what is carried out on the spot.
fn step(server: &Server, request: &Request, asked: &Asked) -> Option<(Step, u64)> {
    let file = server.disk.file()?;
    let takes = |pieces| !file.direct || super::raw::is_aligned(pieces);
    let chain = &request.chain;
    match *asked {
        Asked::Read(offset) => {
            let some = !chain.writable.is_empty();
            (some && takes(&chain.writable)).then_some((Step::Read, offset))
        }
        Asked::Write(offset) => {
            let some = file.direct && !server.write_through && !chain.readable.is_empty();
            (some && takes(&chain.readable)).then_some((Step::Write, offset))
        }
        Asked::Flush => Some((Step::Flush, 0)),
        _ => None,
    }
}

impl Slot {
    fn entry(&self, file: BorrowedFd) -> squeue::Entry {
        let file = types::Fd(file.as_raw_fd());
        let chain = &self.request.chain;
        match self.step {
            Step::Read => {
                let list = chain.writable.as_iovecs();
                opcode::Readv::new(file, list.as_ptr(), list.len() as u32)
                    .offset(self.offset)
                    .build()
            }
            Step::Write => {
                let list = chain.readable.as_iovecs();
                opcode::Writev::new(file, list.as_ptr(), list.len() as u32)
                    .offset(self.offset)
                    .build()
            }
            Step::Flush => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        }
    }

    /// The outcome after a step that gave `result`, unless there is more to do: the kernel may do less
    /// than it is asked for.
    fn progress(&mut self, result: i32) -> Option<Result<(), Refused>> {
        let chain = &mut self.request.chain;
        let pieces = match self.step {
            Step::Read => &mut chain.writable,
            Step::Write => &mut chain.readable,
            Step::Flush => {
                return Some(if result < 0 { Err(broken(result)) } else { Ok(()) });
            }
        };
        match result {
            count if count > 0 => {
                pieces.skip(count as usize);
                self.offset += count as u64;
                pieces.is_empty().then_some(Ok(()))
            }
            error if error == -libc::EINTR => None,
            error => Some(Err(broken(error))),
        }
    }
}

/// Why the kernel gave `result`: the file became shorter, or it failed.
fn broken(result: i32) -> Refused {
    Refused::Broken(match result {
        0 => io::ErrorKind::UnexpectedEof.into(),
        error => io::Error::from_raw_os_error(-error),
    })
}

/// Hands the ring to the kernel, and waits until `wanted` requests came back.
fn enter(ring: &IoUring, wanted: usize) -> Result<()> {
    loop {
        match ring.submit_and_wait(wanted) {
            Ok(_) => return Ok(()),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {}
            // What came back has to be taken first; it is looked at next.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
            Err(error) => return Err(error).context("io_uring_enter"),
        }
    }
}

impl Work for Ring {
    fn begin(&mut self, watch: &Watch) -> Result<()> {
        self.gate.watch(watch, self.queue.index())?;
        watch.add(&*self.ring, 0, EventSet::IN)
    }

    fn queues(&self) -> Vec<(usize, &EventFd)> {
        vec![(self.queue.index(), self.queue.kick())]
    }

    fn notified(&mut self, _: usize, _: &Watch) -> Result<()> {
        self.serve()
    }

    fn ready(&mut self, _: u32, _: EventSet, _: &Watch) -> Result<()> {
        self.serve()
    }
}

impl Drop for Ring {
    /// The kernel may write to guest RAM until the last request came back.
    fn drop(&mut self) {
        while self.under_way > 0 && enter(&self.ring, 1).is_ok() {
            self.under_way -= self.ring.completion().count();
        }
        if self.under_way > 0 {
            // Not for another driver: its requests would be taken for this one's.
            self.ring.berth = Berth::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{GuestRam, RamRange};

    // HOSTILE 32: what the kernel may answer.
    #[test]
    fn hostile_32_a_step_goes_on_until_it_is_whole_or_fails() {
        let ram = Arc::new(GuestRam::new(vec![RamRange { start: 0, len: 1 << 20 }]).unwrap());
        let start = |step| {
            let mut request = Request::new(&ram);
            request.chain.readable.push(0x1000, 512).unwrap();
            request.chain.writable.push(0x2000, 512).unwrap();
            Slot { request, step, offset: 4096 }
        };
        for step in [Step::Read, Step::Write] {
            let mut slot = start(step);
            for (result, offset) in [(100, 4196), (-libc::EINTR, 4196), (411, 4607)] {
                assert!(slot.progress(result).is_none(), "{result}");
                assert_eq!(slot.offset, offset);
            }
            assert!(matches!(slot.progress(1), Some(Ok(()))));
            // The end of the file, an error, and one after a part.
            for result in [0, -libc::EIO, -libc::ENOSPC] {
                let mut slot = start(step);
                assert!(slot.progress(10).is_none());
                assert!(matches!(slot.progress(result), Some(Err(Refused::Broken(_)))), "{result}");
            }
        }
        assert!(matches!(start(Step::Flush).progress(0), Some(Ok(()))));
        assert!(matches!(start(Step::Flush).progress(-libc::EIO), Some(Err(Refused::Broken(_)))));
    }
}
