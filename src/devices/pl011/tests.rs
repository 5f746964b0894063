//! The PL011 under scripted drivers.

use std::io::{Read, Write};
use std::sync::atomic::Ordering;
use std::thread;

use super::*;
use crate::console::EOT;
use crate::devices::rig::{Dice, Rig, long_text};
use crate::effort;

fn rig() -> Rig<Pl011> {
    Rig::held(Pl011::new)
}

fn has_data(rig: &mut Rig<Pl011>) -> bool {
    rig.get16(FR) & (FR_RXFE) == 0
}

fn poll(rig: &mut Rig<Pl011>, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        match has_data(rig) {
            true => bytes.push(rig.get16(DR) as u8),
            false => rig.wait_for_input(),
        }
    }
    bytes
}

/// As a driver does it (Arm DDI 0183, "Programming"): off, set, on.
fn set_up(rig: &mut Rig<Pl011>, imsc: u16) {
    rig.set(IMSC, 0u16);
    rig.set(CR, 0u16);
    rig.set(IBRD, 1u16);
    rig.set(FBRD, 40u16);
    rig.set(LCR_H, LCR_H_FEN | 0x60);
    rig.set(CR, 0x301u16);
    rig.set(ICR, RX | RT);
    // Linux drains it before it enables the interrupt (v6.12 drivers/tty/serial/amba-pl011.c,
    // pl011_enable_interrupts).
    for _ in 0..2 * FIFO_LEN {
        if !has_data(rig) {
            break;
        }
        rig.get16(DR);
    }
    rig.set(IMSC, imsc);
}

#[test]
fn it_says_what_it_is_and_that_it_may_be_written() {
    let mut rig = rig();
    let id: Vec<u16> = (0..8).map(|i| rig.get16(ID + 4 * i)).collect();
    assert_eq!(id, [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);
    assert_eq!(rig.get16(CR), 0x300);
    assert_eq!(rig.get16(IFLS), 0x12);
    assert_eq!(rig.get16(FR), 0x97);
    // UARTFR, UARTRIS and UARTMIS are for reading only; some registers have fewer bits.
    for (register, kept) in [
        (ILPR, 0xff),
        (IBRD, 0xffff),
        (FBRD, 0x3f),
        (LCR_H, 0xff),
        (CR, 0xff87),
        (IFLS, 0x3f),
        (IMSC, 0x7ff),
        (DMACR, 7),
        (RIS, 0),
        (MIS, 0),
        (ID, 0x11),
        (0xffc, 0xb1),
        (0x80, 0),
    ] {
        rig.set(register, u32::MAX);
        assert_eq!(rig.get16(register), kept, "{register:#x}");
    }
}

#[test]
fn it_prints_without_any_set_up_and_at_every_width() {
    let mut rig = rig();
    for (data, width) in [(b"a\0\0\0", 1), (b"bx\0\0", 2), (b"cxxx", 4)] {
        assert!(rig.device.write(DR, &data[..width]).is_continue());
    }
    assert!(rig.device.write(DR, b"\nxxxxxxx").is_continue());
    // The middle of a register is none.
    assert!(rig.device.write(DR + 1, b"x").is_continue());
    let mut printed = [0; 4];
    rig.printed.read_exact(&mut printed).unwrap();
    assert_eq!(&printed, b"abc\n");
    assert_eq!(rig.edges(), 0);
    assert_eq!([rig.get(ID), rig.get(ID + 1), rig.get(CR + 1)], [0x11, 0, 3]);
}

#[test]
fn a_driver_that_polls_gets_all_and_one_eot() {
    for with_set_up in [false, true] {
        let mut rig = rig();
        if with_set_up {
            set_up(&mut rig, 0);
        }
        let mut typing = rig.typing.take().unwrap();
        let text = long_text(50_000);
        let typed = text.clone();
        let typist = thread::spawn(move || typing.write_all(&typed));
        assert!(poll(&mut rig, text.len()) == text);
        assert_eq!(poll(&mut rig, 1), [EOT]);
        typist.join().unwrap().unwrap();
    }
}

/// Sends `text` in pieces of odd sizes, and then no more.
fn type_in_pieces(rig: &mut Rig<Pl011>, text: &[u8]) -> thread::JoinHandle<()> {
    let (mut typing, text) = (rig.typing.take().unwrap(), text.to_vec());
    thread::spawn(move || {
        let mut dice = Dice(42);
        let mut rest = &text[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(1 + dice.roll(9000) as usize));
            typing.write_all(now).unwrap();
            rest = later;
        }
    })
}

