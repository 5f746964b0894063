//! A disk that is limited, and one whose driver begins anew.

use std::time::{Duration, Instant};

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;

use super::*;

/// A guest that asks for more than its disk's limit waits, however it is served. Load makes it wait longer.
#[test]
fn a_limited_disk_takes_its_time() {
    for (engine, rates) in ENGINES.into_iter().flat_map(|engine| {
        let operations = Rates { operations: Some(50), bytes: None };
        [operations, Rates { operations: None, bytes: Some(50 * 512) }].map(|rates| (engine, rates))
    }) {
        let file = file(LEN);
        let disk = Raw::open(file.path(), Access::default()).unwrap();
        let block = Block::new(Arc::new(disk), "", 1, engine).limited(rates);
        let mut driver = Driver::new(Box::new(block));
        driver.start(FEATURES);
        let began = Instant::now();
        // A burst of five goes through, and what comes last is paid for later.
        for sector in 0..15 {
            let (status, _) =
                ask(&mut driver, VIRTIO_BLK_T_IN, sector, &[Buffer::Writable(DATA, 512)]);
            assert_eq!(status, OK);
        }
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(9 * 20), "{engine:?}, {rates:?}: {took:?}");
    }
}

/// A reset gives the ring back for the next driver.
#[test]
fn a_disk_has_its_engine_after_a_reset_too() {
    let file = file(LEN);
    let disk = Raw::open(file.path(), Access::default()).unwrap();
    let block = Block::new(Arc::new(disk), "", 2, Engine::Best);
    let rings = block.rings.clone();
    let there = |rings: &[ring::Berth]| rings.iter().all(|ring| ring.lock().unwrap().is_some());
    assert!(there(&rings));
    let mut driver = Driver::new(Box::new(block));
    for _ in 0..3 {
        driver.start(FEATURES);
        assert!(rings.is_empty() || !there(&rings), "no ring is in use");
        ask(&mut driver, VIRTIO_BLK_T_IN, 0, &[Buffer::Writable(DATA, 512)]);
        driver.set(VIRTIO_MMIO_STATUS, 0);
        assert!(there(&rings), "a ring is lost");
    }
}

// HOSTILE 55: resets while requests are under way, at any moment: each waits for what its worker is in, and the
// next driver's requests are its own.
#[test]
fn hostile_55_resets_while_requests_are_under_way() {
    for engine in ENGINES {
        let file = file(LEN);
        let disk = Raw::open(file.path(), Access::default()).unwrap();
        let mut driver = Driver::new(Box::new(Block::new(Arc::new(disk), "", 2, engine)));
        for round in 0..effort::rounds(1000) as u64 {
            driver.start(FEATURES);
            header(&driver, VIRTIO_BLK_T_IN, round % SECTORS);
            for index in 0..5 {
                let data = Buffer::Writable(DATA + index * 0x1000, 512);
                let status = Buffer::Writable(STATUS + index, 1);
                driver.send(0, &[Buffer::Readable(HEADER, 16), data, status]);
            }
            for _ in 0..round * 37 % 2000 {
                std::hint::spin_loop();
            }
            driver.set(VIRTIO_MMIO_STATUS, 0);
            assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 0, "{engine:?}, round {round}");
            // Nobody writes there any more.
            driver.ram.write(&[0x5a; 512], DATA).unwrap();
            assert_eq!(driver.ram.peek(DATA, 512), [0x5a; 512], "{engine:?}, round {round}");
        }
        driver.start(FEATURES);
        let data = [Buffer::Writable(DATA, 512)];
        assert_eq!(ask(&mut driver, VIRTIO_BLK_T_IN, 4, &data), (OK, 513));
        assert_eq!(driver.ram.peek(DATA, 512), [5; 512]);
    }
}
