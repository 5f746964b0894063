//! Drivers that break the rules: of registers, of rings, and of timing. The device answers as the
//! specification says or needs a reset, and serves the next driver that keeps them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use virtio_bindings::virtio_mmio::*;

use super::Carrier;
use super::driver::carried::Carried;
use super::driver::{Buffer, Driver};
use super::mmio::Mmio;
use crate::bus::Device;
use crate::devices::entropy::Entropy;
use crate::effort;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;

/// Makes two tests of each function: one for each carrier.
macro_rules! by_both {
    ($($name:ident,)*) => {
        mod mmio {
            $(#[test] fn $name() { super::$name(super::Carrier::Mmio); })*
        }
        mod pci {
            $(#[test] fn $name() { super::$name(super::Carrier::Pci); })*
        }
    };
}

by_both! {
    hostile_37_features_are_agreed_on_or_not,
    hostile_37_a_queue_that_is_ready_stays_as_it_is,
    hostile_38_rings_outside_ram_need_a_reset,
    hostile_39_an_available_index_that_jumps_needs_a_reset,
    hostile_37_a_storm_of_resets_leaves_nothing_behind,
    hostile_39_descriptors_that_change_during_the_walk_do_no_harm,
}

fn driver(carrier: Carrier) -> Driver {
    Driver::with(carrier, Box::new(Entropy::new().unwrap()))
}

/// The device serves a driver that keeps the rules.
fn serves(driver: &mut Driver) {
    driver.start(0);
    assert_eq!(driver.request(0, &[Buffer::Writable(0x5000, 8)]), 8);
}

/// A device's registers in memory.
fn registers(driver: &mut Driver) -> &mut Mmio {
    match &mut driver.device {
        Carried::Mmio(device) => device,
        Carried::Pci(_) => panic!("they are no registers in memory"),
    }
}

#[test]
fn the_registers_tell_what_is_there() {
    let mut driver = driver(Carrier::Mmio);
    for (register, expected) in [
        (VIRTIO_MMIO_MAGIC_VALUE, u32::from_le_bytes(*b"virt")),
        (VIRTIO_MMIO_VERSION, 2),
        (VIRTIO_MMIO_DEVICE_ID, 4),
        (VIRTIO_MMIO_STATUS, 0),
        (VIRTIO_MMIO_QUEUE_NUM_MAX, 8),
        (VIRTIO_MMIO_INTERRUPT_STATUS, 0),
        (VIRTIO_MMIO_SHM_LEN_LOW, u32::MAX),
        (VIRTIO_MMIO_QUEUE_NOTIFY, 0),
    ] {
        assert_eq!(driver.get(register), expected, "{register:#x}");
    }
    // Version 1, event indices, indirect descriptors; and nothing past the second word.
    assert_eq!(driver.offered(), 1 << 32 | 1 << 29 | 1 << 28);
    driver.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.get(VIRTIO_MMIO_DEVICE_FEATURES), 0);
    // Registers take whole accesses only.
    for (offset, len) in [(0, 1), (0, 2), (0, 8), (1, 4), (2, 2)] {
        let mut data = vec![0xaa; len];
        registers(&mut driver).read(offset, &mut data);
        assert_eq!(data, vec![0; len], "{len} bytes at {offset}");
    }
}

// HOSTILE 37: features that were not offered, or none at all.
fn hostile_37_features_are_agreed_on_or_not(carrier: Carrier) {
    let mut driver = driver(carrier);
    let accept = |driver: &mut Driver, words: [u32; 2]| {
        driver.set(VIRTIO_MMIO_STATUS, 0);
        driver.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        for (select, bits) in (0..).zip(words) {
            driver.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            driver.set(VIRTIO_MMIO_DRIVER_FEATURES, bits);
        }
        driver.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        driver.get(VIRTIO_MMIO_STATUS) & FEATURES_OK != 0
    };
    for (words, agreed) in [
        ([0, 1], true),
        ([1 << 29, 1], true),
        ([0, 0], false),
        ([1, 1], false),
        ([0, 3], false),
        ([u32::MAX, u32::MAX], false),
    ] {
        assert_eq!(accept(&mut driver, words), agreed, "{words:x?}");
        // Too late.
        driver.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
        driver.set(VIRTIO_MMIO_DRIVER_FEATURES, 1);
        if !agreed {
            driver.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK);
            assert_ne!(driver.get(VIRTIO_MMIO_STATUS) & NEEDS_RESET, 0, "{words:x?}");
        }
    }
    serves(&mut driver);
}

// HOSTILE 37: what is ready does not change (CVE-2026-5747), nor what is not there.
fn hostile_37_a_queue_that_is_ready_stays_as_it_is(carrier: Carrier) {
    let mut driver = driver(carrier);
    for started in [false, true] {
        driver.negotiate(0);
        driver.set_up(0);
        if started {
            driver.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        }
        let registers = [
            (VIRTIO_MMIO_QUEUE_NUM, 4),
            (VIRTIO_MMIO_QUEUE_NUM, 0),
            (VIRTIO_MMIO_QUEUE_NUM, u32::MAX),
            (VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000),
            (VIRTIO_MMIO_QUEUE_DESC_HIGH, 1),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0xffff_fff0),
            (VIRTIO_MMIO_QUEUE_USED_LOW, 0x10),
            (VIRTIO_MMIO_QUEUE_READY, 0),
        ];
        for (register, value) in registers {
            let before = driver.get(register);
            driver.set(register, value);
            assert_eq!(driver.get(register), before, "{register:#x} = {value:#x}");
        }
        if started {
            assert_eq!(driver.request(0, &[Buffer::Writable(0x5000, 8)]), 8);
        }
    }
    driver.negotiate(0);
    for queue in [1, 0xffff, 0x1_0000, u32::MAX] {
        driver.set(VIRTIO_MMIO_QUEUE_SEL, queue);
        assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        driver.set(VIRTIO_MMIO_QUEUE_NUM, 8);
        driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0);
        driver.set(VIRTIO_MMIO_QUEUE_NOTIFY, queue);
    }
    driver.set(VIRTIO_MMIO_QUEUE_SEL, 0);
    for size in [0, 3, 9, 16, 0x1_0008, u32::MAX] {
        driver.set(VIRTIO_MMIO_QUEUE_NUM, size);
        assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_NUM), 8, "{size}");
    }
    serves(&mut driver);
}

