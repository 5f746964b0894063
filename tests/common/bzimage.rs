//! A bzImage made by hand (Linux v6.12 Documentation/arch/x86/boot.rst).

/// A bzImage of boot protocol 2.12 that has nothing packed in it. At each of its entries it ends with
/// a status of its own: the number of bits there.
pub fn bzimage() -> Vec<u8> {
    // `mov al, STATUS; out 0xf4, al`, which is the same in every mode.
    let end = |status: u8| [0xb0, status, 0xe6, 0xf4];
    let mut image = vec![0; 0x800];
    for (at, bytes) in [
        (0x1f1, &[1][..]),
        (0x1f4, &0x40u32.to_le_bytes()),
        (0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]),
        (0x202, b"HdrS\x0c\x02"),
        (0x211, &[1]),
        (0x214, &0x10_0000u32.to_le_bytes()),
        (0x22c, &0x7fff_ffffu32.to_le_bytes()),
        (0x236, &[1, 0]),
        (0x238, &255u32.to_le_bytes()),
        (0x258, &0x10_0000u64.to_le_bytes()),
        (0x26c, &end(16)),
        (0x400, &end(32)),
        (0x600, &end(64)),
    ] {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }
    image
}
