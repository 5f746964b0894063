//! Stock kernels, and what their guests consist of: fetched by cross/guests.sh.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::{Run, bivisor, finding, folder};

/// Our choice: some ten times what a boot takes in an emulated host.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Debian's stable cloud kernel.
pub const CLOUD: &str = "cloud";

/// The folder of what cross/guests.sh has fetched for this architecture.
pub fn guests() -> PathBuf {
    let cache = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("cross/.cache");
    cache.join(format!("guests-{}", std::env::consts::ARCH))
}

/// Stock kernels are here.
pub fn fetched() -> Option<String> {
    (!guests().is_dir()).then(|| "no stock kernels here (cross/test fetches them)".into())
}

/// KVM can run all of a stock kernel, and not only its beginning.
pub fn whole_kernels() -> Option<String> {
    let pvm = finding("back-end").starts_with("PVM");
    pvm.then(|| "PVM runs no stock kernel to its shell".into())
}

/// A root folder with busybox and `init`.
pub fn root(init: &str) -> TempDir {
    let root = folder();
    let bin = root.path().join("bin");
    fs::create_dir(&bin).unwrap();
    fs::copy(guests().join("busybox"), bin.join("busybox")).expect("busybox is there");
    let path = root.path().join("init");
    fs::write(&path, init).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    root
}

/// What every init begins with: mounts, busybox's programs, and the drivers of virtio devices that
/// [`with_drivers`] has put there.
pub const PROLOGUE: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /mnt
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
for module in /modules/*.ko; do insmod $module; done
echo The guest is up.
";

/// Puts the named drivers into `root`, and what they need: all whose names have one of `names`.
pub fn with_drivers(root: TempDir, names: &[&str]) -> TempDir {
    let to = root.path().join("modules");
    fs::create_dir_all(&to).unwrap();
    let needed = ["virtio.ko", "virtio_ring", "virtio_mmio", "virtio_pci"];
    for entry in fs::read_dir(guests().join("modules")).expect("modules are there").flatten() {
        let name = entry.file_name().into_string().unwrap().replace('-', "_");
        if needed.iter().chain(names).any(|wanted| name.contains(wanted)) {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    root
}

/// Puts an example into `root`'s programs, as `new_name`; cargo builds it beside the tests.
pub fn add_example(root: &TempDir, name: &str, new_name: &str) {
    let own = std::env::current_exe().unwrap();
    let example = own.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    let to = root.path().join("bin").join(new_name);
    fs::copy(example, to).expect("cargo builds examples with tests");
}

/// `bivisor run` of `kernel` with `root` as its initial RAM disk.
pub fn boot(kernel: &str, root: &TempDir) -> Run {
    let run = bivisor("run").arg(guests().join(kernel)).arg("--initrd-dir").arg(root.path());
    run.patience(PATIENCE)
}

/// Runs a program of cross/guests.sh's that makes or checks disks.
pub fn tool(name: &str, arguments: &[&str], paths: &[&Path]) -> Output {
    let mut command = program(&format!("disk-tools/{name}"));
    command.args(arguments).args(paths).stdin(Stdio::null());
    command.output().unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Runs one that must succeed.
pub fn works(name: &str, arguments: &[&str], paths: &[&Path]) {
    let output = tool(name, arguments, paths);
    assert!(output.status.success(), "{name} {arguments:?}: {output:?}");
}

/// A program of a tree that cross/guests.sh made in the guests' folder `tree`.
pub fn program(tree: &str) -> Command {
    let tree = guests().join(tree);
    let name = tree.file_name().unwrap();
    let mut command = Command::new(tree.join("loader"));
    command.arg("--library-path").arg(&tree).arg(tree.join(Path::new(name)));
    command
}

/// Puts a program of such a tree into `folder`, under its own name, for those who look there for it.
pub fn add_program(folder: &Path, tree: &str) {
    let (shell, tree) = (guests().join("busybox"), guests().join(tree));
    let name = tree.file_name().unwrap();
    let (path, program) = (folder.join(name), tree.join(name));
    let (shell, tree, program) = (shell.display(), tree.display(), program.display());
    let run = format!("exec {tree}/loader --library-path {tree} {program} \"$@\"");
    fs::write(&path, format!("#!{shell} sh\n{run}\n")).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
}
