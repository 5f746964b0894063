//! The init of the emulated host: loads its modules and runs the jobs that come through a
//! virtio-serial port.
//!
//! Each job has mounts, process numbers and a root folder of its own, so jobs run side by side
//! and nothing outlives its job: when the first process of its process numbers ends, the kernel
//! kills the rest. Files are kept under `/cache` by key and copied into each job that names them.
//!
//! The surprise: this is one loop on one thread, and that a thread is not added matters, since
//! jobs are forked without an exec in between.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nested::sys::{self, Kvm, Wait};
use nested::{CHUNK, Frame, HOST, Kind, PORT, WINDOW, Wire, unpack};

const BEAT: Duration = Duration::from_secs(1);

/// Our choice: past this, files that no job of the moment needs are dropped.
const CACHE_LIMIT: u64 = 512 << 20;

/// What a job that could not be started ends with, like bivisor's own failures.
const FAILED: u32 = 125;

/// The signals that are passed on to a job.
const PASSED: [i32; 6] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

fn main() {
    if let Err(e) = prepare().and_then(serve) {
        eprintln!("agent: {e}");
    }
    sys::power_off();
}

/// KVM keeps the rate of the CPU's clock that the kernel knows when it is loaded. If that is corrected
/// later by more than 250 millionths, as happens where this host starts on a busy machine, its guests'
/// timers never come. The kernel itself corrects up to a hundredth
/// (arch/x86/kernel/tsc.c, `tsc_refine_calibration_work`).
const KVM_PARAMETERS: &CStr = c"tsc_tolerance_ppm=10000";

/// Mounts, modules, loopback. Returns what must stay open.
fn prepare() -> io::Result<Vec<OwnedFd>> {
    mount_kernel_folders(Path::new("/"))?;
    let mut modules: Vec<PathBuf> =
        fs::read_dir("/modules")?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    modules.sort();
    for module in &modules {
        let is_kvm = module.to_string_lossy().ends_with("-kvm.ko");
        let parameters = if is_kvm { KVM_PARAMETERS } else { c"" };
        if let Err(e) = File::open(module).and_then(|file| sys::load_module(&file, parameters)) {
            eprintln!("agent: load {}: {e}", module.display());
        }
    }
    fs::create_dir("/cache")?;
    fs::create_dir("/job")?;
    sys::mount("cache", Path::new("/cache"), "tmpfs", 0, "size=75%")?;
    if let Err(e) = sys::loopback_up() {
        eprintln!("agent: set the loopback interface up: {e}");
    }
    Ok(hold_idle_vms())
}

/// Keeps VMs open that do nothing, so that those of the jobs are never the first or the last of
/// their kind. KVM has a branch in its code and in the scheduler's patched at each such moment
/// (its static keys), and hosts with two CPUs were seen to hang in just those places: QEMU 7.2
/// seems to go on running what was there when one CPU translates code that another changes.
fn hold_idle_vms() -> Vec<OwnedFd> {
    let mut held = Vec::new();
    if let Err(e) = open_idle_vms(&mut held) {
        eprintln!("agent: hold idle VMs: {e}");
    }
    held
}

