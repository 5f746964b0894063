//! What nobody here wrote: stock kernels of a distribution, booted to a shell and switched off; a
//! hypervisor, boot loaders, and a debugger.
//!
//! All of it is Debian's, fetched by cross/guests.sh; where they or a KVM that runs them are
//! missing, these tests are skipped.

mod common;

#[path = "linux/features.rs"]
mod features;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::stock::{CLOUD, PATIENCE, add_example, boot, fetched, guests, root, whole_kernels};
use common::{Ran, bivisor, folder, hardware_breakpoints, kvm, read_verdict, trial, wait};
use features::a_kernel_finds_the_features_that_the_host_has;
use libtest_mimic::Trial;

const MIB: u64 = 1 << 20;

/// Another one than Debian's stable cloud kernel: packed in another way, or younger.
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

/// What else runs on such machines: the test's name, the file, its options, and what its console
/// shows when it is as far as it gets here.
type Foreign = (&'static str, &'static str, &'static [&'static str], &'static str);

const FOREIGN: &[Foreign] = if cfg!(target_arch = "x86_64") {
    &[
        (
            "xen_shows_its_banner",
            "xen.gz",
            &["--memory", "512M", "--cmdline", "console=com1 com1=115200,8n1"],
            "Xen version 4.17",
        ),
        ("ipxe_shows_its_banner", "ipxe.lkrn", &[], "Press Ctrl-B for the iPXE command line"),
    ]
} else {
    &[]
};

fn shows_its_text((_, file, options, text): &Foreign) {
    let run = bivisor("run").arg(guests().join(file)).args(options).arg("--expect").arg(text);
    let ran = run.patience(PATIENCE).finish();
    assert_eq!(ran.status, 0, "{ran:?}");
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
    assert!(interrupts(&text, "ttyS0", row.cpus) > 0, "{text}");
    assert_eq!(text.contains("Linux version"), !row.quiet, "{text}");
}

/// Exits to the program from a quiet kernel's first instruction to its first line from user space: a promise,
/// since each costs some microseconds, and some hundreds in a host that is a guest itself.
const QUIET_EXITS: u64 = 150;

fn a_quiet_start_makes_few_exits() {
    let folder = folder();
    let verdict = folder.path().join("verdict");
    let root = root("#!/bin/busybox sh\necho The guest is up.\n/bin/busybox poweroff -f\n");
    let run = boot(CLOUD, &root).words("--memory 256M --cmdline quiet --verdict").arg(&verdict);
    shown(&run.words("--expect").arg("The guest is up.").finish(), 0);
    let verdict = read_verdict(&verdict);
    let exits = verdict["exits"]["total"].as_u64().expect("it counts exits");
    println!("{exits} exits: {}", verdict["exits"]);
    assert!(
        (1..=QUIET_EXITS).contains(&exits),
        "{exits} exits, more than {QUIET_EXITS}: {verdict}"
    );
}

/// How often /proc/interrupts says that the device called `name` has interrupted `cpus` CPUs.
fn interrupts(text: &str, name: &str, cpus: usize) -> u64 {
    let line = text.lines().find(|line| line.ends_with(name));
    let line = line.unwrap_or_else(|| panic!("{name} has no interrupt: {text}"));
    line.split_whitespace().skip(1).take(cpus).map(|count| count.parse::<u64>().unwrap()).sum()
}

/// The UART that has its interrupt as a level. More is typed than any buffer on the way holds.
fn the_pl011_is_a_whole_console() {
    const NUMBERS: u64 = 1200;
    let mut input = String::from("while read x && [ $x != end ]; do s=$((s + x)); done\n");
    (1..=NUMBERS).for_each(|number| input += &format!("{number}\n"));
    input += "end\necho sum=$s\ncat /proc/interrupts\npoweroff -f\n";
    for (kernel, cpus) in [(CLOUD, 1), (OTHER, 2)] {
        let root = root(INIT);
        let run = boot(kernel, &root).arg("--cmdline").arg("console=ttyAMA0 quiet");
        // The kernel shows what is typed as it comes, also in the middle of what the guest says.
        let text = shown(&run.words(&format!("--cpus {cpus}")).input(input.as_bytes()).finish(), 0);
        assert_eq!(number(&text, "sum="), NUMBERS * (NUMBERS + 1) / 2, "{text}");
        assert!(interrupts(&text, "uart-pl011", cpus) > 0, "{text}");
        assert!(!text.contains("nobody cared"), "{text}");
    }
}

