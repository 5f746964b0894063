//! The thread that serves gdb: waits for it, passes on what it says, and tells it what happened.
//!
//! The guest stands still whenever gdb has connected, and goes on when gdb is gone; then the next
//! one may connect. The end of the machine is the end of the thread.

use std::fs::File;
use std::io::{self, Read, Write};

use anyhow::{Context, Result};
use gdbstub::common::Signal;
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, GdbStubError, MultiThreadStopReason};
use vmm_sys_util::eventfd::EventFd;

use super::Debugger;
use super::hold::{Crew, News};
use super::listen::Listener;
use super::target::Target;
use crate::event_loop::Ending;
use crate::exit::Stop;
use crate::memory::GuestRam;
use crate::outcome::status;
use crate::sys;

/// How a session ended.
enum Left {
    /// gdb detached, or its connection is gone.
    Detached,
    /// gdb killed the guest.
    Killed,
    /// The machine has ended.
    Ended,
}

/// What happened next.
enum Event {
    Byte(u8),
    Gone,
    News(News),
    Ended,
}

/// gdb's connection, and what waits to be written to it.
struct Wire {
    stream: File,
    waiting: Vec<u8>,
}

impl Connection for Wire {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        // Our choice: far more than gdb asks for, which we tell to ask for 4 KiB at the most.
        const MOST: usize = 1 << 16;
        if self.waiting.len() == MOST {
            return Err(io::Error::other("an answer would be too long"));
        }
        self.waiting.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.waiting)?;
        self.waiting.clear();
        Ok(())
    }
}

/// What was read and is not yet looked at.
#[derive(Default)]
struct Input {
    bytes: Vec<u8>,
    next: usize,
}

impl Input {
    fn pop(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.next).copied()?;
        self.next += 1;
        Some(byte)
    }

    /// Reads what has come; `false` at the end.
    fn fill(&mut self, mut stream: &File) -> bool {
        self.bytes.resize(4096, 0);
        self.next = 0;
        let read = stream.read(&mut self.bytes).unwrap_or(0);
        self.bytes.truncate(read);
        read > 0
    }
}

/// The debugger of one machine.
pub(crate) struct Session<'a> {
    listener: &'a Listener,
    target: Target<'a>,
    ending: &'a Ending<'a>,
    stopped: &'a EventFd,
}

impl<'a> Session<'a> {
    /// A session with the vCPUs `crew` and their RAM. `stopped` is readable once the machine ends.
    pub(crate) fn new(
        debugger: &'a Debugger,
        crew: Crew<'a>,
        ram: &'a GuestRam,
        ending: &'a Ending<'a>,
        stopped: &'a EventFd,
    ) -> Self {
        let target = Target::new(crew, ram, debugger.slots);
        Self { listener: &debugger.listener, target, ending, stopped }
    }

    /// Serves one gdb after the other until the machine ends.
    pub(crate) fn run(mut self) {
        let result = self.serve_all();
        if let Err(error) = result {
            self.ending.end(Stop::Failed(error.context("debug the guest")), None);
        }
    }

    fn serve_all(&mut self) -> Result<()> {
        while let Some(stream) = self.accept()? {
            match self.serve(stream)? {
                Left::Ended => break,
                Left::Killed => {
                    self.ending.end(Stop::Signal(libc::SIGKILL), None);
                    break;
                }
                Left::Detached if !self.target.crew.pause() => break,
                Left::Detached => self.target.let_go()?,
            }
        }
        Ok(())
    }

    /// The next connection; none once the machine ends.
    fn accept(&self) -> Result<Option<File>> {
        loop {
            let mut fds = [
                sys::poll_entry(self.listener, libc::POLLIN),
                sys::poll_entry(self.stopped, libc::POLLIN),
            ];
            sys::poll(&mut fds, None).context("wait for gdb")?;
            if fds[1].revents != 0 {
                return Ok(None);
            }
            if fds[0].revents != 0
                && let Some(stream) = self.listener.accept().context("wait for gdb")?
            {
                return Ok(Some(stream));
            }
        }
    }

