//! What a stock kernel finds of the CPU is what `bivisor check` says that this host can give.

use super::common::finding;
use super::{INIT, OTHER, boot, root, said};

/// Names of `check`, and what the kernel calls the same in /proc/cpuinfo.
const FEATURES: &[(&str, &[&str])] =
    &[("sve", &["sve"]), ("pointer-authentication", &["paca", "pacg"])];

const CPUS: usize = 2;

fn has(name: &str) -> bool {
    match finding(name).as_str() {
        "yes" => true,
        "no" => false,
        other => panic!("check says {name}: {other:?}"),
    }
}

/// Only for the architecture on which KVM leaves features out.
pub fn a_kernel_finds_the_features_that_the_host_has() {
    let root = root(INIT);
    let input = "grep ^Features /proc/cpuinfo\n\
                 ls -d /sys/bus/event_source/devices/armv8_pmuv3*\n\
                 grep arm-pmu /proc/interrupts\n\
                 poweroff -f\n";
    let run = boot(OTHER, &root).words(&format!("--cpus {CPUS} --cmdline quiet"));
    let text = said(&run.input(input.as_bytes()).finish(), 0);

    let cpus = text.lines().filter_map(|line| line.strip_prefix("Features"));
    let cpus: Vec<Vec<_>> = cpus.map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(cpus.len(), CPUS, "{text}");
    for (name, words) in FEATURES {
        let there = has(name);
        for word in *words {
            assert!(cpus.iter().all(|cpu| cpu.contains(word) == there), "{name} {word}: {text}");
        }
    }
    let pmu = has("pmu");
    let device = text.lines().any(|line| line.starts_with("/sys/bus/event_source/devices/arm"));
    assert_eq!(device, pmu, "{text}");
    // Its driver has its interrupt, the private one with number 23.
    let line = text.lines().find(|line| line.ends_with("arm-pmu"));
    let number = line.map(|line| line.split_whitespace().rev().nth(2).unwrap_or_default());
    assert_eq!(number, pmu.then_some("23"), "{text}");
}
