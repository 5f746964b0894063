//! The guest's console as a user meets it: texts that are waited for, and where it goes.

mod common;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use common::{bivisor, cases, folder, guest_file, kvm, run_guest, trial, wait};
use libtest_mimic::Trial;
use serde_json::Value;
use tempfile::TempDir;

/// Our choice: more than any step takes on an emulated host that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A guest with options that watch its console.
struct Row {
    name: &'static str,
    guest: &'static str,
    options: &'static [&'static str],
    input: &'static [u8],
    /// What is shown; where the guest is ended, its output ends there too.
    stdout: &'static str,
    status: i32,
    cause: &'static str,
    /// A part of what is said on standard error; nothing at all if it is empty.
    said: &'static str,
}

const ROW: Row = Row {
    name: "",
    guest: "hello",
    options: &[],
    input: b"",
    stdout: "Hello, world!\n",
    status: 0,
    cause: "exit",
    said: "",
};

const ROWS: &[Row] = &[
    Row {
        name: "an_expected_text_ends_the_guest_at_once",
        options: &["--expect", "world"],
        stdout: "Hello, world",
        cause: "expected",
        ..ROW
    },
    Row {
        name: "any_expected_text_will_do",
        options: &["--expect", "never", "--expect", "lo, w"],
        stdout: "Hello, w",
        cause: "expected",
        ..ROW
    },
    Row {
        name: "an_expected_text_may_go_beyond_a_line",
        guest: "echo",
        options: &["--expect", "ne\ntw"],
        input: b"one\r\ntwo\n",
        stdout: "one\r\ntw",
        cause: "expected",
        ..ROW
    },
    Row {
        name: "a_guest_that_never_shows_it_has_failed",
        options: &["--expect", "world?"],
        status: 121,
        cause: "unshown",
        said: "--expect",
        ..ROW
    },
    Row {
        name: "a_failing_text_ends_the_guest_at_once",
        options: &["--fail-on", "Hello", "--expect", "world"],
        stdout: "Hello",
        status: 121,
        cause: "fail-on",
        said: "\"Hello\" (--fail-on)",
        ..ROW
    },
    Row {
        name: "a_failing_text_that_does_not_come_changes_nothing",
        options: &["--fail-on", "panic", "--no-progress", "1m"],
        ..ROW
    },
    Row {
        name: "no_progress_ends_a_guest_that_spins",
        guest: "spin",
        options: &["--no-progress", "300ms", "--timeout", "50s"],
        stdout: "",
        status: 124,
        cause: "no-progress",
        said: "300ms (--no-progress)",
        ..ROW
    },
    Row {
        name: "a_guest_that_polls_is_in_progress",
        guest: "exits",
        // A busy machine may leave it alone for a while.
        options: &["--no-progress", "1500ms", "--timeout", "4s", "--max-exits", "999999999"],
        stdout: "",
        status: 124,
        cause: "time-out",
        said: "4s (--timeout)",
        ..ROW
    },
    Row { name: "a_console_may_be_nowhere", options: &["--console", "none"], stdout: "", ..ROW },
    Row {
        name: "a_console_that_is_nowhere_has_no_input",
        guest: "echo",
        options: &["--console", "none"],
        input: b"x",
        stdout: "",
        ..ROW
    },
    Row {
        name: "a_text_is_expected_nowhere_too",
        options: &["--console", "none", "--expect", "!"],
        stdout: "",
        cause: "expected",
        ..ROW
    },
];

impl Row {
    fn test(&self) {
        let folder = folder();
        let path = folder.path().join("verdict");
        let mut run = bivisor("run").arg(guest_file(&folder, self.guest));
        // Of its own options only those that let it start; the limits are the row's.
        let mode = common::guest(self.guest).options.split_whitespace();
        let mode: Vec<_> = mode.skip_while(|word| *word != "--mode").take(2).collect();
        run = run.words(&mode.join(" ")).arg("--verdict").arg(&path).input(self.input);
        let ran = self.options.iter().fold(run, |run, option| run.arg(option)).finish();
        let verdict = fs::read_to_string(path).expect("a verdict was written");
        let verdict: Value = serde_json::from_str(&verdict).expect("a verdict is JSON");
        assert_eq!((ran.text().as_str(), ran.status), (self.stdout, self.status), "{ran:?}");
        assert_eq!(
            (&verdict["cause"], &verdict["status"]),
            (&self.cause.into(), &self.status.into())
        );
        assert_eq!(ran.stderr.is_empty(), self.said.is_empty(), "{ran:?}");
        assert!(ran.stderr.contains(self.said), "{ran:?}");
    }
}

fn what_is_wrong_with_the_options_is_named() {
    for (options, named) in [
        (&["--console", "tcp:1"][..], "'tcp:1' for '--console"),
        (&["--console", "file:"], "'file:' for '--console"),
        (&["--console", "file:/no/such/folder/x"], "create /no/such/folder/x: No such file"),
        (&["--console", "file:/dev/full"], "output to /dev/full: No space"),
        (&["--expect", ""], "--expect"),
        (&["--fail-on", ""], "--fail-on"),
        (&["--no-progress", "0"], "'0' for '--no-progress"),
    ] {
        let ran = options.iter().fold(bivisor("hello"), |run, option| run.arg(option)).finish();
        assert_eq!((ran.status, ran.stderr.lines().count()), (125, 1), "{ran:?}");
        assert!(ran.stderr.contains(named), "{named}: {ran:?}");
    }
}