/// Reads up to `most` bytes while there are any, as a handler does it.
fn drain(rig: &mut Rig<Pl011>, bytes: &mut Vec<u8>, most: usize) {
    for _ in 0..most {
        if !has_data(rig) {
            break;
        }
        bytes.push(rig.get16(DR) as u8);
    }
}

#[test]
fn a_megabyte_comes_whole_and_no_interrupt_is_lost_whatever_the_driver_does() {
    let mut rig = rig();
    let text = long_text(effort::rounds(1 << 20) as u32);
    let typist = type_in_pieces(&mut rig, &text);
    let mut dice = Dice(7);
    let mut bytes = Vec::with_capacity(text.len() + 1);
    set_up(&mut rig, RX | RT);
    while bytes.len() <= text.len() {
        rig.wait_for_level();
        let most = if dice.roll(4) == 0 { 1 } else { 1 + dice.roll(300) };
        if dice.roll(2) == 0 {
            rig.set(ICR, RX | RT);
        }
        drain(&mut rig, &mut bytes, most as usize);
        match dice.roll(8) {
            0 => {
                rig.set(IMSC, 0u16);
                rig.set(IMSC, if dice.roll(2) == 0 { RX } else { RT });
            }
            1 => set_up(&mut rig, RX | RT | TX),
            2 => rig.set(ICR, INTERRUPTS),
            3 => rig.set(LCR_H, if dice.roll(2) == 0 { 0 } else { LCR_H_FEN }),
            4 => drop(rig.get16(MIS)),
            _ => {}
        }
    }
    typist.join().unwrap();
    assert_eq!(bytes.pop(), Some(EOT));
    assert!(bytes == text, "{} of {} bytes", bytes.len(), text.len());
}

#[test]
fn a_driver_that_waits_for_the_line_to_rise_misses_nothing_if_it_reads_all() {
    let mut rig = rig();
    let text = long_text(effort::rounds(1 << 20) as u32);
    let typist = type_in_pieces(&mut rig, &text);
    let mut dice = Dice(11);
    let mut bytes = Vec::with_capacity(text.len() + 1);
    set_up(&mut rig, RX | RT);
    while bytes.len() <= text.len() {
        rig.wait_for_edge();
        // A driver clears what it came for: first, or when all is read, and some more came.
        let clears = dice.roll(3);
        if clears == 0 {
            rig.set(ICR, RX | RT);
        }
        drain(&mut rig, &mut bytes, usize::MAX);
        if clears == 1 {
            rig.set(ICR, RX | RT);
        }
        if dice.roll(50) == 0 {
            set_up(&mut rig, RX | RT);
        }
    }
    typist.join().unwrap();
    assert_eq!(bytes.pop(), Some(EOT));
    assert!(bytes == text, "{} of {} bytes", bytes.len(), text.len());
}

#[test]
fn a_handler_that_reads_all_is_left_alone_once_in_a_while() {
    let mut rig = rig();
    rig.typing.as_mut().unwrap().write_all(&[b'x'; 40]).unwrap();
    set_up(&mut rig, RX);
    for expected in [16, 16, 8] {
        rig.wait_for_level();
        let mut bytes = Vec::new();
        drain(&mut rig, &mut bytes, usize::MAX);
        assert_eq!(bytes.len(), expected);
    }
    assert!(!rig.high.load(Ordering::Acquire));
}

