//! A whole machine, whose guest the input is.

use std::cell::RefCell;

use bivisor::machine::player::{self, Player};
use bivisor::virtio::Carrier;

thread_local! {
    static PLAYER: RefCell<Option<Player>> = const { RefCell::new(None) };
}

/// Plays `bytes` to a machine by this carrier, which must have its devices afterwards.
pub fn play(bytes: &[u8], carrier: Carrier) {
    PLAYER.with_borrow_mut(|player| {
        let player = player.get_or_insert_with(|| Player::new(carrier).expect("KVM"));
        player.play(bytes);
        // One of them each time: a start is what takes longest.
        let device = bytes.len() % player.devices();
        assert!(player.recovers(device), "device {device}");
    });
}

/// A driver's first steps with each device, and a chain; and what was found before.
pub fn seeds(carrier: Carrier) -> Vec<Vec<u8>> {
    let steps = (0..8).map(|device| {
        let start = [3, device];
        // Two buffers in queue 1: one to read, one to write.
        let chain = [0x4d, device, 0, 0, 16, 0x80, 0, 64];
        [&start[..], &chain, &chain].concat()
    });
    steps.chain(player::corpus(carrier).map(Vec::from)).collect()
}
