//! What benchmarks of guests share: where things lie, QEMU as a peer, and medians.

pub mod peers;
pub mod report;
pub mod smaps;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bivisor::terminal::open_pty;

/// Of every guest.
pub const MEMORY_MIB: u32 = 256;

/// The folder of what cross/guests.sh has fetched for this architecture.
pub fn guests() -> PathBuf {
    cache().join(format!("guests-{}", std::env::consts::ARCH))
}

fn cache() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cross/.cache")
}

/// How many rounds: `default`, or `BIVISOR_ROUNDS`.
pub fn rounds(default: usize) -> usize {
    std::env::var("BIVISOR_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// An initial RAM disk in `folder`, with busybox, what `fill` puts into its root, and `init`.
pub fn initrd(folder: &Path, init: &str, fill: impl Fn(&Path)) -> PathBuf {
    let root = folder.join("root");
    fs::create_dir_all(root.join("bin")).expect("make the guest's folders");
    fs::copy(guests().join("busybox"), root.join("bin/busybox")).expect("cross/bench fetches it");
    fill(&root);
    fs::write(root.join("init"), init).expect("write the init");
    fs::set_permissions(root.join("init"), PermissionsExt::from_mode(0o755)).expect("chmod");
    let initrd = folder.join("initrd");
    let archive = bivisor::archive::pack(&root, 1 << 30).expect("pack an archive");
    fs::write(&initrd, archive).expect("write the archive");
    initrd
}

/// The program `name` of a tree that cross/guests.sh or cross/bench made, by its own loader.
pub fn program(tree: &Path, name: &str) -> Command {
    let mut command = Command::new(tree.join("loader"));
    command.arg("--library-path").arg(tree).arg(tree.join(name));
    command
}

/// A terminal as the standard input of a monitor that wants one: its other side, which has to stay open, too.
pub fn terminal() -> (File, Stdio) {
    let (upper, path) = open_pty().expect("open a terminal");
    let lower = File::options().read(true).write(true).open(path).expect("open a terminal");
    (upper, lower.into())
}

/// bivisor with the stock kernel, and the options in `words`.
pub fn bivisor(initrd: &Path, words: &str) -> Command {
    bivisor_with(&guests().join("cloud"), initrd, words)
}

/// bivisor with this kernel, and the options in `words`.
pub fn bivisor_with(kernel: &Path, initrd: &Path, words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bivisor"));
    command.arg("run").arg(kernel).arg("--initrd").arg(initrd);
    command.args(["--memory", &format!("{MEMORY_MIB}M"), "--cmdline", "quiet"]);
    command.args(words.split_whitespace());
    command
}

/// QEMU of Debian's packages, by its own loader, with the same; none if cross/bench did not fetch it.
pub fn qemu(kernel: &Path, initrd: Option<&Path>, words: &str) -> Option<Command> {
    let arch = std::env::consts::ARCH;
    let folder = cache().join(format!("qemu-{arch}"));
    if !folder.is_dir() {
        return None;
    }
    let (machine, console) = match arch {
        "x86_64" => ("microvm,rtc=on", "ttyS0"),
        _ => ("virt,gic-version=host", "ttyAMA0"),
    };
    let mut command = program(&folder, &format!("qemu-system-{arch}"));
    command.arg("-L").arg(folder.join("qemu"));
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.args(["-M", machine, "-accel", "kvm", "-cpu", "host"]);
    command.args(["-m", &MEMORY_MIB.to_string()]);
    command.args(["-serial", "stdio", "-append", &format!("console={console} panic=-1 quiet")]);
    command.arg("-kernel").arg(kernel);
    if let Some(initrd) = initrd {
        command.arg("-initrd").arg(initrd);
    }
    command.args(words.split_whitespace());
    Some(command)
}
