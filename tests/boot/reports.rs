//! What bivisor tells of a guest: verdicts after a time-out and a crash, exits, traces.

use std::fs;

use bivisor::guests;
use libtest_mimic::Trial;
use serde_json::Value;

use crate::common::{MACHINE, Ran, bivisor, cases, folder, guest, kvm, read_verdict, run_guest};

pub fn trials() -> Vec<Trial> {
    cases![
        hello_takes_one_exit_a_byte_and_one_to_end, kvm;
        a_time_out_shows_where_every_cpu_was, kvm;
        a_report_names_the_address_by_a_map, kvm;
        a_time_out_ends_a_guest_whose_cpus_sleep, kvm;
        a_crash_shows_the_instruction_and_the_last_exits, kvm;
        the_last_exits_are_shown_in_words, kvm;
        a_trace_has_a_line_for_each_exit, kvm;
        a_verdict_on_stdout_comes_after_the_guest_s_output, kvm;
        a_burst_of_output_leaves_the_guest_seldom, kvm;
    ]
}

/// Runs the guest `name` with `more` options and gives its output, and its verdict.
fn run_with_verdict(name: &str, more: &str) -> (Ran, Value) {
    let folder = folder();
    let path = folder.path().join("verdict");
    let run = run_guest(&folder, name, |options| format!("{options} {more}"));
    let ran = run.arg("--verdict").arg(&path).finish();
    (ran, read_verdict(&path))
}

fn hello_takes_one_exit_a_byte_and_one_to_end() {
    let (ran, verdict) = run_with_verdict("hello", "");
    assert_eq!(verdict["exits"]["total"], ran.stdout.len() + 1, "{verdict}");
}

/// What KVM keeps of it is neither lost nor late: nothing else would show the last word. At first each byte is
/// an exit, for as many as a host can make in that time.
fn a_burst_of_output_leaves_the_guest_seldom() {
    let (ran, verdict) = run_with_verdict("burst", "--no-progress 20s");
    let line: String = (b'0'..).map(char::from).take(63).chain(['\n']).collect();
    assert_eq!((ran.status, ran.text()), (0, line.repeat(1600) + "done"), "{verdict}");
    let exits = verdict["exits"]["total"].as_u64().expect("it counts exits");
    println!("{exits} exits for {} bytes: {}", ran.stdout.len(), verdict["exits"]);
    assert!(exits < ran.stdout.len() as u64 / 2, "{verdict}");
    // Where each access is counted, each leaves the guest.
    let (ran, verdict) = run_with_verdict("burst", "--max-exits 5000");
    assert_eq!((ran.status, ran.stdout.len()), (124, 5000), "{verdict}");
}

/// Every vCPU is in `verdict`, with where it was and what its registers were.
fn check_cpus(verdict: &Value, count: usize) {
    let cpus = verdict["vcpus"].as_array().expect("there are vCPUs");
    assert_eq!(cpus.len(), count, "{verdict}");
    for cpu in cpus {
        let pc = cpu["pc"].as_str().expect("there is a pc");
        assert!(pc.starts_with("0x"), "{verdict}");
        assert!(cpu["mode"].as_str().is_some_and(|mode| !mode.is_empty()), "{verdict}");
        let registers = cpu["registers"].as_object().expect("there are registers");
        assert!(registers.len() > 16, "{verdict}");
        assert!(registers.values().all(|value| value.as_str().unwrap().starts_with("0x")));
        assert!(registers.contains_key(MACHINE.register), "{verdict}");
    }
}

fn a_time_out_shows_where_every_cpu_was() {
    let value = "0x1122334455667788";
    let (ran, verdict) = run_with_verdict("spin", &format!("--reg {}={value}", MACHINE.register));
    assert_eq!(ran.status, 124);
    check_cpus(&verdict, 1);
    assert_eq!(verdict["vcpus"][0]["registers"][MACHINE.register], value, "{verdict}");
    // It was interrupted, but never asked for anything.
    assert_eq!(verdict["exits"]["total"], verdict["exits"]["interrupted"], "{verdict}");
}

