//! What a PC's kernel finds of a BIOS: interrupt vectors, the BIOS data area, and four services.
//!
//! There is no BIOS. But kernels read how much low memory there is, and some are entered in real
//! mode, or go back there, to ask for a memory map or a video mode. Text goes to the console, the
//! memory map is told, the bootstrap service resets the machine, and all else is refused, for which
//! every caller has another way. All of it lies where a BIOS has it, which no kernel takes for RAM;
//! the first page is an image's own if it wants it.
//!
//! Source: IBM PC/AT Technical Reference, "BIOS Data Area" and "Compatibility Table"; ACPI 6.5, 15.1
//! "INT 15H, E820H"; SDM vol. 2, "Instruction Format", for the code.

use super::boot::Table;
use super::linux::{MapEntry, memory_map};
use super::{layout, multiboot};
use crate::board::Board;
use crate::memory::RamRange;
use crate::places::Places;

/// Bytes of interrupt vectors, and of them with the BIOS data behind.
const VECTORS_LEN: usize = 0x400;
const FIRST_PAGE_LEN: usize = 0x500;

/// The segment of the code, and offsets in it: where services start, and the IBM BIOS's own for an
/// interrupt that is ignored.
const SEGMENT: u16 = 0xf000;
const SERVICES: u16 = 0xf000;
const IGNORE: u16 = 0xff53;
/// `iret`.
const IGNORE_CODE: &[u8] = &[0xcf];

/// `push bp; mov bp, sp; or byte ptr [bp + 6], 0x41; pop bp; mov ah, 0x86; iret`: no such service
/// (carry), no key (zero).
const REFUSE: &[u8] = &[0x55, 0x89, 0xe5, 0x80, 0x4e, 0x06, 0x41, 0x5d, 0xb4, 0x86, 0xcf];
/// `push bp; mov bp, sp; and byte ptr [bp + 6], 0xfe; pop bp; iret`: no carry.
const SUCCEED: &[u8] = &[0x55, 0x89, 0xe5, 0x80, 0x66, 0x06, 0xfe, 0x5d, 0xcf];
/// `mov al, 0xfe; out 0x64, al; hlt; jmp -3`: resets by the keyboard controller.
const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];

/// Entries of the memory map that a comparison with a signed byte can count.
pub const MAP_MAX: usize = 127;

/// Services of which each begins with a comparison and goes on to the next if that fails.
fn chain(services: &[(&[u8], Vec<u8>)]) -> Vec<u8> {
    let mut code = Vec::new();
    for (comparison, body) in services {
        code.extend_from_slice(comparison);
        // `jne`, with a distance that is always short.
        code.extend([0x75, body.len() as u8]);
        code.extend(body);
    }
    code.extend(REFUSE);
    code
}

/// INT 10H, AH=0EH: writes the character in al.
fn video() -> Vec<u8> {
    let [low, high] = (layout::CONSOLE.addr as u16).to_le_bytes();
    // `push dx; mov dx, CONSOLE; out dx, al; pop dx; iret`, after `cmp ah, 0x0e`.
    chain(&[(&[0x80, 0xfc, 0x0e], vec![0x52, 0xba, low, high, 0xee, 0x5a, 0xcf])])
}

/// INT 12H: the KiB of low memory in ax.
fn low_memory(kib: u16) -> Vec<u8> {
    let [low, high] = kib.to_le_bytes();
    // `mov ax, KIB; iret`.
    vec![0xb8, low, high, 0xcf]
}

/// INT 15H, AX=E820H and AH=88H: the memory map, whose `entries` lie at the offset `map`, and the
/// KiB of memory from 1 MiB.
fn memory(map: u16, entries: u8, kib: u16) -> Vec<u8> {
    let ([map_low, map_high], [low, high]) = (map.to_le_bytes(), kib.to_le_bytes());
    #[rustfmt::skip]
    let map = [&[
        0x56, 0x57,                             // push si; push di
        0x6b, 0xf3, 20,                         // imul si, bx, 20
        0x81, 0xc6, map_low, map_high,          // add si, MAP
        0xb9, 10, 0,                            // mov cx, 10
        0xfc, 0xf3, 0x2e, 0xa5,                 // cld; rep movsw es:[di], cs:[si]
        0x5f, 0x5e,                             // pop di; pop si
        0x43, 0x83, 0xfb, entries,              // inc bx; cmp bx, ENTRIES
        0x72, 3, 0x66, 0x31, 0xdb,              // jb 1f; xor ebx, ebx
        0x66, 0xb8, b'P', b'A', b'M', b'S',     // 1: mov eax, "SMAP"
        0x66, 0xb9, 20, 0, 0, 0,                // mov ecx, 20
    ], SUCCEED].concat();
    // `mov ax, KIB`.
    let upper = [&[0xb8, low, high], SUCCEED].concat();
    // `cmp ax, 0xe820`, `cmp ah, 0x88`.
    chain(&[(&[0x3d, 0x20, 0xe8], map), (&[0x80, 0xfc, 0x88], upper)])
}

