//! The process that owns one emulated host: its QEMU, the stream to the agent in it, and the
//! socket at which clients ask for jobs.
//!
//! It gives each client a session, and otherwise copies frames. It ends, and QEMU with it, when
//! nobody was there for a while, when the agent is silent for too long, or when QEMU ends.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nested::sys::{self, Wait};
use nested::{HOST, Kind, PORT, WINDOW, Wire};

use crate::Host;

/// Our choice: a boot takes 2 to 4 seconds here, and a busy machine is some times slower.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// Our choice: the agent beats once a second.
const SILENCE_LIMIT: Duration = Duration::from_secs(20);

/// Our choice: silence after which the emulated host is nudged, and again after as long.
const NUDGE: Duration = Duration::from_millis(1500);

/// How a path in a folder is named so that it fits a socket's address, however long the folder is.
pub fn short_path(folder: &File, name: &str) -> String {
    format!("/proc/self/fd/{}/{name}", folder.as_raw_fd())
}

/// Serves clients until the emulated host ends. Tells on standard output once it listens.
pub fn serve(host: &Host) -> Result<(), String> {
    let context = |what: &str, e: io::Error| format!("{what} {}: {e}", host.name());
    let lock = File::create(host.file("lock")).map_err(|e| context("create the lock of", e))?;
    if !sys::lock(&lock, false).map_err(|e| context("lock", e))? {
        println!("another process serves already");
        return Ok(());
    }
    let folder = File::open(&host.dir).map_err(|e| context("open the folder of", e))?;
    let socket = short_path(&folder, &format!("{}.sock", host.name()));
    fs::remove_file(&socket).ok();
    let listener = UnixListener::bind(&socket).map_err(|e| context("listen for", e))?;
    listener.set_nonblocking(true).map_err(|e| context("listen for", e))?;

    let (ours, theirs) = UnixStream::pair().map_err(|e| context("make a stream to", e))?;
    ours.set_nonblocking(true).map_err(|e| context("make a stream to", e))?;
    let qemu = start_qemu(host, theirs.into())?;

    println!("listening");
    io::stdout().flush().ok();
    let null = OpenOptions::new().write(true).open("/dev/null");
    null.and_then(|null| sys::place(&null, 1)).map_err(|e| context("detach", e))?;

    let now = Instant::now();
    let mut server = Server {
        clients: HashMap::new(),
        last_session: HOST,
        port: Wire::new(ours),
        ready: false,
        heard: now,
        nudged: now,
        used: now,
        started: now,
        qemu,
    };
    let why = server.run(&listener, host);
    fs::remove_file(&socket).ok();
    let ended = server.end_qemu();
    if let Some(mut why) = why {
        if let Some(status) = ended {
            why = format!("QEMU ended with {status}");
        }
        if let Some(line) = panic_line(host) {
            why += &format!(", {line}");
        }
        log(host, &format!("ended: {why}"));
        // Those that came in the last moment are told too.
        while let Ok((stream, _)) = listener.accept() {
            server.admit(stream);
        }
        for client in server.clients.values_mut() {
            client.send(HOST, Kind::Lost, &[why.as_bytes()]);
            client.stream.set_nonblocking(false).ok();
            client.stream.set_write_timeout(Some(Duration::from_secs(1))).ok();
            client.flush().ok();
        }
    }
    Ok(())
}

/// What the kernel of the emulated host said when it gave up, if it did.
fn panic_line(host: &Host) -> Option<String> {
    let bytes = fs::read(host.file("console")).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let at = text.find("Kernel panic")?;
    Some(text[at..].lines().next()?.trim_end().to_string())
}

fn log(host: &Host, line: &str) {
    let file = OpenOptions::new().append(true).create(true).open(host.file("log"));
    file.and_then(|mut file| writeln!(file, "{line}")).ok();
}

