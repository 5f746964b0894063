//! A guest at a debugger, as gdb meets it: a client here speaks its remote protocol.

mod common;

#[path = "gdb/addresses.rs"]
mod addresses;
#[path = "gdb/pauses.rs"]
mod pauses;
#[path = "gdb/registers.rs"]
mod registers;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use addresses::{a_port_will_do, what_is_wrong_with_the_address_is_named};
use common::{
    MACHINE, Ran, bivisor, cases, finding, folder, guest, guest_file, hardware_breakpoints, kvm,
    wait,
};
use pauses::{
    ctrl_c_stops_a_guest_and_kill_ends_it, hostile_46_a_guest_is_stopped_and_let_go_at_any_moment,
    what_is_said_out_of_turn_changes_nothing,
};
use registers::vector_registers_are_read_and_written_whatever_features_there_are;
use tempfile::TempDir;

/// Our choice: more than any step takes on an emulated host that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ctrl-C, as gdb sends it.
const INTERRUPT: &[u8] = b"\x03";

/// What a connection is made of.
trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// gdb.
struct Gdb(Box<dyn Stream>);

impl Gdb {
    fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.0.read_exact(&mut byte).expect("gdb is answered");
        byte[0]
    }

    fn send(&mut self, packet: &str) {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        self.0.write_all(format!("${packet}#{sum:02x}").as_bytes()).unwrap();
    }

    /// The next packet, with what was run-length encoded expanded.
    fn receive(&mut self) -> String {
        while self.byte() != b'$' {}
        let mut text = String::new();
        loop {
            match self.byte() {
                b'#' => break,
                b'*' => {
                    let last = text.chars().next_back().expect("something to repeat");
                    let count = self.byte() - 29;
                    text.extend(std::iter::repeat_n(last, count.into()));
                }
                byte => text.push(byte.into()),
            }
        }
        let _sum = [self.byte(), self.byte()];
        // Nobody is left to hear it after the last one.
        let _ = self.0.write_all(b"+");
        text
    }

    fn ask(&mut self, packet: &str) -> String {
        self.send(packet);
        self.receive()
    }

    fn registers(&mut self) -> Vec<u8> {
        bytes(&self.ask("g"))
    }

    fn pc(&mut self) -> u64 {
        let registers = self.registers();
        u64::from_le_bytes(registers[MACHINE.pc_at..][..8].try_into().unwrap())
    }

    fn memory(&mut self, at: u64, len: usize) -> Vec<u8> {
        bytes(&self.ask(&format!("m{at:x},{len:x}")))
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap_or_else(|_| panic!("{hex}"));
    (0..hex.len()).step_by(2).map(byte).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A guest that waits for gdb.
struct Debugged {
    child: Child,
    socket: PathBuf,
    _folder: TempDir,
}

impl Debugged {
    /// The guest `name` with its own mode, and `options`.
    fn new(name: &str, options: &str) -> Self {
        let folder = folder();
        let socket = folder.path().join("gdb");
        let image = guest_file(&folder, name);
        let mode = guest(name).options.split_whitespace();
        let mode: Vec<_> = mode.skip_while(|word| *word != "--mode").take(2).collect();
        let run = bivisor("run").arg(image).words(&mode.join(" ")).words(options);
        let mut command = run.arg("--gdb").arg(format!("unix:{}", socket.display())).command;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("start bivisor");
        Self { child, socket, _folder: folder }
    }

    fn connect(&self) -> Gdb {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    return Gdb(Box::new(stream));
                }
                Err(error) => {
                    let soon = [ErrorKind::NotFound, ErrorKind::ConnectionRefused];
                    assert!(soon.contains(&error.kind()) && Instant::now() < deadline, "{error}");
                    thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }

    /// How it ended. Its socket is gone.
    fn end(mut self) -> Ran {
        let start = Instant::now();
        let status = wait(&mut self.child, PATIENCE).expect("it ends");
        let mut stdout = Vec::new();
        self.child.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert!(!self.socket.exists(), "the socket is left: {stderr}");
        Ran { stdout, stderr, status, took: start.elapsed() }
    }
}

/// It said where it waits, and nothing else.
fn assert_end(ran: &Ran, status: i32, stdout: &str) {
    assert_eq!((ran.status, ran.text().as_str()), (status, stdout), "{ran:?}");
    assert!(ran.stderr.starts_with("bivisor: waiting for gdb on unix:"), "{ran:?}");
    assert!(ran.stderr.contains(": gdb -ex 'target remote /"), "{ran:?}");
}

const HELLO: &str = "Hello, world!\n";

fn a_guest_waits_before_its_first_instruction_and_shows_itself() {
    let debugged = Debugged::new("hello", "");
    let mut gdb = debugged.connect();
    assert!(gdb.ask("qSupported:swbreak+;hwbreak+").contains("vContSupported+"));
    assert!(gdb.ask("?").starts_with("T05"));
    assert_eq!(gdb.pc(), MACHINE.hello);
    let image = guest("hello").image;
    assert_eq!(gdb.memory(MACHINE.hello, image.len()), image);
    // What is written is there: a register and memory, across a page's end.
    let mut registers = gdb.registers();
    registers[..8].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(gdb.ask(&format!("G{}", hex(&registers))), "OK");
    assert_eq!(gdb.registers(), registers);
    let at = MACHINE.hello + 0x1ffc;
    assert_eq!(gdb.ask(&format!("M{at:x},8:1122334455667788")), "OK");
    assert_eq!(gdb.memory(at, 8), [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]);
    // Where no RAM is, nothing is.
    let nowhere = MACHINE.outside;
    assert_eq!(gdb.ask(&format!("m{nowhere:x},4")), "E0e");
    assert_eq!(gdb.ask(&format!("M{nowhere:x},1:00")), "E0e");
    assert_eq!(gdb.ask("mfffffffffffffff0,20"), "E0e");
    assert_eq!(gdb.ask(&format!("Z0,{nowhere:x},1")), "E16");
    assert_eq!(gdb.ask("D"), "OK");
    assert_end(&debugged.end(), 0, HELLO);
}

fn the_end_of_the_guest_is_told() {
    let debugged = Debugged::new("hello", "");
    let mut gdb = debugged.connect();
    assert_eq!(gdb.ask("vCont;c"), "W00");
    assert_end(&debugged.end(), 0, HELLO);
    let debugged = Debugged::new("hello", "--expect never");
    assert_eq!(debugged.connect().ask("vCont;c"), "W79");
    assert_eq!(debugged.end().status, 121);
    let debugged = Debugged::new("hello", "--max-exits 1");
    let mut gdb = debugged.connect();
    assert_eq!(gdb.ask("vCont;c"), "W7c");
    assert_eq!(debugged.end().status, 124);
}

fn steps_go_one_instruction_on() {
    let [first, second, third, fourth] = MACHINE.hello_instructions.map(|at| at + MACHINE.hello);
    let debugged = Debugged::new("hello", "");
    let mut gdb = debugged.connect();
    assert!(gdb.ask("?").starts_with("T05"));
    assert_eq!(gdb.pc(), first);
    for (step, at) in [("vCont;s:1", second), ("vCont;s:1;c", third), ("vCont;s:1", fourth)] {
        let stop = gdb.ask(step);
        assert!(stop.starts_with("T05thread:01"), "{stop}");
        assert_eq!(gdb.pc(), at);
    }
    assert_eq!(gdb.ask("D"), "OK");
    assert_end(&debugged.end(), 0, HELLO);
}

fn breakpoints_stop_it_where_they_are() {
    let [first, _, third, fourth] = MACHINE.hello_instructions.map(|at| at + MACHINE.hello);
    let debugged = Debugged::new("hello", "");
    let mut gdb = debugged.connect();
    let set = format!("0,{third:x},{}", MACHINE.breakpoint.len());
    assert_eq!(gdb.ask(&format!("Z{set}")), "OK");
    // It is not in what is read.
    let image = guest("hello").image;
    assert_eq!(gdb.memory(first, image.len()), image);
    let stop = gdb.ask("vCont;c");
    assert!(stop.starts_with("T05") && stop.contains("swbreak"), "{stop}");
    assert_eq!(gdb.pc(), third);
    assert_eq!(gdb.ask(&format!("z{set}")), "OK");
    let stop = gdb.ask("vCont;s:1;c");
    assert!(stop.starts_with("T05"), "{stop}");
    assert_eq!(gdb.pc(), fourth);
    // One that is left behind does no harm.
    assert_eq!(gdb.ask(&format!("Z{set}")), "OK");
    assert_eq!(gdb.ask("D"), "OK");
    assert_end(&debugged.end(), 0, HELLO);
}

fn a_breakpoint_that_gdb_wrote_is_gdbs_and_another_is_the_guests() {
    let at = MACHINE.load;
    let debugged = Debugged::new("memory", "");
    let mut gdb = debugged.connect();
    let breakpoint = hex(MACHINE.breakpoint);
    let len = MACHINE.breakpoint.len();
    assert_eq!(gdb.ask(&format!("M{at:x},{len:x}:{breakpoint}")), "OK");
    let stop = gdb.ask("vCont;c");
    assert!(stop.starts_with("T05") && stop.contains("swbreak"), "{stop}");
    assert_eq!(gdb.pc(), at);
    // As a part of something else it is code like any other, and nothing there handles it.
    assert_eq!(gdb.ask(&format!("M{at:x},{:x}:{breakpoint}00", len + 1)), "OK");
    assert_eq!(gdb.ask(&format!("Z0,{:x},{len}", at + 16)), "OK");
    assert_eq!(gdb.ask("vCont;c"), "W7b");
    assert_eq!(debugged.end().status, 123);
}

fn watchpoints_stop_it_when_memory_changes() {
    let at = MACHINE.ram;
    let debugged = Debugged::new("memory", "");
    let mut gdb = debugged.connect();
    assert_eq!(gdb.ask(&format!("Z2,{at:x},1")), "OK");
    let stop = gdb.ask("vCont;c");
    assert!(stop.starts_with("T05") && stop.contains(&format!("watch:{at:x};")), "{stop}");
    assert_eq!(gdb.ask(&format!("z2,{at:x},1")), "OK");
    gdb.send("k");
    assert_eq!(debugged.end().status, 137);
}

fn hardware_breakpoints_need_no_memory() {
    let [_, _, third, fourth] = MACHINE.hello_instructions.map(|at| at + MACHINE.hello);
    let debugged = Debugged::new("hello", "");
    let mut gdb = debugged.connect();
    let set = |at: u64| format!("1,{at:x},{}", MACHINE.breakpoint.len());
    assert_eq!(gdb.ask(&format!("Z{}", set(third))), "OK");
    // Where no memory is mapped yet.
    assert_eq!(gdb.ask(&format!("Z{}", set(0xffff_8000_8000_0000))), "OK");
    let stop = gdb.ask("vCont;c");
    assert!(stop.starts_with("T05") && stop.contains("hwbreak"), "{stop}");
    assert_eq!(gdb.pc(), third);
    assert_eq!(gdb.ask(&format!("z{}", set(third))), "OK");
    assert_eq!(gdb.ask(&format!("Z{}", set(fourth))), "OK");
    let stop = gdb.ask("vCont;c");
    assert!(stop.starts_with("T05") && stop.contains("hwbreak"), "{stop}");
    assert_eq!(gdb.pc(), fourth);
    // There is an end to them.
    let many = (0..20).map(|n| gdb.ask(&format!("Z{}", set(0x10_0000 + 16 * n))));
    assert_eq!(many.last().as_deref(), Some("E16"));
    assert_eq!(gdb.ask("D"), "OK");
    assert_end(&debugged.end(), 0, HELLO);
}

fn each_cpu_is_a_thread() {
    let debugged = Debugged::new("smp", MACHINE.smp_options);
    let mut gdb = debugged.connect();
    let mut threads = gdb.ask("qfThreadInfo");
    threads.push_str(&gdb.ask("qsThreadInfo"));
    assert!(threads.starts_with("m01,02,03,04"), "{threads}");
    let extra = String::from_utf8(bytes(&gdb.ask("qThreadExtraInfo,4"))).unwrap();
    assert!(extra.starts_with("vCPU 3: "), "{extra}");
    let first = gdb.pc();
    assert_eq!(gdb.ask("Hg4"), "OK");
    assert_ne!(gdb.pc(), first);
    assert_eq!((gdb.ask("T4").as_str(), gdb.ask("T5").as_str()), ("OK", "E01"));
    assert_eq!(gdb.ask("Hg5"), "OK");
    assert!(gdb.ask("g").starts_with('E'));
    assert_eq!(gdb.ask("vCont;c"), "W00");
    assert_end(&debugged.end(), 0, "cpu 0\ncpu 1\ncpu 2\ncpu 3\n");
}

fn a_guest_goes_on_when_gdb_is_gone_and_another_may_come() {
    let debugged = Debugged::new("hello", "");
    drop(debugged.connect());
    assert_end(&debugged.end(), 0, HELLO);
    let debugged = Debugged::new("spin", "");
    let mut gdb = debugged.connect();
    gdb.send("vCont;c");
    drop(gdb);
    for garbage in ["\u{fffd}}}$#00", "vCont;zzz", "m", "Z9,0,0", "G00", "Hgffffffffffffffff"] {
        let mut gdb = debugged.connect();
        gdb.send(garbage);
    }
    let mut gdb = debugged.connect();
    gdb.0.write_all(&[b'$'; 10_000]).unwrap();
    drop(gdb);
    // More than a packet of ours may hold.
    let mut gdb = debugged.connect();
    gdb.send(&format!("m{:x},2000000", MACHINE.load));
    let mut answer = Vec::new();
    let read = gdb.0.read_to_end(&mut answer);
    assert!(read.is_ok() && answer.len() < 100_000, "{read:?} {}", answer.len());
    debugged.connect().send("k");
    assert_end(&debugged.end(), 137, "");
}

fn limits_and_signals_hold_while_it_waits() {
    let ran = Debugged::new("spin", "--timeout 1s --no-progress 200ms").end();
    assert!(ran.stderr.contains("1s (--timeout)"), "{ran:?}");
    assert_end(&ran, 124, "");
    let debugged = Debugged::new("spin", "");
    let mut gdb = debugged.connect();
    gdb.pc();
    // SAFETY: the child has not been waited for, so its number is its own.
    assert_eq!(unsafe { libc::kill(debugged.child.id() as i32, libc::SIGTERM) }, 0);
    assert_end(&debugged.end(), 143, "");
}

fn no_progress_counts_only_while_it_runs() {
    let debugged = Debugged::new("spin", "--no-progress 300ms");
    let mut gdb = debugged.connect();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(gdb.ask("vCont;c"), "W7c");
    let ran = debugged.end();
    assert!(ran.stderr.contains("300ms (--no-progress)"), "{ran:?}");
    assert_end(&ran, 124, "");
}

/// They also do so where it reads and writes.
fn watchpoints() -> Option<String> {
    let pvm = finding("back-end").starts_with("PVM");
    let emulated = || "PVM emulates what a guest does, without looking at debug registers".into();
    hardware_breakpoints().or_else(|| pvm.then(emulated))
}

/// KVM gets the guest's breakpoint instructions.
fn software_breakpoints() -> Option<String> {
    let pvm = finding("back-end").starts_with("PVM");
    let emulated = || "PVM emulates what a guest does, breakpoint instructions too".into();
    let tcg = finding("host-is-a-guest").contains("(QEMU TCG)");
    let ignored = || "QEMU, which emulates this host, keeps breakpoints of its guests".into();
    pvm.then(emulated).or_else(|| tcg.then(ignored))
}

fn main() {
    common::conclude(cases![
        a_guest_waits_before_its_first_instruction_and_shows_itself, kvm;
        the_end_of_the_guest_is_told, kvm;
        steps_go_one_instruction_on, kvm;
        breakpoints_stop_it_where_they_are, kvm, software_breakpoints;
        a_breakpoint_that_gdb_wrote_is_gdbs_and_another_is_the_guests, kvm, software_breakpoints;
        watchpoints_stop_it_when_memory_changes, kvm, watchpoints;
        hardware_breakpoints_need_no_memory, kvm, hardware_breakpoints;
        each_cpu_is_a_thread, kvm;
        ctrl_c_stops_a_guest_and_kill_ends_it, kvm;
        hostile_46_a_guest_is_stopped_and_let_go_at_any_moment, kvm;
        what_is_said_out_of_turn_changes_nothing, kvm;
        a_guest_goes_on_when_gdb_is_gone_and_another_may_come, kvm;
        limits_and_signals_hold_while_it_waits, kvm;
        no_progress_counts_only_while_it_runs, kvm;
        a_port_will_do, kvm;
        what_is_wrong_with_the_address_is_named, kvm;
        vector_registers_are_read_and_written_whatever_features_there_are, kvm;
    ]);
}
