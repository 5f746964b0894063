//! The notes by which Linux can be told from other ELF files.
//!
//! Source: Linux v6.12 include/linux/elfnote.h and include/linux/build-salt.h. Every `vmlinux` since
//! 4.18 has them; an older one is not told apart.

/// The notes' owner.
pub const OWNER: &[u8] = b"Linux";
/// The type of the note with the salt that a build was made unique by: LINUX_ELFNOTE_BUILD_SALT.
pub const BUILD_SALT: u32 = 0x100;
