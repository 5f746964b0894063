//! Registers beyond the general ones.

use super::common::MACHINE;
use super::{Debugged, HELLO, assert_end, hex};

/// They stay through an instruction too, for which the CPU itself must have them.
pub fn vector_registers_are_read_and_written_whatever_features_there_are() {
    let debugged = Debugged::new("hello", "");
    let mut gdb = debugged.connect();
    let mut registers = gdb.registers();
    let vectors = MACHINE.vectors_at..MACHINE.vectors_at + 16 * MACHINE.vectors;
    for (index, byte) in registers[vectors.clone()].iter_mut().enumerate() {
        *byte = (index * 7 + 1) as u8;
    }
    let written = registers[vectors.clone()].to_vec();
    assert_eq!(gdb.ask(&format!("G{}", hex(&registers))), "OK");
    assert_eq!(gdb.registers(), registers);
    let stop = gdb.ask("vCont;s:1");
    assert!(stop.starts_with("T05"), "{stop}");
    assert_eq!(gdb.registers()[vectors.clone()], written);
    // One alone.
    registers = gdb.registers();
    registers[vectors.end - 16..vectors.end].fill(0x5a);
    assert_eq!(gdb.ask(&format!("G{}", hex(&registers))), "OK");
    assert_eq!(gdb.registers(), registers);
    assert_eq!(gdb.ask("D"), "OK");
    assert_end(&debugged.end(), 0, HELLO);
}