/// It lies in flash at 0, has its environment at 64 MiB, and takes the PL011, the only UART here that
/// it has a driver for. The first key keeps it from looking for something to start.
fn u_boot_does_what_is_typed() {
    let run = bivisor("run").arg(guests().join("u-boot.bin"));
    let run = run.words("--ram 0:2M --ram 64M:256K --ram 1G:256M --load 0");
    let ran = run.input(b"\nversion\npoweroff\n").patience(PATIENCE).finish();
    let text = ran.text().replace('\r', "");
    assert_eq!(ran.status, 0, "{ran:?}");
    for shown in ["DRAM:  256 MiB\n", "Out:   serial@9000000\n", "=> version\nU-Boot 20"] {
        assert!(text.contains(shown), "no {shown:?}: {ran:?}");
    }
    assert!(text.ends_with("=> poweroff\npoweroff ...\n"), "{ran:?}");
}

/// What the guest showed until it ended with `status`.
fn shown(ran: &Ran, status: i32) -> String {
    let text = ran.text().replace('\r', "");
    assert_eq!(ran.status, status, "{}\n{text}", ran.stderr);
    text
}

/// The same, once its shell was reached.
fn said(ran: &Ran, status: i32) -> String {
    let text = shown(ran, status);
    assert!(text.contains("The guest is up.\n"), "{text}");
    text
}

fn a_reboot_ends_the_guest() {
    let root = root(INIT);
    let run = boot(CLOUD, &root).words("--cmdline quiet").input(b"reboot -f\n");
    said(&run.finish(), 120);
}

fn a_reboot_in_the_same_process_is_a_new_start() {
    let root = root(INIT);
    let mut command = boot(CLOUD, &root).words("--cmdline quiet --reboot").command;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("start bivisor");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in ["reboot -f\n", "poweroff -f\n"] {
        let up = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("guest is up")));
        assert!(up.is_some(), "the guest comes up");
        child.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }
    assert_eq!(lines.filter(|line| line.as_ref().unwrap().contains("guest is up")).count(), 0);
    assert_eq!(wait(&mut child, PATIENCE), Some(0));
    let said = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert_eq!(said, "bivisor: the guest asked for a reset: start number 2\n");
}

/// The example that writes to the exit register; cargo builds it beside the tests.
fn a_program_in_the_guest_ends_it_with_a_status() {
    let root = root(INIT);
    add_example(&root, "exit", "leave");
    let run = boot(CLOUD, &root).words("--cmdline quiet").input(b"leave 42\n");
    said(&run.finish(), 42);
}

/// The cloud kernel of x86-64 has the driver as a module, that of arm64 does not.
fn panic_driver() -> Option<String> {
    let module = guests().join("pvpanic-mmio.ko");
    (!module.is_file()).then(|| "this kernel has no driver for pvpanic".into())
}

fn a_panic_with_a_driver_is_told() {
    let root = root(INIT);
    for name in ["pvpanic.ko", "pvpanic-mmio.ko"] {
        fs::copy(guests().join(name), root.path().join(name)).unwrap();
    }
    let input = "insmod pvpanic.ko\ninsmod pvpanic-mmio.ko\necho c > /proc/sysrq-trigger\n";
    let ran = boot(CLOUD, &root).words("--cmdline quiet").input(input.as_bytes()).finish();
    let text = said(&ran, 122);
    assert!(text.contains("Kernel panic - not syncing: sysrq triggered crash"), "{text}");
}

/// A kernel that panics must not hang.
fn a_panic_without_a_driver_is_a_reset() {
    let root = root("#!/bin/busybox sh\necho The guest is up.\nexit 3\n");
    let text = said(&boot(CLOUD, &root).finish(), 120);
    assert!(text.contains("Kernel panic - not syncing: Attempted to kill init!"), "{text}");
}

/// The address of `symbol` in the cloud kernel, where it was built to be.
fn address(symbol: &str) -> Option<u64> {
    let map = fs::read_to_string(guests().join("System.map")).expect("cross/guests.sh made it");
    let line = map.lines().find(|line| line.ends_with(&format!(" {symbol}")))?;
    u64::from_str_radix(line.split(' ').next()?, 16).ok()
}

