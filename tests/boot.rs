//! Boots the guests with the real binary: console bytes, status and verdict of each.
//!
//! The rows below hold on both architectures alike; what differs is in the guests' own options. A
//! guest that this architecture does not have has no row to run, and a guest without a row fails.
//! What takes more than a row is in the modules.

mod common;

#[path = "boot/commands.rs"]
mod commands;
#[path = "boot/images.rs"]
mod images;
#[path = "boot/mapping.rs"]
mod mapping;
#[path = "boot/protocols.rs"]
mod protocols;
#[path = "boot/reports.rs"]
mod reports;
#[path = "boot/starts.rs"]
mod starts;
#[path = "boot/streams.rs"]
mod streams;

use std::collections::HashSet;

use bivisor::guests;
use common::{Need, a_dozen_cpus, cases, finding, folder, kvm, read_verdict, run_guest, trial};
use libtest_mimic::Trial;

/// One guest, and what it must do.
struct Row {
    /// The test's name.
    name: &'static str,
    guest: &'static str,
    /// Parts of its options to be replaced by others.
    change: &'static [(&'static str, &'static str)],
    input: &'static [u8],
    stdout: &'static str,
    status: i32,
    /// What the verdict calls the end, and the full value that was written to the exit register.
    cause: &'static str,
    code: Option<u64>,
    needs: &'static [Need],
}

/// What most rows have: no input, and an end by the guest's writing 0 to the exit register.
const ROW: Row = Row {
    name: "",
    guest: "",
    change: &[],
    input: b"",
    stdout: "",
    status: 0,
    cause: "exit",
    code: Some(0),
    needs: &[kvm],
};

/// A row whose end is not by the exit register.
const OTHER_END: Row = Row { code: None, ..ROW };

