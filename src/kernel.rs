//! What a kernel with a boot protocol is given: its command line, and an initial RAM disk or
//! modules.
//!
//! An initial RAM disk is one or more archives, one behind the other. Modules are files as they
//! are, each on pages of its own and with its name.

use anyhow::{Context, Result, bail, ensure};

use crate::arch::layout;
use crate::board::{Kernel, Module, Takes};
use crate::config::ConsoleDevice;
use crate::exit::{BusAddr, Space};
use crate::memory::{GuestRam, RamRange};
use crate::payload::Payload;
use crate::places::Places;
use crate::sys;

/// Alignment of an archive behind another (Linux Documentation/driver-api/early-userspace/
/// buffer-format.rst: 4 bytes, with zeros in between).
const ARCHIVE_ALIGN: u64 = 4;

/// What Linux is told: where its console is, unless its user says so, and to end when it panics
/// instead of waiting.
const CONSOLE: &str = "console=";
const BUS: &str = "pci=";
const LINUX: &str = "console=ttyS0 panic=-1";
const LINUX_ELSEWHERE: &str = "panic=-1";

/// A file for the guest.
pub struct File {
    /// Its name, without folders.
    pub name: String,
    /// What is in it.
    pub bytes: Payload,
}

/// What the user gives the kernel.
pub struct Given<'a> {
    /// The image's name.
    pub image: &'a str,
    /// The device behind its console.
    pub console: ConsoleDevice,
    /// What Linux is told of PCI, if anything.
    pub bus: &'a str,
    /// For the command line.
    pub cmdline: &'a str,
    /// Initial RAM disks or modules.
    pub files: &'a [File],
}

/// Whether a word of a command line begins so.
fn says(cmdline: &str, what: &str) -> bool {
    cmdline.split_ascii_whitespace().any(|word| word.starts_with(what))
}

/// Whether an image is Linux whose user leaves it to us what it is told of PCI.
pub fn linux_is_told_of_pci(takes: Takes, cmdline: &str) -> bool {
    matches!(takes, Takes::Ramdisk { is_linux: true, .. }) && !says(cmdline, BUS)
}

impl Given<'_> {
    fn words_for_linux(&self) -> String {
        let bus = Some(self.bus).filter(|words| !words.is_empty());
        let is_elsewhere = says(self.cmdline, CONSOLE);
        [Some(&*self.console_for_linux(is_elsewhere)), bus]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Two consoles would print everything twice: ours are all the same one.
    fn console_for_linux(&self, is_elsewhere: bool) -> String {
        if is_elsewhere {
            return LINUX_ELSEWHERE.into();
        }
        match self.console {
            ConsoleDevice::Serial => LINUX.into(),
            ConsoleDevice::Virtio => {
                // Linux Documentation/admin-guide/kernel-parameters.txt, `earlycon`: until the
                // driver is there, which then does not repeat what was shown.
                let BusAddr { space, addr } = layout::CONSOLE;
                let space = if space == Space::Port { "io" } else { "mmio" };
                format!("earlycon=uart8250,{space},{addr:#x} console=hvc0 {LINUX_ELSEWHERE}")
            }
        }
    }

    /// Places it in RAM, as far as the image takes it.
    pub fn place(&self, takes: Takes, ram: &GuestRam, places: &mut Places) -> Result<Kernel> {
        let mut kernel = Kernel::default();
        let (before, most) = match takes {
            Takes::Nothing => {
                let given =
                    [("--cmdline", !self.cmdline.is_empty()), ("--initrd", !self.files.is_empty())];
                if let Some((option, _)) = given.iter().find(|(_, given)| *given) {
                    bail!("{option} is for kernels with a boot protocol, and this image has none");
                }
                return Ok(kernel);
            }
            Takes::Ramdisk { is_linux, cmdline, below } => {
                kernel.initrd = place_archives(self.files, ram, places, below)?;
                (if is_linux { self.words_for_linux() } else { String::new() }, cmdline)
            }
            Takes::Modules { below } => {
                for file in self.files {
                    let place = place(&[file], ram, places, below, "module")?;
                    kernel.modules.push(Module { place, name: file.name.clone().into_bytes() });
                }
                (self.image.into(), layout::CMDLINE_MAX)
            }
        };
        let parts = [&before, self.cmdline].into_iter().filter(|part| !part.is_empty());
        let cmdline = parts.collect::<Vec<_>>().join(" ");
        let whole = !cmdline.contains('\0');
        ensure!(whole, "--cmdline: holds a zero byte, which ends it: leave it out");
        ensure!(
            cmdline.len() <= most,
            "--cmdline: {} bytes with ours, a kernel takes {most}",
            cmdline.len()
        );
        kernel.cmdline = cmdline.into_bytes();
        Ok(kernel)
    }
}

