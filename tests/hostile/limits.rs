//! HOSTILE 13 and 14: a host that gives little, and surroundings that are not there.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;

use libtest_mimic::Trial;

use crate::common::{Ran, Run, bivisor, cases, folder, guest_file, kvm};
use crate::is_clean;

/// `run` with at most `count` of a resource.
pub fn limited(mut run: Run, resource: libc::c_int, count: u64) -> Run {
    let limit = move || {
        let limit = libc::rlimit { rlim_cur: count, rlim_max: count };
        // SAFETY: the limits have a place.
        match unsafe { libc::setrlimit(resource as _, &limit) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one system call.
    unsafe { run.command.pre_exec(limit) };
    run
}

fn with_limit(run: Run, resource: libc::c_int, count: u64) -> Ran {
    limited(run, resource, count).finish()
}

/// The same, or it never came to us: before us comes the one that loads the C library.
fn is_clean_or_not_loaded(ran: &Ran) -> bool {
    let loader = "error while loading shared libraries";
    is_clean(ran) || ran.status == 127 && ran.stderr.contains(loader)
}

fn hostile_13_limits_of_the_process_are_errors() {
    let (as_, files) = (libc::RLIMIT_AS as libc::c_int, libc::RLIMIT_NOFILE as libc::c_int);
    let (core, size) = (libc::RLIMIT_CORE as libc::c_int, libc::RLIMIT_FSIZE as libc::c_int);
    for (what, resource, counts) in [
        ("address space", as_, &[64 << 20, 100 << 20, 200 << 20][..]),
        ("files", files, &[3, 4, 5, 6, 8, 10, 12, 16, 20, 30]),
        ("core", core, &[0]),
        ("file size", size, &[0]),
    ] {
        for count in counts {
            let ran = with_limit(bivisor("hello"), resource, *count);
            assert!(is_clean_or_not_loaded(&ran), "{what} {count}: {ran:?}");
        }
    }
    // Enough is enough.
    assert_eq!(with_limit(bivisor("hello"), files, 30).status, 0);
    // A file of ours that must not grow is an error and no death by SIGXFSZ.
    let folder = folder();
    let verdict = folder.path().join("verdict");
    let ran = with_limit(bivisor("hello --verdict").arg(&verdict), size, 0);
    assert_eq!(ran.status, 125, "{ran:?}");
    assert!(ran.stderr.starts_with("bivisor: write the verdict"), "{ran:?}");
}

fn hostile_14_surroundings_may_be_missing() {
    let folder = folder();
    let guest = guest_file(&folder, "hello");
    let mut run = bivisor("run").arg(&guest);
    run.command.env_clear();
    assert_eq!(run.finish().status, 0);
    // A folder that is gone by the time that it is worked in.
    let gone = folder.path().join("gone");
    fs::create_dir(&gone).unwrap();
    let mut run = bivisor("run").arg(&guest);
    run.command.current_dir(&gone);
    let remove = std::ffi::CString::new(gone.to_str().unwrap()).unwrap();
    let remove = move || {
        // SAFETY: the path is a string that ends with a zero byte.
        match unsafe { libc::rmdir(remove.as_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one system call.
    unsafe { run.command.pre_exec(remove) };
    assert_eq!(run.finish().status, 0);
    // A place for temporary files that is none.
    let mut run = bivisor("run").arg(&guest).words("--scratch 1M");
    run.command.env("TMPDIR", "/does/not/exist");
    let ran = run.finish();
    assert!(is_clean(&ran), "{ran:?}");
    if ran.status != 0 {
        assert!(ran.stderr.contains("--scratch"), "{ran:?}");
    }
}

pub fn trials() -> Vec<Trial> {
    cases![
        hostile_13_limits_of_the_process_are_errors, kvm;
        hostile_14_surroundings_may_be_missing, kvm;
    ]
}
