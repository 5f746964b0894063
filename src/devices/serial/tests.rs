//! The 16550 under scripted drivers.

use std::io::{Read, Write};
use std::thread;

use super::*;
use crate::devices::rig::{Dice, Rig, long_text};
use crate::effort;

/// Registers as the bus names them.
const DATA: u64 = RBR as u64;
const ENABLE: u64 = IER as u64;
const IDENTIFY: u64 = IIR as u64;
const FIFO: u64 = FCR as u64;
const LINE: u64 = LSR as u64;
const MODEM: u64 = MCR as u64;
const THRE: u8 = 1 << 1;

fn rig() -> Rig<Serial> {
    Rig::new(Serial::new)
}

fn has_data(rig: &mut Rig<Serial>) -> bool {
    rig.get(LINE) & LSR_DR != 0
}

/// Reads `count` bytes as a driver does that polls.
fn poll(rig: &mut Rig<Serial>, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        match has_data(rig) {
            true => bytes.push(rig.get(DATA)),
            false => rig.wait_for_input(),
        }
    }
    bytes
}

#[test]
fn a_driver_that_polls_gets_all_and_one_eot() {
    let mut rig = rig();
    let mut typing = rig.typing.take().unwrap();
    let text = long_text(100_000);
    let typed = text.clone();
    let typist = thread::spawn(move || typing.write_all(&typed));
    assert!(poll(&mut rig, text.len()) == text);
    assert_eq!(poll(&mut rig, 1), [crate::console::EOT]);
    typist.join().unwrap().unwrap();
    assert!(!has_data(&mut rig));
    assert_eq!((rig.get(DATA), rig.edges()), (0, 0));
}

/// Takes what an interrupt handler takes that goes by the interrupt's cause.
fn take_by_cause(rig: &mut Rig<Serial>, bytes: &mut Vec<u8>, dice: &mut Dice) {
    loop {
        match rig.get(IDENTIFY) & IIR_ID {
            IIR_NONE => return,
            IIR_THRE => {}
            IIR_RDI => {
                let most = 1 + dice.roll(20);
                for _ in 0..most {
                    if !has_data(rig) {
                        break;
                    }
                    bytes.push(rig.get(DATA));
                }
            }
            other => panic!("{other:#x}"),
        }
    }
}

/// Takes what a handler takes that does not ask for the cause.
fn take_by_status(rig: &mut Rig<Serial>, bytes: &mut Vec<u8>) {
    while has_data(rig) {
        bytes.push(rig.get(DATA));
    }
}

#[test]
fn a_megabyte_comes_whole_and_no_interrupt_is_lost_whatever_the_driver_does() {
    let mut rig = rig();
    let mut typing = rig.typing.take().unwrap();
    let text = long_text(effort::rounds(1 << 20) as u32);
    let typed = text.clone();
    let typist = thread::spawn(move || {
        let mut dice = Dice(42);
        let mut rest = &typed[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(1 + dice.roll(9000) as usize));
            typing.write_all(now).unwrap();
            rest = later;
            if dice.roll(4) == 0 {
                thread::yield_now();
            }
        }
    });
    let mut dice = Dice(7);
    let mut bytes = Vec::with_capacity(text.len() + 1);
    rig.set(FIFO, FCR_ENABLE | FCR_CLEAR_RECEIVER);
    rig.set(ENABLE, IER_RDI);
    while bytes.len() <= text.len() {
        rig.wait_for_edge();
        match dice.roll(4) {
            0 => take_by_status(&mut rig, &mut bytes),
            1 if has_data(&mut rig) => bytes.push(rig.get(DATA)),
            _ => take_by_cause(&mut rig, &mut bytes, &mut dice),
        }
        match dice.roll(8) {
            // As a console does that prints: all off, and on again.
            0 => {
                rig.set(ENABLE, 0u8);
                rig.set(ENABLE, IER_RDI);
            }
            // Off, polled, and on again.
            1 => {
                rig.set(ENABLE, 0u8);
                let most = dice.roll(40);
                for _ in 0..most {
                    if has_data(&mut rig) {
                        bytes.push(rig.get(DATA));
                    }
                }
                rig.set(ENABLE, IER_RDI | THRE);
            }
            // Opened anew.
            2 => rig.set(FIFO, FCR_ENABLE | FCR_CLEAR_RECEIVER),
            3 => rig.set(FIFO, if dice.roll(2) == 0 { 0 } else { FCR_ENABLE }),
            _ => {}
        }
    }
    typist.join().unwrap();
    assert_eq!(bytes.pop(), Some(crate::console::EOT));
    assert!(bytes == text, "{} of {} bytes", bytes.len(), text.len());
}

#[test]
fn a_handler_that_takes_one_byte_and_returns_gets_all() {
    for fifo in [0, FCR_ENABLE] {
        let mut rig = rig();
        rig.set(FIFO, fifo);
        rig.set(ENABLE, IER_RDI);
        let text = long_text(5000);
        let mut typing = rig.typing.take().unwrap();
        let typed = text.clone();
        let typist = thread::spawn(move || typing.write_all(&typed));
        let mut bytes = Vec::new();
        while bytes.len() < text.len() {
            rig.wait_for_edge();
            if has_data(&mut rig) {
                bytes.push(rig.get(DATA));
            }
        }
        assert!(bytes == text);
        typist.join().unwrap().unwrap();
    }
}