fn no_progress_tells_the_last_line() {
    let folder = folder();
    let path = folder.path().join("verdict");
    let run = run_guest(&folder, "echo", str::to_owned).words("--no-progress 60s --expect Bye");
    let ran = run.arg("--verdict").arg(&path).input(b"one\n\x1b[2Jtwo\nBye").finish();
    assert_eq!(ran.status, 0, "{ran:?}");
    let verdict: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(verdict["last_line"], "Bye");
    let ran = run_guest(&folder, "echo", str::to_owned).words("--fail-on two");
    let ran = ran.input(b"one\n\x1b[2Jtwo\n").finish();
    assert!(ran.stderr.contains("last console line: \\u{1b}[2Jtwo\n"), "{ran:?}");
    assert!(ran.stderr.contains("vcpu 0: pc"), "{ran:?}");
}

fn a_console_in_a_file_is_all_of_it_and_has_no_input() {
    let folder = folder();
    let path = folder.path().join("console");
    fs::write(&path, "what was there before, and was longer").unwrap();
    let place = format!("file:{}", path.display());
    let ran = bivisor("hello --console").arg(&place).finish();
    assert_eq!((ran.text().as_str(), ran.stderr.as_str(), ran.status), ("", "", 0));
    assert_eq!(fs::read_to_string(&path).unwrap(), "Hello, world!\n");
    let echo = run_guest(&folder, "echo", str::to_owned).arg("--console").arg(&place);
    let ran = echo.input(b"x").finish();
    assert_eq!((ran.text().as_str(), ran.status), ("", 0));
    assert_eq!(fs::read_to_string(&path).unwrap(), "");
}

// ------------------------------------------------------------------------- a pseudo-terminal

/// Starts the guest `name` with a pseudo-terminal, and gives its path.
fn with_pty(folder: &TempDir, name: &str) -> (Child, String) {
    let mut command = run_guest(folder, name, str::to_owned).words("--console pty").command;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    stderr.read_line(&mut line).unwrap();
    thread::spawn(move || io::copy(&mut stderr, &mut io::sink()));
    let path = line.trim_end().strip_prefix("bivisor: the console is ").expect(&line);
    (child, path.to_owned())
}

/// Opens a terminal as one that is not to become ours.
fn open(path: &str) -> File {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).expect(path)
}

fn a_pseudo_terminal_has_input_and_output_and_may_be_left_and_come_back_to() {
    let folder = folder();
    let (mut child, path) = with_pty(&folder, "echo");
    for text in [&b"one\n"[..], b"two\r\n", b"\x03\x1a three\n"] {
        // A text that is typed, comes back, and nobody stays.
        let mut terminal = open(&path);
        terminal.write_all(text).unwrap();
        let mut back = vec![0; text.len()];
        terminal.read_exact(&mut back).unwrap();
        assert_eq!(back, text);
        drop(terminal);
        thread::sleep(Duration::from_millis(50));
    }
    open(&path).write_all(b"\x04").unwrap();
    assert_eq!(wait(&mut child, PATIENCE), Some(0));
}

fn a_pseudo_terminal_without_a_reader_holds_nobody_up() {
    let folder = folder();
    let Some(name) = ["kvmsample", "simple_arm64"]
        .into_iter()
        .find(|name| bivisor::guests::find(name).is_some())
    else {
        return;
    };
    let (mut child, _) = with_pty(&folder, name);
    assert!(wait(&mut child, PATIENCE).is_some(), "it ends, or is out of time");
}

// ------------------------------------------------------------------------- a lot of input

/// Bytes of memory that the process `id` has resident.
fn resident(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it runs");
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn input_that_nobody_takes_does_not_grow() {
    let folder = folder();
    // It looks for input, and prints: whose reader does not read.
    let mut command = run_guest(&folder, "echo", str::to_owned).command;
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut typing = child.stdin.take().unwrap();
    // A gibibyte, of which the pipes take what they take.
    thread::spawn(move || (0..1024).try_for_each(|_| typing.write_all(&vec![b'x'; 1 << 20])));
    // Its first byte: from now on what it takes is not what any guest takes to start.
    let mut printed = child.stdout.take().unwrap();
    printed.read_exact(&mut [0]).unwrap();
    thread::sleep(Duration::from_millis(500));
    let before = resident(child.id());
    thread::sleep(Duration::from_secs(1));
    let after = resident(child.id());
    assert!(after < before + (1 << 20), "{before} bytes became {after}");
    child.kill().unwrap();
    child.wait().unwrap();
}

fn main() {
    let mut trials: Vec<Trial> =
        ROWS.iter().map(|row| trial(row.name, &[kvm], move || row.test())).collect();
    trials.extend(cases![
        what_is_wrong_with_the_options_is_named, kvm;
        no_progress_tells_the_last_line, kvm;
        a_console_in_a_file_is_all_of_it_and_has_no_input, kvm;
        a_pseudo_terminal_has_input_and_output_and_may_be_left_and_come_back_to, kvm;
        a_pseudo_terminal_without_a_reader_holds_nobody_up, kvm;
        input_that_nobody_takes_does_not_grow, kvm;
    ]);
    common::conclude(trials);
}
