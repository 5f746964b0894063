//! Stock kernels on disks: file systems in raw and qcow2 files, made and checked by the tools that
//! everybody uses, and guests that lose their monitor in the middle of writing.

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use common::stock::{
    CLOUD, PROLOGUE, boot, fetched, root, tool, whole_kernels, with_drivers, works,
};
use common::{bivisor, cases, folder, kvm, long, wait};
use tempfile::TempDir;

const DISK_LEN: u64 = 48 << 20;

/// A raw disk with an empty ext4 file system, and one in qcow2.
fn disks(folder: &TempDir) -> [PathBuf; 2] {
    let at = |name: &str| folder.path().join(name);
    let (raw, qcow2) = (at("a.img"), at("b.qcow2"));
    File::create(&raw).unwrap().set_len(DISK_LEN).unwrap();
    works("mke2fs", &["-q", "-F", "-t", "ext4"], &[&raw]);
    works("qemu-img", &["convert", "-f", "raw", "-O", "qcow2"], &[&raw, &qcow2]);
    [raw, qcow2]
}

fn disk_options(disks: &[PathBuf; 2]) -> String {
    format!("--disk {},serial=first --disk {}", disks[0].display(), disks[1].display())
}

fn drivers(init: &str) -> TempDir {
    with_drivers(root(&format!("{PROLOGUE}{init}")), &["virtio_blk", "virtio_rng"])
}

/// Both disks stand up to the checks of their formats, and of ext4.
fn check(disks: &[PathBuf; 2], folder: &TempDir, repair: bool) {
    let [raw, qcow2] = disks;
    let image = tool("qemu-img", &["check", "-q", "-f", "qcow2"], &[qcow2]);
    // 3: clusters that nothing points to, which a monitor that was killed leaves behind.
    let leaks = repair && image.status.code() == Some(3);
    assert!(image.status.success() || leaks, "qemu-img check: {image:?}");
    let copy = folder.path().join("copy.img");
    let _ = fs::remove_file(&copy);
    let ran = bivisor("disk convert").arg(qcow2).arg(&copy).finish();
    assert_eq!(ran.status, 0, "{ran:?}");
    for disk in [raw, &copy] {
        // 1: what the journal had was put right.
        let output = tool("e2fsck", &["-f", if repair { "-p" } else { "-n" }], &[disk]);
        let fixed = repair && output.status.code() == Some(1);
        assert!(output.status.success() || fixed, "e2fsck {}: {output:?}", disk.display());
    }
}

fn a_file_system_in_each_format_keeps_what_was_written() {
    let folder = folder();
    let disks = disks(&folder);
    let writes = drivers(
        "mkdir /a /b
mount -t ext4 /dev/vda /a && mount -t ext4 /dev/vdb /b
cat /sys/block/vda/serial; echo
dd if=/dev/urandom of=/a/data bs=64k count=100 2>/dev/null
cp /a/data /b/data; sync
(cd /a; sha256sum data >sum); cp /a/sum /b/sum
umount /a /b
cat /proc/interrupts
poweroff -f
",
    );
    let disk_options = disk_options(&disks);
    let options = format!("--memory 256M --cmdline quiet --cpus 2 --transport mmio {disk_options}");
    let ran = boot(CLOUD, &writes).words(&options).finish();
    let text = ran.text().replace('\r', "");
    assert_eq!(ran.status, 0, "{}\n{text}", ran.stderr);
    assert!(text.contains("\nfirst\n"), "no serial number: {text}");
    check(&disks, &folder, false);

    // Another guest finds it, and can't change it.
    let reads = drivers(
        "mkdir /a /b
mount -t ext4 -o ro,noload /dev/vda /a && mount -t ext4 -o ro,noload /dev/vdb /b
(cd /a; sha256sum -c sum) && (cd /b; sha256sum -c sum) && echo both are good
dd if=/dev/zero of=/dev/vda bs=512 count=1 2>/dev/null || echo not written
poweroff -f
",
    );
    let options = disk_options.replace(",serial=first", ",readonly");
    let options = format!("--memory 256M --cmdline quiet {options},readonly");
    let before = fs::read(&disks[0]).unwrap();
    let ran = boot(CLOUD, &reads).words(&options).finish();
    let text = ran.text();
    assert_eq!(ran.status, 0, "{}\n{text}", ran.stderr);
    assert!(text.contains("both are good") && text.contains("not written"), "{text}");
    assert!(before == fs::read(&disks[0]).unwrap(), "a read-only disk was changed");
}

