//! One job: finds or starts the host process, sends what the job needs, then passes bytes and
//! signals through until it ends.
//!
//! An emulated host can hang or die through no fault of the job. Then it is started again and
//! the job with it, a few times at most; what the job had read is kept for that, up to a limit.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nested::sys::{self, Wait};
use nested::{CHUNK, Frame, HOST, Kind, WINDOW, Wire, pack};

use crate::connect::{connect, lost};
use crate::files::{self, Sent};
use crate::strip::Strip;
use crate::{Host, Job};

const RETRIES: u32 = 4;

/// Our choice: standard input that is kept for another try.
const KEPT_INPUT: usize = 1 << 20;

/// How long a job may take to end after a signal, before it is killed.
const PATIENCE: Duration = Duration::from_secs(3);

const SIGNALS: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

enum End {
    /// The job's own status, or 128 + n after signal n.
    Status(u8),
    /// The emulated host ended first.
    Lost(String),
    /// The host process was about to leave when we came.
    Stale,
}

pub fn run(host: &Host, job: &Job) -> Result<u8, String> {
    let mut signals = sys::take_signals(&SIGNALS).map_err(|e| format!("take signals: {e}"))?;
    let files = files::list(job)?;
    let mut input = Input { seen: Vec::new(), overrun: false, ended: false };
    let (mut losses, mut stale) = (0, 0);
    loop {
        let attempt = Attempt {
            wire: connect(host)?,
            files: &files,
            job,
            input: &mut input,
            replayed: 0,
            credit: WINDOW,
            running: false,
            signal: None,
            talked: false,
        };
        match attempt.run(&mut signals)? {
            End::Status(status) => return Ok(status),
            End::Stale if stale < 5 => stale += 1,
            End::Stale => return Err(lost(host, "its host process leaves again and again")),
            End::Lost(why) if losses == RETRIES => return Err(lost(host, &why)),
            End::Lost(why) if input.overrun => {
                return Err(lost(host, &format!("{why}; too much was read for another try")));
            }
            End::Lost(why) => {
                losses += 1;
                eprintln!(
                    "nested: lost the emulated {} host ({why}): try {} of {}",
                    host.arch,
                    losses + 1,
                    RETRIES + 1
                );
            }
        }
    }
}

/// Standard input, as far as it was read.
struct Input {
    seen: Vec<u8>,
    /// More was read than is kept.
    overrun: bool,
    ended: bool,
}

struct Attempt<'a> {
    wire: Wire<UnixStream>,
    files: &'a [Sent],
    job: &'a Job,
    input: &'a mut Input,
    /// How much of the kept input this attempt has sent.
    replayed: usize,
    /// How much input the job can take.
    credit: usize,
    running: bool,
    /// The signal that is to end the job, and when we gave it.
    signal: Option<(i32, Instant)>,
    /// Something came from the host.
    talked: bool,
}

