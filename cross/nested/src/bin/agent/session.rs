//! What comes for a job and goes back: the files that it names, its streams, its signals and its end.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nested::sys::{self, Wait};
use nested::{CHUNK, Frame, Kind, WINDOW, Wire, unpack};

use crate::cache::{Wanted, cached};
use crate::job::{ENDED, FIRST, Order, begin};

/// What one client wants done.
pub struct Session {
    wanted: Vec<Wanted>,
    /// The file that is being received, by its index.
    receiving: Option<(u32, File)>,
    pub trouble: Option<io::Error>,
    pub job: Option<Job>,
}

impl Session {
    pub fn new(list: &[u8]) -> Session {
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        let wanted = unpack(list)
            .chunks_exact(4)
            .map(|item| Wanted {
                key: text(&item[0]),
                path: PathBuf::from(OsString::from_vec(item[1].clone())),
                mode: text(&item[2]).parse().unwrap_or(0o644),
                size: text(&item[3]).parse().unwrap_or(0),
            })
            .collect();
        Session { wanted, receiving: None, trouble: None, job: None }
    }

    /// The indices of files that are not in the cache, each named once.
    pub fn needed(&self) -> Vec<u8> {
        let mut seen = Vec::new();
        let mut indices = Vec::new();
        for (index, wanted) in self.wanted.iter().enumerate() {
            if !seen.contains(&&wanted.key) && !cached(&wanted.key).exists() {
                seen.push(&wanted.key);
                indices.extend_from_slice(&(index as u32).to_le_bytes());
            }
        }
        indices
    }

    pub fn store(&mut self, number: u16, frame: &Frame) -> io::Result<()> {
        let index = frame.u32_at(0);
        let wanted =
            self.wanted.get(index as usize).ok_or(io::Error::other("a file nobody named"))?;
        let part = cached(&format!("{}.{number}", wanted.key));
        let context = |e: io::Error| {
            io::Error::other(format!(
                "store {} ({} bytes) in the emulated host: {e}",
                wanted.path.display(),
                wanted.size
            ))
        };
        if self.receiving.as_ref().is_none_or(|(at, _)| *at != index) {
            self.receiving = Some((index, File::create(&part).map_err(context)?));
        }
        let (_, file) = self.receiving.as_ref().expect("set above");
        if frame.kind == Kind::Data {
            return file.write_all_at(frame.rest(12), frame.u64_at(4)).map_err(context);
        }
        file.set_len(frame.u64_at(4)).map_err(context)?;
        self.receiving = None;
        fs::rename(part, cached(&wanted.key)).map_err(context)
    }

    /// Forks the first process of a job.
    pub fn start(&mut self, list: &[u8]) -> io::Result<Job> {
        if let Some(trouble) = self.trouble.take() {
            return Err(trouble);
        }
        let order = Order::new(list).ok_or(io::Error::other("no arguments"))?;
        let (input, stdin) = sys::pipe()?;
        let (stdout, output) = sys::pipe()?;
        let (stderr, errors) = sys::pipe()?;
        let (status, told) = sys::pipe()?;
        // SAFETY: this program never starts a thread.
        let Some(outer) = (unsafe { sys::fork() })? else {
            sys::place(&input, 0).ok();
            sys::place(&output, 1).ok();
            sys::place(&errors, 2).ok();
            begin(order, &self.wanted, told);
        };
        for end in [&stdin, &stdout, &stderr, &status] {
            sys::set_nonblocking(end)?;
        }
        Ok(Job {
            outer,
            input: VecDeque::new(),
            input_ended: false,
            stdin: Some(stdin),
            outputs: [
                Output { kind: Kind::Stdout, pipe: Some(stdout), credit: WINDOW },
                Output { kind: Kind::Stderr, pipe: Some(stderr), credit: WINDOW },
            ],
            control: Vec::new(),
            status: Some(status),
            told: Vec::new(),
            abandoned: false,
        })
    }

    pub fn waits(&self, room: bool, waits: &mut Vec<Wait>) {
        let Some(job) = &self.job else { return };
        if let Some(stdin) = &job.stdin {
            waits.push(Wait::new(stdin, false, !job.input.is_empty()));
        }
        for output in &job.outputs {
            if let (Some(pipe), true) = (&output.pipe, room && output.credit > 0) {
                waits.push(Wait::new(pipe, true, false));
            }
        }
        if let Some(status) = &job.status {
            waits.push(Wait::new(status, true, false));
        }
    }

