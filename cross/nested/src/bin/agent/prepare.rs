//! Makes the emulated host ready for jobs: mounts, modules, and what KVM should always have.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nested::sys::{self, Kvm};

/// KVM keeps the rate of the CPU's clock that the kernel knows when it is loaded. If that is corrected
/// later by more than 250 millionths, as happens where this host starts on a busy machine, its guests'
/// timers never come. The kernel itself corrects up to a hundredth
/// (arch/x86/kernel/tsc.c, `tsc_refine_calibration_work`).
const KVM_PARAMETERS: &CStr = c"tsc_tolerance_ppm=10000";

/// Mounts, modules, loopback. Returns what must stay open.
pub fn prepare() -> io::Result<Vec<OwnedFd>> {
    mount_kernel_folders(Path::new("/"))?;
    let mut modules: Vec<PathBuf> =
        fs::read_dir("/modules")?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    modules.sort();
    for module in &modules {
        let is_kvm = module.to_string_lossy().ends_with("-kvm.ko");
        let parameters = if is_kvm { KVM_PARAMETERS } else { c"" };
        if let Err(e) = File::open(module).and_then(|file| sys::load_module(&file, parameters)) {
            eprintln!("agent: load {}: {e}", module.display());
        }
    }
    fs::create_dir("/cache")?;
    fs::create_dir("/job")?;
    sys::mount("cache", Path::new("/cache"), "tmpfs", 0, "size=75%")?;
    if let Err(e) = sys::loopback_up() {
        eprintln!("agent: set the loopback interface up: {e}");
    }
    Ok(hold_idle_vms())
}

/// Keeps VMs open that do nothing, so that those of the jobs are never the first or the last of
/// their kind. KVM has a branch in its code and in the scheduler's patched at each such moment
/// (its static keys), and hosts with two CPUs were seen to hang in just those places: QEMU 7.2
/// seems to go on running what was there when one CPU translates code that another changes.
fn hold_idle_vms() -> Vec<OwnedFd> {
    let mut held = Vec::new();
    if let Err(e) = open_idle_vms(&mut held) {
        eprintln!("agent: hold idle VMs: {e}");
    }
    held
}

fn open_idle_vms(held: &mut Vec<OwnedFd>) -> io::Result<()> {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
    // preempt_notifier_key: there is a VM.
    let plain = sys::kvm(&kvm, Kvm::CreateVm, 0)?.ok_or(io::ErrorKind::Other)?;
    #[cfg(target_arch = "x86_64")]
    {
        // kvm_has_noapic_vcpu: there is a vCPU without an APIC in the kernel.
        held.extend(sys::kvm(&plain, Kvm::CreateVcpu, 0)?);
        // apic_sw_disabled and apic_hw_disabled: there is one whose APIC is off in either way.
        let chips = sys::kvm(&kvm, Kvm::CreateVm, 0)?.ok_or(io::ErrorKind::Other)?;
        sys::kvm(&chips, Kvm::CreateIrqchip, 0)?;
        held.extend(sys::kvm(&chips, Kvm::CreateVcpu, 0)?);
        let off = sys::kvm(&chips, Kvm::CreateVcpu, 1)?.ok_or(io::ErrorKind::Other)?;
        sys::switch_apic_off(&off)?;
        held.extend([chips, off]);
    }
    held.push(plain);
    Ok(())
}

fn mount_kernel_folders(root: &Path) -> io::Result<()> {
    for (kind, name) in [
        ("devtmpfs", "dev"),
        ("proc", "proc"),
        ("sysfs", "sys"),
        ("devpts", "dev/pts"),
        ("tmpfs", "dev/shm"),
    ] {
        fs::create_dir_all(root.join(name))?;
        sys::mount(kind, &root.join(name), kind, 0, "")?;
    }
    for (name, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        symlink(format!("/proc/self/fd{target}"), root.join("dev").join(name)).ok();
    }
    Ok(())
}
