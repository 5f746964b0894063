//! virtiofsd, the back end for shared folders: finding it, and starting it for one folder.
//!
//! There are two programs of that name. That of QEMU up to 7.2, in C, has options behind `-o`, needs
//! root and knows no read-only folder: so it is given one that is mounted so, for it alone. The other
//! one, in Rust, has everything.
//!
//! Both want a socket that listens, and take one connection. It is made, connected to and removed from
//! the file system before either is started, so nobody else can connect, and no file is left however
//! we end. When the connection ends, so do they.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::child::{Child, Terms};

const PROGRAM: &str = "virtiofsd";

/// Where distributions have it, since it is no command for people: Fedora and Debian 13, Arch, and
/// QEMU's own in Debian 12.
const FOLDERS: [&str; 3] = ["/usr/libexec", "/usr/lib", "/usr/lib/qemu"];

/// Bytes of a help text that are looked at. Our choice: some ten times what the longest has.
const HELP_MAX: u64 = 1 << 17;

/// Which of the two programs it is, and what it can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Qemu,
    Rust { has_readonly: bool },
}

impl Style {
    /// By the program's own help.
    fn of(help: &str) -> Self {
        if help.contains("--shared-dir") {
            Self::Rust { has_readonly: help.contains("--readonly") }
        } else {
            Self::Qemu
        }
    }

    /// The options for `folder`, with a socket that is descriptor `fd`.
    fn options(self, folder: &Path, read_only: bool, fd: i32) -> Vec<OsString> {
        let mut options = vec![format!("--fd={fd}").into()];
        match self {
            Self::Qemu => {
                options.extend(["-o", "log_level=err", "-o"].map(OsString::from));
                options.push(source(folder));
            }
            Self::Rust { .. } => {
                options.extend(["--log-level=error", "--shared-dir"].map(OsString::from));
                options.push(folder.into());
                options.extend(read_only.then(|| "--readonly".into()));
            }
        }
        options
    }
}

/// `source=` of the program in C, in whose options a comma ends a value.
fn source(folder: &Path) -> OsString {
    let mut option = b"source=".to_vec();
    for byte in folder.as_os_str().as_bytes() {
        if matches!(byte, b',' | b'\\') {
            option.push(b'\\');
        }
        option.push(*byte);
    }
    OsString::from_vec(option)
}

/// Starts virtiofsd for `folder`; gives it and our end of the connection.
pub fn start(folder: &Path, read_only: bool) -> Result<(Child, UnixStream)> {
    let folder = folder_at(folder)?;
    let program = find().with_context(|| {
        format!(
            "there is no {PROGRAM} here: install it \
             (apt install {PROGRAM}; in Debian 12 it is in qemu-system-common)"
        )
    })?;
    let what = || format!("start {}", program.display());
    let style = Style::of(&help(&program).with_context(what)?);
    if style == Style::Qemu {
        ensure!(
            rustix::process::geteuid().is_root(),
            "{} is QEMU's, which needs root: be root, or install a newer {PROGRAM} (Debian 13 has it)",
            program.display()
        );
    }
    ensure!(
        !read_only || style != Style::Rust { has_readonly: false },
        "{} has no option for read-only: install 1.13 or newer, or leave readonly out",
        program.display()
    );
    let temporary = std::env::temp_dir();
    let (listener, socket) = rendezvous(&temporary).with_context(|| {
        format!("make a socket in {} (TMPDIR names another folder)", temporary.display())
    })?;
    let mut command = Command::new(&program);
    command.args(style.options(&folder, read_only, listener.as_raw_fd()));
    let mount = (style == Style::Qemu && read_only).then_some(folder.as_path());
    let terms = Terms { name: PROGRAM, passes: listener.into(), read_only: mount };
    let child = Child::start(command, terms).with_context(what)?;
    Ok((child, socket))
}

/// The folder's own path, without links.
fn folder_at(path: &Path) -> Result<PathBuf> {
    let folder = fs::canonicalize(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow::anyhow!("there is no such folder: make it (mkdir)"),
        _ => error.into(),
    })?;
    ensure!(folder.is_dir(), "it is no folder: share the one that it lies in");
    Ok(folder)
}

/// Where the program is.
fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(FOLDERS.map(PathBuf::from));
    folders.map(|folder| folder.join(PROGRAM)).find(|file| {
        let data = fs::metadata(file);
        data.is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    })
}

/// What the program says about itself.
fn help(program: &Path) -> io::Result<String> {
    let mut command = Command::new(program);
    command.arg("--help").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let mut text = Vec::new();
    let stdout = child.stdout.take().expect("it is piped");
    let read = stdout.take(HELP_MAX).read_to_end(&mut text);
    child.wait()?;
    read?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A socket that listens and no longer has a name, made in `temporary`, and the only connection that
/// waits there.
fn rendezvous(temporary: &Path) -> io::Result<(UnixListener, UnixStream)> {
    let folder = own_folder(temporary)?;
    let path = folder.join("socket");
    let made = UnixListener::bind(&path).and_then(|listener| {
        let socket = UnixStream::connect(&path)?;
        Ok((listener, socket))
    });
    // Nothing can be done about a folder that can't be removed.
    let _ = fs::remove_file(&path);
    let _ = fs::remove_dir(&folder);
    made
}

/// A new folder that nobody else may look into.
fn own_folder(temporary: &Path) -> io::Result<PathBuf> {
    /// Our choice: so many other processes can have our number, in namespaces of their own.
    const TRIES: u32 = 100;
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let mut made = Err(io::ErrorKind::AlreadyExists.into());
    for _ in 0..TRIES {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = temporary.join(format!("bivisor-{}-{number}", process::id()));
        made = DirBuilder::new().mode(0o700).create(&folder).map(|()| folder);
        if !matches!(&made, Err(error) if error.kind() == io::ErrorKind::AlreadyExists) {
            break;
        }
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_programs_are_told_apart_and_get_their_options() {
        let rust = Style::of("  --shared-dir <shared-dir>\n  --readonly\n");
        assert_eq!(rust, Style::Rust { has_readonly: true });
        assert_eq!(Style::of("--shared-dir"), Style::Rust { has_readonly: false });
        assert_eq!(Style::of("-o source=PATH"), Style::Qemu);
        let folder = Path::new("/a,b\\c");
        let options =
            |style: Style, read_only| style.options(folder, read_only, 7).join(" ".as_ref());
        assert_eq!(options(Style::Qemu, false), r"--fd=7 -o log_level=err -o source=/a\,b\\c");
        assert_eq!(options(rust, true), r"--fd=7 --log-level=error --shared-dir /a,b\c --readonly");
    }

    #[test]
    fn what_is_no_folder_is_refused_with_the_mend() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (path, message) in [
            (Path::new("/nosuch/folder"), "there is no such folder"),
            (file.path(), "it is no folder"),
        ] {
            let error = folder_at(path).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn a_rendezvous_leaves_no_file() {
        let temporary = tempfile::tempdir().unwrap();
        // Names that are taken are passed over.
        for number in 0..20 {
            let name = format!("bivisor-{}-{number}", process::id());
            fs::create_dir(temporary.path().join(name)).unwrap();
        }
        let (listener, mut ours) = rendezvous(temporary.path()).unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        io::Write::write_all(&mut theirs, b"x").unwrap();
        assert_eq!(ours.read(&mut [0]).unwrap(), 1);
        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 20);
        assert!(rendezvous(Path::new("/nosuch")).is_err());
    }
}
