//! Runs one program in an emulated host with KVM: starts the host where none runs yet, sends the
//! files, passes the streams and the signals through, and ends with the program's status.
//!
//! [`host`] is the process that owns one QEMU; [`client`] is one job, with its [`files`], which [`strip`] makes
//! smaller; [`connect`] is the way from one to the other. Clients talk to the host process through a socket in
//! `--dir`, and a host process that nobody used for a while ends.

mod client;
mod connect;
mod files;
mod host;
mod strip;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// What `nested` itself fails with.
const FAILED: u8 = 125;

const USAGE: &str = "\
usage: nested --arch ARCH --cpu CPU --gic N --kernel FILE --initrd FILE --dir DIR
              [--put FILE=PATH] [--tree DIR] [--cwd DIR] [--env NAME=VALUE] -- PROGRAM [ARGUMENT]
       nested --stop --dir DIR";

/// An emulated host: what it is made of, and where its socket and its logs are.
pub struct Host {
    pub arch: String,
    /// `default`, or `max` on aarch64.
    pub cpu: String,
    pub gic: String,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub dir: PathBuf,
    /// How long it stays without a client, in seconds.
    pub idle: u64,
}

impl Host {
    /// Differs for hosts that differ: the initrd's name has a digest of what is in it.
    pub fn name(&self) -> String {
        let initrd = self.initrd.file_stem().unwrap_or_default().to_string_lossy();
        format!("{initrd}-{}-gic{}", self.cpu, self.gic)
    }

    pub fn file(&self, ending: &str) -> PathBuf {
        self.dir.join(format!("{}.{ending}", self.name()))
    }
}

/// A program to run in an emulated host.
#[derive(Default)]
pub struct Job {
    /// A file here, and its path there.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// Folders that are put at the path that they have here.
    pub trees: Vec<PathBuf>,
    pub folder: PathBuf,
    pub variables: Vec<OsString>,
    pub arguments: Vec<OsString>,
}

fn main() -> ExitCode {
    let result = parse().and_then(|(host, job, mode)| match mode {
        Mode::Run => client::run(&host, &job),
        Mode::Serve => host::serve(&host).map(|()| 0),
        Mode::Stop => connect::stop(&host.dir).map(|()| 0),
    });
    match result {
        Ok(status) => ExitCode::from(status),
        Err(message) => {
            eprintln!("nested: {message}");
            ExitCode::from(FAILED)
        }
    }
}

#[derive(PartialEq)]
enum Mode {
    Run,
    Serve,
    Stop,
}

fn parse() -> Result<(Host, Job, Mode), String> {
    let idle = std::env::var("BIVISOR_CROSS_IDLE").ok().and_then(|text| text.parse().ok());
    let mut host = Host {
        arch: String::new(),
        cpu: "default".into(),
        gic: String::new(),
        kernel: PathBuf::new(),
        initrd: PathBuf::new(),
        dir: PathBuf::new(),
        idle: idle.unwrap_or(30),
    };
    let mut job = Job { folder: "/".into(), ..Job::default() };
    let mut mode = Mode::Run;
    let mut items = std::env::args_os().skip(1);
    while let Some(item) = items.next() {
        let name = item.to_string_lossy().into_owned();
        match name.as_str() {
            "--" => {
                job.arguments = items.collect();
                break;
            }
            "--serve" => mode = Mode::Serve,
            "--stop" => mode = Mode::Stop,
            _ => {
                let value = items.next().ok_or(format!("{name}: what?\n{USAGE}"))?;
                let text = value.to_string_lossy().into_owned();
                match name.as_str() {
                    "--arch" => host.arch = text,
                    "--cpu" => host.cpu = text,
                    "--gic" => host.gic = text,
                    "--kernel" => host.kernel = value.into(),
                    "--initrd" => host.initrd = value.into(),
                    "--dir" => host.dir = value.into(),
                    "--cwd" => job.folder = value.into(),
                    "--env" => job.variables.push(value),
                    "--tree" => job.trees.push(value.into()),
                    "--put" => {
                        // The last one: a path there is ours to choose, a path here is not.
                        let (from, to) =
                            text.rsplit_once('=').ok_or(format!("--put {text}: no ="))?;
                        job.files.push((from.into(), to.into()));
                    }
                    _ => return Err(format!("unknown option {name}\n{USAGE}")),
                }
            }
        }
    }
    let lacks = host.dir.as_os_str().is_empty()
        || mode != Mode::Stop && host.initrd.as_os_str().is_empty()
        || mode == Mode::Run && job.arguments.is_empty();
    if lacks {
        return Err(USAGE.into());
    }
    Ok((host, job, mode))
}