fn open_idle_vms(held: &mut Vec<OwnedFd>) -> io::Result<()> {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
    // preempt_notifier_key: there is a VM.
    let plain = sys::kvm(&kvm, Kvm::CreateVm, 0)?.ok_or(io::ErrorKind::Other)?;
    #[cfg(target_arch = "x86_64")]
    {
        // kvm_has_noapic_vcpu: there is a vCPU without an APIC in the kernel.
        held.extend(sys::kvm(&plain, Kvm::CreateVcpu, 0)?);
        // apic_sw_disabled and apic_hw_disabled: there is one whose APIC is off in either way.
        let chips = sys::kvm(&kvm, Kvm::CreateVm, 0)?.ok_or(io::ErrorKind::Other)?;
        sys::kvm(&chips, Kvm::CreateIrqchip, 0)?;
        held.extend(sys::kvm(&chips, Kvm::CreateVcpu, 0)?);
        let off = sys::kvm(&chips, Kvm::CreateVcpu, 1)?.ok_or(io::ErrorKind::Other)?;
        sys::switch_apic_off(&off)?;
        held.extend([chips, off]);
    }
    held.push(plain);
    Ok(())
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
            trim_cache();
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

/// A file that a job wants at `path`; its bytes lie in the cache under `key`.
struct Wanted {
    key: String,
    path: PathBuf,
    mode: u32,
    size: u64,
}

struct Session {
    wanted: Vec<Wanted>,
    /// The file that is being received, by its index.
    receiving: Option<(u32, File)>,
    trouble: Option<io::Error>,
    job: Option<Job>,
}

impl Session {
    fn new(list: &[u8]) -> Session {
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
    fn needed(&self) -> Vec<u8> {
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

    fn store(&mut self, number: u16, frame: &Frame) -> io::Result<()> {
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
    fn start(&mut self, list: &[u8]) -> io::Result<Job> {
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

    fn waits(&self, room: bool, waits: &mut Vec<Wait>) {
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
    fn advance(&mut self, number: u16, ready: &dyn Fn(i32) -> bool, wire: &mut Wire<File>) -> bool {
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

struct Job {
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

    fn take(&mut self, frame: &Frame) {
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
    fn abandon(&mut self) {
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

/// What a job is to do.
struct Order {
    folder: PathBuf,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
}

impl Order {
    fn new(list: &[u8]) -> Option<Order> {
        let mut items = unpack(list).into_iter().map(OsString::from_vec);
        let folder = items.next()?.into();
        let count: usize = items.next()?.to_str()?.parse().ok()?;
        let arguments: Vec<_> = items.by_ref().take(count).collect();
        let variables = items
            .filter_map(|item| {
                let bytes = item.into_vec();
                let split = bytes.iter().position(|byte| *byte == b'=')?;
                let (name, value) = (bytes[..split].to_vec(), bytes[split + 1..].to_vec());
                Some((OsString::from_vec(name), OsString::from_vec(value)))
            })
            .collect();
        (!arguments.is_empty()).then_some(Order { folder, arguments, variables })
    }
}

/// In the forked child: builds the job's world, runs it, and tells through `told` how it ended.
fn begin(order: Order, wanted: &[Wanted], told: File) -> ! {
    const TOLD: i32 = 3;
    sys::place(&told, TOLD).ok();
    std::mem::forget(told);
    // SAFETY: this process leaves without dropping what it got from its parent.
    unsafe { sys::close_from(TOLD + 1) };
    sys::close_on_exec_from(TOLD);
    // SAFETY: the descriptor was placed above, and nothing else here owns it.
    let mut told = unsafe { sys::own(TOLD) };
    sys::block_signals(&awaited()).ok();
    sys::new_session();
    let result = sys::unshare_mounts_and_pids()
        // SAFETY: a forked child has one thread, and none was started since.
        .and_then(|()| unsafe { sys::fork() });
    match result {
        Ok(None) => {
            sys::die_with_parent().ok();
            sys::leave(first_process(&order, wanted, &mut told));
        }
        Ok(Some(first)) => {
            tell(&mut told, FIRST, first as u32);
            std::mem::forget(told);
            // Only the first process may keep the job's streams open.
            // SAFETY: nothing that owns a descriptor is used from here on.
            unsafe { sys::close_from(0) };
            loop {
                sys::wait_signal(&[libc::SIGCHLD]);
                if sys::reap().is_some() {
                    sys::leave(0);
                }
            }
        }
        Err(e) => {
            eprintln!("nested: separate a job: {e}");
            sys::leave(1);
        }
    }
}

/// What is told through the status pipe: the pid of a job's first process, and the job's end.
const FIRST: u32 = 1;
const ENDED: u32 = 2;

fn tell(told: &mut File, what: u32, value: u32) {
    let mut record = what.to_le_bytes().to_vec();
    record.extend_from_slice(&value.to_le_bytes());
    // One write, so that the records of two processes do not mix.
    told.write_all(&record).ok();
}

fn awaited() -> Vec<i32> {
    PASSED.into_iter().chain([libc::SIGCHLD]).collect()
}

/// Process 1 of a job: waits for the job proper, reaps what it leaves, passes signals on.
fn first_process(order: &Order, wanted: &[Wanted], told: &mut File) -> i32 {
    if let Err(e) = furnish(order, wanted) {
        eprintln!("nested: {e}");
        tell(told, ENDED, FAILED);
        return 1;
    }
    let mut command = Command::new(&order.arguments[0]);
    command.args(&order.arguments[1..]).env_clear().envs(order.variables.iter().cloned());
    command.process_group(0);
    // SAFETY: the function makes plain system calls only.
    unsafe { command.pre_exec(|| sys::block_signals(&[])) };
    let child = match command.spawn() {
        Ok(child) => child.id() as i32,
        Err(e) => {
            let path = order.arguments[0].to_string_lossy();
            let linked = Path::new(&order.arguments[0]).exists();
            let hint = if linked { " (only static programs run here)" } else { "" };
            eprintln!("nested: start {path}: {e}{hint}");
            tell(told, ENDED, FAILED);
            return 1;
        }
    };
    loop {
        match sys::wait_signal(&awaited()) {
            libc::SIGCHLD => {
                while let Some((pid, status)) = sys::reap() {
                    if pid == child {
                        tell(told, ENDED, status);
                        return 0;
                    }
                }
            }
            signal if signal > 0 => sys::kill(-child, signal),
            _ => {}
        }
    }
}

/// Makes the job's root folder, fills it, and moves into it.
fn furnish(order: &Order, wanted: &[Wanted]) -> io::Result<()> {
    let root = Path::new("/job");
    sys::mount("job", root, "tmpfs", 0, "size=75%,mode=755")?;
    for (name, mode) in [("tmp", 0o1777), ("root", 0o700)] {
        DirBuilder::new().mode(mode).create(root.join(name))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    for file in wanted {
        let path = inside(root, &file.path);
        put(file, &path)
            .map_err(|e| io::Error::other(format!("place {}: {e}", file.path.display())))?;
    }
    fs::create_dir_all(inside(root, &order.folder))?;
    for name in ["dev", "proc", "sys"] {
        fs::create_dir_all(root.join(name))?;
    }
    for name in ["dev", "sys"] {
        sys::mount(&format!("/{name}"), &root.join(name), "", sys::MOUNT_BIND, "")?;
    }
    sys::mount("proc", &root.join("proc"), "proc", 0, "")?;
    // Moved, not only chroot'ed into: a process in a chroot may not make user namespaces.
    std::env::set_current_dir(root)?;
    sys::mount(".", Path::new("/"), "", sys::MOUNT_MOVE, "")?;
    std::os::unix::fs::chroot(".")?;
    std::env::set_current_dir(&order.folder)
}

fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Copies a file out of the cache, without its holes.
fn put(wanted: &Wanted, path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let from = File::open(cached(&wanted.key))?;
    let to = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut piece = vec![0; 16 * CHUNK];
    let mut at = 0;
    while let Some(start) = sys::next_data(&from, at) {
        let count = from.read_at(&mut piece, start)?;
        to.write_all_at(&piece[..count], start)?;
        at = start + count as u64;
    }
    to.set_permissions(fs::Permissions::from_mode(wanted.mode))
}

fn cached(key: &str) -> PathBuf {
    Path::new("/cache").join(key)
}

/// Empties the cache once it is large; called while no job needs it.
fn trim_cache() {
    let files: Vec<_> = fs::read_dir("/cache").into_iter().flatten().flatten().collect();
    let sizes = files.iter().map(|file| file.metadata().map_or(0, |data| data.len()));
    if sizes.sum::<u64>() > CACHE_LIMIT {
        for file in files {
            fs::remove_file(file.path()).ok();
        }
    }
}

fn mount_kernel_folders(root: &Path) -> io::Result<()> {
    for (kind, name) in [
        ("devtmpfs", "dev"),
        ("proc", "proc"),
        ("sysfs", "sys"),
        ("devpts", "dev/pts"),
        ("tmpfs", "dev/shm"),
    ] {
        fs::create_dir_all(root.join(name))?;
        sys::mount(kind, &root.join(name), kind, 0, "")?;
    }
    for (name, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        symlink(format!("/proc/self/fd{target}"), root.join("dev").join(name)).ok();
    }
    Ok(())
}
