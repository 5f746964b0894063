//! Other monitors, as their users start them for a stock kernel with a serial console. Each is a candidate
//! where its program is named by an environment variable. QEMU is one where cross/bench has fetched it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{MEMORY_MIB, qemu};

/// A boot: all that monitors are told.
#[derive(Clone)]
pub struct Boot {
    /// For what each needs besides.
    pub folder: PathBuf,
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
    pub cpus: usize,
}

/// Another monitor: its name, and what starts it.
pub type Peer = (&'static str, Box<dyn Fn(&Boot) -> Command>);

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn cmdline(console: &str) -> String {
    format!("console={console} quiet panic=-1")
}

fn own_console() -> &'static str {
    if cfg!(target_arch = "x86_64") { "ttyS0" } else { "ttyAMA0" }
}

fn add_initrd(command: &mut Command, option: &str, boot: &Boot) {
    if let Some(initrd) = &boot.initrd {
        command.arg(option).arg(initrd);
    }
}

/// Firecracker 1.x: by a configuration file.
fn firecracker(program: &Path, boot: &Boot) -> Command {
    let config = boot.folder.join(format!("firecracker-{}.json", boot.cpus));
    let content = serde_json::json!({
        "boot-source": {
            "kernel_image_path": text(&boot.kernel),
            "initrd_path": boot.initrd.as_deref().map(text),
            "boot_args": format!("{} reboot=k", cmdline("ttyS0")),
        },
        "drives": [],
        "machine-config": { "vcpu_count": boot.cpus, "mem_size_mib": MEMORY_MIB },
    });
    fs::write(&config, content.to_string()).expect("write a configuration");
    let mut command = Command::new(program);
    command.args(["--no-api", "--config-file"]).arg(config);
    command
}

fn cloud_hypervisor(program: &Path, boot: &Boot) -> Command {
    let mut command = Command::new(program);
    command.arg("--kernel").arg(&boot.kernel);
    add_initrd(&mut command, "--initramfs", boot);
    command.args(["--cpus", &format!("boot={}", boot.cpus)]);
    command.args(["--memory", &format!("size={MEMORY_MIB}M")]);
    command.args(["--serial", "tty", "--console", "off", "--cmdline", &cmdline(own_console())]);
    command
}

fn crosvm(program: &Path, boot: &Boot) -> Command {
    let mut command = Command::new(program);
    command.args(["run", "--disable-sandbox", "--mem", &MEMORY_MIB.to_string()]);
    command.args(["--cpus", &boot.cpus.to_string(), "--params", &cmdline("ttyS0")]);
    command.args(["--serial", "type=stdout,hardware=serial,num=1"]);
    add_initrd(&mut command, "--initrd", boot);
    command.arg(&boot.kernel);
    command
}

/// alioth 0.12, which wants a terminal as its standard input.
fn alioth(program: &Path, boot: &Boot) -> Command {
    let mut command = Command::new(program);
    let kernel = if cfg!(target_arch = "x86_64") { "--pvh" } else { "--kernel" };
    command.arg("boot").arg(kernel).arg(&boot.kernel);
    add_initrd(&mut command, "--initramfs", boot);
    command.args(["--cmdline", &cmdline(own_console()), "--cpu", &format!("count={}", boot.cpus)]);
    command.args(["--memory", &format!("size={MEMORY_MIB}M")]);
    command
}

fn kvmtool(program: &Path, boot: &Boot) -> Command {
    let mut command = Command::new(program);
    command.arg("run").arg("--kernel").arg(&boot.kernel);
    add_initrd(&mut command, "--initrd", boot);
    command.args(["--cpus", &boot.cpus.to_string(), "--mem", &MEMORY_MIB.to_string()]);
    command.args(["--console", "serial", "--network", "mode=none", "--params", &cmdline("ttyS0")]);
    command
}

/// All that there are here.
pub fn all() -> Vec<Peer> {
    let mut peers: Vec<Peer> = Vec::new();
    let has_qemu = qemu(Path::new("kernel"), None, "").is_some();
    if has_qemu {
        let command = |boot: &Boot| {
            let cpus = format!("-smp {}", boot.cpus);
            qemu(&boot.kernel, boot.initrd.as_deref(), &cpus).expect("it was there")
        };
        peers.push(("QEMU", Box::new(command)));
    }
    type Start = fn(&Path, &Boot) -> Command;
    let others: [(&str, &str, Start); 5] = [
        ("Firecracker", "BIVISOR_FIRECRACKER", firecracker),
        ("Cloud Hypervisor", "BIVISOR_CLOUD_HYPERVISOR", cloud_hypervisor),
        ("crosvm", "BIVISOR_CROSVM", crosvm),
        ("alioth", "BIVISOR_ALIOTH", alioth),
        ("kvmtool", "BIVISOR_KVMTOOL", kvmtool),
    ];
    for (name, variable, command) in others {
        if let Some(program) = std::env::var_os(variable).map(PathBuf::from) {
            peers.push((name, Box::new(move |boot| command(&program, boot))));
        }
    }
    peers
}
