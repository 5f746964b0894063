//! The init of the emulated host: makes it ready ([`prepare`]) and runs the jobs that come through a
//! virtio-serial port: what comes for each and goes back is a [`session`]'s, what runs is [`job`]'s.
//!
//! Each job has mounts, process numbers and a root folder of its own, so jobs run side by side
//! and nothing outlives its job: when the first process of its process numbers ends, the kernel
//! kills the rest. Files are kept by key ([`cache`]) and copied into each job that names them.
//!
//! The surprise: this is one loop on one thread, and that a thread is not added matters, since
//! jobs are forked without an exec in between.

mod cache;
mod job;
mod prepare;
mod session;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nested::sys::{self, Wait};
use nested::{Frame, HOST, Kind, PORT, WINDOW, Wire};

use crate::prepare::prepare;
use crate::session::Session;

const BEAT: Duration = Duration::from_secs(1);

/// What a job that could not be started ends with, like bivisor's own failures.
const FAILED: u32 = 125;

fn main() {
    if let Err(e) = prepare().and_then(serve) {
        eprintln!("agent: {e}");
    }
    sys::power_off();
}

/// The port named [`PORT`], once its driver has found it and the other end is there.
fn open_port() -> io::Result<File> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim() != PORT {
                continue;
            }
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(Path::new("/dev").join(entry.file_name()))?;
            let mut wait = [Wait::new(&file, true, true)];
            sys::poll(&mut wait, 0)?;
            if !wait[0].hung_up {
                return Ok(file);
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(io::Error::other(format!("no virtio-serial port {PORT}")))
}

fn serve(_idle_vms: Vec<OwnedFd>) -> io::Result<()> {
    let mut wire = Wire::new(open_port()?);
    let mut sessions: HashMap<u16, Session> = HashMap::new();
    let mut next_beat = Instant::now() + BEAT;
    wire.send(HOST, Kind::Ready, &[]);
    loop {
        let now = Instant::now();
        if now >= next_beat {
            wire.send(HOST, Kind::Beat, &[]);
            next_beat = now + BEAT;
        }
        wire.flush()?;

        let room = wire.queued() < 4 * WINDOW;
        let mut waits = vec![Wait::new(&wire.stream, true, wire.queued() > 0)];
        for session in sessions.values() {
            session.waits(room, &mut waits);
        }
        sys::poll(&mut waits, (next_beat - now).as_millis() as u64 + 1)?;
        if waits[0].readable {
            if !wire.fill()? {
                return Ok(()); // whoever emulates us is gone
            }
            while let Some(frame) = wire.take_frame()? {
                dispatch(frame, &mut sessions, &mut wire);
            }
        }
        let ready = |fd: i32| waits.iter().any(|w| w.fd == fd && (w.readable || w.writable));
        sessions.retain(|number, session| !session.advance(*number, &ready, &mut wire));
        while sys::reap().is_some() {}
    }
}

fn dispatch(frame: Frame, sessions: &mut HashMap<u16, Session>, wire: &mut Wire<File>) {
    let number = frame.session;
    if frame.kind == Kind::Open {
        if sessions.is_empty() {
            cache::trim();
        }
        let session = Session::new(&frame.body);
        wire.send(number, Kind::Need, &[&session.needed()]);
        sessions.insert(number, session);
        return;
    }
    // A session that just ended may still be talked to.
    let Some(session) = sessions.get_mut(&number) else {
        return;
    };
    match frame.kind {
        Kind::Data | Kind::Stored => {
            if let Err(e) = session.store(number, &frame) {
                session.trouble.get_or_insert(e);
            }
        }
        Kind::Run => match session.start(&frame.body) {
            Ok(job) => session.job = Some(job),
            Err(e) => {
                wire.send(number, Kind::Stderr, &[format!("nested: {e}\n").as_bytes()]);
                wire.send(number, Kind::Exit, &[&FAILED.to_le_bytes()]);
                sessions.remove(&number);
            }
        },
        Kind::Close => match &mut session.job {
            Some(job) => job.abandon(),
            None => drop(sessions.remove(&number)),
        },
        _ => {
            if let Some(job) = &mut session.job {
                job.take(&frame);
            }
        }
    }
}
