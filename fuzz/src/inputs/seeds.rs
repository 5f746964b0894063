//! What targets begin with.

use bivisor::formats::samples;

/// A text of 6 KiB, packed by gzip 1.12, zstd 1.5.4, lz4 1.9.4 (`-l`) and xz 5.4.1 (`--x86`).
pub const PACKED: [&[u8]; 4] = [
    include_bytes!("../../seeds/text.gz"),
    include_bytes!("../../seeds/text.zst"),
    include_bytes!("../../seeds/text.lz4"),
    include_bytes!("../../seeds/text.xz"),
];

/// An image of each kind, plain and packed.
pub fn images() -> Vec<Vec<u8>> {
    let mut images = kernels();
    let elf = samples::elf(&samples::pvh_note(4));
    images.push(samples::bzimage(&elf));
    images.push(elf);
    images.extend(PACKED.map(<[u8]>::to_vec));
    images.extend(PACKED.map(samples::zboot));
    images.extend(PACKED.map(samples::bzimage));
    images
}

/// A kernel in each format of its own.
pub fn kernels() -> Vec<Vec<u8>> {
    samples::all().into_iter().map(|(_, bytes)| bytes).collect()
}
