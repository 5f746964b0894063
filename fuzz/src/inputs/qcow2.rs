//! Any file as a qcow2 image: refused, or read to its end.

use std::fs;

use bivisor::devices::block::disk::Disk;
use bivisor::devices::block::qcow2::Qcow2;
use bivisor::devices::block::raw::Access;
use bivisor::memory::{GuestRam, RamRange};
use bivisor::pieces::Pieces;

/// Bytes that are read of one image, from its beginning and its end.
const LEN: usize = 1 << 18;

/// Opens `bytes` as an image, reads from it and writes to it.
pub fn run(bytes: &[u8]) {
    let path = std::env::temp_dir().join(format!("bivisor-fuzz-{}.qcow2", std::process::id()));
    fs::write(&path, bytes).expect("a temporary file");
    let image = Qcow2::open(&path, Access::default(), false);
    let Ok(image) = image else { return };
    let ram = GuestRam::new(vec![RamRange { start: 0, len: LEN as u64 }]).expect("some memory");
    let ram = std::sync::Arc::new(ram);
    let size = image.size();
    let len = size.min(LEN as u64);
    for offset in [0, (size - len) & !511] {
        let mut pieces = Pieces::new(ram.clone());
        pieces.push(0, len as usize & !511).expect("as much as there is");
        // Errors are as good.
        let _ = image.read(&mut pieces, offset);
        let mut pieces = Pieces::new(ram.clone());
        pieces.push(0, len.min(512) as usize & !511).expect("as much as there is");
        let _ = image.write(&mut pieces, offset);
    }
    let _ = image.flush();
}

/// Empty images, small and large.
pub fn seeds() -> Vec<Vec<u8>> {
    let sizes = [(1u64 << 16, 1u64 << 9), (1 << 20, 1 << 16), (1 << 40, 1 << 21)];
    let make = |(size, cluster)| {
        let path = std::env::temp_dir().join(format!("bivisor-seed-{}", std::process::id()));
        let options =
            fs::File::options().read(true).write(true).create(true).truncate(true).clone();
        let file = options.open(&path).expect("a temporary file");
        Qcow2::create(file, size, cluster, None).expect("an image");
        fs::read(&path).expect("what was just written")
    };
    sizes.map(make).into()
}
