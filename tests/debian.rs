//! A whole Debian: systemd from a qcow2 disk up to its login, somebody who logs in, and power-off.

mod common;

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::stock::{CLOUD, boot, guests, root, tool, whole_kernels, with_drivers};
use common::{bivisor, cases, folder, kvm, long, wait};

/// Our choice: several times what it takes in an emulated host, where udev alone takes a minute.
const PATIENCE: Duration = Duration::from_secs(900);

/// Finds the disk, and hands over to what is on it.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /proc /dev /mnt
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
for module in /modules/*.ko; do insmod $module; done
until mount -t ext4 /dev/vda /mnt; do sleep 1; done
umount /dev
exec switch_root /mnt /sbin/init
";

/// What systemd is told: an emulated host is slower than it expects of hardware.
const CMDLINE: &str = "quiet systemd.default_timeout_start_sec=900 \
                       systemd.default_device_timeout_sec=900";

/// The disk was made.
fn installed() -> Option<String> {
    let there = guests().join("debian/root.qcow2").is_file();
    (!there).then(|| "no Debian here (cross/test long fetches it)".into())
}

fn long_debian_comes_to_its_login_and_powers_off() {
    let folder = folder();
    let (base, disk) = (guests().join("debian/root.qcow2"), folder.path().join("disk.qcow2"));
    let made = bivisor("disk snapshot").arg(&base).arg(&disk).finish();
    assert_eq!(made.status, 0, "{made:?}");
    let root = with_drivers(root(INIT), &["virtio_blk"]);
    let run = boot(CLOUD, &root).words("--memory 512M --cpus 2 --rng --cmdline").arg(CMDLINE);
    let mut command = run.words("--disk").arg(format!("{},backing", disk.display())).command;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("start bivisor");
    let mut output = child.stdout.take().unwrap();
    let mut input = child.stdin.take().unwrap();
    let began = Instant::now();
    let mut text = String::new();
    let mut answers = [
        ("login: ", "root\n"),
        ("# ", "echo $(ls /sys/bus/virtio/drivers/virtio_blk | grep -c virtio) disk; nproc\n"),
        ("\n2", "systemctl poweroff\n"),
    ]
    .into_iter()
    .peekable();
    let mut seen = 0;
    let mut bytes = [0; 4096];
    loop {
        let count = output.read(&mut bytes).expect("read what it shows");
        if count == 0 {
            break;
        }
        text += &String::from_utf8_lossy(&bytes[..count]);
        if let Some((prompt, answer)) = answers.peek().copied()
            && let Some(at) = text[seen..].find(prompt)
        {
            println!("{:.0?}: {prompt:?}", began.elapsed());
            seen += at + prompt.len();
            input.write_all(answer.as_bytes()).unwrap();
            answers.next();
        }
        if began.elapsed() > PATIENCE {
            let _ = child.kill();
        }
    }
    assert_eq!(wait(&mut child, PATIENCE), Some(0), "{text}");
    assert!(text.contains("bivisor-guest login: "), "{text}");
    assert!(text.contains("1 disk"), "{text}");
    assert!(answers.next().is_none(), "{text}");
    let image = tool("qemu-img", &["check", "-q", "-f", "qcow2"], &[&disk]);
    assert!(image.status.success(), "{image:?}");
}

fn main() {
    common::conclude(cases![
        long_debian_comes_to_its_login_and_powers_off, kvm, installed, whole_kernels, long;
    ]);
}
