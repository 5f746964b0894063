//! Formats of kernels, each alone.

use bivisor::formats::samples::{self, put};
use bivisor::formats::{HEAD, arm64_image, bzimage, multiboot, pvh};
use bivisor::payload::elf::Image as Elf;
use bivisor::payload::image::{Image, Unpacking};
use bivisor::payload::{Payload, pe};

use super::seeds::PACKED;
use super::{LIMIT, image};

/// What a reader of headers is given: the first bytes of a file, and its length.
fn head(bytes: &[u8]) -> (&[u8], u64) {
    (&bytes[..bytes.len().min(HEAD)], bytes.len() as u64)
}

pub fn elf_seeds() -> Vec<Vec<u8>> {
    vec![samples::elf(&samples::pvh_note(4)), samples::elf(b"")]
}

/// ELF files: headers, segments, the entry.
pub fn elf(bytes: &[u8]) {
    if let Ok(image) = Elf::read(&Payload::Memory(bytes.to_vec())) {
        let (start, end) = image.load_range();
        assert!(start < end);
        let _ = (image.entry_guest_addr(), image.machine_name());
    }
}

pub fn note_seeds() -> Vec<Vec<u8>> {
    vec![samples::pvh_note(4), samples::pvh_note(8)]
}

/// Notes of ELF files, and what a PVH note says.
pub fn note(bytes: &[u8]) {
    let file = Payload::Memory(samples::elf(bytes));
    let image = Elf::read(&file).expect("only its notes are odd");
    if let Ok(Some(note)) = image.note(&file, pvh::OWNER, pvh::PHYS32_ENTRY) {
        let _ = pvh::entry(&note);
    }
}

pub fn bzimage_seeds() -> Vec<Vec<u8>> {
    vec![samples::bzimage(b"packed kernel")]
}

/// Setup headers of Linux for x86.
pub fn bzimage(bytes: &[u8]) {
    let (head, len) = head(bytes);
    if let Ok(Some(header)) = bzimage::Header::read(head, len) {
        let _ = (header.facts(), header.starts());
        let _ = header.kernel_version(&Payload::Memory(bytes.to_vec()));
        assert!(header.packed().is_none_or(|(at, packed)| at + packed <= len));
    }
}

pub fn arm64_image_seeds() -> Vec<Vec<u8>> {
    vec![samples::arm64_image()]
}

/// Headers of Linux for arm64.
pub fn arm64_image(bytes: &[u8]) {
    let (head, len) = head(bytes);
    if let Ok(Some(header)) = arm64_image::Header::read(head, len) {
        assert!(header.image_size >= len);
        let _ = header.facts();
    }
}

pub fn multiboot_seeds() -> Vec<Vec<u8>> {
    vec![samples::multiboot(), samples::multiboot_with(3, [0; 5])]
}

/// Multiboot headers, in files of their own and in ELF files.
pub fn multiboot(bytes: &[u8]) {
    let (head, len) = head(bytes);
    for is_elf in [false, true] {
        if let Ok(Some(header)) = multiboot::Header::read(head, len, is_elf) {
            let _ = header.facts();
        }
    }
}

pub fn pe_seeds() -> Vec<Vec<u8>> {
    vec![samples::zboot(b""), samples::arm64_image()]
}

/// What is read of EFI programs.
pub fn pe(bytes: &[u8]) {
    assert!(pe::end(bytes).is_none() || pe::is_pe(bytes));
}

pub fn zboot_seeds() -> Vec<Vec<u8>> {
    PACKED.map(samples::zboot).into()
}

/// EFI zboot: bytes behind its magic.
pub fn zboot(bytes: &[u8]) {
    let mut file = bytes.to_vec();
    if file.len() >= 8 {
        put(&mut file, 0, b"MZ\0\0zimg");
        image::run(&file);
    }
}

pub fn version_seeds() -> Vec<Vec<u8>> {
    vec![b"Linux version 6.1.0 (someone)".to_vec()]
}

/// The search for a version in what no header describes.
pub fn version(bytes: &[u8]) {
    let file = [&[0; 64], bytes].concat();
    let unpacking = Unpacking { limit: LIMIT, cache: None, kernels: true };
    if let Ok(image) = Image::read(Payload::Memory(file), &unpacking) {
        let version = image.version().unwrap_or_default();
        assert!(version.chars().all(|c| c.is_ascii_graphic()));
    }
}
