//! For tests and fuzzing: plays a gdb that says anything whatever to a whole machine. Its vCPUs are KVM's,
//! whose registers are read and written, but never enter the guest: they stop as a script has it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::hold::Seat;
use super::{Address, Listener, Session};
use crate::arch::{GdbArch, Vcpu};
use crate::config::{Config, Memory};
use crate::console::Console;
use crate::debug::Trap;
use crate::event_loop::Ending;
use crate::exit::Stop;
use crate::guests;
use crate::kick::{self, Kick};
use crate::machine::Machine;
use crate::machine::player::own_path;
use crate::payload::Payload;

/// Our choice: two, so that one may step while the other stays.
const CPUS: usize = 2;

/// How long a vCPU pretends to run before it looks again, and how long gdb waits for the answer to a
/// packet, which while the guest runs may never come.
const STEP: Duration = Duration::from_micros(50);
const PATIENCE: Duration = Duration::from_millis(1);

/// How long a session may take to end once gdb is gone. Our choice: what hangs takes longer.
const END: Duration = Duration::from_secs(20);

/// A machine that is debugged.
pub struct Player {
    machine: Machine,
    path: PathBuf,
    /// The registers that it begins with.
    first: <GdbArch as gdbstub::arch::Arch>::Registers,
}

impl Player {
    /// A machine that waits for gdb at a path of its own.
    pub fn new() -> Result<Self> {
        let path = own_path("debugged");
        let console = Console::new(std::fs::File::create("/dev/null")?, None);
        let guest = guests::find("spin").context("an embedded guest")?;
        let mut config = Config::new(Payload::Bytes(guest.image), console);
        config.memory = Memory::Size(2 << 20);
        config.cpus = CPUS;
        config.gdb = Some(Listener::open(&Address::Unix(path.clone()))?);
        let machine = Machine::build(config)?;
        let first = machine.vcpus[0].gdb_registers()?;
        kick::install_handler()?;
        Ok(Self { machine, path, first })
    }

    /// Plays a session. The first byte says why vCPUs stop by themselves. The rest are lines, each of
    /// which becomes a packet, unless it begins with an exclamation mark: then it is sent as it is. False when
    /// the machine is worn out.
    pub fn play(&mut self, script: &[u8]) -> bool {
        let Machine { vcpus, ram, stopping, stopped, debugger, .. } = &mut self.machine;
        let Some((traps, lines)) = script.split_first() else { return true };
        for vcpu in vcpus.iter() {
            vcpu.set_gdb_registers(&self.first).expect("registers that KVM had told");
        }
        stopping.store(false, Ordering::Release);
        // Nothing is in it the first time.
        let _ = stopped.read();
        let ending = Ending::new(false, stopping, stopped);
        let kicks: Vec<Kick> = vcpus.iter_mut().map(Vcpu::kick).collect();
        let debugger = debugger.as_ref().expect("it was configured");
        let (crew, seats) = debugger.crew(&kicks, stopping);
        thread::scope(|scope| {
            for ((vcpu, seat), kick) in vcpus.iter_mut().zip(seats).zip(&kicks) {
                let (traps, stopping) = (*traps, &*stopping);
                scope.spawn(move || {
                    kick.enter();
                    pretend(vcpu, &seat, traps, stopping);
                });
            }
            let session = Session::new(debugger, crew, ram, &ending, stopped);
            scope.spawn(move || session.run());
            talk(&self.path, lines);
            ending.end(Stop::Expected, None);
        });
        // Whatever gdb says is no failure of the machine's. But a vCPU that never runs does not take an
        // exception that it was given, and KVM is busy with that for good.
        let failure = ending.failure().unwrap_or_default();
        let worn = failure.contains("give the guest its debug exception");
        assert!(worn || failure.is_empty(), "{failure}");
        !worn
    }
}

/// The life of a vCPU that leaves the guest for `traps`, one bit for each that there is, again and again,
/// and is held whenever it has to be.
fn pretend(vcpu: &mut Vcpu, seat: &Seat<'_>, traps: u8, stopping: &AtomicBool) {
    const ALL: [Trap; 5] =
        [Trap::Step, Trap::Software, Trap::Hardware, Trap::Watch(0x10_0000), Trap::Foreign];
    let mut chosen: Vec<Trap> =
        ALL.iter().enumerate().filter(|(bit, _)| traps & 1 << bit != 0).map(|(_, t)| *t).collect();
    // The highest bits say how often each happens.
    chosen = chosen.repeat(usize::from(traps >> 5));
    while !stopping.load(Ordering::Acquire) {
        seat.hold(vcpu, None);
        thread::park_timeout(STEP);
        if let Some(trap) = chosen.pop() {
            seat.hold(vcpu, Some(trap));
        }
    }
}

/// Is gdb: says `lines`, then goes, and waits until that is noticed.
fn talk(path: &std::path::Path, lines: &[u8]) {
    let mut stream = UnixStream::connect(path).expect("the session listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time");
    for line in lines.split(|byte| *byte == b'\n') {
        let sent = match line.split_first() {
            Some((b'!', raw)) => stream.write_all(raw),
            _ => stream.write_all(&packet(line)),
        };
        // One that was killed or said nonsense is not listened to any more.
        if sent.is_err() || !hear(&mut stream) {
            break;
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let until = Instant::now() + END;
    while hear(&mut stream) {
        assert!(Instant::now() < until, "the session goes on without gdb");
    }
}

/// Listens until an answer is complete or none comes; false when the session is over.
fn hear(stream: &mut UnixStream) -> bool {
    let mut bytes = [0; 4096];
    let mut end = [0; 3];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return false,
            Ok(count) => {
                for byte in &bytes[..count] {
                    end = [end[1], end[2], *byte];
                }
            }
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        }
        // Two digits of a sum end a packet.
        if end[0] == b'#' {
            return true;
        }
    }
}

/// A packet of these bytes (GDB manual, "Overview" of the remote protocol).
fn packet(body: &[u8]) -> Vec<u8> {
    let mut packet = vec![b'$'];
    for byte in body {
        match byte {
            b'$' | b'#' => packet.extend([b'}', byte ^ 0x20]),
            _ => packet.push(*byte),
        }
    }
    let sum = packet[1..].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    packet.extend(format!("#{sum:02x}").into_bytes());
    packet
}