// HOSTILE 38: rings that are not in RAM.
fn hostile_38_rings_outside_ram_need_a_reset(carrier: Carrier) {
    let end = driver(carrier).ram_len();
    for (index, at) in [
        (0, end),
        (0, end - 16 * 8 + 16),
        (1, end),
        (1, end - 8),
        (2, end),
        (2, end - 32),
        (0, 1 << 40),
        (1, u64::MAX - 1),
        (2, u64::MAX - 3),
        (0, u64::MAX - 15),
    ] {
        let mut driver = driver(carrier);
        driver.negotiate(0);
        let mut rings = Driver::rings(0);
        rings[index] = at;
        let registers =
            [VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_USED_LOW];
        for (low, at) in registers.into_iter().zip(rings) {
            driver.set(low, at as u32);
            driver.set(low + 4, (at >> 32) as u32);
        }
        driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0, "{index} at {at:#x}");
        assert_ne!(driver.get(VIRTIO_MMIO_STATUS) & NEEDS_RESET, 0, "{index} at {at:#x}");
        serves(&mut driver);
    }
    // On each other, they harm only their driver.
    let mut driver = driver(carrier);
    driver.start(0);
    let [_, available, used] = Driver::rings(0);
    driver.ram.write(&used.to_le_bytes(), available).unwrap();
    driver.notify(0);
    serves(&mut driver);
}

// HOSTILE 39: an index that jumps further than the ring is long.
fn hostile_39_an_available_index_that_jumps_needs_a_reset(carrier: Carrier) {
    let mut driver = driver(carrier);
    for index in [9u16, 0x7fff, 0xffff] {
        driver.start(0);
        let [_, available, _] = Driver::rings(0);
        driver.ram.write(&index.to_le_bytes(), available + 2).unwrap();
        driver.notify(0);
        driver.wait_for_failure();
    }
    serves(&mut driver);
}

// HOSTILE 37: resets, also while requests are under way.
fn hostile_37_a_storm_of_resets_leaves_nothing_behind(carrier: Carrier) {
    let mut driver = driver(carrier);
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    serves(&mut driver);
    let before = descriptors();
    for _ in 0..effort::long_rounds(2000).max(50) {
        driver.start(0);
        driver.send(0, &[Buffer::Writable(0x5000, 4096)]);
        driver.set(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 0);
    }
    for _ in 0..effort::rounds(1_000_000) {
        driver.set(VIRTIO_MMIO_STATUS, 0);
    }
    serves(&mut driver);
    // Other tests of this process have theirs.
    assert!(descriptors() < before + 64, "{} after {before}", descriptors());
}

// HOSTILE 39: descriptors that another CPU rewrites while they are walked.
fn hostile_39_descriptors_that_change_during_the_walk_do_no_harm(carrier: Carrier) {
    let until = Instant::now() + effort::time(Duration::from_secs(2));
    let mut driver = driver(carrier);
    let ram = driver.ram.clone();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let [table, ..] = Driver::rings(0);
            let mut value = 1u64;
            while !over.load(Ordering::Relaxed) {
                // xorshift (Marsaglia 2003).
                value ^= value << 13;
                value ^= value >> 7;
                value ^= value << 17;
                let field = [0, 8, 12, 14][(value >> 8) as usize % 4];
                let len = if field == 0 { 8 } else { 2 };
                let at = table + 16 * (value % 8) + field;
                // Mostly what is nearly right.
                let bytes = if value & 1 << 20 == 0 { value } else { value % 0x10_0000 };
                ram.write(&bytes.to_le_bytes()[..len], at).unwrap();
            }
        });
        while Instant::now() < until {
            if driver.get(VIRTIO_MMIO_STATUS) & (NEEDS_RESET | DRIVER_OK) != DRIVER_OK {
                driver.start(0);
            }
            driver.send(0, &[Buffer::Writable(0x5000, 64), Buffer::Writable(0x6000, 64)]);
        }
        over.store(true, Ordering::Relaxed);
    });
    serves(&mut driver);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: effort::rounds(400) as u32, ..ProptestConfig::default() })]

    /// Any writes to any registers: then a reset, and the device serves.
    #[test]
    fn any_sequence_of_accesses_is_survived(
        accesses in proptest::collection::vec(
            (any::<bool>(), 0u64..0x210, 0usize..4, any::<u64>(), any::<bool>()), 0..120),
    ) {
        let mut driver = driver(Carrier::Mmio);
        for (write, offset, width, value, small) in accesses {
            let len = 1 << width;
            // Most registers lie at multiples of four, and most good values are small.
            let offset = if len == 4 { offset & !3 } else { offset };
            let value = if small { value % 16 } else { value };
            if write {
                let bytes = value.to_le_bytes();
                prop_assert!(registers(&mut driver).write(offset, &bytes[..len]).is_continue());
            } else {
                registers(&mut driver).read(offset, &mut [0; 8][..len]);
            }
        }
        serves(&mut driver);
    }
}
