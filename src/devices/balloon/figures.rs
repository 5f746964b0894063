//! What became of the guest's memory, for people: on SIGUSR1, as one line.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use vmm_sys_util::eventfd::EventFd;

use super::PAGE;
use crate::devices::value;
use crate::notice;
use crate::pieces::Pieces;

/// Statistics that are shown, by their tags (virtio v1.3, 5.5.6.4), and their words. All are bytes.
const SHOWN: [(u16, &str); 4] =
    [(4, "free"), (6, "available"), (7, "in file caches"), (5, "in all")];

/// Bytes of one statistic: its tag, and its value.
const ENTRY_LEN: usize = 10;

/// Tags that there may be, so that a buffer needs no more.
const ENTRIES: usize = 16;

/// The figures, shared by the device, its worker, and whoever wants to see them.
pub struct Figures {
    /// Bytes that the guest is to give away.
    target: u64,
    /// Pages that it says to have given away.
    pub(super) actual: AtomicU32,
    /// Bytes that went back to the host, in all: some more than once.
    given_back: AtomicU64,
    stats: Mutex<[Option<u64>; SHOWN.len()]>,
    has_driver: AtomicBool,
    asked: EventFd,
}

impl Figures {
    pub(super) fn new(target: u64) -> Result<Self> {
        let asked = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        Ok(Self {
            target,
            actual: AtomicU32::default(),
            given_back: AtomicU64::default(),
            stats: Mutex::default(),
            has_driver: AtomicBool::default(),
            asked: asked.context("create an eventfd")?,
        })
    }

    /// What [`Figures::ask`] makes readable.
    pub(super) fn asked(&self) -> &EventFd {
        &self.asked
    }

    pub(super) fn begin(&self) {
        self.has_driver.store(true, Ordering::Release);
    }

    pub(super) fn end(&self) {
        self.has_driver.store(false, Ordering::Release);
        self.actual.store(0, Ordering::Relaxed);
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
    }

    /// Has them shown, with news from the guest if it has a driver.
    pub fn ask(&self) {
        if self.has_driver.load(Ordering::Acquire) {
            // A full counter (EAGAIN) is readable too.
            let _ = self.asked.write(1);
        } else {
            self.show();
        }
    }

    pub(super) fn gave_back(&self, bytes: u64) {
        self.given_back.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Reads what the guest tells. What is not whole, or not known, is passed over.
    pub(super) fn read(&self, entries: &mut Pieces) {
        let mut bytes = [0; ENTRIES * ENTRY_LEN];
        let count = entries.read(&mut bytes);
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in bytes[..count].chunks_exact(ENTRY_LEN) {
            let tag = value(&entry[..2]) as u16;
            if let Some(place) = SHOWN.iter().position(|(shown, _)| *shown == tag) {
                stats[place] = Some(value(&entry[2..]));
            }
        }
    }

    /// The figures in one line.
    pub(super) fn line(&self) -> String {
        let mib = |bytes: u64| bytes >> 20;
        let target = mib(self.target);
        let actual = mib(u64::from(self.actual.load(Ordering::Relaxed)) * PAGE);
        let back = mib(self.given_back.load(Ordering::Relaxed));
        let mut line =
            format!("balloon: {actual} of {target} MiB taken, {back} MiB given back so far");
        let stats = *self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        for ((_, word), bytes) in SHOWN.iter().zip(stats) {
            if let Some(bytes) = bytes {
                line += &format!(", {} MiB {word}", mib(bytes));
            }
        }
        line
    }

    pub(super) fn show(&self) {
        // Nobody is left to tell when standard error can't be written.
        let _ = io::stderr().write_all(notice::line(&self.line()).as_bytes());
    }
}
