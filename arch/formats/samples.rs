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

/// An ELF file for a 64-bit machine with one segment and, if it is not empty, one segment of notes.
pub fn elf(notes: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    let put = |file: &mut Vec<u8>, words: &[u64]| {
        words.iter().for_each(|word| file.extend(word.to_le_bytes()));
    };
    put(&mut file, &[0x10_0000, 64, 0]);
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let content = b"Linux version 7.8.9-sample \0";
    let (start, len) = (64 + 2 * 56, content.len() as u64);
    put(&mut file, &[7 << 32 | 1, start, 0x10_0000, 0x10_0000, len, 0x1000, 1]);
    let noted = if notes.is_empty() { 0 } else { 4 };
    put(&mut file, &[noted, start + len, 0, 0, notes.len() as u64, 0, 4]);
    [&file, &content[..], notes].concat()
}

/// The note of a PVH kernel, whose descriptor claims to have `len` bytes.
pub fn pvh_note(len: u32) -> Vec<u8> {
    let mut note: Vec<u8> = [4, len, 18].into_iter().flat_map(u32::to_le_bytes).collect();
    note.extend(b"Xen\0\x10\0\x10\0");
    note
}

/// An EFI zboot kernel with `packed` in it.
pub fn zboot(packed: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 64];
    put(&mut file, 0, b"MZ\0\0zimg\x40");
    put(&mut file, 12, &(packed.len() as u32).to_le_bytes());
    put(&mut file, 24, b"zstd22");
    [&file, packed].concat()
}

/// One image of each format, by name.
pub fn all() -> Vec<(&'static str, Vec<u8>)> {
    vec![("bzImage", bzimage(b"")), ("arm64 Image", arm64_image()), ("multiboot", multiboot())]
}