/// Places `archives` in one piece below `limit`; nothing for no archive.
fn place_archives(
    archives: &[File],
    ram: &GuestRam,
    places: &mut Places,
    limit: u64,
) -> Result<Option<RamRange>> {
    let archives: Vec<_> = archives.iter().collect();
    let some = !archives.is_empty();
    some.then(|| place(&archives, ram, places, limit, "initial RAM disk")).transpose()
}

/// Places `files` one behind the other below `limit`, as high as there is room, from the start of
/// a page, and gives their place.
fn place(
    files: &[&File],
    ram: &GuestRam,
    places: &mut Places,
    limit: u64,
    what: &str,
) -> Result<RamRange> {
    let mut offsets = Vec::with_capacity(files.len());
    let mut len = 0u64;
    for file in files {
        let start = len.checked_next_multiple_of(ARCHIVE_ALIGN);
        let end = start.and_then(|start| start.checked_add(file.bytes.len()));
        let (Some(start), Some(end)) = (start, end) else {
            bail!("--initrd: the archives are larger than any RAM");
        };
        offsets.push(start);
        len = end;
    }
    let room = places.find_below(limit, len, sys::page_size());
    ensure!(
        room.is_some(),
        "--initrd: no room for {} KiB below {limit:#x} and beside the kernel: \
         give the guest more RAM there (--memory), or a smaller file",
        len.div_ceil(1024)
    );
    let start = places.take_below(limit, len, sys::page_size(), what)?;
    for (file, offset) in files.iter().zip(offsets) {
        file.bytes
            .place(ram, 0, file.bytes.len(), start + offset)
            .with_context(|| format!("load the {what}"))?;
    }
    Ok(RamRange { start, len })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BELOW: u64 = 0x10_0000;

    fn given(takes: Takes, cmdline: &str, files: &[(&str, &'static [u8])]) -> Result<Kernel> {
        let ranges = vec![RamRange { start: 0, len: 0x20_0000 }];
        let mut places = Places::new(&ranges);
        let ram = GuestRam::new(ranges)?;
        let files = files.iter().map(|(name, bytes)| {
            let (name, bytes) = ((*name).into(), Payload::Bytes(bytes));
            File { name, bytes }
        });
        let files: Vec<_> = files.collect();
        let given = Given {
            image: "image",
            console: ConsoleDevice::Serial,
            bus: "",
            cmdline,
            files: &files,
        };
        given.place(takes, &ram, &mut places)
    }

    #[test]
    fn linux_is_told_of_its_console() {
        for (console, cmdline, expected) in [
            (ConsoleDevice::Serial, "", LINUX),
            (ConsoleDevice::Virtio, "console=tty1", LINUX_ELSEWHERE),
        ] {
            let given = Given { image: "", console, bus: "", cmdline, files: &[] };
            assert_eq!(given.words_for_linux(), expected);
            let given = Given { bus: "pci=conf1", ..given };
            assert_eq!(given.words_for_linux(), format!("{expected} pci=conf1"));
        }
        let linux = Takes::Ramdisk { is_linux: true, cmdline: 40, below: BELOW };
        assert!(linux_is_told_of_pci(linux, "quiet spci=x"));
        assert!(!linux_is_told_of_pci(linux, "quiet pci=nomsi"), "its user tells it");
        assert!(!linux_is_told_of_pci(Takes::Nothing, ""), "no Linux");
        let console = ConsoleDevice::Virtio;
        let words =
            Given { image: "", console, bus: "", cmdline: "", files: &[] }.words_for_linux();
        let rest = words.strip_prefix("earlycon=uart8250,").unwrap_or_default();
        assert!(rest.contains("io,0x") && rest.ends_with(" console=hvc0 panic=-1"), "{words}");
    }

    #[test]
    fn each_protocol_takes_files_and_words_in_its_own_way() {
        let files = [("one", &b"12345"[..]), ("two", b"6")];
        let linux = Takes::Ramdisk { is_linux: true, cmdline: 40, below: BELOW };
        let kernel = given(linux, "quiet", &files).unwrap();
        assert_eq!(kernel.cmdline, b"console=ttyS0 panic=-1 quiet");
        let elsewhere = given(linux, "a console=ttyAMA0,9600", &[]).unwrap();
        assert_eq!(elsewhere.cmdline, b"panic=-1 a console=ttyAMA0,9600");
        let initrd = kernel.initrd.unwrap();
        assert_eq!((initrd.len, initrd.end() <= BELOW, kernel.modules.len()), (9, true, 0));
        let other = Takes::Ramdisk { is_linux: false, cmdline: 5, below: BELOW };
        assert_eq!(given(other, "quiet", &[]).unwrap().cmdline, b"quiet");
        let kernel = given(Takes::Modules { below: BELOW }, "a b", &files).unwrap();
        assert_eq!((&kernel.cmdline[..], kernel.initrd), (&b"image a b"[..], None));
        let [one, two] = &kernel.modules[..] else { panic!("{kernel:?}") };
        assert_eq!(
            (&one.name[..], one.place.len, &two.name[..], two.place.len),
            (&b"one"[..], 5, &b"two"[..], 1)
        );
        let page = sys::page_size();
        assert!(one.place.start % page == 0 && two.place.start % page == 0);
        assert!(two.place.end() <= one.place.start && one.place.end() <= BELOW);
        assert_eq!(given(Takes::Modules { below: BELOW }, "", &[]).unwrap().cmdline, b"image");
    }

    #[test]
    fn hostile_25_what_an_image_does_not_take_is_refused() {
        static LARGE: [u8; 0x10_0001] = [0; 0x10_0001];
        let linux = Takes::Ramdisk { is_linux: false, cmdline: 5, below: BELOW };
        let file = [("file", &b"x"[..])];
        for (takes, cmdline, files, says) in [
            (Takes::Nothing, "quiet", &[][..], "--cmdline is for kernels with a boot protocol"),
            (Takes::Nothing, "", &file, "--initrd is for kernels with a boot protocol"),
            (linux, "quiet!", &[], "--cmdline: 6 bytes with ours, a kernel takes 5"),
            (linux, "a\0b", &[], "--cmdline: holds a zero byte"),
            (Takes::Modules { below: BELOW }, "\0", &[], "--cmdline: holds a zero byte"),
            (linux, "", &[("file", &LARGE)], "--initrd: no room for 1025 KiB"),
            (Takes::Modules { below: 0 }, "", &file, "--initrd: no room for 1 KiB"),
        ] {
            let refused = given(takes, cmdline, files).unwrap_err().to_string();
            assert!(refused.starts_with(says), "{refused}");
        }
    }

    /// Where an archive of so many bytes comes to lie in `ram` beside a kernel, as first address and
    /// length. The file has only holes.
    fn placed(ram: &[(u64, u64)], kernel: (u64, u64), below: u64, lens: &[u64]) -> Result<u64> {
        let ranges: Vec<_> = ram.iter().map(|&(start, len)| RamRange { start, len }).collect();
        let mut places = Places::new(&ranges);
        places.reserve(kernel.0, kernel.1, "kernel")?;
        let file = |len: &u64| {
            let holes = tempfile::tempfile().unwrap();
            // What is larger is refused before it is read.
            holes.set_len((*len).min(1 << 30)).unwrap();
            File { name: "archive".into(), bytes: Payload::File(holes, *len) }
        };
        let files: Vec<_> = lens.iter().map(file).collect();
        let given = Given {
            image: "image",
            console: ConsoleDevice::Serial,
            bus: "",
            cmdline: "",
            files: &files,
        };
        let takes = Takes::Ramdisk { is_linux: true, cmdline: layout::CMDLINE_MAX, below };
        let kernel = given.place(takes, &GuestRam::new(ranges)?, &mut places)?;
        Ok(kernel.initrd.expect("it was given").start)
    }

    #[test]
    fn hostile_24_an_initial_ram_disk_goes_where_there_is_room() {
        const MIB: u64 = 1 << 20;
        const GIB: u64 = 1 << 30;
        // A multiple of every host's pages.
        const PAGE: u64 = 1 << 16;
        let small = [(0, 2 * MIB)];
        let large = [(0, 3 * GIB), (4 * GIB, GIB)];
        let split = [(0, 2 * MIB), (2 * GIB, 4 * MIB)];
        for (ram, kernel, lens, expected) in [
            // As large as RAM, and larger.
            (&small[..], (0, PAGE), &[2 * MIB][..], Err("no room for 2048 KiB below 0x80000000")),
            (&small, (0, PAGE), &[2 * MIB - PAGE], Ok(PAGE)),
            (&small, (0, PAGE), &[2 * MIB - PAGE + 1], Err("no room for 1985 KiB")),
            (&small, (0, PAGE), &[1 << 60], Err("no room for")),
            (&small, (0, PAGE), &[u64::MAX - 3, 8], Err("larger than any RAM")),
            (&small, (0, PAGE), &[u64::MAX, 1], Err("larger than any RAM")),
            // The kernel is in the middle, or has left nothing.
            (&small, (MIB, PAGE), &[MIB], Ok(0)),
            (&small, (MIB, PAGE), &[MIB + 1], Err("no room for 1025 KiB")),
            (&small, (0, 2 * MIB), &[1], Err("no room for 1 KiB")),
            // On both sides of 2 GiB, where a kernel does not look any more.
            (&large, (0, MIB), &[PAGE], Ok(2 * GIB - PAGE)),
            (&large, (0, 2 * GIB), &[1], Err("no room for 1 KiB below 0x80000000")),
            (&split, (0, MIB), &[MIB], Ok(MIB)),
            (&split, (0, MIB), &[MIB + 1], Err("no room for 1025 KiB below 0x80000000")),
        ] {
            let placed = placed(ram, kernel, 2 * GIB, lens).map_err(|error| format!("{error:#}"));
            match (&placed, expected) {
                (Ok(start), Ok(at)) => assert_eq!(*start, at, "{lens:x?}"),
                (Err(refused), Err(says)) => {
                    assert!(
                        refused.starts_with("--initrd: ") && refused.contains(says),
                        "{refused}"
                    );
                    assert_eq!(refused.lines().count(), 1, "{refused}");
                }
                _ => panic!("{lens:x?}: {placed:x?} instead of {expected:x?}"),
            }
        }
        // The whole of RAM, for a kernel that lies elsewhere.
        assert_eq!(placed(&split, (2 * GIB, MIB), 2 * GIB, &[2 * MIB]).unwrap(), 0);
    }

    #[test]
    fn hostile_25_a_command_line_comes_as_it_is_up_to_its_limit() {
        let most = layout::CMDLINE_MAX;
        let linux = Takes::Ramdisk { is_linux: true, cmdline: most, below: BELOW };
        let ours = LINUX.len() + 1;
        for len in [0, 1, most - ours - 1, most - ours] {
            let kernel = given(linux, &"x".repeat(len), &[]).unwrap();
            let expected = if len == 0 { LINUX.len() } else { ours + len };
            assert_eq!(kernel.cmdline.len(), expected, "{len}");
        }
        for len in [most - ours + 1, most, most + 1, 1 << 20] {
            let refused = given(linux, &"x".repeat(len), &[]).unwrap_err().to_string();
            let says = format!("--cmdline: {} bytes with ours, a kernel takes {most}", ours + len);
            assert_eq!(refused, says);
        }
        // Nothing is taken apart: what follows `--` stays behind everything else, for init.
        for text in ["a\nb", "a=\"b  c\" 'd'", "-- first second", "\t", "\u{e9}\u{1f980}", "\\0"] {
            let kernel = given(linux, text, &[]).unwrap();
            assert_eq!(kernel.cmdline, format!("{LINUX} {text}").into_bytes(), "{text:?}");
        }
    }
}
