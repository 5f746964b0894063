//! The command line and the host's side: whatever is wrong, there is one line that names it, the
//! right status, no panic, in under two seconds; and the terminal is as it was.

mod common;

#[path = "cli/dev_kvm.rs"]
mod dev_kvm;
#[path = "cli/given.rs"]
mod given;
#[path = "cli/streams.rs"]
mod streams;
#[path = "cli/terminal.rs"]
mod terminal;

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::time::Duration;

use common::elf::{Segment, elf32, elf64};
use common::{MACHINE, Ran, bivisor, cases, folder, guest_file, kvm, trial};
use libtest_mimic::Trial;
use tempfile::TempDir;

/// bivisor or the host failed, or it was called in a wrong way.
const FAILURE: i32 = 125;
/// The image can't be run here.
const BAD_IMAGE: i32 = 126;

/// The promise: an error comes in under two seconds. An emulated host (cross/runner says that this
/// is one) is some ten times slower, and more while others use the machine.
fn soon() -> Duration {
    Duration::from_secs(if common::emulated() { 60 } else { 2 })
}

/// Something that is wrong.
struct Wrong {
    name: &'static str,
    /// Arguments; `{x}` is the path of the file x of [`make_files`], `{load}` and the like are
    /// this machine's addresses.
    args: &'static str,
    status: i32,
    /// What the line must name.
    named: &'static [&'static str],
}

/// A row of arguments that are wrong whatever the host can do.
const fn usage(name: &'static str, args: &'static str, named: &'static [&'static str]) -> Wrong {
    Wrong { name, args, status: FAILURE, named }
}

/// A row of files that can't be run.
const fn image(name: &'static str, args: &'static str, named: &'static [&'static str]) -> Wrong {
    Wrong { name, args, status: BAD_IMAGE, named }
}

/// What is found wrong without KVM.
const USAGE: &[Wrong] = &[
    usage("no_arguments_ask_for_help", "", &["help"]),
    usage("an_unknown_command", "frobnicate", &["frobnicate"]),
    usage("an_unknown_option", "--frobnicate", &["--frobnicate"]),
    usage("an_unknown_option_of_run", "run {spin} --frobnicate", &["--frobnicate"]),
    usage("run_without_a_file", "run", &["FILE"]),
    usage("a_second_file", "run {spin} {hello}", &["hello.bin"]),
    usage("an_unknown_guest", "guests export frobnicate {out}", &["frobnicate"]),
    usage("a_size_of_words", "run {spin} --memory much", &["--memory", "much"]),
    usage("a_size_of_nothing", "run {spin} --memory=", &["--memory"]),
    usage("a_size_with_a_fraction", "run {spin} --memory 1.5G", &["--memory", "1.5G"]),
    usage("a_negative_size", "run {spin} --memory -1", &["-1"]),
    usage("a_size_past_64_bits", "run {spin} --memory 99999999999999G", &["99999999999999G"]),
    usage("a_size_that_wraps", "run {spin} --memory 16777216T", &["16777216T"]),
    usage("a_fraction_of_a_cpu", "run {spin} --cpus 1.5", &["--cpus", "1.5"]),
    usage("a_register_without_a_value", "run {spin} --reg {reg}", &["--reg", "{reg}"]),
    usage("a_register_without_a_name", "run {spin} --reg =1", &["--reg"]),
    usage("a_value_of_words", "run {spin} --reg {reg}=much", &["--reg", "much"]),
    usage("a_value_past_64_bits", "run {spin} --reg {reg}=0x10000000000000000", &["--reg"]),
    usage("a_ram_without_a_size", "run {spin} --ram 0x100000", &["--ram", "0x100000"]),
    usage("a_time_of_words", "run {spin} --timeout soon", &["--timeout", "soon"]),
    usage("a_negative_time", "run {spin} --timeout -1s", &["-1s"]),
    usage("a_negative_number_of_exits", "run {spin} --max-exits -1", &["-1"]),
    usage(
        "a_console_nowhere",
        "run {spin} --debug-console nowhere",
        &["--debug-console", "nowhere"],
    ),
    usage("an_unknown_space", "run {spin} --debug-console disk:3", &["--debug-console", "disk:3"]),
    usage(
        "an_unknown_way_to_show",
        "run {spin} --debug-console mmio:0x1000,as=poems",
        &["--debug-console", "poems"],
    ),
    usage("an_exit_register_nowhere", "run {spin} --exit-register 7", &["--exit-register", "7"]),
];

