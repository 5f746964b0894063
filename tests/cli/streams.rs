//! Standard streams that are closed, full, or left by their other side.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use libtest_mimic::Trial;

use crate::common::{Ran, Run, bivisor, cases, folder, kvm, run_guest, wait};
use crate::{FAILURE, check, check_refusal, soon};

pub fn trials() -> Vec<Trial> {
    cases![
        a_stdout_that_takes_nothing_is_an_error, kvm;
        a_closed_stdout_is_an_error, kvm;
        a_closed_stdin_or_stderr_is_none, kvm;
        an_input_that_can_not_be_read_is_at_its_end, kvm;
        a_reader_that_leaves_ends_an_endless_guest, kvm;
    ]
}

/// Runs `hello` with `stdout` as its standard output.
fn hello_into(stdout: impl Into<Stdio>) -> Ran {
    let mut command = bivisor("hello").command;
    let child = command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let status = wait(&mut child, soon()).expect("it ends soon");
    let stderr = io::read_to_string(&mut stderr).unwrap();
    Ran { stdout: Vec::new(), stderr, status, took: soon() }
}

fn a_stdout_that_takes_nothing_is_an_error() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    check_refusal(&hello_into(full), FAILURE, &["standard output", "no space"]);
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    check_refusal(&hello_into(writer), FAILURE, &["standard output"]);
}

/// The run gets no descriptor `fd`.
fn without(mut run: Run, fd: i32) -> Run {
    // SAFETY: the descriptor is the child's own, and its streams are set up by now.
    let close = move || check(unsafe { libc::close(fd) });
    // SAFETY: `close` makes one system call.
    unsafe { run.command.pre_exec(close) };
    run
}

fn a_closed_stdout_is_an_error() {
    let ran = without(bivisor("hello"), libc::STDOUT_FILENO).patience(soon()).finish();
    check_refusal(&ran, FAILURE, &["standard output"]);
}

fn a_closed_stdin_or_stderr_is_none() {
    for fd in [libc::STDIN_FILENO, libc::STDERR_FILENO] {
        let ran = without(bivisor("hello"), fd).patience(soon()).finish();
        assert_eq!((ran.text().as_str(), ran.status), ("Hello, world!\n", 0), "{ran:?}");
    }
}

fn an_input_that_can_not_be_read_is_at_its_end() {
    let folder = folder();
    for path in [Path::new("/dev/null"), folder.path()] {
        let mut command = run_guest(&folder, "echo", str::to_owned).command;
        command.stdin(File::open(path).unwrap()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        assert_eq!(wait(&mut child, soon()), Some(0), "{path:?}");
    }
}

fn a_reader_that_leaves_ends_an_endless_guest() {
    let folder = folder();
    // What it writes to its debug console goes round and round.
    let mut command = run_guest(&folder, "echo", str::to_owned).command;
    command.stdin(File::open("/dev/zero").unwrap()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    io::Read::read_exact(&mut output, &mut [1; 100]).unwrap();
    drop(output);
    let status = wait(&mut child, Duration::from_secs(60));
    let stderr = io::read_to_string(child.stderr.take().unwrap()).unwrap();
    let ran = Ran { stdout: vec![], stderr, status: status.unwrap_or(-1), took: soon() };
    check_refusal(&ran, FAILURE, &["standard output"]);
}
