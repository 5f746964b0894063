//! Images made by hand, as small as they can be, for tests.

/// Writes `bytes` at `at`.
pub fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A bzImage of boot protocol 2.15 with one sector of code in front of `packed`.
pub fn bzimage(packed: &[u8]) -> Vec<u8> {
    const SETUP: usize = 3 * 512;
    let mut image = vec![0; (SETUP + 512 + packed.len()).next_multiple_of(16)];
    let syssize = (image.len() - SETUP) / 16;
    put(&mut image, 0x1f1, &[2]);
    put(&mut image, 0x1f4, &(syssize as u32).to_le_bytes());
    put(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut image, 0x202, b"HdrS\x0f\x02");
    put(&mut image, 0x20e, &0x80u16.to_le_bytes());
    put(&mut image, 0x211, &[1]);
    put(&mut image, 0x214, &0x10_0000u32.to_le_bytes());
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut image, 0x230, &0x20_0000u32.to_le_bytes());
    put(&mut image, 0x234, &[1, 21, 0x7f, 0]);
    put(&mut image, 0x238, &2047u32.to_le_bytes());
    put(&mut image, 0x248, &512u32.to_le_bytes());
    put(&mut image, 0x24c, &(packed.len() as u32).to_le_bytes());
    put(&mut image, 0x258, &0x100_0000u64.to_le_bytes());
    put(&mut image, 0x260, &0x10_0000u32.to_le_bytes());
    put(&mut image, 0x280, b"1.2.3 (sample)\0");
    put(&mut image, SETUP + 512, packed);
    image
}

/// An arm64 Image of 4 KiB that takes 64 KiB.
pub fn arm64_image() -> Vec<u8> {
    let mut image = vec![0; 4096];
    put(&mut image, 16, &0x1_0000u64.to_le_bytes());
    put(&mut image, 24, &0xau64.to_le_bytes());
    put(&mut image, 0x38, b"ARMd");
    put(&mut image, 0x400, b"Linux version 4.5.6-sample (someone)");
    image
}

/// A multiboot kernel of 4 KiB whose header at 0x40 has these flags and address fields.
pub fn multiboot_with(flags: u32, addresses: [u32; 5]) -> Vec<u8> {
    let mut image = vec![0; 4096];
    let magic = 0x1bad_b002u32;
    let sum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    for (index, word) in [magic, flags, sum].into_iter().chain(addresses).enumerate() {
        put(&mut image, 0x40 + 4 * index, &word.to_le_bytes());
    }
    image
}

/// A multiboot kernel that goes to 1 MiB as a whole, with 64 KiB of memory.
pub fn multiboot() -> Vec<u8> {
    multiboot_with(0x1_0003, [0x10_0040, 0x10_0000, 0, 0x11_0000, 0x10_0100])
}

/// One image of each format, by name.
pub fn all() -> Vec<(&'static str, Vec<u8>)> {
    vec![("bzImage", bzimage(b"")), ("arm64 Image", arm64_image()), ("multiboot", multiboot())]
}
