//! What a kernel with a boot protocol is given: its command line, and an initial RAM disk or
//! modules.
//!
//! An initial RAM disk is one or more archives, one behind the other. Modules are files as they
//! are, each on pages of its own and with its name.

use anyhow::{Context, Result, bail, ensure};

use crate::arch::layout;
use crate::board::{Kernel, Module, Takes};
use crate::memory::{GuestRam, RamRange};
use crate::payload::Payload;
use crate::places::Places;
use crate::sys;

/// Alignment of an archive behind another (Linux Documentation/driver-api/early-userspace/
/// buffer-format.rst: 4 bytes, with zeros in between).
const ARCHIVE_ALIGN: u64 = 4;

/// What Linux is told: where its console is, and to end when it panics instead of waiting.
const LINUX: &str = "console=ttyS0 panic=-1";

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
    /// For the command line.
    pub cmdline: &'a str,
    /// Initial RAM disks or modules.
    pub files: &'a [File],
}

impl Given<'_> {
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
                (if is_linux { LINUX } else { "" }, cmdline)
            }
            Takes::Modules { below } => {
                for file in self.files {
                    let place = place(&[file], ram, places, below, "module")?;
                    kernel.modules.push(Module { place, name: file.name.clone().into_bytes() });
                }
                (self.image, layout::CMDLINE_MAX)
            }
        };
        let parts = [before, self.cmdline].into_iter().filter(|part| !part.is_empty());
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
        "--initrd: no room for {} KiB beside the kernel: give the guest more RAM (--memory)",
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
        Given { image: "image", cmdline, files: &files }.place(takes, &ram, &mut places)
    }

    #[test]
    fn each_protocol_takes_files_and_words_in_its_own_way() {
        let files = [("one", &b"12345"[..]), ("two", b"6")];
        let linux = Takes::Ramdisk { is_linux: true, cmdline: 40, below: BELOW };
        let kernel = given(linux, "quiet", &files).unwrap();
        assert_eq!(kernel.cmdline, b"console=ttyS0 panic=-1 quiet");
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
}
