//! A disk in QEMU's qcow2 format, which takes room only for what was written, by the crate imago.
//!
//! Bytes pass through a buffer of the thread that asks: imago wants memory that nobody else changes,
//! and guest RAM is not that. A backing file is only opened when the user has asked for it, since a
//! guest can write what it likes into an image that is taken for qcow2: then any file of the host
//! could be one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use anyhow::{Context, Result, bail, ensure};
use imago::file::File as Storage;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder, qcow2, raw,
};

use super::buffer::buffered;
use super::disk::Disk;
use super::raw::{Access, open};
use super::request::SECTOR;
use crate::pieces::Pieces;

/// Images behind each other. Our choice: more are slow, and a chain may have no end.
const MAX_DEPTH: usize = 16;

/// The magic and the version are the header's first bytes, big-endian (QEMU docs/interop/qcow2.txt,
/// "Header").
const MAGIC: [u8; 4] = *b"QFI\xfb";

type Image = qcow2::Qcow2<Storage>;

/// A disk in a qcow2 image.
pub struct Qcow2 {
    /// Locked for writing only by what takes room away from under others.
    image: RwLock<FormatAccess<Storage>>,
    size: u64,
    read_only: bool,
}

/// What a header tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// The file behind it, as it is written there, and that file's format.
    pub backing: Option<(PathBuf, String)>,
}

/// True if the file begins as a qcow2 image does.
pub fn is_qcow2(file: &File) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).is_ok() && magic == MAGIC
}

/// True if the image counts the cluster of its own header (docs/interop/qcow2.txt of QEMU, "Host
/// cluster management"): where not, to count a new cluster takes another new one, without end.
fn counts_itself(file: &File) -> bool {
    let word = |offset: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, offset).ok().map(|()| u64::from_be_bytes(bytes))
    };
    // The upper half of this word: the clusters of the table of counts, which is not empty.
    if word(56).is_none_or(|word| word >> 32 == 0) {
        return false;
    }
    // Bits 9 to 63 of an entry are where its block lies; counts have 64 bits at the most.
    let block = word(48).and_then(word).map(|entry| entry & !511);
    block.filter(|block| *block > 0).and_then(word).is_some_and(|counts| counts != 0)
}

/// False if the image has a table of features' names that is not made of whole entries, which the crate
/// takes for granted (docs/interop/qcow2.txt of QEMU, "Header extensions").
fn names_are_whole(file: &File) -> bool {
    /// The table's type, and bytes of an entry.
    const NAMES: u32 = 0x6803_f857;
    const ENTRY_LEN: u32 = 48;
    /// Our choice: many times what there is; what lies further on the crate refuses or ignores.
    const MOST: usize = 4096;
    let word = |offset: u64| {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, offset).ok().map(|()| u32::from_be_bytes(bytes))
    };
    // Version 2 has a header of a fixed length; of version 3 it is the last field.
    let header_len = if word(4) == Some(2) { Some(72) } else { word(100) };
    let Some(mut at) = header_len.map(u64::from) else { return true };
    for _ in 0..MOST {
        match (word(at), word(at + 4)) {
            (Some(0), _) | (None, _) | (_, None) => return true,
            (Some(NAMES), Some(len)) if !len.is_multiple_of(ENTRY_LEN) => return false,
            (Some(_), Some(len)) => at += 8 + u64::from(len).next_multiple_of(8),
        }
    }
    false
}

/// Opens the image in `file` without what it names.
fn open_image(file: File, writable: bool) -> Result<Image> {
    ensure!(is_qcow2(&file), "it is no qcow2 image (add ,format=raw if its bytes are the disk)");
    ensure!(names_are_whole(&file), "the names of features in its header are damaged");
    if writable {
        ensure!(
            counts_itself(&file),
            "its reference counts are not in it: it may be cut short (qemu-img check -r all FILE)"
        );
    }
    let storage = Storage::try_from(file).context("look at it")?;
    let image = Image::open_image(storage, writable).context("read it as a qcow2 image")?;
    ensure!(
        !image.requires_external_data_file(),
        "its data are in another file, which is not supported (qemu-img convert makes one of them)"
    );
    Ok(image)
}

