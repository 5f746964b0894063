//! ELF files made by hand, as small as they can be (System V ABI, chapters 4 and 5).

/// One `PT_LOAD` segment: where it goes, its bytes, and how many zero bytes follow them.
pub struct Segment<'a> {
    pub guest_addr: u64,
    pub bytes: &'a [u8],
    pub zeros: u64,
}

const ET_EXEC: u16 = 2;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const ALL_ACCESS: u32 = 7;

/// Bytes of ELF64's headers: of the file, and of a segment.
const HEADER: u16 = 64;
const PROGRAM_HEADER: u16 = 56;

/// Appends little-endian numbers, each in as many bytes as its type has.
macro_rules! put {
    ($to:expr, $($value:expr),* $(,)?) => { $( $to.extend_from_slice(&$value.to_le_bytes()); )* };
}

/// An ELF64 executable.
pub fn elf64(machine: u16, entry: u64, segments: &[Segment]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    put!(file, ET_EXEC, machine, 1u32, entry, u64::from(HEADER), 0u64, 0u32);
    put!(file, HEADER, PROGRAM_HEADER, segments.len() as u16, 0u16, 0u16, 0u16);
    let mut offset = u64::from(HEADER) + u64::from(PROGRAM_HEADER) * segments.len() as u64;
    for segment in segments {
        let len = segment.bytes.len() as u64;
        put!(file, PT_LOAD, ALL_ACCESS, offset, segment.guest_addr, segment.guest_addr);
        put!(file, len, len + segment.zeros, 1u64);
        offset += len;
    }
    segments.iter().for_each(|segment| file.extend_from_slice(segment.bytes));
    file
}

/// A kernel for x86-64 with PVH's entry at `guest_addr`, its first byte: `code` of a multiple of four bytes
/// (Xen, xen/include/public/elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY).
pub fn pvh(guest_addr: u64, code: &[u8]) -> Vec<u8> {
    const EM_X86_64: u16 = 62;
    const PHYS32_ENTRY: u32 = 18;
    let mut note = Vec::new();
    put!(note, 4u32, 4u32, PHYS32_ENTRY);
    note.extend_from_slice(b"Xen\0");
    put!(note, guest_addr as u32);
    let segments = [
        Segment { guest_addr, bytes: code, zeros: 0 },
        Segment { guest_addr: guest_addr + code.len() as u64, bytes: &note, zeros: 0 },
    ];
    let mut file = elf64(EM_X86_64, guest_addr, &segments);
    let kind = usize::from(HEADER + PROGRAM_HEADER);
    file[kind..kind + 4].copy_from_slice(&PT_NOTE.to_le_bytes());
    file
}

/// Code for [`pvh`] that prints its command line and ends with status 0: `mov esi, [ebx + 24]; mov dx, 0x3f8`,
/// then `lodsb; test al, al; jz +3; out dx, al; jmp -8`, and `xor eax, eax; out 0xf4, al`.
pub const PVH_SAYS: &[u8] =
    b"\x8b\x73\x18\x66\xba\xf8\x03\xac\x84\xc0\x74\x03\xee\xeb\xf8\x31\xc0\xe6\xf4\x90";

/// An ELF32 executable.
pub fn elf32(machine: u16, entry: u32, segments: &[Segment]) -> Vec<u8> {
    const HEADER: u16 = 52;
    const PROGRAM_HEADER: u16 = 32;
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    put!(file, ET_EXEC, machine, 1u32, entry, u32::from(HEADER), 0u32, 0u32);
    put!(file, HEADER, PROGRAM_HEADER, segments.len() as u16, 0u16, 0u16, 0u16);
    let mut offset = u32::from(HEADER) + u32::from(PROGRAM_HEADER) * segments.len() as u32;
    for segment in segments {
        let (at, len) = (segment.guest_addr as u32, segment.bytes.len() as u32);
        put!(file, PT_LOAD, offset, at, at, len, len + segment.zeros as u32, ALL_ACCESS, 1u32);
        offset += len;
    }
    segments.iter().for_each(|segment| file.extend_from_slice(segment.bytes));
    file
}
