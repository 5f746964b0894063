//! What an image is: one path that recognises every format, in whatever it is wrapped.
//!
//! A file is a chain of layers: a compression, an EFI zboot, or a kernel that holds another one
//! packed. Each is taken off, so that a packed kernel is unpacked by the host and what lies in it
//! is entered directly. At the end is an ELF file, a kernel in a format of its own, or a flat
//! binary. What has to be unpacked is looked up in the cache first and kept there.
//!
//! The core does not know which formats of kernels there are: that is `arch::formats`' to say.

use anyhow::{Context, Result};

use super::cache::{Cache, Key};
use super::elf;
use super::unpack::{Compression, unpack};
use super::{Payload, bad_image, pe, version};
use crate::arch::formats::{HEAD, Kernel, linux_note, pvh};

/// What is packed more often than this is no kernel. The deepest that is in use is so twice.
const MOST_DEPTH: usize = 3;

/// What the innermost layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// ELF: says itself where it goes.
    Elf {
        /// Its headers.
        elf: elf::Image,
        /// The entry that its PVH note names (guest-physical).
        pvh_entry: Option<u64>,
        /// What it is besides, for loaders of another kind.
        kernel: Option<Kernel>,
        /// Its notes say that it is Linux.
        is_linux: bool,
    },
    /// A kernel in a format of its own.
    Kernel(Kernel),
    /// None of the formats: bytes to be placed and entered as they are.
    Flat,
}

/// Something that was around an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layer {
    /// A compressed stream.
    Compressed(Compression),
    /// A kernel with another one in it. Its header is still of use: a bzImage's says how the
    /// kernel in it is told its parameters.
    Kernel(Kernel),
    /// An EFI program that unpacks a kernel.
    Zboot,
}

/// An image, recognised.
pub struct Image {
    /// What was around it, outermost first.
    pub layers: Vec<Layer>,
    /// What it is.
    pub form: Form,
    /// Its bytes: the file itself, a file of the cache, or memory.
    pub bytes: Payload,
    /// The version that a header names.
    named: Option<String>,
}

/// How images are unpacked.
pub struct Unpacking<'a> {
    /// The most bytes that anything may unpack to.
    pub limit: u64,
    /// Where unpacked images are kept.
    pub cache: Option<&'a Cache>,
    /// False leaves a kernel that can unpack itself as it is.
    pub kernels: bool,
}

impl Image {
    /// Recognises `bytes` and takes every layer off.
    pub fn read(mut bytes: Payload, unpacking: &Unpacking<'_>) -> Result<Self> {
        let (mut layers, mut named, mut depth) = (Vec::new(), None, 0);
        loop {
            let head = bytes.head(HEAD)?;
            let found = Found::read(&bytes, &head, unpacking.kernels)?;
            named = found.kernel().and_then(|kernel| kernel.version(&bytes)).or(named);
            let (layer, compression, at, len) = match found {
                Found::Form(Form::Flat) if layers.iter().any(Layer::holds_a_kernel) => {
                    bad_image!("holds something packed that is no kernel")
                }
                Found::Form(form) => return Ok(Self { layers, form, bytes, named }),
                Found::Packed(layer, compression, at, len) => (layer, compression, at, len),
            };
            depth += 1;
            if depth > MOST_DEPTH {
                bad_image!("is packed more than {MOST_DEPTH} times over");
            }
            layers.extend(layer);
            layers.extend(compression.map(Layer::Compressed));
            bytes = take_off(&bytes, at, len, compression, unpacking)?;
        }
    }

    /// The version that the kernel gives itself. Reads much of the image where no header has it.
    pub fn version(&self) -> Option<String> {
        self.named.clone().or_else(|| version::find(&self.bytes))
    }
}

/// What the first bytes say.
enum Found {
    /// The innermost layer.
    Form(Form),
    /// Something packed: what it is in, how it is packed (nothing: not at all), where and how long.
    Packed(Option<Layer>, Option<Compression>, u64, u64),
}

/// Formats that nobody can start, and what to do about it: name, offset of the magic, the magic.
const FOREIGN: &[(&str, usize, &[u8])] = &[
    ("is a qcow2 disk: a kernel is needed", 0, b"QFI\xfb"),
    ("is a script, not an image", 0, b"#!"),
    ("is compressed with bzip2: unpack it first", 4, b"\x31\x41\x59\x26\x53\x59"),
    ("is compressed with lzop: unpack it first", 0, b"\x89LZO\0\r\n\x1a\n"),
    (
        "is an lz4 frame of the newer kind: unpack it, or pack it with lz4 -l",
        0,
        b"\x04\x22\x4d\x18",
    ),
];

impl Layer {
    fn holds_a_kernel(&self) -> bool {
        !matches!(self, Self::Compressed(_))
    }
}

impl Found {
    /// The kernel that was found, if it is one.
    fn kernel(&self) -> Option<&Kernel> {
        match self {
            Self::Form(Form::Kernel(kernel)) => Some(kernel),
            Self::Packed(Some(Layer::Kernel(kernel)), ..) => Some(kernel),
            _ => None,
        }
    }