fn start_qemu(host: &Host, stream: OwnedFd) -> Result<Child, String> {
    let (program, cpu) = match (host.arch.as_str(), host.cpu.as_str()) {
        // AVX and XSAVE do not work in a guest of an emulated KVM.
        ("x86_64", "default") => {
            ("qemu-system-x86_64", "EPYC,+svm,+npt,-avx,-avx2,-f16c,-fma,-xsave,-xsaveopt,-xgetbv1")
        }
        ("aarch64", "default") => ("qemu-system-aarch64", "neoverse-n1"),
        // Signatures by the algorithm that the architecture proposes make it several times slower.
        ("aarch64", "max") => ("qemu-system-aarch64", "max,pauth-impdef=on"),
        (arch, cpu) => return Err(format!("no emulated host for {arch} with the CPU {cpu}")),
    };
    let fd = stream.as_raw_fd();
    let console = host.file("console");
    let errors = File::create(host.file("log")).map_err(|e| format!("create a log: {e}"))?;
    let mut command = Command::new(program);
    // One CPU for x86-64: with two, Debian 12's QEMU had the host's kernel panic and its guests
    // crash at random, about once in a hundred guests under load. Tests take little longer.
    // Else never more than the machine has: their threads would wait for each other.
    let cpus = match host.arch.as_str() {
        "x86_64" => 1,
        _ => std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 4)),
    };
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none"])
        .args(["-no-reboot", "-m", "9216", "-smp", &cpus.to_string()])
        .args(["-accel", "tcg,thread=multi,tb-size=512"])
        .arg("-serial")
        .arg(option("file:", &console))
        .args(["-chardev", &format!("socket,id=agent,fd={fd}")])
        .arg("-kernel")
        .arg(&host.kernel)
        .arg("-initrd")
        .arg(&host.initrd);
    let port = format!("virtserialport,chardev=agent,name={PORT}");
    if host.arch == "x86_64" {
        let append =
            "console=ttyS0 nokaslr mitigations=off panic=-1 quiet tsc=reliable no_timer_check";
        command.args(["-M", "q35", "-cpu", cpu, "-append", append]);
        command.args(["-device", "virtio-serial-pci", "-device", &port]);
    } else {
        let machine = format!("virt,virtualization=on,gic-version={}", host.gic);
        command.args(["-M", &machine, "-cpu", cpu]);
        command.args(["-append", "console=ttyAMA0 panic=-1 quiet"]);
        command.args(["-global", "virtio-mmio.force-legacy=false"]);
        command.args(["-device", "virtio-serial-device", "-device", &port]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
    let prepare = move || sys::die_with_parent().and_then(|()| sys::keep_over_exec(fd));
    // SAFETY: both functions are plain system calls.
    unsafe { command.pre_exec(prepare) };
    command.spawn().map_err(|e| format!("start {program}: {e} (cross/setup installs it)"))
}

/// A path as part of a QEMU option, in which a comma is doubled.
fn option(prefix: &str, path: &Path) -> String {
    format!("{prefix}{}", path.display().to_string().replace(',', ",,"))
}

struct Server {
    clients: HashMap<u16, Wire<UnixStream>>,
    last_session: u16,
    port: Wire<UnixStream>,
    /// The agent serves.
    ready: bool,
    /// When the agent was last heard.
    heard: Instant,
    /// When it was last nudged.
    nudged: Instant,
    /// When there was last a client.
    used: Instant,
    started: Instant,
    qemu: Child,
}

impl Server {
    /// Copies frames until it is over: why, or `None` where nobody minds.
    fn run(&mut self, listener: &UnixListener, host: &Host) -> Option<String> {
        loop {
            if !self.clients.is_empty() {
                self.used = Instant::now();
            } else if self.used.elapsed() > Duration::from_secs(host.idle) {
                return None;
            }
            let limit = if self.ready { SILENCE_LIMIT } else { BOOT_LIMIT };
            if self.heard.elapsed() > limit {
                let what = if self.ready { "was silent" } else { "did not come up" };
                return Some(format!("it {what} for {} s", limit.as_secs()));
            }
            self.nudge();

            let room = self.ready && self.port.queued() < 4 * WINDOW;
            let mut waits = vec![
                Wait::new(listener, true, false),
                Wait::new(&self.port.stream, true, self.port.queued() > 0),
            ];
            let numbers: Vec<u16> = self.clients.keys().copied().collect();
            for number in &numbers {
                let client = &self.clients[number];
                waits.push(Wait::new(&client.stream, room, client.queued() > 0));
            }
            if let Err(e) = sys::poll(&mut waits, 500) {
                return Some(format!("poll: {e}"));
            }
            if waits[0].readable {
                while let Ok((stream, _)) = listener.accept() {
                    self.admit(stream);
                }
            }
            if waits[1].readable
                && let Err(why) = self.hear(host)
            {
                return Some(why);
            }
            for (number, wait) in numbers.iter().zip(&waits[2..]) {
                if (wait.readable || wait.hung_up) && self.listen(*number) {
                    return None;
                }
            }
            if self.port.flush().is_err() {
                return Some("its port was closed".into());
            }
            let gone: Vec<u16> = self
                .clients
                .iter_mut()
                .filter_map(|(number, client)| client.flush().is_err().then_some(*number))
                .collect();
            gone.into_iter().for_each(|number| self.dismiss(number));
        }
    }

    /// Sends a frame that means nothing to an agent that should have been heard by now.
    ///
    /// QEMU's SVM (7.2 and 10.0 at least) loses an interrupt now and then: its `do_vmexit` changes
    /// bits of `interrupt_request` without the lock under which other threads set theirs. The local
    /// APIC then holds a timer interrupt that the CPU was never told of, the timer is not armed
    /// again, and a host with one CPU stops dead. Any other interrupt has the APIC deliver both, and
    /// the frame is one.
    fn nudge(&mut self) {
        if self.ready && self.heard.elapsed() > NUDGE && self.nudged.elapsed() > NUDGE {
            self.port.send(HOST, Kind::Beat, &[]);
            self.nudged = Instant::now();
        }
    }

    /// Ends QEMU. Tells its status where it had ended by itself.
    fn end_qemu(&mut self) -> Option<ExitStatus> {
        // Its port is closed a moment before it is gone.
        std::thread::sleep(Duration::from_millis(50));
        let ended = self.qemu.try_wait().ok().flatten();
        self.qemu.kill().ok();
        self.qemu.wait().ok();
        ended
    }

    fn admit(&mut self, stream: UnixStream) {
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        loop {
            self.last_session = self.last_session.wrapping_add(1);
            if self.last_session != HOST && !self.clients.contains_key(&self.last_session) {
                break;
            }
        }
        self.clients.insert(self.last_session, Wire::new(stream));
    }

    fn dismiss(&mut self, number: u16) {
        if self.clients.remove(&number).is_some() {
            self.port.send(number, Kind::Close, &[]);
        }
    }

    /// Frames from the agent.
    fn hear(&mut self, host: &Host) -> Result<(), String> {
        let wrong = |e: io::Error| format!("its port: {e}");
        if !self.port.fill().map_err(wrong)? {
            return Err("its port was closed".into());
        }
        if self.nudged > self.heard {
            let silence = self.heard.elapsed().as_secs_f64();
            log(host, &format!("silent for {silence:.1} s, until it was nudged"));
        }
        while let Some(frame) = self.port.take_frame().map_err(wrong)? {
            if frame.kind == Kind::Ready && !self.ready {
                self.ready = true;
                log(host, &format!("up after {:.2} s", self.started.elapsed().as_secs_f64()));
            }
            if let Some(client) = self.clients.get_mut(&frame.session) {
                client.send(frame.session, frame.kind, &[&frame.body]);
            }
        }
        self.heard = Instant::now();
        Ok(())
    }

    /// Frames from a client. `true`: it asks that all this ends, and nobody else is here.
    fn listen(&mut self, number: u16) -> bool {
        let Some(client) = self.clients.get_mut(&number) else {
            return false;
        };
        let open = client.fill();
        loop {
            match client.take_frame() {
                Ok(Some(frame)) if frame.kind == Kind::Stop => {
                    self.dismiss(number);
                    return self.clients.is_empty();
                }
                Ok(Some(frame)) => self.port.send(number, frame.kind, &[&frame.body]),
                Ok(None) => break,
                Err(_) => {
                    self.dismiss(number);
                    return false;
                }
            }
        }
        if !matches!(open, Ok(true)) {
            self.dismiss(number);
        }
        false
    }
}