fn a_report_names_the_address_by_a_map() {
    let folder = folder();
    let map = folder.path().join("System.map");
    let line = |address: u64, name: &str| format!("{address:016x} T {name}\n");
    // Something behind it: the nearest one before counts. It may also start in real mode, lower.
    let text = line(MACHINE.load + 0x8000, "behind") + &line(MACHINE.load, "the_guest");
    let text = text + &line(0xfff, "the_guest");
    fs::write(&map, text).unwrap();
    let ran = run_guest(&folder, "spin", str::to_owned).arg("--symbols").arg(&map).finish();
    assert_eq!(ran.status, 124, "{ran:?}");
    assert!(ran.stderr.contains("(the_guest"), "{ran:?}");

    fs::write(&map, "nothing").unwrap();
    let ran = run_guest(&folder, "spin", str::to_owned).arg("--symbols").arg(&map).finish();
    assert!(ran.stderr.contains("bivisor: --symbols: no symbols") && ran.status == 124, "{ran:?}");
    let ran = run_guest(&folder, "spin", str::to_owned).arg("--symbols").arg("/nowhere").finish();
    assert!(
        ran.stderr.starts_with("bivisor: --symbols /nowhere: ") && ran.status == 125,
        "{ran:?}"
    );
}

fn a_time_out_ends_a_guest_whose_cpus_sleep() {
    let folder = folder();
    // Nobody starts the other two.
    let run = run_guest(&folder, "spin", |options| format!("{options} --cpus 3"));
    let verdict = folder.path().join("verdict");
    let ran = run.arg("--verdict").arg(&verdict).finish();
    assert_eq!(ran.status, 124, "{ran:?}");
    check_cpus(&read_verdict(&verdict), 3);
}

fn a_crash_shows_the_instruction_and_the_last_exits() {
    // Not after a triple fault: KVM on AMD has reset the processor by the time that it tells.
    let name = guests::find("unemulated").map_or("crash", |guest| guest.name);
    let (ran, verdict) = run_with_verdict(name, "");
    assert_eq!(ran.status, 123);
    check_cpus(&verdict, 1);
    let code = verdict["vcpus"][0]["code"].as_str().expect("there are bytes");
    let bytes: Vec<_> = guest(name).image.iter().map(|byte| format!("{byte:02x}")).collect();
    let seen: String = code.chars().take("00 00".len()).collect();
    assert!(!seen.is_empty() && bytes.join(" ").contains(&seen), "{code} is not in {bytes:?}");
    assert!(ran.stderr.contains("pc 0x"), "{ran:?}");
}

fn the_last_exits_are_shown_in_words() {
    let (_, verdict) = run_with_verdict("hello", "--max-exits 3");
    let last = verdict["vcpus"][0]["last_exits"].as_array().expect("there are exits");
    assert_eq!(last.len(), 3, "{verdict}");
    for (exit, character) in last.iter().zip("Hel".chars()) {
        assert!(exit.as_str().unwrap().contains(&format!("'{character}'")), "{verdict}");
    }
}

fn a_trace_has_a_line_for_each_exit() {
    let folder = folder();
    let trace = folder.path().join("trace");
    let option = format!("--trace={}", trace.display());
    let ran = run_guest(&folder, "hello", str::to_owned).arg(option).finish();
    assert_eq!((ran.text().as_str(), ran.stderr.as_str(), ran.status), ("Hello, world!\n", "", 0));
    let text = fs::read_to_string(trace).expect("a trace was written");
    let exits: Vec<_> =
        text.lines().filter(|line| line.starts_with("vcpu 0  ") && line.contains("<-")).collect();
    assert_eq!(exits.len(), "Hello, world!\n".len() + 1, "{text}");
    assert!(exits[0].contains("<- 48 'H'"), "{text}");
    let counts = text.lines().rfind(|line| line.contains("console"));
    assert!(counts.is_some_and(|line| line.trim().starts_with("14 ")), "{text}");
    let ran = run_guest(&folder, "hello", str::to_owned).arg("--trace").finish();
    assert_eq!((ran.text().as_str(), ran.status), ("Hello, world!\n", 0));
    assert!(ran.stderr.contains("'H'"), "{ran:?}");
}

fn a_verdict_on_stdout_comes_after_the_guest_s_output() {
    let ran = bivisor("hello --verdict -").finish();
    let text = ran.text();
    let (greeting, verdict) = text.split_once('\n').expect("two lines");
    let verdict: Value = serde_json::from_str(verdict).expect("a verdict is JSON");
    assert_eq!((greeting, &verdict["cause"], ran.status), ("Hello, world!", &"exit".into(), 0));
}
