//! The start: what it is spent on, as a table and as a trace for a viewer; and starting anew.

use std::fs;

use libtest_mimic::Trial;
use serde_json::Value;

use crate::common::{bivisor, cases, folder, kvm, read_verdict, run_guest};

pub fn trials() -> Vec<Trial> {
    cases![
        timings_name_the_phases_and_the_moments, kvm;
        a_trace_of_events_has_everything_on_one_line_of_time, kvm;
        a_guest_that_resets_itself_starts_anew_within_its_limits, kvm;
    ]
}

fn timings_name_the_phases_and_the_moments() {
    let ran = bivisor("hello --timings --mark Hello --mark never").finish();
    assert_eq!((ran.status, ran.text().as_str()), (0, "Hello, world!\n"));
    let names: Vec<_> = (ran.stderr.lines().skip(1))
        .map(|line| line.split("  ").next().unwrap().trim().to_owned())
        .collect();
    let expected = [
        "options",
        "KVM",
        "image",
        "VM and RAM",
        "interrupt chips",
        "devices",
        "load",
        "tables",
        "vCPUs",
        "first output",
        "\"Hello\"",
        "end",
        "exits of vCPU 0",
    ];
    assert_eq!(names, expected, "{}", ran.stderr);
    let last = |line: &str| line.split_whitespace().next_back().unwrap().parse::<f64>().unwrap();
    let times: Vec<_> = ran.stderr.lines().skip(1).take(12).map(last).collect();
    assert!(times.is_sorted(), "{}", ran.stderr);
}

fn a_trace_of_events_has_everything_on_one_line_of_time() {
    let folder = folder();
    let path = folder.path().join("trace.json");
    let ran = bivisor("hello --mark world").arg(format!("--trace={}", path.display())).finish();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let events: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let events = events.as_array().unwrap();
    let count = |cat: &str| events.iter().filter(|event| event["cat"] == cat).count();
    assert_eq!((count("exit"), count("start")), (ran.stdout.len() + 1, 9));
    let time = |name: &str| {
        let event = events.iter().find(|event| event["name"] == name);
        event.unwrap_or_else(|| panic!("no {name}"))["ts"].as_f64().unwrap()
    };
    assert!(time("vCPUs") < time("first output") && time("first output") < time("\"world\""));
    assert!(time("\"world\"") < time("end"));
}

fn a_guest_that_resets_itself_starts_anew_within_its_limits() {
    let folder = folder();
    for (limit, said) in [
        ("--max-exits 9", "within 9 exits (--max-exits)"),
        ("--timeout 700ms", "within 700ms (--timeout)"),
    ] {
        let path = folder.path().join("verdict");
        let change = |options: &str| format!("{options} --reboot {limit}");
        let ran = run_guest(&folder, "reset", change).arg("--verdict").arg(&path).finish();
        assert_eq!(ran.status, 124, "{ran:?}");
        assert!(ran.stderr.contains("start number 2\n") && ran.stderr.contains(said), "{ran:?}");
        assert!(read_verdict(&path)["reboots"].as_u64() > Some(0));
    }
}