impl Attempt<'_> {
    fn run(mut self, signals: &mut File) -> Result<End, String> {
        let numbers: Vec<(String, String)> =
            self.files.iter().map(|f| (f.mode.to_string(), f.size.to_string())).collect();
        let manifest = pack(self.files.iter().zip(&numbers).flat_map(|(file, (mode, size))| {
            [file.key.as_bytes(), file.to.as_os_str().as_bytes(), mode.as_bytes(), size.as_bytes()]
        }));
        self.wire.send(HOST, Kind::Open, &[&manifest]);
        let stdin = io::stdin();
        loop {
            let reads = self.running && self.credit > 0 && !self.input_sent();
            let mut waits = [
                Wait::new(signals, true, false),
                Wait::new(&self.wire.stream, true, self.wire.queued() > 0),
                Wait::new(&stdin, reads && !self.input.ended && self.replay().is_empty(), false),
            ];
            // poll tells of a closed input even where nobody asked.
            let watched = if waits[2].read { 3 } else { 2 };
            let limit = if reads && !self.replay().is_empty() { 0 } else { 500 };
            sys::poll(&mut waits[..watched], limit).map_err(|e| format!("poll: {e}"))?;
            if waits[0].readable
                && let Some(end) = self.take_signal(signals)
            {
                return Ok(end);
            }
            if self.signal.is_some_and(|(_, since)| since.elapsed() > PATIENCE) {
                return Ok(self.interrupted());
            }
            if waits[1].readable || waits[1].hung_up {
                let open = self.wire.fill();
                while let Some(frame) = self.wire.take_frame().map_err(|e| format!("host: {e}"))? {
                    self.talked = true;
                    if let Some(end) = self.take(&frame)? {
                        return Ok(end);
                    }
                }
                if !matches!(open, Ok(true)) {
                    return Ok(match self.talked {
                        false => End::Stale,
                        true => End::Lost("its host process ended".into()),
                    });
                }
            }
            if reads {
                self.pass_input(waits[2].readable)?;
            }
            // A failure to write shows as a closed connection when it is read.
            self.wire.flush().ok();
        }
    }

    fn take(&mut self, frame: &Frame) -> Result<Option<End>, String> {
        match frame.kind {
            Kind::Need => {
                if let Err(e) = self.upload(&frame.body) {
                    // The host process went away meanwhile, and may have said why.
                    if e.kind() != io::ErrorKind::BrokenPipe {
                        return Err(e.to_string());
                    }
                    return Ok(None);
                }
                let count = self.job.arguments.len().to_string();
                let order = pack(
                    [self.job.folder.as_os_str().as_bytes(), count.as_bytes()]
                        .into_iter()
                        .chain(self.job.arguments.iter().map(|text| text.as_bytes()))
                        .chain(self.job.variables.iter().map(|text| text.as_bytes())),
                );
                self.wire.send(HOST, Kind::Run, &[&order]);
                self.running = true;
            }
            Kind::Stdout => return self.pass(frame, &mut io::stdout()),
            Kind::Stderr => return self.pass(frame, &mut io::stderr()),
            Kind::Credit => self.credit += frame.u32_at(1) as usize,
            Kind::Exit => {
                return Ok(Some(match self.signal {
                    Some(_) => self.interrupted(),
                    None => End::Status(frame.u32_at(0) as u8),
                }));
            }
            Kind::Lost => {
                return Ok(Some(match self.signal {
                    Some(_) => self.interrupted(),
                    None => End::Lost(String::from_utf8_lossy(&frame.body).into_owned()),
                }));
            }
            _ => {}
        }
        Ok(None)
    }

    /// The job's output. Where nobody reads ours, we end as a program does that SIGPIPE ends.
    fn pass(&mut self, frame: &Frame, to: &mut dyn Write) -> Result<Option<End>, String> {
        if to.write_all(&frame.body).and_then(|()| to.flush()).is_err() {
            return Ok(Some(End::Status(128 + libc::SIGPIPE as u8)));
        }
        let count = (frame.body.len() as u32).to_le_bytes();
        self.wire.send(HOST, Kind::Credit, &[&[frame.kind as u8], &count]);
        Ok(None)
    }

    fn take_signal(&mut self, signals: &mut File) -> Option<End> {
        let number = sys::next_signal(signals)?;
        if self.signal.is_some() || !self.running {
            self.signal = Some((number, Instant::now()));
            return Some(self.interrupted());
        }
        self.signal = Some((number, Instant::now()));
        self.wire.send(HOST, Kind::Signal, &[&[number as u8]]);
        None
    }

    /// Leaving ends the job, too: the host process sees it, and the agent kills what is left.
    fn interrupted(&self) -> End {
        End::Status(self.signal.map_or(0, |(number, _)| 128 + number as u8))
    }

    fn replay(&self) -> &[u8] {
        &self.input.seen[self.replayed.min(self.input.seen.len())..]
    }

    fn input_sent(&self) -> bool {
        self.input.ended && self.replayed == usize::MAX
    }

    /// Sends input that is kept from an earlier attempt, else what there is to read.
    fn pass_input(&mut self, readable: bool) -> Result<(), String> {
        if !self.replay().is_empty() {
            let piece = self.replay()[..self.replay().len().min(self.credit).min(CHUNK)].to_vec();
            self.wire.send(HOST, Kind::Stdin, &[&piece]);
            self.credit -= piece.len();
            self.replayed += piece.len();
        } else if self.input.ended {
            self.wire.send(HOST, Kind::Stdin, &[]);
            self.replayed = usize::MAX;
        } else if readable {
            let mut piece = vec![0; self.credit.min(CHUNK)];
            // Unbuffered: what is read is accounted for.
            let count =
                sys::read_stdin(&mut piece).map_err(|e| format!("read standard input: {e}"))?;
            if count == 0 {
                self.input.ended = true;
                return self.pass_input(false);
            }
            self.wire.send(HOST, Kind::Stdin, &[&piece[..count]]);
            self.credit -= count;
            if self.input.seen.len() + count > KEPT_INPUT {
                self.input.overrun = true;
                self.input.seen.clear();
                self.replayed = 0;
            }
            if !self.input.overrun {
                self.input.seen.extend_from_slice(&piece[..count]);
                self.replayed += count;
            }
        }
        Ok(())
    }

    /// Sends the files whose indices are listed.
    fn upload(&mut self, indices: &[u8]) -> io::Result<()> {
        for index in indices.chunks_exact(4) {
            let at = u32::from_le_bytes(index.try_into().expect("four bytes"));
            let Some(sent) = self.files.get(at as usize) else {
                continue;
            };
            let context = |e: io::Error| {
                io::Error::new(e.kind(), format!("read {}: {e}", sent.from.display()))
            };
            let file = File::open(&sent.from).map_err(context)?;
            let strip = if sent.mode & 0o111 != 0 { Strip::of(&file) } else { Strip::default() };
            let mut piece = vec![0; CHUNK];
            let mut offset = 0;
            loop {
                let count = file.read_at(&mut piece, offset).map_err(context)?;
                if count == 0 {
                    break;
                }
                strip.apply(&mut piece[..count], offset);
                // Zeros are what the file there has anyway.
                if piece[..count].iter().any(|byte| *byte != 0) {
                    let place = offset.to_le_bytes();
                    self.wire.send(HOST, Kind::Data, &[index, &place, &piece[..count]]);
                }
                offset += count as u64;
                self.drain(4 * WINDOW)?;
            }
            self.wire.send(HOST, Kind::Stored, &[index, &offset.to_le_bytes()]);
        }
        Ok(())
    }

    /// Waits until no more than `limit` bytes are queued.
    fn drain(&mut self, limit: usize) -> io::Result<()> {
        loop {
            self.wire.flush().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            if self.wire.queued() <= limit {
                return Ok(());
            }
            let mut wait = [Wait::new(&self.wire.stream, false, true)];
            sys::poll(&mut wait, 1000)?;
        }
    }
}
