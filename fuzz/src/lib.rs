//! What fuzz targets share: limits, seeds, and the way from bytes to a machine's memory.
//!
//! A target fails where what it calls panics; libFuzzer itself notices what hangs or takes more
//! memory than it may. The seeds are the samples of the library's own tests and four packed texts.

pub mod image;
pub mod qcow2;
pub mod rings;
pub mod seeds;
pub mod tables;
pub mod whole;

pub use bivisor;
pub use libfuzzer_sys::fuzz_target;

use bivisor::payload::unpack::{self, Compression};

/// Bytes that anything may unpack to. Our choice: several times what a seed does, and little enough
/// to be filled hundreds of times a second.
pub const LIMIT: u64 = 1 << 20;

/// The whole of a target: its seeds, and what is done with any bytes.
#[macro_export]
macro_rules! target {
    ($seeds:expr, $test:expr) => {
        $crate::fuzz_target!(init: $crate::seeds::write(&$seeds), |bytes: &[u8]| $test(bytes));
    };
}

/// Unpacks `bytes`, whatever they are, and keeps to the limit.
pub fn unpack(compression: Compression, bytes: &[u8]) {
    if let Ok(unpacked) = unpack::unpack(compression, bytes, LIMIT) {
        assert!(unpacked.len() as u64 <= LIMIT);
    }
}
