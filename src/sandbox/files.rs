//! Files and sockets that are left to the process: landlock (Linux v6.12
//! Documentation/userspace-api/landlock.rst). What is open stays open. A kernel without it, or with an
//! old one, confines by system calls alone, or does without what it does not know.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Result;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, Scope,
};

use super::Again;

/// The newest that is asked for: with it come abstract sockets (Linux 6.12).
const NEWEST: ABI = ABI::V6;

/// What a machine is built with beside the files that are named.
const DEVICES: [&str; 3] = ["/dev/kvm", "/dev/net/tun", "/dev/null"];

/// Rules that leave nothing but to remove `sockets`, and what is needed `again`; none where the kernel has
/// no landlock.
pub fn rules(again: &Again, sockets: &[PathBuf]) -> Result<Option<OwnedFd>> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        // Not signals: threads that entered one by one could not kick each other before Linux 6.15.
        .scope(Scope::AbstractUnixSocket)?;
    let mut socket_access: BitFlags<AccessFs> = AccessFs::RemoveFile.into();
    if *again == Again::Never {
        ruleset = ruleset.handle_access(AccessNet::from_all(NEWEST))?;
    } else {
        socket_access |= AccessFs::MakeSock;
    }
    let mut ruleset = ruleset.create()?;
    for socket in sockets {
        let folder = socket.parent().filter(|folder| !folder.as_os_str().is_empty());
        // It is known only by its folder: the kernel asks what may be done there.
        if let Ok(folder) = PathFd::new(folder.unwrap_or(Path::new("."))) {
            ruleset = ruleset.add_rule(PathBeneath::new(folder, socket_access))?;
        }
    }
    if let Again::Build(named) = again {
        let open = open_files();
        let devices = DEVICES.iter().map(PathBuf::from);
        for path in named.iter().cloned().chain(open).chain(devices) {
            ruleset = allow(ruleset, &path)?;
        }
    }
    Ok(ruleset.into())
}

/// All that can be done to the file at `path`, or below it, but to execute it; the guest's user could
/// do no more. What is not there is left out.
fn allow(ruleset: RulesetCreated, path: &Path) -> Result<RulesetCreated> {
    let Ok(file) = PathFd::new(path) else { return Ok(ruleset) };
    let all = AccessFs::from_all(NEWEST) & !AccessFs::Execute;
    let folder = fs::metadata(path).is_ok_and(|file| file.is_dir());
    let access = if folder { all } else { all & AccessFs::from_file(NEWEST) };
    Ok(ruleset.add_rule(PathBeneath::new(file, access))?)
}

/// Files that are open now: a disk's backing file is named in the disk alone.
fn open_files() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return Vec::new() };
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.filter(|path| path.is_absolute()).collect()
}

/// Puts this thread under `rules`, and what it starts.
pub fn restrict_self(rules: &OwnedFd) -> io::Result<()> {
    let fd = rules.as_raw_fd();
    // SAFETY: takes a descriptor and no flags.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, fd, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