/// The code of all services with the memory map, from [`SERVICES`] on, and the offset of each by
/// its vector.
fn services(ram: &[RamRange], map: &[MapEntry]) -> (Vec<u8>, Vec<(usize, u16)>) {
    let map = &map[..map.len().min(MAP_MAX)];
    let mut code = Vec::new();
    for entry in map {
        code.extend([entry.start.to_le_bytes(), entry.len.to_le_bytes()].concat());
        code.extend((entry.kind as u32).to_le_bytes());
    }
    let kib = |start, limit| multiboot::kib(ram, start, limit).min(0xffff) as u16;
    let mut offsets = Vec::new();
    for (vectors, service) in [
        (&[0x10][..], video()),
        (&[0x12], low_memory(kib(0, layout::LEGACY.start))),
        (&[0x15], memory(SERVICES, map.len() as u8, kib(1 << 20, 1 << 32))),
        (&[0x18, 0x19], RESET.to_vec()),
        (&[], REFUSE.to_vec()),
    ] {
        let offset = SERVICES + code.len() as u16;
        offsets.extend(vectors.iter().map(|vector| (*vector, offset)));
        code.extend(service);
    }
    (code, offsets)
}

/// The vectors, which lead to the service or to what refuses every other, and the data area: the
/// first serial port, the segment of the extended data area, and the KiB of RAM below that.
fn first_page(ram: &[RamRange], refuse: u16, offsets: &[(usize, u16)]) -> Vec<u8> {
    let mut page = vec![0; FIRST_PAGE_LEN];
    for (vector, place) in page[..VECTORS_LEN].chunks_exact_mut(4).enumerate() {
        let service = offsets.iter().find(|(known, _)| *known == vector);
        let offset = match vector {
            _ if service.is_some() => service.map_or(refuse, |(_, offset)| *offset),
            // Exceptions, and interrupts of devices.
            0..0x10 | 0x70..0x78 => IGNORE,
            _ => refuse,
        };
        place.copy_from_slice(&(u32::from(SEGMENT) << 16 | u32::from(offset)).to_le_bytes());
    }
    let end = layout::LEGACY.start;
    let kib = multiboot::kib(ram, 0, end) as u16;
    for (at, value) in [(0x00, layout::CONSOLE.addr as u16), (0x0e, (end >> 4) as u16), (0x13, kib)]
    {
        page[VECTORS_LEN + at..][..2].copy_from_slice(&value.to_le_bytes());
    }
    page
}

/// Places it, as far as RAM is there and the image has left room.
pub fn place(board: &Board, places: &mut Places, tables: &mut Vec<Table>) {
    let (code, offsets) = services(&board.ram, &memory_map(&board.ram, layout::LEGACY));
    let refuse = SERVICES + (code.len() - REFUSE.len()) as u16;
    let page = first_page(&board.ram, refuse, &offsets);
    let segment = u64::from(SEGMENT) << 4;
    for (start, bytes) in [
        (0, page),
        (segment + u64::from(SERVICES), code),
        (segment + u64::from(IGNORE), IGNORE_CODE.to_vec()),
    ] {
        if places.reserve(start, bytes.len() as u64, "BIOS").is_ok() {
            tables.push((start, bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(ram: RamRange, taken: Option<(u64, u64)>) -> Vec<Table> {
        let board = Board {
            cpus: 1,
            ram: vec![ram],
            exit_register: layout::EXIT_REGISTER,
            virtio: vec![],
            pci: false,
        };
        let mut places = Places::new(&board.ram);
        if let Some((start, len)) = taken {
            places.reserve(start, len, "image").unwrap();
        }
        let mut tables = Vec::new();
        place(&board, &mut places, &mut tables);
        tables
    }

    #[test]
    fn every_vector_leads_to_code_and_low_memory_is_told() {
        let tables = placed(RamRange { start: 0, len: 0x10_0000 }, None);
        let (at, page) = &tables[0];
        assert_eq!((*at, page.len()), (0, 0x500));
        for vector in page[..0x400].chunks(4) {
            let word = |at: usize| u64::from(u16::from_le_bytes([vector[at], vector[at + 1]]));
            let target = (word(2) << 4) + word(0);
            let inside = |(at, code): &Table| (*at..at + code.len() as u64).contains(&target);
            assert!(tables[1..].iter().any(inside), "{target:#x}");
        }
        assert_eq!(page[0x400..0x402], 0x3f8u16.to_le_bytes());
        assert_eq!((&page[0x40e..0x410], &page[0x413..0x415]), (&[0xc0, 0x9f][..], &[0x7f, 2][..]));
    }

    #[test]
    fn the_map_is_in_front_of_the_code_and_never_too_long() {
        let ram: Vec<_> = (0..200).map(|i| RamRange { start: i << 21, len: 1 << 20 }).collect();
        let (code, offsets) = services(&ram, &memory_map(&ram, layout::LEGACY));
        assert_eq!(offsets[0], (0x10, SERVICES + 20 * MAP_MAX as u16));
        assert_eq!(code[..20], [&[0; 8][..], &[0, 0xfc, 9, 0, 0, 0, 0, 0, 1, 0, 0, 0]].concat());
        assert!(code.len() < usize::from(IGNORE - SERVICES));
        assert!(code.ends_with(REFUSE));
        // A body is jumped over by a signed byte.
        assert!(memory(SERVICES, 1, 1).len() < 128);
    }

    #[test]
    fn the_image_comes_first() {
        let ram = RamRange { start: 0, len: 0x10_0000 };
        assert!(placed(ram, Some((0x4ff, 1))).iter().all(|(at, _)| *at > 0xf_0000));
        assert_eq!(placed(RamRange { start: 0x10_0000, len: 0x1000 }, None), []);
    }
}
