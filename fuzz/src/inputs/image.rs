//! Images: from any bytes to guest RAM, on both architectures.

use bivisor::fuzzing as arch;
use bivisor::memory::{GuestRam, RamRange};
use bivisor::payload::Payload;
use bivisor::payload::describe::Description;
use bivisor::payload::image::{Image, Unpacking};
use bivisor::payload::load::{self, Rules, Wish};
use bivisor::places::Places;

use super::LIMIT;

/// Where RAM begins on each architecture.
const RAM_STARTS: [u64; 2] = [0, 0x4000_0000];

/// Reads, describes and loads `bytes`, with and without what is packed in it.
pub fn run(bytes: &[u8]) {
    for kernels in [true, false] {
        let unpacking = Unpacking { limit: LIMIT, cache: None, kernels };
        let Ok(image) = Image::read(Payload::Memory(bytes.to_vec()), &unpacking) else { continue };
        assert!(image.bytes.len() <= LIMIT.max(bytes.len() as u64));
        let _ = Description::of(&image).map(|found| found.table("file", bytes.len() as u64));
        load_every_way(&image, RAM_STARTS[0], &arch::X86_64);
        load_every_way(&image, RAM_STARTS[1], &arch::AARCH64);
    }
}

fn load_every_way<M: Copy + PartialEq>(image: &Image, ram_start: u64, rules: &Rules<M>) {
    let _ = load::choose(image, ram_start, None, None, rules);
    for way in (rules.ways)(image, ram_start) {
        let ranges = vec![RamRange { start: ram_start, len: 4 << 20 }];
        let mut places = Places::new(&ranges);
        let ram = GuestRam::new(ranges).expect("there is room for 4 MiB");
        let loaded = load::load(image, &ram, &mut places, &Wish::default(), &way, rules);
        assert!(loaded.map_or(true, |entry| places.in_ram(entry, 1)));
    }
}
