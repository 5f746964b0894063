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
