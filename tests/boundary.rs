//! Keeps the boundary between the core and the architectures, and the list of files that may hold
//! `unsafe`.

use std::fs;
use std::path::{Path, PathBuf};

/// Words that name an architecture or what only one of them has. `src/` holds none of them.
const ARCHITECTURE_WORDS: &[&str] = &[
    "x86",
    "amd64",
    "aarch64",
    "arm64",
    "i386",
    "target_arch",
    "cpuid",
    "apic",
    "sregs",
    "rflags",
    "psci",
    "gicv",
    "vgic",
    "device_tree",
    "device tree",
    "0x3f8",
    "0xf4",
    "0x4000_0000",
    "el1",
];

/// Lines of `src/` in which such a word names a file format and no architecture that we run on:
/// what a foreign image is for has to be said.
const EXCEPTIONS: &[&str] = &[
    // Formats that are recognised, with the names that their users know.
    "Documentation/arch/x86/boot.rst",
    "Documentation/arch/arm64/booting.rst",
    "an arm64 Image Linux kernel",
    // `e_machine` values, for the message about an image for another machine.
    "\"AMD64\".into()",
    // What the crate is.
    "the same program on x86-64 and aarch64",
];

/// Modules of the core that architectures must not reach for: those that decide and act. What they
/// may use is vocabulary: exit, board, debug, irq, memory, places, payload, kick, run,
/// layout_check.
const ABOVE: &[&str] = &[
    "crate::bus",
    "crate::config",
    "crate::console",
    "crate::devices",
    "crate::event_loop",
    "crate::gdb",
    "crate::host",
    "crate::journal",
    "crate::machine",
    "crate::outcome",
    "crate::sys",
    "crate::trace",
    "crate::verdict",
];

/// The files that may hold `unsafe`, and why.
const UNSAFE_FILES: &[&str] = &[
    "arch/aarch64/gdb.rs",    // cache maintenance
    "arch/aarch64/kvm.rs",    // the run page's members
    "arch/run_page.rs",       // the page that KVM shares
    "arch/x86_64/gdb.rs",     // a structure whose end depends on what it holds
    "arch/x86_64/kvm.rs",     // the run page's members
    "guests/mod.rs",          // what the assembler put between two symbols
    "src/allocator.rs",       // a heap
    "src/bell.rs",            // the process's timer
    "src/child.rs",           // what is done before another program begins
    "src/host_memory.rs",     // mmap
    "src/kick.rs",            // `immediate_exit` from another thread
    "src/mapped.rs",          // mmap and SIGBUS
    "src/memory.rs",          // memory slots
    "src/own_code.rs",        // madvise of the program's code
    "src/pieces.rs",          // guest RAM for system calls
    "src/sandbox/files.rs",   // landlock
    "src/sandbox/filter.rs",  // seccomp
    "src/sandbox/refused.rs", // a signal's context
    "src/start.rs",           // C's main
    "src/sys.rs",             // system calls
    "src/terminal.rs",        // termios
    // An allocator that counts, for a test.
    "src/virtio/counted.rs",
    // Requests to io_uring, and mounts for a test of a full file system.
    "src/devices/block/ring.rs",
    "src/devices/block/tests/faults.rs",
    // A network of its own, for tests.
    "src/machine/player/host.rs",
    // Requests of tap devices.
    "src/devices/net/tun.rs",
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every line of the Rust files below `dir`: the file's path from the root, the number, the text.
fn lines(dir: &str) -> Vec<(String, usize, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join(dir), &mut files);
    assert!(!files.is_empty(), "{dir} has no sources: wrong path?");
    let mut found = Vec::new();
    for file in files {
        let name = file.strip_prefix(root).unwrap().display().to_string();
        for (index, line) in fs::read_to_string(&file).unwrap().lines().enumerate() {
            found.push((name.clone(), index + 1, line.to_string()));
        }
    }
    found
}

fn none(bad: Vec<String>) {
    assert!(bad.is_empty(), "\n{}", bad.join("\n"));
}

/// True if a word of `line` begins with `word`.
fn names(line: &str, word: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| !line[..at].chars().next_back().is_some_and(is_word))
}

#[test]
fn the_core_names_no_architecture() {
    let bad = lines("src").into_iter().filter(|(_, _, line)| {
        let low = line.to_lowercase();
        ARCHITECTURE_WORDS.iter().any(|word| names(&low, word))
            && !EXCEPTIONS.iter().any(|exception| line.contains(exception))
    });
    none(bad.map(|(file, number, line)| format!("{file}:{number}: {line}")).collect());
}

#[test]
fn only_the_boundary_selects_an_architecture() {
    let bad = ["src", "arch", "guests"].into_iter().flat_map(lines).filter(|(file, _, line)| {
        let is_a_boundary = file.starts_with("arch/") && file.ends_with("/mod.rs");
        line.contains("target_arch") && !is_a_boundary
    });
    none(bad.map(|(file, number, line)| format!("{file}:{number}: {line}")).collect());
}

#[test]
fn architectures_do_not_reach_up() {
    let bad = lines("arch")
        .into_iter()
        .filter(|(_, _, line)| ABOVE.iter().any(|module| line.contains(module)));
    none(bad.map(|(file, number, line)| format!("{file}:{number}: {line}")).collect());
}

#[test]
fn unsafe_stays_in_its_files() {
    let all: Vec<_> = ["src", "arch", "guests"].into_iter().flat_map(lines).collect();
    let uses = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe("]
            .iter()
            .any(|form| code.contains(form))
    };
    let bad = all
        .iter()
        .filter(|(file, _, line)| uses(line) && !UNSAFE_FILES.contains(&file.as_str()))
        .map(|(file, number, line)| format!("{file}:{number}: {line}"));
    none(bad.collect());
    let stale = UNSAFE_FILES
        .iter()
        .filter(|file| !all.iter().any(|(name, _, line)| name == *file && uses(line)));
    none(stale.map(|file| format!("{file} is listed but holds no unsafe code")).collect());
}