    /// Moves bytes. `true`: the job is over and everybody who cares was told.
    pub fn advance(
        &mut self,
        number: u16,
        ready: &dyn Fn(i32) -> bool,
        wire: &mut Wire<File>,
    ) -> bool {
        match &mut self.job {
            Some(job) => job.advance(number, ready, wire),
            None => false,
        }
    }
}

struct Output {
    kind: Kind,
    pipe: Option<File>,
    credit: usize,
}

pub struct Job {
    /// The process that made the job's process numbers: killing it ends all of the job.
    outer: i32,
    input: VecDeque<u8>,
    input_ended: bool,
    stdin: Option<File>,
    outputs: [Output; 2],
    /// Signals that could not be passed on yet.
    control: Vec<i32>,
    status: Option<File>,
    /// What came through `status`.
    told: Vec<u8>,
    abandoned: bool,
}

impl Job {
    /// What was told under this heading.
    fn heard(&self, what: u32) -> Option<u32> {
        let record = self.told.chunks_exact(8).find(|record| record[..4] == what.to_le_bytes())?;
        Some(u32::from_le_bytes(record[4..].try_into().expect("four bytes")))
    }

    pub fn take(&mut self, frame: &Frame) {
        match frame.kind {
            Kind::Stdin if frame.body.is_empty() => self.input_ended = true,
            Kind::Stdin => self.input.extend(&frame.body),
            Kind::Credit => {
                for output in &mut self.outputs {
                    if frame.body.first() == Some(&(output.kind as u8)) {
                        output.credit += frame.u32_at(1) as usize;
                    }
                }
            }
            Kind::Signal => {
                self.control.push(i32::from(frame.body.first().copied().unwrap_or(9)));
                self.pass_signals();
            }
            _ => {}
        }
        self.close_input_at_its_end();
    }

    fn pass_signals(&mut self) {
        // Before the first process is known there is nobody to pass a signal to.
        if let Some(first) = self.heard(FIRST) {
            self.control.drain(..).for_each(|signal| sys::kill(first as i32, signal));
        }
    }

    fn close_input_at_its_end(&mut self) {
        if self.input_ended && self.input.is_empty() {
            self.stdin = None;
        }
    }

    /// Kills the job; nobody wants to hear of it any more.
    pub fn abandon(&mut self) {
        self.abandoned = true;
        self.control.push(libc::SIGKILL);
        self.pass_signals();
        sys::kill(self.outer, libc::SIGKILL);
    }

    fn advance(&mut self, number: u16, ready: &dyn Fn(i32) -> bool, wire: &mut Wire<File>) -> bool {
        let is_ready = |file: &Option<File>| file.as_ref().is_some_and(|f| ready(f.as_raw_fd()));
        if is_ready(&self.stdin) && !self.input.is_empty() {
            let result = self.stdin.as_mut().expect("it is ready").write(self.input.as_slices().0);
            let count = match result {
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
                Err(_) => {
                    self.input_ended = true; // the job does not read any more: swallow the rest
                    self.input.len()
                }
            };
            self.input.drain(..count);
            wire.send(number, Kind::Credit, &[&[Kind::Stdin as u8], &(count as u32).to_le_bytes()]);
            self.close_input_at_its_end();
        }
        for output in &mut self.outputs {
            if !is_ready(&output.pipe) {
                continue;
            }
            let mut piece = vec![0; CHUNK.min(output.credit)];
            match output.pipe.as_mut().expect("it is ready").read(&mut piece) {
                Ok(0) => output.pipe = None,
                Ok(count) => {
                    output.credit -= count;
                    if !self.abandoned {
                        wire.send(number, output.kind, &[&piece[..count]]);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => output.pipe = None,
            }
            if self.abandoned {
                output.credit = WINDOW;
            }
        }
        if is_ready(&self.status) {
            let mut piece = [0; 8];
            match self.status.as_mut().expect("it is ready").read(&mut piece) {
                Ok(0) => self.status = None,
                Ok(count) => self.told.extend_from_slice(&piece[..count]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.status = None,
            }
            self.pass_signals();
        }
        let over = self.status.is_none() && self.outputs.iter().all(|o| o.pipe.is_none());
        if over && !self.abandoned {
            let killed = 128 + libc::SIGKILL as u32;
            let status = self.heard(ENDED).unwrap_or(killed);
            wire.send(number, Kind::Exit, &[&status.to_le_bytes()]);
        }
        over
    }
}