/// Where the kernel's banner lies: a symbol, or else as far behind the image's start as in the
/// file, which is the kernel as it is.
fn banner() -> u64 {
    address("linux_banner").unwrap_or_else(|| {
        /// Linux arch/arm64/kernel/vmlinux.lds.S: the header's room (SEGMENT_ALIGN).
        const HEAD: u64 = 0x1_0000;
        let file = fs::read(guests().join(CLOUD)).unwrap();
        let at = file.windows(15).position(|bytes| bytes == b"Linux version 6").unwrap();
        address("_stext").unwrap() - HEAD + at as u64
    })
}

/// Debian's gdb, with a guest that runs on as far as this host's KVM can run it.
fn a_real_gdb_stops_at_start_kernel() {
    let (root, folder) = (root(INIT), folder());
    let socket = folder.path().join("gdb");
    let runs_all = whole_kernels().is_none();
    let [start_kernel, setup_arch] =
        ["start_kernel", "setup_arch"].map(|symbol| address(symbol).expect("a known symbol"));
    let guest = boot(CLOUD, &root).words("--cmdline nokaslr --gdb").arg({
        let mut address = std::ffi::OsString::from("unix:");
        address.push(&socket);
        address
    });
    let guest = std::thread::spawn(move || guest.input(b"poweroff -f\n").finish());
    while !socket.exists() && !guest.is_finished() {
        std::thread::sleep(Duration::from_millis(10));
    }

    let tree = guests().join("gdb");
    let mut gdb = Command::new(tree.join("loader"));
    gdb.arg("--library-path").arg(&tree).arg(tree.join("gdb")).args(["-nx", "-q", "-batch"]);
    let end = if runs_all { "detach" } else { "kill" };
    for line in [
        format!("target remote {}", socket.display()),
        format!("hbreak *{start_kernel:#x}"),
        "continue".into(),
        "printf \"at %#lx\\n\", $pc".into(),
        "stepi".into(),
        "stepi".into(),
        "stepi".into(),
        "printf \"then %#lx\\n\", $pc".into(),
        format!("x/s {:#x}", banner()),
        format!("hbreak *{setup_arch:#x}"),
        "continue".into(),
        "printf \"last %#lx\\n\", $pc".into(),
        end.into(),
    ] {
        gdb.arg("-ex").arg(line);
    }
    let said = gdb.stdin(Stdio::null()).output().expect("run gdb");
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let ran = guest.join().expect("the guest ends");
    let shows = |what: &str| assert!(text.contains(what), "no {what}: {text}\n{said:?}\n{ran:?}");
    shows(&format!("at {start_kernel:#x}\n"));
    shows("then 0x");
    assert!(!text.contains(&format!("then {start_kernel:#x}\n")), "{text}");
    shows("\"Linux version 6");
    shows(&format!("last {setup_arch:#x}\n"));
    if runs_all {
        self::said(&ran, 0);
    } else {
        assert_eq!(ran.status, 137, "{ran:?}");
    }
}

fn main() {
    let needs: &[common::Need] = &[kvm, fetched, whole_kernels];
    let boots = ROWS.iter().map(|row| trial(row.name, needs, || boots_to_a_shell(row)));
    let foreign = FOREIGN.iter().map(|row| trial(row.0, needs, || shows_its_text(row)));
    let ends = common::cases! {
        a_quiet_start_makes_few_exits, kvm, fetched, whole_kernels;
        a_reboot_ends_the_guest, kvm, fetched, whole_kernels;
        a_reboot_in_the_same_process_is_a_new_start, kvm, fetched, whole_kernels;
        a_program_in_the_guest_ends_it_with_a_status, kvm, fetched, whole_kernels;
        a_panic_with_a_driver_is_told, kvm, fetched, whole_kernels, panic_driver;
        a_panic_without_a_driver_is_a_reset, kvm, fetched, whole_kernels;
        a_real_gdb_stops_at_start_kernel, kvm, fetched, hardware_breakpoints;
    };
    let own = match cfg!(target_arch = "aarch64") {
        true => common::cases! {
            a_kernel_finds_the_features_that_the_host_has, kvm, fetched, whole_kernels;
            the_pl011_is_a_whole_console, kvm, fetched, whole_kernels;
            u_boot_does_what_is_typed, kvm, fetched;
        },
        false => vec![],
    };
    let trials: Vec<Trial> = boots.chain(foreign).chain(ends).chain(own).collect();
    common::conclude(trials)
}