    /// Recognises `bytes`, which begin with `head`.
    fn read(bytes: &Payload, head: &[u8], kernels: bool) -> Result<Self> {
        if let Some(compression) = Compression::recognise(head) {
            return Ok(Self::Packed(None, Some(compression), 0, bytes.len()));
        }
        if head.starts_with(b"\x7fELF") {
            return Ok(Self::Form(read_elf(bytes, head)?));
        }
        if let Some((at, len)) = zboot(head, bytes.len())? {
            let mut start = [0; 8];
            bytes.read_at(&mut start, at, "packed kernel")?;
            let Some(compression) = Compression::recognise(&start) else {
                bad_image!(
                    "is an EFI zboot kernel, packed in an unknown way: {}",
                    zboot_name(head)
                );
            };
            return Ok(Self::Packed(Some(Layer::Zboot), Some(compression), at, len));
        }
        if let Some(kernel) = Kernel::read(head, bytes.len())? {
            return Self::of_kernel(kernel, bytes, kernels);
        }
        let starts = |at: usize, magic: &[u8]| head.get(at..at + magic.len()) == Some(magic);
        if let Some((what, ..)) = FOREIGN.iter().find(|(_, at, magic)| starts(*at, magic)) {
            bad_image!("{what}");
        }
        if pe::is_pe(head) {
            bad_image!("is an EFI program without a kernel's header: it needs firmware to run");
        }
        Ok(Self::Form(Form::Flat))
    }

    /// A kernel, or what is packed in it if that is an ELF file.
    fn of_kernel(kernel: Kernel, bytes: &Payload, unpack: bool) -> Result<Self> {
        let Some((at, len)) = kernel.packed().filter(|(_, len)| unpack && *len >= 8) else {
            return Ok(Self::Form(Form::Kernel(kernel)));
        };
        let mut start = [0; 8];
        bytes.read_at(&mut start, at, "packed kernel")?;
        let compression = Compression::recognise(&start);
        // It can unpack itself from formats that we can't.
        if compression.is_none() && !start.starts_with(b"\x7fELF") {
            return Ok(Self::Form(Form::Kernel(kernel)));
        }
        Ok(Self::Packed(Some(Layer::Kernel(kernel)), compression, at, len))
    }
}

fn read_elf(bytes: &Payload, head: &[u8]) -> Result<Form> {
    let elf = elf::Image::read(bytes)?;
    let note = elf.note(bytes, pvh::OWNER, pvh::PHYS32_ENTRY)?;
    let pvh_entry = note.map(|note| pvh::entry(&note)).transpose()?;
    let kernel = Kernel::read_in_elf(head, bytes.len(), elf.machine())?;
    let is_linux = elf.note(bytes, linux_note::OWNER, linux_note::BUILD_SALT)?.is_some();
    Ok(Form::Elf { elf, pvh_entry, kernel, is_linux })
}

/// The `len` bytes at `at`, unpacked.
fn take_off(
    bytes: &Payload,
    at: u64,
    len: u64,
    compression: Option<Compression>,
    unpacking: &Unpacking<'_>,
) -> Result<Payload> {
    if let Some(compression) = compression.filter(|_| !crate::FULL) {
        bad_image!(
            "is packed with {}: unpack it first (a bivisor with the feature `full` does it itself)",
            compression.name()
        );
    }
    let cache = unpacking.cache.filter(|_| compression.is_some());
    if let Some(cache) = cache
        && let Some((file, len)) = cache.find(Key::at(bytes, at, len)?)
        && len <= unpacking.limit
    {
        return Ok(Payload::File(file, len));
    }
    let mut own = Vec::new();
    let input = match bytes.slice(at, len) {
        Some(input) => input,
        None => {
            own.try_reserve_exact(len as usize)
                .with_context(|| format!("take {len:#x} bytes to read the image"))?;
            own.resize(len as usize, 0);
            bytes.read_at(&mut own, at, "packed kernel")?;
            &own
        }
    };
    let Some(compression) = compression else {
        return Ok(Payload::Memory(input.to_vec()));
    };
    let unpacked = unpack(compression, input, unpacking.limit)?;
    let len = unpacked.len() as u64;
    // The pages that were just written: a guest maps them, as the next one will.
    Ok(match cache.and_then(|cache| cache.keep(Key::of(input), &unpacked)) {
        Some(file) => Payload::File(file, len),
        None => Payload::Memory(unpacked),
    })
}

/// Where the kernel lies in an EFI zboot image (Linux v6.12
/// drivers/firmware/efi/libstub/zboot-header.S), as offset and length.
fn zboot(head: &[u8], len: u64) -> Result<Option<(u64, u64)>> {
    if !head.starts_with(b"MZ") || head.get(4..8) != Some(b"zimg") {
        return Ok(None);
    }
    let word = |at: usize| head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    let (Some(at), Some(size)) = (word(8), word(12)) else {
        bad_image!("is a truncated EFI zboot kernel");
    };
    let (at, size) = (u64::from(u32::from_le_bytes(at)), u64::from(u32::from_le_bytes(size)));
    if size < 8 || at + size > len {
        bad_image!(
            "is a truncated or damaged EFI zboot kernel: its payload ({size:#x} bytes at {at:#x}) \
             ends past the end of the file ({len:#x})"
        );
    }
    Ok(Some((at, size)))
}

/// The compression as a zboot header names it.
fn zboot_name(head: &[u8]) -> String {
    let name = head.get(24..56).unwrap_or_default();
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