#[test]
fn the_line_is_high_from_the_first_byte_to_the_last() {
    let mut rig = rig();
    let high = |rig: &Rig<Pl011>| rig.high.load(Ordering::Acquire);
    rig.typing.as_mut().unwrap().write_all(b"abc").unwrap();
    set_up(&mut rig, RX);
    rig.wait_for_level();
    assert_eq!((rig.get16(MIS), rig.get16(RIS)), (RX, RX | RT));
    for byte in b"abc" {
        // A handler takes one and returns; that it clears the cause changes nothing.
        rig.set(ICR, RX);
        assert!(high(&rig));
        assert_eq!(rig.get16(DR), u16::from(*byte));
    }
    assert!(!high(&rig));
    rig.typing.as_mut().unwrap().write_all(b"d").unwrap();
    rig.wait_for_level();
    rig.set(IMSC, TX);
    assert!(!high(&rig), "nobody waits for it");
    rig.set(IMSC, RT);
    assert!(high(&rig));
}

#[test]
fn a_device_that_is_gone_holds_no_line_and_no_input() {
    let mut rig = rig();
    rig.typing.as_mut().unwrap().write_all(b"typed ahead").unwrap();
    set_up(&mut rig, RX);
    rig.wait_for_level();
    // As the input's thread does while it tells it of a byte.
    let port = rig.device.port.clone();
    let Rig { device, input, high, .. } = rig;
    drop(device);
    assert!(!high.load(Ordering::Acquire));
    assert_eq!(Arc::strong_count(&high), 1, "the line holds the machine");
    port.input_arrived();
    let mut bytes = [0; 16];
    let taken = input.take(&mut bytes);
    assert_eq!(&bytes[..taken], b"typed ahead");
}

#[test]
fn a_set_up_discards_no_input() {
    let mut rig = rig();
    rig.typing.as_mut().unwrap().write_all(b"typed ahead").unwrap();
    rig.get16(FR);
    rig.wait_for_input();
    set_up(&mut rig, RX | RT);
    rig.wait_for_edge();
    set_up(&mut rig, RX | RT);
    rig.wait_for_edge();
    assert_ne!(rig.get16(MIS) & (RX | RT), 0);
    let mut bytes = Vec::new();
    drain(&mut rig, &mut bytes, usize::MAX);
    assert_eq!(bytes, b"typed ahead");
    assert_eq!(rig.get16(RIS) & (RX | RT), 0);
}

#[test]
fn room_to_send_is_an_interrupt_until_it_is_cleared() {
    let mut rig = rig();
    rig.set(DR, b'a');
    assert_eq!((rig.get16(RIS), rig.get16(MIS), rig.edges()), (TX, 0, 0));
    rig.set(IMSC, TX);
    assert_eq!((rig.get16(MIS), rig.edges()), (TX, 1));
    rig.set(ICR, TX);
    assert_eq!((rig.get16(MIS), rig.edges()), (0, 0));
    rig.set(DR, b'\n');
    assert_eq!((rig.get16(MIS), rig.edges()), (TX, 1));
}

#[test]
fn a_looped_line_returns_what_is_sent_and_prints_nothing() {
    let mut rig = rig();
    rig.set(CR, CR_LBE | 0x301);
    rig.set(DR, b'a');
    assert_eq!(rig.get16(FR) & (FR_RXFF | FR_RXFE), FR_RXFF);
    rig.set(DR, b'b');
    assert_eq!(rig.get16(RSR), OVERRUN);
    rig.set(RSR, 0u16);
    assert_eq!(rig.get16(DR), u16::from(b'a'));
    assert!(!has_data(&mut rig));
    rig.set(DR, b'c');
    rig.set(CR, 0x301u16);
    assert!(!has_data(&mut rig), "it was on no wire");
    rig.set(DR, b'\n');
    let mut printed = [0; 8];
    assert_eq!((rig.printed.read(&mut printed).unwrap(), printed[0]), (1, b'\n'));
}

#[test]
fn every_value_in_every_register_is_survived() {
    let mut rig = rig();
    rig.typing.as_mut().unwrap().write_all(&long_text(3000)).unwrap();
    let mut dice = Dice(1);
    for _ in 0..200_000 {
        let register = dice.roll(0x50);
        // Data would fill the pipe of what is printed.
        if register != DR {
            rig.set(register, dice.roll(1 << 32) as u32);
        }
        rig.get16(dice.roll(0x50));
        assert!(rig.device.lock().state.fifo.len() <= FIFO_LEN);
    }
}
