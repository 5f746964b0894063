//! The processes of a job, from the fork on: its own mounts, process numbers and root folder.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nested::{sys, unpack};

use crate::FAILED;
use crate::cache::{Wanted, put};

/// The signals that are passed on to a job.
const PASSED: [i32; 6] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

/// What a job is to do.
pub struct Order {
    folder: PathBuf,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
}

impl Order {
    pub fn new(list: &[u8]) -> Option<Order> {
        let mut items = unpack(list).into_iter().map(OsString::from_vec);
        let folder = items.next()?.into();
        let count: usize = items.next()?.to_str()?.parse().ok()?;
        let arguments: Vec<_> = items.by_ref().take(count).collect();
        let variables = items
            .filter_map(|item| {
                let bytes = item.into_vec();
                let split = bytes.iter().position(|byte| *byte == b'=')?;
                let (name, value) = (bytes[..split].to_vec(), bytes[split + 1..].to_vec());
                Some((OsString::from_vec(name), OsString::from_vec(value)))
            })
            .collect();
        (!arguments.is_empty()).then_some(Order { folder, arguments, variables })
    }
}

/// In the forked child: builds the job's world, runs it, and tells through `told` how it ended.
pub fn begin(order: Order, wanted: &[Wanted], told: File) -> ! {
    const TOLD: i32 = 3;
    sys::place(&told, TOLD).ok();
    std::mem::forget(told);
    // SAFETY: this process leaves without dropping what it got from its parent.
    unsafe { sys::close_from(TOLD + 1) };
    sys::close_on_exec_from(TOLD);
    // SAFETY: the descriptor was placed above, and nothing else here owns it.
    let mut told = unsafe { sys::own(TOLD) };
    sys::block_signals(&awaited()).ok();
    sys::new_session();
    let result = sys::unshare_mounts_and_pids()
        // SAFETY: a forked child has one thread, and none was started since.
        .and_then(|()| unsafe { sys::fork() });
    match result {
        Ok(None) => {
            sys::die_with_parent().ok();
            sys::leave(first_process(&order, wanted, &mut told));
        }
        Ok(Some(first)) => {
            tell(&mut told, FIRST, first as u32);
            std::mem::forget(told);
            // Only the first process may keep the job's streams open.
            // SAFETY: nothing that owns a descriptor is used from here on.
            unsafe { sys::close_from(0) };
            loop {
                sys::wait_signal(&[libc::SIGCHLD]);
                if sys::reap().is_some() {
                    sys::leave(0);
                }
            }
        }
        Err(e) => {
            eprintln!("nested: separate a job: {e}");
            sys::leave(1);
        }
    }
}

/// What is told through the status pipe: the pid of a job's first process, and the job's end.
pub const FIRST: u32 = 1;
pub const ENDED: u32 = 2;

fn tell(told: &mut File, what: u32, value: u32) {
    let mut record = what.to_le_bytes().to_vec();
    record.extend_from_slice(&value.to_le_bytes());
    // One write, so that the records of two processes do not mix.
    told.write_all(&record).ok();
}

fn awaited() -> Vec<i32> {
    PASSED.into_iter().chain([libc::SIGCHLD]).collect()
}

/// Process 1 of a job: waits for the job proper, reaps what it leaves, passes signals on.
fn first_process(order: &Order, wanted: &[Wanted], told: &mut File) -> i32 {
    if let Err(e) = furnish(order, wanted) {
        eprintln!("nested: {e}");
        tell(told, ENDED, FAILED);
        return 1;
    }
    let mut command = Command::new(&order.arguments[0]);
    command.args(&order.arguments[1..]).env_clear().envs(order.variables.iter().cloned());
    command.process_group(0);
    // SAFETY: the function makes plain system calls only.
    unsafe { command.pre_exec(|| sys::block_signals(&[])) };
    let child = match command.spawn() {
        Ok(child) => child.id() as i32,
        Err(e) => {
            let path = order.arguments[0].to_string_lossy();
            let linked = Path::new(&order.arguments[0]).exists();
            let hint = if linked { " (only static programs run here)" } else { "" };
            eprintln!("nested: start {path}: {e}{hint}");
            tell(told, ENDED, FAILED);
            return 1;
        }
    };
    loop {
        match sys::wait_signal(&awaited()) {
            libc::SIGCHLD => {
                while let Some((pid, status)) = sys::reap() {
                    if pid == child {
                        tell(told, ENDED, status);
                        return 0;
                    }
                }
            }
            signal if signal > 0 => sys::kill(-child, signal),
            _ => {}
        }
    }
}

/// Makes the job's root folder, fills it, and moves into it.
fn furnish(order: &Order, wanted: &[Wanted]) -> io::Result<()> {
    let root = Path::new("/job");
    sys::mount("job", root, "tmpfs", 0, "size=75%,mode=755")?;
    for (name, mode) in [("tmp", 0o1777), ("root", 0o700)] {
        DirBuilder::new().mode(mode).create(root.join(name))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    for file in wanted {
        let path = inside(root, &file.path);
        put(file, &path)
            .map_err(|e| io::Error::other(format!("place {}: {e}", file.path.display())))?;
    }
    fs::create_dir_all(inside(root, &order.folder))?;
    for name in ["dev", "proc", "sys"] {
        fs::create_dir_all(root.join(name))?;
    }
    for name in ["dev", "sys"] {
        sys::mount(&format!("/{name}"), &root.join(name), "", sys::MOUNT_BIND, "")?;
    }
    sys::mount("proc", &root.join("proc"), "proc", 0, "")?;
    // Moved, not only chroot'ed into: a process in a chroot may not make user namespaces.
    std::env::set_current_dir(root)?;
    sys::mount(".", Path::new("/"), "", sys::MOUNT_MOVE, "")?;
    std::os::unix::fs::chroot(".")?;
    std::env::set_current_dir(&order.folder)
}

fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}
