//! Stock kernels of a distribution, with a shell: boots them, talks to them, switches them off.
//!
//! The kernels are Debian's, fetched by cross/guests.sh; where they or a KVM that runs them are
//! missing, these tests are skipped.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Ran, Run, bivisor, folder, kvm, trial};
use libtest_mimic::Trial;
use tempfile::TempDir;

/// Our choice: some ten times what a boot takes in an emulated host.
const PATIENCE: Duration = Duration::from_secs(180);

const MIB: u64 = 1 << 20;

/// Debian's stable cloud kernel, and another one: packed in another way, or younger.
const CLOUD: &str = "cloud";
const OTHER: &str = if cfg!(target_arch = "x86_64") { "generic" } else { "cloud-6.12" };

/// The init of every boot: what a shell needs, then a shell.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
echo The guest is up.
exec setsid -c sh
";

/// A boot, and what the guest must say of its machine.
struct Row {
    name: &'static str,
    kernel: &'static str,
    cpus: usize,
    /// MiB.
    memory: u64,
    quiet: bool,
}

const ROWS: &[Row] = &[
    Row { name: "one_cpu_and_128_mib", kernel: CLOUD, cpus: 1, memory: 128, quiet: false },
    Row { name: "two_cpus_and_1_gib", kernel: CLOUD, cpus: 2, memory: 1024, quiet: true },
    Row { name: "four_cpus_and_5_gib", kernel: CLOUD, cpus: 4, memory: 5120, quiet: true },
    Row { name: "another_kernel_with_one_cpu", kernel: OTHER, cpus: 1, memory: 1024, quiet: true },
    Row { name: "another_kernel_with_two_cpus", kernel: OTHER, cpus: 2, memory: 5120, quiet: true },
    Row { name: "another_kernel_with_four_cpus", kernel: OTHER, cpus: 4, memory: 128, quiet: true },
];

/// The folder of what cross/guests.sh has fetched for this architecture.
fn guests() -> PathBuf {
    let cache = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("cross/.cache");
    cache.join(format!("guests-{}", std::env::consts::ARCH))
}

/// Stock kernels are here, and so is a KVM that can run them.
fn stock_kernels() -> Option<String> {
    if std::fs::exists("/sys/module/kvm_pvm").unwrap_or(false) {
        return Some("this host's KVM (PVM) runs no stock kernel".into());
    }
    (!guests().is_dir()).then(|| "no stock kernels here (cross/test fetches them)".into())
}

/// A root folder with busybox and `init`.
fn root(init: &str) -> TempDir {
    let root = folder();
    let bin = root.path().join("bin");
    fs::create_dir(&bin).unwrap();
    fs::copy(guests().join("busybox"), bin.join("busybox")).expect("busybox is there");
    let path = root.path().join("init");
    fs::write(&path, init).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    root
}

/// `bivisor run` of `kernel` with `root` as its initial RAM disk.
fn boot(kernel: &str, root: &TempDir) -> Run {
    let run = bivisor("run").arg(guests().join(kernel)).arg("--initrd-dir").arg(root.path());
    run.patience(PATIENCE)
}

/// The number in the first line that begins with `key`.
fn number(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let digits = line.unwrap_or_else(|| panic!("no {key} in {text}")).trim();
    let digits = digits.split_whitespace().next().unwrap_or_default();
    digits.parse().unwrap_or_else(|_| panic!("{key}{digits} is no number"))
}

fn boots_to_a_shell(row: &Row) {
    let root = root(INIT);
    let input = "echo cpus=$(nproc)\nhead -n 1 /proc/meminfo\ncat /proc/interrupts\npoweroff -f\n";
    let mut run = boot(row.kernel, &root)
        .words(&format!("--cpus {} --memory {}M", row.cpus, row.memory))
        .input(input.as_bytes());
    if row.quiet {
        run = run.words("--cmdline quiet");
    }
    let ran = run.finish();
    let text = said(&ran, 0);
    assert_eq!(number(&text, "cpus="), row.cpus as u64, "{text}");
    // A kernel keeps some for itself.
    let total = number(&text, "MemTotal:") * 1024;
    let given = row.memory * MIB;
    assert!(total <= given && total > given / 10 * 6, "{total} of {given}");
    let columns = (0..row.cpus).map(|cpu| format!("CPU{cpu}")).collect::<Vec<_>>();
    let head = text.lines().find(|line| line.trim_start().starts_with("CPU0")).unwrap();
    assert_eq!(head.split_whitespace().collect::<Vec<_>>(), columns, "{text}");
    let console = text.lines().find(|line| line.ends_with("ttyS0")).expect("its own interrupt");
    let counts = console.split_whitespace().skip(1).take(row.cpus);
    let sum: u64 = counts.map(|count| count.parse::<u64>().unwrap()).sum();
    assert!(sum > 0, "no interrupt of the console: {console}");
    assert_eq!(text.contains("Linux version"), !row.quiet, "{text}");
}

/// What the guest showed, once its shell was reached and it ended with `status`.
fn said(ran: &Ran, status: i32) -> String {
    let text = ran.text().replace('\r', "");
    assert_eq!(ran.status, status, "{}\n{text}", ran.stderr);
    assert!(text.contains("The guest is up.\n"), "{text}");
    text
}

fn a_reboot_ends_the_guest() {
    let root = root(INIT);
    let run = boot(CLOUD, &root).words("--cmdline quiet").input(b"reboot -f\n");
    said(&run.finish(), 120);
}

/// The example that writes to the exit register; cargo builds it beside the tests.
fn a_program_in_the_guest_ends_it_with_a_status() {
    let root = root(INIT);
    let own = std::env::current_exe().unwrap();
    let example = own.parent().and_then(Path::parent).unwrap().join("examples/exit");
    fs::copy(example, root.path().join("bin/leave")).expect("cargo builds examples with tests");
    let run = boot(CLOUD, &root).words("--cmdline quiet").input(b"leave 42\n");
    said(&run.finish(), 42);
}

/// A kernel that panics must not hang.
fn a_panic_without_a_driver_is_a_reset() {
    let root = root("#!/bin/busybox sh\necho The guest is up.\nexit 3\n");
    let text = said(&boot(CLOUD, &root).finish(), 120);
    assert!(text.contains("Kernel panic - not syncing: Attempted to kill init!"), "{text}");
}

fn main() {
    let needs: &[common::Need] = &[kvm, stock_kernels];
    let boots = ROWS.iter().map(|row| trial(row.name, needs, || boots_to_a_shell(row)));
    let ends = common::cases! {
        a_reboot_ends_the_guest, kvm, stock_kernels;
        a_program_in_the_guest_ends_it_with_a_status, kvm, stock_kernels;
        a_panic_without_a_driver_is_a_reset, kvm, stock_kernels;
    };
    let trials: Vec<Trial> = boots.chain(ends).collect();
    common::conclude(trials)
}
