//! What a guest can do with registers and rings alone harms nobody.

use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::devices::entropy;
use crate::{effort, machine};

/// The largest growth of what is resident, in bytes, beside the guest's RAM: what each device may hold is
/// there after a while.
const GROWTH: u64 = 1 << 20;

/// Bytes of a script. Our choice: some fifty steps.
const SCRIPT: usize = 512;

/// Machines by both carriers; none where KVM is not.
fn players() -> Vec<Player> {
    if machine::open_kvm().is_err() {
        println!("skipped: no usable /dev/kvm");
        return Vec::new();
    }
    [Carrier::Mmio, Carrier::Pci].map(|carrier| Player::new(carrier).unwrap()).into()
}

/// All of a device but what is far behind its last register.
fn offsets(len: u64) -> impl Iterator<Item = u64> {
    let near = effort::rounds(0x1200) as u64;
    (0..len.min(near)).chain(len.saturating_sub(16)..len)
}

// HOSTILE 33 and 34: every port and address of a device, and those around it, at every width.
#[test]
fn hostile_33_34_every_place_takes_every_access() {
    for mut player in players() {
        for (at, len) in player.places() {
            let around = (1..9).map(|before| at.addr.wrapping_sub(before));
            let addresses = around.chain(offsets(len + 8).map(|offset| at.addr + offset));
            for addr in addresses {
                for width in [1, 2, 4, 8] {
                    let at = BusAddr { addr, ..at };
                    let _ = player.read(at, width);
                    for value in [0, u64::MAX, 0x5555_aaaa_1234_5678] {
                        player.write(at, width, value);
                    }
                }
            }
        }
        // Nothing is at the end of the address space.
        for back in 0..9 {
            let at = BusAddr::memory(u64::MAX - back);
            assert_eq!(player.read(at, 8), u64::MAX);
            player.write(at, 8, 0);
        }
        for device in 0..player.devices() {
            assert!(player.recovers(device), "device {device} by {:?}", player.carrier);
        }
    }
}

/// Pseudo-random bytes: the same ones each time (Marsaglia, "Xorshift RNGs").
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn script(&mut self) -> Vec<u8> {
        (0..SCRIPT / 8).flat_map(|_| self.next().to_le_bytes()).collect()
    }
}

/// What this process has in memory (proc(5), statm).
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * crate::sys::page_size()
}

/// Plays for so long on each carrier; the second half must not make the process grow.
fn play_for(time: Duration) {
    for mut player in players() {
        let mut random = Random(0x1234_5678_9abc_def1);
        let (began, mut scripts, mut half) = (Instant::now(), 0u64, None);
        while began.elapsed() < time {
            player.play(&random.script());
            scripts += 1;
            if began.elapsed() > time / 2 && half.is_none() {
                half = Some(resident());
            }
        }
        let growth = half.map_or(0, |half| resident().saturating_sub(half));
        println!("{:?}: {scripts} scripts, then {growth} bytes more", player.carrier);
        for device in 0..player.devices() {
            assert!(player.recovers(device), "device {device} by {:?}", player.carrier);
        }
        assert!(a_device_serves(&mut player), "no random bytes by {:?}", player.carrier);
        // Other tests of this program have memory of their own.
        let alone = std::env::var_os("BIVISOR_LONG").is_some();
        assert!(!alone || growth <= GROWTH, "{growth} bytes by {:?}", player.carrier);
    }
}

/// A request for random bytes comes back with some.
fn a_device_serves(player: &mut Player) -> bool {
    const MAGIC: u64 = 0xaa;
    let number = |player: &Player, device| match player.carrier {
        Carrier::Mmio => player.get(device, VIRTIO_MMIO_DEVICE_ID),
        // Their order is that of the list: the fourth.
        Carrier::Pci => {
            if device == 3 {
                entropy::ID
            } else {
                0
            }
        }
    };
    let found = (0..player.devices()).find(|device| number(player, *device) == entropy::ID);
    let Some(device) = found else { return false };
    player.start(device);
    let (at, [table, _, used]) = (player.ram() + POOL, player.rings(device, 0));
    player.machine.ram.write(&[MAGIC as u8; 64], at).unwrap();
    player.describe(table, 0, at, 64, 2, 0);
    player.send(device, 0, 0);
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        if player.machine.ram.peek(used + 2, 2) == [1, 0] {
            return player.machine.ram.peek(at, 64) != [MAGIC as u8; 64];
        }
        thread::sleep(Duration::from_millis(1));
    }
    false
}

// HOSTILE 37 to 44: any registers and rings.
#[test]
fn hostile_37_44_any_guest_is_survived() {
    play_for(effort::time(Duration::from_secs(1)));
}
