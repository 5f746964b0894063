//! What this host can do: KVM's version and limits, capabilities that matter, and what a machine
//! and an exit cost here, measured.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kvm_ioctls::{Cap, Kvm};

use crate::board::Finding;
use crate::config::Config;
use crate::console::Console;
use crate::devices::block::best_engine;
use crate::exit::Stop;
use crate::machine::{Machine, open_kvm};
use crate::payload::Payload;
use crate::{arch, guests};

/// Machines that are made to measure what one costs. Our choice: enough for a median.
const MACHINES: usize = 9;

/// Exits that are made to measure what one costs: some 20 ms of them on a slow host.
const EXITS: u64 = 1000;

/// Examines this host.
pub fn examine() -> Result<Vec<Finding>> {
    let kvm = open_kvm()?;
    let yes_no = |cap| if kvm.check_extension(cap) { "yes" } else { "no" };
    let mut findings = vec![
        Finding::new("architecture", arch::NAME),
        Finding::new("kernel", kernel_release()),
        Finding::new("kvm-api-version", kvm.get_api_version().to_string()),
    ];
    findings.extend(arch::findings(&kvm));
    findings.extend([
        Finding::new("address-bits", arch::address_limit(&kvm).trailing_zeros().to_string()),
        Finding::new("cpus-recommended", kvm.get_nr_vcpus().to_string()),
        Finding::new("cpus-max", kvm.get_max_vcpus().to_string()),
        Finding::new("memory-slots", kvm.get_nr_memslots().to_string()),
        Finding::new("immediate-exit", yes_no(Cap::ImmediateExit)),
        Finding::new("ioeventfd", yes_no(Cap::Ioeventfd)),
        Finding::new("irqfd", yes_no(Cap::Irqfd)),
        Finding::new("read-only-memory", yes_no(Cap::ReadonlyMem)),
        Finding::new("coalesced-mmio", yes_no(Cap::CoalescedMmio)),
        Finding::new("disk-engine", best_engine()),
    ]);
    let micros = |time: Duration| format!("{:.1} us", time.as_secs_f64() * 1e6);
    findings.push(Finding::new("vm-creation", micros(vm_creation(&kvm)?)));
    findings.push(Finding::new("exit", micros(one_exit()?)));
    Ok(findings)
}

/// The kernel's version, as it calls itself.
fn kernel_release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    release.map_or_else(|_| "unknown".into(), |text| text.trim().into())
}

/// What KVM_CREATE_VM takes: the median of a few.
fn vm_creation(kvm: &Kvm) -> Result<Duration> {
    let mut times = Vec::with_capacity(MACHINES);
    for _ in 0..MACHINES {
        let began = Instant::now();
        let vm = arch::create_vm(kvm, 0)?;
        times.push(began.elapsed());
        drop(vm);
    }
    times.sort();
    Ok(times[MACHINES / 2])
}

/// What one exit to a device and back takes, the guest's own instructions included.
fn one_exit() -> Result<Duration> {
    let guest = guests::find("exits").expect("it is embedded");
    let output = File::options().write(true).open("/dev/null").context("open /dev/null")?;
    let console = Console::new(output, None);
    let mut config = Config::new(Payload::Bytes(guest.image), console);
    config.max_exits = Some(EXITS);
    config.timeout = Some(Duration::from_secs(10));
    let outcome = Machine::build(config)?.run();
    match outcome.stop {
        Stop::ExitLimit(_) => Ok(outcome.run_time / EXITS as u32),
        stop => bail!("the guest that measures exits ended by {}", stop.word()),
    }
}