/// What the image in `file` says of itself.
pub fn header(file: &File) -> Result<Header> {
    let mut bytes = [0; 32];
    file.read_exact_at(&mut bytes, 0).context("read its header")?;
    let bits = u32::from_be_bytes(bytes[20..24].try_into().expect("four bytes"));
    let image = open_image(file.try_clone().context("copy a descriptor")?, false)?;
    let format = image.implicit_backing_format().cloned().unwrap_or_default();
    let backing = image.implicit_backing_file().map(|name| (name.into(), format));
    Ok(Header { size: FormatAccess::new(image).size(), cluster_size: 1 << bits, backing })
}

impl Qcow2 {
    /// The disk in the image at `path`, with the files behind it if `backing`.
    pub fn open(path: &Path, access: Access, backing: bool) -> Result<Self> {
        let writable = !access.read_only;
        let image = Self::chain(path, access, backing, MAX_DEPTH)?;
        let image = FormatAccess::new(image);
        let size = image.size();
        ensure!(
            size > 0 && size.is_multiple_of(SECTOR),
            "the disk in it has {size} bytes: a disk has sectors of {SECTOR}"
        );
        Ok(Self { image: RwLock::new(image), size, read_only: !writable })
    }

    fn chain(path: &Path, access: Access, backing: bool, depth: usize) -> Result<Image> {
        let mut image = open_image(open(path, access)?, !access.read_only)?;
        let Some(name) = image.implicit_backing_file().cloned() else { return Ok(image) };
        ensure!(
            backing,
            "it stands on {name:?}: add ,backing if that file may be read, \
             or make it whole (bivisor disk convert --backing)"
        );
        let depth = depth.checked_sub(1).context("too many images stand on each other")?;
        let behind = path.parent().unwrap_or(Path::new("")).join(&name);
        let access = Access { read_only: true, ..access };
        let format = image.implicit_backing_format().cloned().unwrap_or_default();
        let layer = match format.as_str() {
            "qcow2" => FormatAccess::new(
                Self::chain(&behind, access, backing, depth)
                    .with_context(|| format!("{name:?}, which it stands on"))?,
            ),
            "raw" => {
                let file = open(&behind, access)
                    .with_context(|| format!("{name:?}, which it stands on"))?;
                let storage = Storage::try_from(file).context("look at it")?;
                FormatAccess::new(raw::Raw::open_image(storage, false).context("read it")?)
            }
            other => bail!(
                "it does not say whether {name:?}, which it stands on, is raw or qcow2, but \
                 {other:?} (qemu-img rebase -u -b FILE -F FORMAT says it)"
            ),
        };
        image.set_backing(Some(layer));
        Ok(image)
    }

    /// Makes a new image of a disk of `size` bytes in the empty `file`, with `cluster_size`, on top
    /// of the named file of the named format.
    pub fn create(
        file: File,
        size: u64,
        cluster_size: u64,
        backing: Option<(&str, &str)>,
    ) -> Result<()> {
        let storage = Storage::try_from(file).context("look at it")?;
        let mut builder =
            Image::create_builder(storage).size(size).cluster_size(cluster_size as usize);
        if let Some((name, format)) = backing {
            builder = builder.backing(name.into(), format.into());
        }
        let open = |storage| Ok(Image::builder(storage).backing(None).write(true));
        let image = builder
            .create_open(DenyImplicitOpenGate::default(), open)
            .context("make a qcow2 image")?;
        let image = FormatAccess::new(image);
        image.flush().and_then(|()| image.sync()).context("write it out")
    }

    fn image(&self) -> RwLockReadGuard<'_, FormatAccess<Storage>> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for Qcow2 {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn granularity(&self) -> u32 {
        1 << 16
    }

    fn read(&self, to: &mut Pieces, offset: u64) -> io::Result<()> {
        let image = self.image();
        buffered(to, |buffer, done, to| {
            image.read(&mut *buffer, offset + done)?;
            to.write(buffer);
            Ok(())
        })
    }

    fn write(&self, from: &mut Pieces, offset: u64) -> io::Result<()> {
        let image = self.image();
        buffered(from, |buffer, done, from| {
            from.read(buffer);
            image.write(&*buffer, offset + done)
        })
    }

    fn flush(&self) -> io::Result<()> {
        let image = self.image();
        image.flush()?;
        image.sync()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        match image.discard_to_any(offset, len) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if !unmap {
            return self.image().write_zeroes(offset, len);
        }
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        image.discard_to_zero(offset, len)
    }
}