/// What is found wrong while a machine is built.
const BUILD: &[Wrong] = &[
    usage("a_missing_file", "run {none}", &["{none}", "no such file"]),
    usage("a_file_in_a_file", "run {spin}/none", &["{spin}/none"]),
    image("an_empty_file", "run {empty}", &["{empty}", "empty"]),
    image("a_directory", "run {folder}", &["{folder}", "directory"]),
    image("a_pipe", "run {fifo}", &["{fifo}", "pipe"]),
    image("an_endless_device", "run /dev/zero", &["/dev/zero", "device"]),
    image("hostile_15_an_endless_device_of_noise", "run /dev/urandom", &["/dev/urandom", "device"]),
    usage("hostile_15_a_link_to_nothing", "run {dangling}", &["{dangling}", "no such file"]),
    usage("hostile_15_a_link_to_itself", "run {itself}", &["{itself}", "symbolic link"]),
    image("an_elf_file_cut_in_its_header", "run {cut_in_header}", &["{cut_in_header}"]),
    image("an_elf_file_cut_in_its_program", "run {cut_in_program}", &["{cut_in_program}"]),
    image("an_elf_file_for_another_architecture", "run {foreign}", &["{foreign}"]),
    image("a_32_bit_elf_file_for_another_architecture", "run {foreign32}", &["{foreign32}"]),
    image("an_elf_file_without_a_segment", "run {unloaded}", &["{unloaded}"]),
    image("an_elf_file_whose_segment_wraps", "run {wraps}", &["{wraps}"]),
    usage("a_load_address_outside_ram", "run {spin} --load {outside}", &["{outside}"]),
    usage(
        "a_load_address_at_the_end",
        "run {spin} --load 0xffffffffffffffff",
        &["0xffffffffffffffff"],
    ),
    usage("an_entry_outside_ram", "run {spin} --entry {outside}", &["{outside}"]),
    usage("an_entry_at_the_end", "run {spin} --entry 0xffffffffffffffff", &["0xffffffffffffffff"]),
    usage(
        "an_image_larger_than_its_ram",
        "run {large} --ram {load}:4K --load {load}",
        &["0x2000", "--load"],
    ),
    usage(
        "ram_that_overlaps",
        "run {spin} --ram {load}:64K --ram {load}:4K",
        &["--ram", "overlap"],
    ),
    usage("ram_that_is_not_aligned", "run {spin} --ram 0x1001:4K", &["--ram", "0x1001"]),
    usage(
        "ram_of_a_size_that_is_not_aligned",
        "run {spin} --ram {load}:4097",
        &["--ram", "0x1001"],
    ),
    usage("ram_of_no_size", "run {spin} --ram {load}:0", &["--ram"]),
    usage(
        "ram_that_wraps",
        "run {spin} --ram 0xfffffffffffff000:8K",
        &["--ram", "0xfffffffffffff000"],
    ),
    usage("ram_beside_memory", "run {spin} --ram {load}:64K --memory 64M", &["--ram", "--memory"]),
    usage("no_memory", "run {spin} --memory 0", &["--memory", "0"]),
    usage("a_byte_of_memory", "run {spin} --memory 1", &["--memory", "1"]),
    usage("a_byte_less_than_a_page", "run {spin} --memory 4095", &["--memory", "4095"]),
    usage("memory_that_is_not_aligned", "run {spin} --memory 10000001", &["--memory", "10000001"]),
    usage("more_memory_than_the_host_has", "run {spin} --memory 8T", &["--memory"]),
    usage("more_memory_than_addresses", "run {spin} --memory 16777215T", &["--memory"]),
    usage("no_cpu", "run {spin} --cpus 0", &["--cpus", "0"]),
    usage("more_cpus_than_kvm_has", "run {spin} --cpus 65536", &["--cpus", "65536"]),
    usage(
        "more_cpus_than_a_number_holds",
        "run {spin} --cpus 99999999999",
        &["--cpus", "99999999999"],
    ),
    usage("an_unknown_register", "run {spin} --reg frobnicate=1", &["--reg", "frobnicate"]),
    usage("an_unknown_mode", "run {spin} --mode frobnicate", &["--mode", "frobnicate"]),
    usage(
        "a_console_past_the_ports",
        "run {spin} --debug-console port:0x10000",
        &["--debug-console"],
    ),
    usage(
        "a_verdict_that_can_not_be_written",
        "run {hello} --verdict {folder}/none/verdict",
        &["{folder}/none/verdict"],
    ),
    usage(
        "a_trace_that_can_not_be_written",
        "run {hello} --trace={folder}/none/trace",
        &["{folder}/none/trace"],
    ),
    usage("an_export_that_can_not_be_written", "guests export hello {folder}", &["{folder}"]),
];

