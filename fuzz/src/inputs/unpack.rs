//! Packed files: each compression alone.

use bivisor::payload::unpack::{Compression, unpack};

use super::{LIMIT, seeds};

/// A text, packed.
pub fn seeds(which: usize) -> Vec<Vec<u8>> {
    vec![seeds::PACKED[which].to_vec()]
}

pub fn gzip(bytes: &[u8]) {
    run(Compression::Gzip, bytes);
}

pub fn zstd(bytes: &[u8]) {
    run(Compression::Zstd, bytes);
}

pub fn lz4(bytes: &[u8]) {
    run(Compression::Lz4, bytes);
}

pub fn xz(bytes: &[u8]) {
    run(Compression::Xz, bytes);
}

/// Unpacks `bytes`, whatever they are, and keeps to the limit.
fn run(compression: Compression, bytes: &[u8]) {
    if let Ok(unpacked) = unpack(compression, bytes, LIMIT) {
        assert!(unpacked.len() as u64 <= LIMIT);
    }
}
