//! Input and output while a guest runs, and the signals that end it.

use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use bivisor::guests;
use libtest_mimic::Trial;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::{cases, folder, kvm, read_verdict, run_guest, wait};

pub fn trials() -> Vec<Trial> {
    cases![
        an_endless_guest_is_heard_until_its_time_is_over, kvm;
        echo_answers_before_its_input_ends, kvm;
        echo_loses_nothing_of_a_long_input, kvm;
        a_signal_ends_a_guest_that_spins_or_waits, kvm;
    ]
}

fn an_endless_guest_is_heard_until_its_time_is_over() {
    let folder = folder();
    let run = run_guest(&folder, "hello", |options| format!("{options} --timeout 60s"));
    assert_eq!(run.finish().status, 0, "a time-out that does not come changes nothing");
    if guests::find("kvmsample").is_some() {
        let ran = run_guest(&folder, "kvmsample", str::to_owned).finish();
        assert_eq!(ran.status, 124);
        let text = ran.text();
        // The count wraps at 16 bits, as the register does.
        let all = text.lines().enumerate().all(|(i, line)| line == (i as u16).to_string());
        assert!(all && text.lines().count() > 10, "{ran:?}");
    }
}

fn echo_answers_before_its_input_ends() {
    let folder = folder();
    let mut command = run_guest(&folder, "echo", str::to_owned).command;
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (answered, answers) = channel();
    let reader = thread::spawn(move || {
        let mut byte = [0];
        while output.read(&mut byte).unwrap() == 1 && answered.send(byte[0]).is_ok() {}
    });
    let typed = b"a\nbcd\n\nef";
    let received: Vec<_> = typed
        .iter()
        .map_while(|&byte| {
            input.write_all(&[byte]).unwrap();
            answers.recv_timeout(Duration::from_secs(10)).ok()
        })
        .collect();
    drop(input);
    assert_eq!(wait(&mut child, Duration::from_secs(60)), Some(0));
    assert_eq!(received, typed);
    reader.join().unwrap();
}

fn echo_loses_nothing_of_a_long_input() {
    let folder = folder();
    // Without the EOT, which is the end of the input.
    let input: Vec<u8> = (0..20_000u32).map(|i| (i * 7 % 251 + 5) as u8).collect();
    let path = folder.path().join("verdict");
    // A time-out of its own tells where it hangs, and the counts tell on which side bytes are lost.
    let run = run_guest(&folder, "echo", |_| "--timeout 150s --verdict".into()).arg(&path);
    let ran = run.input(&input).patience(Duration::from_secs(180)).finish();
    let same = ran.stdout.iter().zip(&input).take_while(|(got, sent)| got == sent).count();
    assert!(
        same == input.len() && same == ran.stdout.len(),
        "{} bytes came back, the first {same} of them right: {}",
        ran.stdout.len(),
        read_verdict(&path)
    );
}

/// Runs the guest `name` without a time-out, sends it `signal` when it is under way, and gives its
/// status and its verdict.
fn end_by_signal(folder: &TempDir, name: &str, signal: i32) -> (Option<i32>, Value) {
    let verdict = folder.path().join("verdict");
    let run = run_guest(folder, name, |options| {
        options.replace("--timeout 500ms", "").replace("--timeout 2s", "")
    });
    let mut command = run.arg("--verdict").arg(&verdict).command;
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    // Its guest runs soon after there is a second thread.
    let threads = format!("/proc/{}/task", child.id());
    while fs::read_dir(&threads).unwrap().count() < 2 {
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(Duration::from_millis(100));
    // SAFETY: the child has not been waited for, so its number is its own.
    unsafe { libc::kill(child.id() as i32, signal) };
    let status = wait(&mut child, Duration::from_secs(60));
    (status, read_verdict(&verdict))
}

fn a_signal_ends_a_guest_that_spins_or_waits() {
    let folder = folder();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        for guest in ["spin", "echo"] {
            let (status, verdict) = end_by_signal(&folder, guest, signal);
            assert_eq!(status, Some(128 + signal), "{guest}: {verdict}");
            assert_eq!(verdict["cause"], "signal", "{guest}: {verdict}");
        }
    }
}