/// The files that the rows name.
fn make_files() -> TempDir {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    for guest in ["spin", "hello"] {
        fs::rename(guest_file(&folder, guest), at(&format!("{guest}.bin"))).unwrap();
    }
    fs::write(at("empty"), b"").unwrap();
    fs::write(at("large"), vec![0; 0x2000]).unwrap();
    symlink("nothing", at("dangling")).unwrap();
    symlink("itself", at("itself")).unwrap();
    let path = CString::new(at("fifo").as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is a string that lives until the call is over.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);

    let segment = |guest_addr| Segment { guest_addr, bytes: &[0; 64], zeros: 0 };
    let good = elf64(MACHINE.elf_machine, MACHINE.load, &[segment(MACHINE.load)]);
    fs::write(at("cut_in_header"), &good[..60]).unwrap();
    fs::write(at("cut_in_program"), &good[..good.len() - 1]).unwrap();
    let foreign = elf64(MACHINE.foreign_elf_machine, MACHINE.load, &[segment(MACHINE.load)]);
    fs::write(at("foreign"), foreign).unwrap();
    /// `e_machine` of 32-bit Arm, which no 64-bit host here runs (System V ABI).
    const EM_ARM: u16 = 40;
    fs::write(at("foreign32"), elf32(EM_ARM, 0x8000, &[segment(0x8000)])).unwrap();
    fs::write(at("unloaded"), elf64(MACHINE.elf_machine, MACHINE.load, &[])).unwrap();
    let wraps = [Segment { zeros: u64::MAX - 64, ..segment(MACHINE.load) }];
    fs::write(at("wraps"), elf64(MACHINE.elf_machine, MACHINE.load, &wraps)).unwrap();
    folder
}

impl Wrong {
    fn test(&self) {
        let folder = make_files();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let fill = |text: &str| {
            let mut text = text
                .replace("{folder}", &folder.path().display().to_string())
                .replace("{spin}", &path("spin.bin"))
                .replace("{hello}", &path("hello.bin"))
                .replace("{load}", &format!("{:#x}", MACHINE.load))
                .replace("{outside}", &format!("{:#x}", MACHINE.outside))
                .replace("{reg}", MACHINE.register);
            while let (Some(start), Some(end)) = (text.find('{'), text.find('}')) {
                let name = text[start + 1..end].to_owned();
                text.replace_range(start..=end, &path(&name));
            }
            text
        };
        let ran = bivisor(&fill(self.args)).patience(soon()).finish();
        let named: Vec<_> = self.named.iter().map(|part| fill(part)).collect();
        check_refusal(&ran, self.status, &named.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

/// `ran` says what is wrong in one line, with all of `named` in it, and has `status`.
fn check_refusal(ran: &Ran, status: i32, named: &[&str]) {
    let lines: Vec<_> = ran.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "one line: {ran:?}");
    assert!(lines[0].starts_with("bivisor: "), "{ran:?}");
    assert!(!lines[0].contains("panicked"), "{ran:?}");
    for part in named {
        assert!(
            lines[0].to_lowercase().contains(&part.to_lowercase()),
            "{part} is not named: {ran:?}"
        );
    }
    assert_eq!(ran.status, status, "{ran:?}");
    assert!(ran.stdout.is_empty(), "{ran:?}");
}

/// The result of a system call that gives -1 on failure.
fn check(result: i32) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn an_argument_that_is_no_text_is_named() {
    let ran = bivisor("run").arg(OsStr::from_bytes(b"not-\xff-text")).patience(soon()).finish();
    check_refusal(&ran, FAILURE, &["not-"]);
    let ran = bivisor("run --memory").arg(OsStr::from_bytes(b"\xff")).patience(soon()).finish();
    check_refusal(&ran, FAILURE, &["UTF-8"]);
}

fn help_and_version_are_answers_not_errors() {
    for args in ["--help", "run --help", "guests --help", "check --help", "--version"] {
        let ran = bivisor(args).patience(soon()).finish();
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{args}");
        assert!(!ran.stdout.is_empty(), "{args}");
    }
    let ran = bivisor("--version").finish();
    assert!(ran.text().contains(env!("CARGO_PKG_VERSION")), "{ran:?}");
}

fn main() {
    let rows = |rows: &'static [Wrong], needs: &'static [common::Need]| {
        rows.iter().map(move |row| trial(row.name, needs, move || row.test()))
    };
    let mut trials: Vec<Trial> = rows(USAGE, &[]).collect();
    trials.extend(rows(BUILD, &[kvm]));
    trials.extend(cases![
        an_argument_that_is_no_text_is_named;
        help_and_version_are_answers_not_errors;
    ]);
    trials.extend(dev_kvm::trials());
    trials.extend(given::trials());
    trials.extend(streams::trials());
    trials.extend(terminal::trials());
    common::conclude(trials);
}
