//! Guests that are stopped and let go again, at any moment and faster than anybody types (HOSTILE 46), or spoken
//! to while they run.

use std::thread;
use std::time::Duration;

use super::common::emulated;
use super::{Debugged, INTERRUPT, assert_end};

/// Our choice: seconds natively, and a sample where each stop takes some milliseconds.
fn rounds() -> u64 {
    if emulated() { 40 } else { 1000 }
}

/// A kick that is lost is a stop that never comes; one that is not settled is a guest that never goes on. CPUs
/// spin, leave for a device all the time, or sleep; two of three wait for somebody to start them.
pub fn hostile_46_a_guest_is_stopped_and_let_go_at_any_moment() {
    thread::scope(|scope| {
        for name in ["spin", "exits", "sleep"] {
            scope.spawn(move || stop_and_go(name));
        }
    });
}

fn stop_and_go(name: &str) {
    let debugged = Debugged::new(name, "--cpus 3");
    let mut gdb = debugged.connect();
    for round in 0..rounds() {
        gdb.send("vCont;c");
        // Also at once, while some have not gone on yet.
        if !round.is_multiple_of(3) {
            thread::sleep(Duration::from_micros(round * 379 % 1500));
        }
        gdb.0.write_all(INTERRUPT).unwrap();
        let stop = gdb.receive();
        assert!(stop.starts_with("S02"), "{name}, round {round}: {stop}");
    }
    // The guest stood still: each step of it is one.
    if name == "spin" {
        let at = gdb.pc();
        assert_eq!(gdb.pc(), at);
    }
    gdb.send("k");
    assert_eq!(debugged.end().status, 137, "{name}");
}

pub fn ctrl_c_stops_a_guest_and_kill_ends_it() {
    let debugged = Debugged::new("spin", "");
    let mut gdb = debugged.connect();
    for _ in 0..3 {
        gdb.send("vCont;c");
        thread::sleep(Duration::from_millis(50));
        gdb.0.write_all(INTERRUPT).unwrap();
        let stop = gdb.receive();
        assert!(stop.starts_with("S02"), "{stop}");
        gdb.pc();
    }
    gdb.send("k");
    assert_end(&debugged.end(), 137, "");
}

/// gdb waits for the guest to stop before it says more. What says more all the same may not end the guest, nor
/// change how it goes on: that is told only to CPUs that stand still.
pub fn what_is_said_out_of_turn_changes_nothing() {
    let debugged = Debugged::new("spin", "--cpus 2");
    let mut gdb = debugged.connect();
    gdb.send("vCont;c");
    for again in ["vCont;c", "vCont;s:1", "vCont;s:2;c:1"] {
        thread::sleep(Duration::from_millis(10));
        gdb.send(again);
    }
    assert!(gdb.ask("g").starts_with('E'));
    gdb.0.write_all(INTERRUPT).unwrap();
    let stop = gdb.receive();
    assert!(stop.starts_with("S02"), "{stop}");
    gdb.pc();
    gdb.send("k");
    assert_eq!(debugged.end().status, 137);
}