const ROWS: &[Row] = &[
    Row { name: "hello_greets", guest: "hello", stdout: "Hello, world!\n", ..ROW },
    Row {
        name: "echo_returns_its_input",
        guest: "echo",
        input: b"one\ntwo\r\n\x01\x7f, and no newline",
        stdout: "one\ntwo\r\n\x01\x7f, and no newline",
        ..ROW
    },
    Row { name: "echo_of_nothing_is_nothing", guest: "echo", ..ROW },
    Row { name: "exit_has_the_status", guest: "exit", status: 42, code: Some(42), ..ROW },
    Row { name: "exit_has_status_0", guest: "exit", change: &[("42", "0")], ..ROW },
    Row {
        name: "exit_has_the_largest_status",
        guest: "exit",
        change: &[("42", "119")],
        status: 119,
        code: Some(119),
        ..ROW
    },
    Row {
        name: "a_status_that_is_ours_becomes_119",
        guest: "exit",
        change: &[("42", "120")],
        status: 119,
        code: Some(120),
        ..ROW
    },
    Row {
        name: "a_status_of_32_bits_becomes_119",
        guest: "exit",
        change: &[("42", "0xffffff00")],
        status: 119,
        code: Some(0xffff_ff00),
        ..ROW
    },
    Row { name: "add_prints_the_sum", guest: "add", stdout: "2 + 2 = 4\n", ..ROW },
    Row {
        name: "registers_are_set_in_all_their_64_bits",
        guest: "add",
        change: &[("=2", "=0x7fffffffffffffff")],
        stdout: "9223372036854775807 + 9223372036854775807 = 18446744073709551614\n",
        ..ROW
    },
    Row {
        name: "ram_begins_and_ends_where_it_should",
        guest: "memory",
        stdout: MEMORY_IS_WELL,
        ..ROW
    },
    Row {
        name: "ram_has_the_size_that_was_asked_for",
        guest: "memory",
        change: &[("128M", "66M"), ("7ffffff", "41fffff")],
        stdout: MEMORY_IS_WELL,
        ..ROW
    },
    Row {
        name: "accesses_keep_their_width",
        guest: "widths",
        stdout: "17\n8721\n1144201745\n9833440827789222417\n\
                 255\n65535\n4294967295\n18446744073709551615\n",
        ..ROW
    },
    Row {
        name: "the_exit_register_can_be_moved",
        guest: "widths",
        change: &[("--debug-console", "--exit-register"), (",as=numbers", "")],
        status: 0x11,
        code: Some(0x11),
        ..ROW
    },
    Row {
        name: "a_debug_console_has_input",
        guest: "relay",
        input: b"over\nand out",
        stdout: "over\nand out",
        ..ROW
    },
    Row {
        name: "smp_starts_every_cpu",
        guest: "smp",
        stdout: "cpu 0\ncpu 1\ncpu 2\ncpu 3\n",
        ..ROW
    },
    Row {
        name: "smp_starts_one_other_cpu",
        guest: "smp",
        change: &[("4", "2")],
        stdout: "cpu 0\ncpu 1\n",
        ..ROW
    },
    Row {
        name: "smp_starts_more_cpus_than_there_are",
        guest: "smp",
        change: &[("4", "8")],
        stdout: "cpu 0\ncpu 1\ncpu 2\ncpu 3\ncpu 4\ncpu 5\ncpu 6\ncpu 7\n",
        ..ROW
    },
    Row { name: "pci_memory_is_sized_moved_and_used", guest: "pci", ..ROW },
    Row {
        name: "a_disk_is_read_and_written_as_far_as_it_goes",
        guest: "disk",
        input: b"wr1r0r",
        stdout: "0\n0\n1\n0\n",
        ..ROW
    },
    Row {
        name: "pci_is_there_with_a_device_alone",
        guest: "pci",
        change: &[("--rng ", "")],
        status: 1,
        code: Some(1),
        ..ROW
    },
    Row {
        name: "spin_runs_out_of_time",
        guest: "spin",
        status: 124,
        cause: "time-out",
        ..OTHER_END
    },
    Row {
        name: "sleep_runs_out_of_time",
        guest: "sleep",
        status: 124,
        cause: "time-out",
        ..OTHER_END
    },
    Row {
        name: "exits_runs_out_of_exits",
        guest: "exits",
        change: &[("100000", "1000")],
        status: 124,
        cause: "exit-limit",
        ..OTHER_END
    },
    Row {
        name: "burst_prints_its_first_line",
        guest: "burst",
        change: &[("--expect done", "--max-exits 64")],
        stdout: "0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmn\n",
        status: 124,
        cause: "exit-limit",
        ..OTHER_END
    },
    Row { name: "crash_is_a_crash", guest: "crash", status: 123, cause: "crash", ..OTHER_END },
    Row { name: "reset_is_a_reset", guest: "reset", status: 120, cause: "reset", ..OTHER_END },
    Row { name: "poweroff_is_a_power_off", guest: "poweroff", cause: "power-off", ..OTHER_END },
    Row { name: "panic_is_a_panic", guest: "panic", status: 122, cause: "panic", ..OTHER_END },
    // What only one architecture has.
    Row {
        name: "ports_keep_their_width",
        guest: "ports",
        stdout: "17\n8721\n1144201745\n255\n65535\n4294967295\n",
        cause: "halt",
        ..OTHER_END
    },
    Row {
        name: "strings_reach_a_port_item_by_item",
        guest: "strings",
        input: b"abcde",
        stdout: "1\n2\n3\n4\n5\n6\n7\n8\n513\n1027\n1541\n2055\n67305985\n134678021\nabcde",
        cause: "halt",
        ..OTHER_END
    },
    Row {
        name: "reset_through_the_keyboard_is_a_reset",
        guest: "reset_keyboard",
        status: 120,
        cause: "reset",
        ..OTHER_END
    },
    Row {
        name: "an_instruction_that_can_not_be_emulated_is_a_crash",
        guest: "unemulated",
        status: 123,
        cause: "crash",
        ..OTHER_END
    },
    Row {
        name: "a_multiboot_kernel_is_told_where_it_is",
        guest: "multiboot",
        stdout: "bivisor\nmultiboot.bin told\n\
                 00000000 0009fc00 1\n0009fc00 00060400 2\n00100000 07f00000 1\n",
        ..ROW
    },
    Row {
        name: "a_pc_has_what_a_pc_has",
        guest: "pc",
        stdout: "ACPI\ntimer\ninterrupt controller\nCMOS\nsize\n",
        cause: "power-off",
        ..OTHER_END
    },
    Row {
        name: "a_uart_interrupts_while_it_has_a_byte",
        guest: "uart",
        input: b"one\ntwo\r\n\x01\x7f, and more than a FIFO holds\0\xff, and no newline",
        stdout: "one\ntwo\r\n\x01\x7f, and more than a FIFO holds\0\u{fffd}, and no newline",
        ..ROW
    },
    Row { name: "a_uart_without_input_interrupts_once", guest: "uart", ..ROW },
    Row {
        name: "a_masked_line_of_an_io_apic_waits",
        guest: "io_apic",
        input: b"one\ntwo\r\n\x01\x7f, and more than a FIFO holds, which are just sixteen bytes, so that \
                 there is a second interrupt\n",
        stdout: "one\ntwo\r\n\x01\x7f, and more than a FIFO holds, which are just sixteen bytes, so that \
                 there is a second interrupt\n",
        ..ROW
    },
    Row { name: "an_io_apic_sends_once_without_input", guest: "io_apic", ..ROW },
    Row { name: "the_feature_sve_works", guest: "sve", needs: &[kvm, sve], ..ROW },
    Row {
        name: "the_feature_pointer_authentication_works",
        guest: "pauth",
        needs: &[kvm, pointer_authentication],
        ..ROW
    },
    // The reference guests.
    Row {
        name: "tiny_kernel_greets",
        guest: "tiny_kernel",
        stdout: "Hello,world\n",
        cause: "halt",
        ..OTHER_END
    },
    Row { name: "kvmtest_adds", guest: "kvmtest", stdout: "4\n", cause: "halt", ..OTHER_END },
    Row {
        name: "kvmtest_adds_and_greets",
        guest: "kvmtest_greeting",
        stdout: "4\nHello\n",
        cause: "halt",
        ..OTHER_END
    },
    Row {
        name: "kvmsample_counts_until_its_exits_are_over",
        guest: "kvmsample",
        change: &[("--timeout 2s", "--max-exits 5")],
        stdout: "0\n1\n2\n3\n4\n",
        status: 124,
        cause: "exit-limit",
        ..OTHER_END
    },
    Row {
        name: "simple_arm64_greets",
        guest: "simple_arm64",
        stdout: "Hello from a simple arm64 VM!\n",
        ..ROW
    },
    Row {
        name: "kvmtest_arm64_writes_its_sum",
        guest: "kvmtest_arm64",
        stdout: "4\n",
        cause: "power-off",
        ..OTHER_END
    },
];

