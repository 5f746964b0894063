//! How long an image takes until it is recognised and unpacked: without a cache, when the cache is
//! filled, and when it is used. Medians in milliseconds.
//!
//! `cargo bench --bench unpack -- /boot/vmlinuz-*`

use std::path::Path;
use std::time::Instant;

use bivisor::payload::Payload;
use bivisor::payload::cache::Cache;
use bivisor::payload::image::{Image, Unpacking};

const ROUNDS: usize = 9;

/// The median time of `ROUNDS` readings, with `before` done in front of each.
fn median(path: &Path, cache: Option<&Cache>, before: impl Fn()) -> f64 {
    let mut times: Vec<_> = (0..ROUNDS)
        .map(|_| {
            before();
            let payload = Payload::open(path).expect("open the image");
            let start = Instant::now();
            let unpacking = Unpacking { limit: 1 << 30, cache, kernels: true };
            let image = Image::read(payload, &unpacking).expect("recognise the image");
            let took = start.elapsed();
            drop(image);
            took
        })
        .collect();
    times.sort();
    times[ROUNDS / 2].as_secs_f64() * 1e3
}

fn main() {
    println!("{:>9} {:>9} {:>9}", "no cache", "filling", "using");
    for path in std::env::args().skip(1).filter(|argument| !argument.starts_with('-')) {
        let folder = tempfile::tempdir().expect("make a temporary folder");
        let place = folder.path().join("cache");
        let cache = Cache::open(&place, 1 << 30).expect("make a cache");
        let empty = || {
            for entry in std::fs::read_dir(&place).expect("list the cache").flatten() {
                std::fs::remove_file(entry.path()).expect("empty the cache");
            }
        };
        let path = Path::new(&path);
        let plain = median(path, None, || {});
        let filling = median(path, Some(&cache), empty);
        let using = median(path, Some(&cache), || {});
        println!("{plain:9.1} {filling:9.1} {using:9.1}  {}", path.display());
    }
}