/// What Linux does before it lets the receiver interrupt (v6.12
/// drivers/tty/serial/8250/8250_port.c, autoconfig and serial8250_do_startup).
fn open_as_linux(rig: &mut Rig<Serial>) {
    rig.set(ENABLE, 0x0fu8);
    rig.set(ENABLE, 0u8);
    for _ in 0..2 {
        for value in [FCR_ENABLE, FCR_ENABLE | FCR_CLEAR_RECEIVER | 4, 0] {
            rig.set(FIFO, value);
        }
        rig.get(DATA);
        for register in [LINE, DATA, IDENTIFY, 6, LINE] {
            rig.get(register);
        }
    }
    rig.set(ENABLE, THRE);
    rig.get(LINE);
    rig.get(IDENTIFY);
    rig.set(ENABLE, 0u8);
    for register in [LINE, DATA, IDENTIFY, 6] {
        rig.get(register);
    }
    rig.set(FIFO, FCR_ENABLE);
    rig.set(ENABLE, IER_RDI | 4);
}

#[test]
fn opening_the_port_discards_no_input() {
    let mut rig = rig();
    rig.typing.as_mut().unwrap().write_all(b"typed ahead").unwrap();
    // The kernel has printed its first messages, and looked for room before each byte.
    rig.get(LINE);
    rig.wait_for_input();
    let mut bytes = Vec::new();
    for times in 1..=2 {
        open_as_linux(&mut rig);
        rig.wait_for_edge();
        if times == 2 {
            take_by_status(&mut rig, &mut bytes);
        }
    }
    assert_eq!(bytes, b"typed ahead");
    // One that polls finds it too, a few looks later.
    rig.typing.as_mut().unwrap().write_all(b"more").unwrap();
    rig.set(ENABLE, 0u8);
    rig.set(FIFO, FCR_ENABLE | FCR_CLEAR_RECEIVER);
    assert_eq!(poll(&mut rig, 4), b"more");
}

#[test]
fn reading_starts_when_the_guest_looks() {
    let looks: [fn(&mut Rig<Serial>); 3] = [
        |rig| assert_eq!(rig.get(DATA), 0),
        |rig| assert!(!has_data(rig)),
        |rig| rig.set(ENABLE, IER_RDI),
    ];
    for look in looks {
        let mut rig = rig();
        assert!(!rig.input.is_started());
        rig.set(ENABLE, THRE);
        rig.set(DATA, b'\n');
        rig.get(IDENTIFY);
        rig.set(FIFO, FCR_ENABLE);
        assert!(!rig.input.is_started());
        look(&mut rig);
        assert!(rig.input.is_started());
    }
}

#[test]
fn room_to_send_is_an_interrupt_and_received_data_come_first() {
    let mut rig = rig();
    rig.set(ENABLE, THRE);
    assert_eq!(rig.edges(), 1, "there is room already");
    assert_eq!(rig.get(IDENTIFY) & IIR_ID, IIR_THRE);
    assert_eq!(rig.get(IDENTIFY) & IIR_ID, IIR_NONE);
    rig.set(DATA, b'a');
    assert_eq!((rig.edges(), rig.get(IDENTIFY) & IIR_ID), (1, IIR_THRE));
    rig.set(ENABLE, IER_RDI | THRE);
    rig.edges();
    rig.typing.as_mut().unwrap().write_all(b"x").unwrap();
    rig.wait_for_edge();
    assert_eq!(rig.get(IDENTIFY) & IIR_ID, IIR_RDI);
    assert_eq!(rig.get(IDENTIFY) & IIR_ID, IIR_RDI, "until it is read");
    assert_eq!(rig.get(DATA), b'x');
    assert_eq!(rig.get(IDENTIFY) & IIR_ID, IIR_THRE);
    assert_eq!(rig.get(IDENTIFY) & IIR_ID, IIR_NONE);
}

#[test]
fn input_arrives_while_output_is_held_up() {
    /// More than a pipe holds (pipe(7)).
    const ALL: usize = 80_000;
    let mut rig = rig();
    rig.set(FIFO, FCR_ENABLE);
    rig.set(ENABLE, IER_RDI);
    let Rig { mut device, mut printed, typing, edges, .. } = rig;
    // Nobody reads what it prints: it stops in a write.
    let printer = thread::spawn(move || {
        for _ in 0..ALL {
            assert!(device.write(DATA, b"\n").is_continue());
        }
    });
    thread::sleep(std::time::Duration::from_millis(100));
    typing.unwrap().write_all(b"x").unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while edges.read().is_err() {
        assert!(std::time::Instant::now() < deadline, "no interrupt");
        thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(!printer.is_finished());
    let mut all = vec![0; ALL];
    printed.read_exact(&mut all).unwrap();
    printer.join().unwrap();
}

#[test]
fn every_value_in_every_register_is_survived() {
    let mut rig = rig();
    rig.typing.as_mut().unwrap().write_all(&long_text(3000)).unwrap();
    let mut dice = Dice(1);
    for round in 0..200_000u64 {
        let register = dice.roll(LEN);
        // Data would fill the pipe of what is printed.
        if register == DATA && rig.get(MODEM) & MCR_LOOP == 0 {
            rig.get(register);
        } else {
            rig.set(register, dice.roll(256) as u32);
            rig.get(dice.roll(LEN));
        }
        assert!(rig.device.lock().held() <= 64, "round {round}");
    }
}
