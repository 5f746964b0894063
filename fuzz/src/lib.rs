//! Makes fuzz targets of what is in [`inputs`], which bivisor's own tests have too.
//!
//! A target fails where what it calls panics; libFuzzer itself notices what hangs or takes more
//! memory than it may.

pub mod inputs;

use std::fs;
use std::path::PathBuf;

pub use libfuzzer_sys::fuzz_target;

use inputs::{Input, found};

/// Writes what an input begins with, and what was found for it before, to the corpus: the first folder
/// among the arguments, which libFuzzer reads later.
pub fn write_seeds(input: &Input) {
    // As the program has it: a peer that is gone is an error of a write.
    // SAFETY: SIG_IGN is no handler that could do something unsafe.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let folder = std::env::args_os().skip(1).map(PathBuf::from).find(|path| path.is_dir());
    let Some(corpus) = folder else { return };
    let seeds = (input.seeds)().into_iter().map(|seed| ("seed", seed));
    let kept = found(input.corpus).map(|bytes| ("kept", bytes.to_vec()));
    for (index, (name, bytes)) in seeds.chain(kept).enumerate() {
        fs::write(corpus.join(format!("{name}-{index}")), bytes)
            .expect("the corpus can be written");
    }
}

/// The whole of a target: the input of that name, its seeds first.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        static INPUT: std::sync::LazyLock<&$crate::inputs::Input> =
            std::sync::LazyLock::new(|| $crate::inputs::find($name));
        $crate::fuzz_target!(init: $crate::write_seeds(&INPUT), |bytes: &[u8]| {
            (INPUT.run)(bytes)
        });
    };
}
