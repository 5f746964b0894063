//! What a PC's kernel finds of a BIOS: interrupt vectors, the BIOS data area, and code that refuses
//! every service.
//!
//! There is no BIOS. But kernels read how much low memory there is, and some go back to real mode to
//! ask a BIOS for a memory map or a video mode, with another way to go on when it refuses. All of it
//! lies where a BIOS has it, which no kernel takes for RAM; the first page is an image's own if it
//! wants it.
//!
//! Source: IBM PC/AT Technical Reference, "BIOS Data Area" and "Compatibility Table"; SDM vol. 3B,
//! "Interrupt and Exception Handling" of real-address mode.

use super::boot::Table;
use super::{layout, multiboot};
use crate::board::Board;
use crate::memory::RamRange;
use crate::places::Places;

/// Where interrupt vectors and BIOS data lie.
const DATA: RamRange = RamRange { start: 0, len: 0x500 };
const BIOS_DATA: usize = 0x400;

/// The segment of the code, and offsets in it: the IBM BIOS's own for one that does nothing.
const SEGMENT: u16 = 0xf000;
const IGNORE: u16 = 0xff53;
const REFUSE: u16 = 0xff60;
/// `iret`.
const IGNORE_CODE: &[u8] = &[0xcf];
/// `push bp; mov bp, sp; or byte ptr [bp + 6], 0x41; pop bp; mov ah, 0x86; iret`: no such service
/// (carry), no key (zero).
const REFUSE_CODE: &[u8] = &[0x55, 0x89, 0xe5, 0x80, 0x4e, 0x06, 0x41, 0x5d, 0xb4, 0x86, 0xcf];

/// Vectors of services; the others are exceptions and interrupts of devices.
fn is_service(vector: u16) -> bool {
    (0x10..0x70).contains(&vector) || vector >= 0x78
}

/// The vectors, and the data area for this RAM: the first serial port, the segment of the extended
/// data area, and the KiB of RAM below that.
fn first_page(ram: &[RamRange]) -> Vec<u8> {
    let mut page = Vec::with_capacity(DATA.len as usize);
    for vector in 0..=0xff {
        let offset = if is_service(vector) { REFUSE } else { IGNORE };
        page.extend([offset.to_le_bytes(), SEGMENT.to_le_bytes()].concat());
    }
    page.resize(DATA.len as usize, 0);
    let end = layout::LEGACY.start;
    let kib = multiboot::kib(ram, 0, end) as u16;
    for (at, value) in [(0x00, layout::CONSOLE.addr as u16), (0x0e, (end >> 4) as u16), (0x13, kib)]
    {
        page[BIOS_DATA + at..][..2].copy_from_slice(&value.to_le_bytes());
    }
    page
}

/// Places it, as far as RAM is there and the image has left room.
pub fn place(board: &Board, places: &mut Places, tables: &mut Vec<Table>) {
    let code = |offset: u16| (u64::from(SEGMENT) << 4) + u64::from(offset);
    let mut put = |start: u64, bytes: Vec<u8>| {
        if places.reserve(start, bytes.len() as u64, "BIOS").is_ok() {
            tables.push((start, bytes));
        }
    };
    put(DATA.start, first_page(&board.ram));
    put(code(IGNORE), IGNORE_CODE.to_vec());
    put(code(REFUSE), REFUSE_CODE.to_vec());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(ram: RamRange, taken: Option<(u64, u64)>) -> Vec<Table> {
        let board = Board { cpus: 1, ram: vec![ram], exit_register: layout::EXIT_REGISTER };
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
            let code = tables[1..].iter().find(|(at, _)| *at == target);
            assert_eq!(code.unwrap().1.last(), Some(&0xcf));
        }
        assert_eq!(page[0x400..0x402], 0x3f8u16.to_le_bytes());
        assert_eq!((&page[0x40e..0x410], &page[0x413..0x415]), (&[0xc0, 0x9f][..], &[0x7f, 2][..]));
    }

    #[test]
    fn the_image_comes_first() {
        let ram = RamRange { start: 0, len: 0x10_0000 };
        assert!(placed(ram, Some((0x4ff, 1))).iter().all(|(at, _)| *at > 0xf_0000));
        assert_eq!(placed(RamRange { start: 0x10_0000, len: 0x1000 }, None), []);
    }
}
