//! A gdb that says anything whatever to a machine whose vCPUs only pretend to run.

use std::cell::RefCell;

use bivisor::gdb::player::Player;

thread_local! {
    static PLAYER: RefCell<Option<Player>> = const { RefCell::new(None) };
}

/// Plays `bytes`: see [`Player::play`].
pub fn run(bytes: &[u8]) {
    PLAYER.with_borrow_mut(|player| {
        if !player.get_or_insert_with(|| Player::new().expect("KVM")).play(bytes) {
            *player = None;
        }
    });
}

/// What gdb says when it connects, looks around, sets breakpoints, steps, and goes.
pub fn seeds() -> Vec<Vec<u8>> {
    let hello = "qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+\nvMustReplyEmpty\n!\n\
        QStartNoAckMode\nHg0\nqXfer:features:read:target.xml:0,ffb\nqAttached:1\nqC\n\
        qfThreadInfo\nqsThreadInfo\nqThreadExtraInfo,1\nHc-1\n?\n";
    let rest = [
        "g\np0\nP0=0123456789abcdef\nHg2\ng\nG00\nT1\nT9",
        "m100000,40\nM100000,4:deadbeef\nX100000,0:\nX100000,2:ab\nm100002,1\nm0,fff\nmffffffffffffff00,200",
        "Z0,100000,1\nZ0,40100000,4\nm100000,4\nM100000,2:cccc\nvCont;c\n!\u{3}\nz0,100000,1\nz0,9,1",
        "Z1,100000,1\nZ2,100000,8\nZ3,100000,4\nZ4,100008,8\nZ4,1,1\nvCont?\nvCont;s:1;c\nvCont;r1,2:1\nz2,100000,8",
        "s\n!\u{3}\nc\n!\u{3}\nvCont;s:p1.1\n!\u{3}\nvCont;c:1\n!\u{3}",
        "D",
        "c\n!\u{3}\nD;1",
        "k",
        "vKill;1",
        "!$g#00\n!$g\n!#\n!+++---\nqRcmd,68656c70\nqOffsets\nqXfer:memory-map:read::0,10",
    ];
    let with_traps = |(index, rest): (usize, &str)| {
        // The first byte says why vCPUs stop by themselves.
        [&[0x1b ^ (index as u8).wrapping_mul(37)], hello.as_bytes(), rest.as_bytes()].concat()
    };
    rest.into_iter().enumerate().map(with_traps).collect()
}
