//! The way to the host process: finds it, starts it where there is none, ends those that wait.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nested::{HOST, Kind, Wire, sys};

use crate::Host;
use crate::host::short_path;

/// Ends every emulated host whose socket is in the folder, unless it has a job.
pub fn stop(dir: &Path) -> Result<(), String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(());
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|ending| ending == "sock") {
            let Ok(stream) = open_socket(&path) else {
                continue;
            };
            let mut wire = Wire::new(stream);
            wire.send(HOST, Kind::Stop, &[]);
            wire.flush().map_err(|e| format!("stop {}: {e}", path.display()))?;
            // It closes the connection by ending.
            wire.stream.set_read_timeout(Some(Duration::from_secs(5))).ok();
            wire.fill().ok();
        }
    }
    Ok(())
}

fn open_socket(path: &Path) -> io::Result<UnixStream> {
    let folder = File::open(path.parent().unwrap_or(Path::new(".")))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    UnixStream::connect(short_path(&folder, &name))
}

/// Connects to the host process, which is started where there is none.
pub fn connect(host: &Host) -> Result<Wire<UnixStream>, String> {
    let context = |what: &str, e: io::Error| format!("{what} {}: {e}", host.dir.display());
    fs::create_dir_all(&host.dir).map_err(|e| context("create", e))?;
    let socket = host.file("sock");
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Ok(stream) = open_socket(&socket) {
            stream.set_nonblocking(true).map_err(|e| context("connect in", e))?;
            return Ok(Wire::new(stream));
        }
        if Instant::now() > deadline {
            return Err(lost(host, "its host process does not answer"));
        }
        // One process starts the host, the others wait for it.
        let turn = File::create(host.file("turn")).map_err(|e| context("create a lock in", e))?;
        sys::lock(&turn, true).map_err(|e| context("lock in", e))?;
        if open_socket(&socket).is_err() {
            start(host)?;
        }
    }
}

/// Starts the host process and waits until it listens.
fn start(host: &Host) -> Result<(), String> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("nested")
        .args(["--serve", "--arch", &host.arch, "--cpu", &host.cpu, "--gic", &host.gic])
        .arg("--kernel")
        .arg(&host.kernel)
        .arg("--initrd")
        .arg(&host.initrd)
        .arg("--dir")
        .arg(&host.dir)
        .env("BIVISOR_CROSS_IDLE", host.idle.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let detach = || {
        sys::new_session();
        // Descriptors that we inherited, from cargo or a shell, are not ours to hold open.
        sys::close_on_exec_from(3);
        sys::block_signals(&[])
    };
    // SAFETY: the function makes plain system calls only.
    unsafe { command.pre_exec(detach) };
    let mut child = command.spawn().map_err(|e| format!("start the host process: {e}"))?;
    let mut line = [0; 64];
    let count = child.stdout.take().map_or(Ok(0), |mut out| out.read(&mut line)).unwrap_or(0);
    if count == 0 {
        let mut why = String::new();
        child.stderr.take().map(|mut errors| errors.read_to_string(&mut why));
        child.wait().ok();
        return Err(why.trim().trim_start_matches("nested: ").to_string());
    }
    Ok(())
}

/// What is told when the emulated host is given up: the reason, and what its console said last.
pub fn lost(host: &Host, why: &str) -> String {
    let mut text = format!("the emulated {} host failed: {why}", host.arch);
    for ending in ["console", "log"] {
        let path = host.file(ending);
        let bytes = fs::read(&path).unwrap_or_default();
        let lines: Vec<_> =
            bytes.split(|byte| *byte == b'\n').filter(|line| telling(line)).collect();
        for line in &lines[lines.len().saturating_sub(15)..] {
            text += &format!("\n  | {}", String::from_utf8_lossy(line).trim_end());
        }
    }
    text + &format!("\n  whole: {}", host.file("console").display())
}

/// Not empty, and not QEMU's list of what its CPU lacks.
fn telling(line: &[u8]) -> bool {
    !line.is_empty() && !String::from_utf8_lossy(line).contains("TCG doesn't support")
}