const MEMORY_IS_WELL: &str =
    "first byte: ok\nlast byte: ok\nread from nothing: ok\nwrite to nothing: ok\n";

fn lacks(feature: &str) -> Option<String> {
    (finding(feature) != "yes").then(|| format!("this host's KVM gives guests no {feature}"))
}

fn sve() -> Option<String> {
    lacks("sve")
}

fn pointer_authentication() -> Option<String> {
    lacks("pointer-authentication")
}

impl Row {
    fn test(&self) {
        let folder = folder();
        let verdict = folder.path().join("verdict");
        let change = |options: &str| {
            self.change.iter().fold(options.to_owned(), |options, (from, to)| {
                assert!(options.contains(from), "the options of {} have no {from}", self.guest);
                options.replace(from, to)
            })
        };
        let run = run_guest(&folder, self.guest, change);
        let ran = run.arg("--verdict").arg(&verdict).input(self.input).finish();
        let verdict = read_verdict(&verdict);
        assert_eq!(ran.text(), self.stdout, "{ran:?}");
        assert_eq!(ran.status, self.status, "{ran:?}");
        assert_eq!(verdict["cause"], self.cause, "{verdict}");
        assert_eq!(verdict["status"], self.status, "{verdict}");
        assert_eq!(verdict["code"].as_u64(), self.code, "{verdict}");
        if matches!(self.cause, "exit" | "power-off" | "halt") {
            assert_eq!(ran.stderr, "", "an end of the guest's own choice is none of our business");
        } else {
            assert!(ran.stderr.starts_with("bivisor: "), "{ran:?}");
        }
    }
}

fn every_guest_has_a_row() {
    let rows: HashSet<_> = ROWS.iter().map(|row| row.guest).collect();
    for guest in guests::all() {
        assert!(rows.contains(guest.name), "{} has no row", guest.name);
    }
}

fn smp_starts_a_dozen_cpus() {
    let folder = folder();
    let ran = run_guest(&folder, "smp", |options| options.replace('4', "12")).finish();
    let expected: String = (0..12).map(|cpu| format!("cpu {cpu}\n")).collect();
    assert_eq!((ran.text(), ran.status), (expected, 0), "{ran:?}");
}

fn main() {
    let rows = ROWS.iter().filter(|row| guests::find(row.guest).is_some());
    let mut trials: Vec<Trial> =
        rows.map(|row| trial(row.name, row.needs, move || row.test())).collect();
    trials.extend(cases![
        every_guest_has_a_row;
        smp_starts_a_dozen_cpus, kvm, a_dozen_cpus;
    ]);
    trials.extend(commands::trials());
    trials.extend(images::trials());
    trials.extend(mapping::trials());
    trials.extend(protocols::trials());
    trials.extend(reports::trials());
    trials.extend(starts::trials());
    trials.extend(streams::trials());
    common::conclude(trials);
}
