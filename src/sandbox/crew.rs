//! Starts threads for those that must not: what a thread starts inherits its confinement, and a disk's
//! helper that was confined like a vCPU could not read a file. C libraries block all signals while they
//! start a thread, so that one that must not would not even be told.

use std::io;
use std::mem;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use vmm_sys_util::eventfd::EventFd;

/// A thread that is wanted.
struct Job {
    name: String,
    body: Box<dyn FnOnce(bool) + Send>,
    answer: Sender<io::Result<JoinHandle<()>>>,
}

/// Threads that are wanted, and who is told of them.
pub struct Crew {
    /// None once nobody serves any more.
    jobs: Mutex<Option<Vec<Job>>>,
    wake: Arc<EventFd>,
}

impl Crew {
    /// `wake` is written to when a thread is wanted; then [`Crew::serve`] is to be called.
    pub fn new(wake: Arc<EventFd>) -> Arc<Self> {
        Arc::new(Self { jobs: Mutex::new(Some(Vec::new())), wake })
    }

    fn jobs(&self) -> MutexGuard<'_, Option<Vec<Job>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a thread started, and waits for that. `body` is told whether that was from inside the sandbox.
    pub fn start(
        &self,
        name: String,
        body: Box<dyn FnOnce(bool) + Send>,
    ) -> io::Result<JoinHandle<()>> {
        let (answer, answered) = channel();
        match &mut *self.jobs() {
            Some(jobs) => jobs.push(Job { name, body, answer }),
            None => return Err(io::ErrorKind::BrokenPipe.into()),
        }
        // A full counter (EAGAIN) is readable too.
        let _ = self.wake.write(1);
        answered.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }

    /// Starts what is wanted.
    pub fn serve(&self) {
        let jobs = self.jobs().as_mut().map(mem::take).unwrap_or_default();
        let inside = super::is_inside();
        for job in jobs {
            let body = job.body;
            let thread = thread::Builder::new().name(job.name).spawn(move || body(inside));
            // Whoever asked waits for it.
            let _ = job.answer.send(thread);
        }
    }

    /// Starts nothing any more. Whoever waits, or asks later, gets an error.
    pub fn close(&self) {
        *self.jobs() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_started_by_whoever_serves() {
        let wake = Arc::new(EventFd::new(0).unwrap());
        let crew = Crew::new(wake.clone());
        let (told, heard) = channel();
        let asked = crew.clone();
        let asker = thread::spawn(move || {
            let body = move |_| told.send(thread::current().name().map(String::from)).unwrap();
            asked.start("wanted".into(), Box::new(body)).unwrap().join().unwrap();
        });
        wake.read().unwrap();
        crew.serve();
        asker.join().unwrap();
        assert_eq!(heard.recv().unwrap().as_deref(), Some("wanted"));
        crew.close();
        assert!(crew.start("late".into(), Box::new(|_| ())).is_err());
    }
}
