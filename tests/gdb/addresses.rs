//! Where gdb connects.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use super::common::{MACHINE, bivisor, folder, guest_file, wait};
use super::{Gdb, PATIENCE};

pub fn a_port_will_do() {
    let folder = folder();
    let run = bivisor("run").arg(guest_file(&folder, "hello")).words("--gdb tcp:0");
    let mut command = run.command;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let at = line.split("on tcp:").nth(1).and_then(|rest| rest.split(": ").next());
    let at = at.unwrap_or_else(|| panic!("{line}"));
    assert!(at.starts_with("127.0.0.1:"), "{line}");
    let mut gdb = Gdb(Box::new(TcpStream::connect(at).unwrap()));
    assert_eq!(gdb.pc(), MACHINE.hello);
    assert_eq!(gdb.ask("vCont;c"), "W00");
    assert_eq!(wait(&mut child, PATIENCE), Some(0));
}

pub fn what_is_wrong_with_the_address_is_named() {
    let folder = folder();
    let image = guest_file(&folder, "hello");
    let (stale, file) = (folder.path().join("stale"), folder.path().join("file"));
    drop(UnixListener::bind(&stale).unwrap());
    fs::write(&file, "mine").unwrap();
    for (address, named) in [
        ("tcp".into(), "'tcp' for '--gdb"),
        ("tcp:".into(), "port is not a number"),
        ("tcp:70000".into(), "port is not a number"),
        ("tcp::1234".into(), "host is missing"),
        ("unix:".into(), "not tcp:PORT"),
        ("1234".into(), "not tcp:PORT"),
        ("tcp:192.0.2.1:1".into(), "--gdb tcp:192.0.2.1:1: "),
        ("unix:/no/such/folder/gdb".into(), "--gdb unix:/no/such/folder/gdb: No such file"),
        (format!("unix:{}", stale.display()), "stale: a socket is there already: remove it"),
        (format!("unix:{}", file.display()), "file: something is there already: choose another"),
    ] {
        let ran = bivisor("run").arg(&image).arg("--gdb").arg(&address).finish();
        assert_eq!((ran.status, ran.stderr.lines().count()), (125, 1), "{ran:?}");
        assert!(ran.stderr.contains(named), "{named}: {ran:?}");
    }
    assert!(stale.exists() && fs::read(&file).unwrap() == b"mine");
}