/// The bus as the kernel sees it, and a message for each queue.
fn a_disk_on_a_pci_bus_has_a_queue_for_each_cpu() {
    let folder = folder();
    let [raw, _] = disks(&folder);
    let init = drivers(
        "for d in /sys/bus/pci/devices/*; do echo ${d##*/} $(cat $d/vendor $d/device $d/class); done
mount -t ext4 /dev/vda /mnt
for cpu in 0 1; do taskset -c $cpu dd if=/dev/urandom of=/mnt/$cpu bs=64k count=50 2>/dev/null; done
sync; (cd /mnt; sha256sum 0 1 >sum); umount /mnt
mount -t ext4 /dev/vda /mnt; (cd /mnt; sha256sum -c sum) && echo both are good; umount /mnt
dd if=/dev/hwrng of=/random bs=64 count=1 2>/dev/null; echo random $(wc -c </random)
cat /proc/interrupts
poweroff -f
",
    );
    let options = "--memory 256M --cmdline quiet --cpus 2 --rng --disk";
    let ran = boot(CLOUD, &init).words(options).arg(&raw).finish();
    let text = ran.text().replace('\r', "");
    assert_eq!(ran.status, 0, "{}\n{text}", ran.stderr);
    for line in [
        "0000:00:00.0 0x1b36 0x0008 0x060000",
        "0000:00:01.0 0x1af4 0x1042 0x018000",
        "0000:00:02.0 0x1af4 0x1044 0xff0000",
        "both are good",
        "random 64",
    ] {
        assert!(text.contains(&format!("\n{line}\n")), "no {line}: {text}");
    }
    for queue in ["virtio0-config", "virtio0-req.0", "virtio0-req.1", "virtio1-input"] {
        let line = text.lines().find(|line| line.ends_with(queue)).expect(queue);
        let came = line.split_whitespace().skip(1).take(2).any(|count| count != "0");
        assert!(line.contains("MSI") && (came || queue.ends_with("config")), "{line}");
    }
    // The journal is empty, and all is there.
    works("e2fsck", &["-f", "-n"], &[&raw]);
}

fn what_a_guest_discards_is_given_back_to_the_host() {
    let folder = folder();
    let disks = disks(&folder);
    let init = drivers(
        "mount -t ext4 /dev/vda /mnt
dd if=/dev/urandom of=/mnt/data bs=1M count=24 2>/dev/null; sync
echo written; read line
rm /mnt/data; sync; fstrim /mnt && umount /mnt
mkdir /s; mknod /s/d b 254 32; dd if=/dev/vdc bs=1M count=1 2>/dev/null | od | head -n 2
echo trimmed; poweroff -f
",
    );
    let options = format!("--memory 256M --cmdline quiet --scratch 4M {}", disk_options(&disks));
    let mut command = boot(CLOUD, &init).words(&options).command;
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.trim() == "written"));
    let room = || fs::metadata(&disks[0]).unwrap().blocks() * 512;
    let full = room();
    assert!(full > 24 << 20, "{full} bytes");
    drop(child.stdin.take());
    let rest: Vec<String> = lines.collect();
    assert!(rest.iter().any(|line| line.trim() == "trimmed"), "{rest:?}");
    assert_eq!(wait(&mut child, Duration::from_secs(60)), Some(0));
    assert!(room() < full - (20 << 20), "{} of {full} bytes are left", room());
    check(&disks, &folder, false);
}

/// A guest looks at what its forerunners have flushed, goes on writing, tells what it has flushed, and
/// its monitor is killed.
fn what_was_flushed_survives_kills(rounds: u32) {
    let folder = folder();
    let disks = disks(&folder);
    // Words of the command line that no part of the kernel knows are variables of its init.
    let init = drivers(
        "mkdir /a /b
mount -t ext4 /dev/vda /a && mount -t ext4 /dev/vdb /b
for d in /a /b; do i=$first; while [ $i -le $last ]; do
[ \"$(sha256sum <$d/$i)\" = \"$(cat $d/$i.sum)\" ] || { echo lost $d/$i; poweroff -f; }
i=$((i + 1)); done; done
echo nothing is lost
i=$last
while :; do
i=$((i + 1))
dd if=/dev/urandom of=/a/$i bs=1k count=$((i % 50 + 1)) 2>/dev/null
sha256sum </a/$i >/a/$i.sum; cp /a/$i /a/$i.sum /b
[ $i -le 20 ] || rm -f /a/$((i - 20)) /b/$((i - 20)) /a/$((i - 20)).sum /b/$((i - 20)).sum
sync
echo flushed $i
done
",
    );
    let mut last = 0u32;
    for round in 0..rounds {
        let first = last.saturating_sub(18).max(1);
        let cmdline = format!("quiet first={first} last={last}");
        let options = format!("--memory 256M {}", disk_options(&disks));
        let run = boot(CLOUD, &init).words(&options).arg("--cmdline").arg(cmdline);
        let mut command = run.command;
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // At another moment each time: so many flushes, and a bit.
        let until = last + 1 + round * 7 % 10;
        let mut text = String::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
            text += &line;
            text.push('\n');
            if let Some(number) = line.trim().strip_prefix("flushed ") {
                last = number.parse().unwrap();
                if last >= until {
                    std::thread::sleep(Duration::from_millis(u64::from(round * 13 % 97)));
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        assert!(text.contains("nothing is lost"), "round {round}: {text}");
        assert!(last >= until, "round {round}: the guest ended by itself: {text}");
        check(&disks, &folder, true);
    }
}

fn what_was_flushed_survives_a_kill() {
    what_was_flushed_survives_kills(3);
}

fn long_what_was_flushed_survives_fifty_kills() {
    what_was_flushed_survives_kills(50);
}

fn main() {
    common::conclude(cases![
        a_file_system_in_each_format_keeps_what_was_written, kvm, fetched, whole_kernels;
        a_disk_on_a_pci_bus_has_a_queue_for_each_cpu, kvm, fetched, whole_kernels;
        what_a_guest_discards_is_given_back_to_the_host, kvm, fetched, whole_kernels;
        what_was_flushed_survives_a_kill, kvm, fetched, whole_kernels;
        long_what_was_flushed_survives_fifty_kills, kvm, fetched, whole_kernels, long;
    ]);
}