    /// The next event. While the guest stands still, no vCPU has news.
    fn next(&mut self, stream: &File, input: &mut Input, running: bool) -> Result<Event> {
        loop {
            if let Some(byte) = input.pop() {
                return Ok(Event::Byte(byte));
            }
            if running && let Some(news) = self.target.crew.news() {
                return Ok(Event::News(news));
            }
            let mut fds = [
                sys::poll_entry(stream, libc::POLLIN),
                sys::poll_entry(self.stopped, libc::POLLIN),
                sys::poll_entry(self.target.crew.bell, libc::POLLIN),
            ];
            sys::poll(&mut fds, None).context("wait for gdb")?;
            let [said, ended, rang] = fds.map(|fd| fd.revents != 0);
            if rang {
                let _ = self.target.crew.bell.read();
            }
            if ended {
                return Ok(Event::Ended);
            }
            if said && !input.fill(stream) {
                return Ok(Event::Gone);
            }
        }
    }

    /// Serves one gdb.
    fn serve(&mut self, stream: File) -> Result<Left> {
        if !self.target.crew.pause() {
            return Ok(Left::Ended);
        }
        let mut input = Input::default();
        let reader = stream.try_clone().context("copy gdb's connection")?;
        let stub = GdbStub::new(Wire { stream, waiting: Vec::new() });
        match self.talk(stub, &reader, &mut input) {
            Ok(left) => Ok(left),
            // What gdb did wrong, and a connection that broke, are the end of that gdb only.
            Err(Trouble::Gdb(error)) => match error.into_target_error() {
                Some(error) => Err(error),
                None => Ok(Left::Detached),
            },
            Err(Trouble::Host(error)) => Err(error),
        }
    }

    fn talk(
        &mut self,
        stub: GdbStub<'_, Target<'a>, Wire>,
        reader: &File,
        input: &mut Input,
    ) -> Result<Left, Trouble> {
        let mut stub = stub.run_state_machine(&mut self.target)?;
        loop {
            stub = match stub {
                GdbStubStateMachine::Idle(idle) => match self.next(reader, input, false)? {
                    Event::Byte(byte) => idle.incoming_data(&mut self.target, byte)?,
                    Event::Gone => return Ok(Left::Detached),
                    // Only a guest that runs can be reported to have ended.
                    Event::Ended | Event::News(_) => return Ok(Left::Ended),
                },
                GdbStubStateMachine::Running(running) => match self.next(reader, input, true)? {
                    Event::Byte(byte) => running.incoming_data(&mut self.target, byte)?,
                    Event::Gone => return Ok(Left::Detached),
                    Event::Ended => {
                        let end = self.end();
                        running.report_stop(&mut self.target, end)?
                    }
                    Event::News(news) => match self.target.stop_reason(&news)? {
                        None => running.into(),
                        Some(reason) => {
                            let paused = self.target.crew.pause();
                            let reason = if paused { reason } else { self.end() };
                            running.report_stop(&mut self.target, reason)?
                        }
                    },
                },
                GdbStubStateMachine::CtrlCInterrupt(interrupt) => {
                    let reason = match self.target.crew.pause() {
                        true => MultiThreadStopReason::Signal(Signal::SIGINT),
                        false => self.end(),
                    };
                    interrupt.interrupt_handled(&mut self.target, Some(reason))?
                }
                GdbStubStateMachine::Disconnected(over) => {
                    return Ok(match over.get_reason() {
                        DisconnectReason::Kill => Left::Killed,
                        DisconnectReason::Disconnect => Left::Detached,
                        DisconnectReason::TargetExited(_)
                        | DisconnectReason::TargetTerminated(_) => Left::Ended,
                    });
                }
            }
        }
    }

    /// How the machine ended, for gdb: as a process would have.
    fn end(&self) -> MultiThreadStopReason<u64> {
        match self.ending.status() {
            Some(code) if code > status::SIGNAL => {
                MultiThreadStopReason::Terminated(Signal(code - status::SIGNAL))
            }
            code => MultiThreadStopReason::Exited(code.unwrap_or(status::FAILURE)),
        }
    }
}

/// What ends a session early.
enum Trouble {
    Gdb(GdbStubError<anyhow::Error, io::Error>),
    Host(anyhow::Error),
}

impl From<GdbStubError<anyhow::Error, io::Error>> for Trouble {
    fn from(error: GdbStubError<anyhow::Error, io::Error>) -> Self {
        Self::Gdb(error)
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Self::Host(error)
    }
}
