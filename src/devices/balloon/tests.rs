//! The balloon, driven through its registers: pages in every way, and hostile ones.

use super::*;
use crate::sys;
use crate::virtio::driver::{Buffer, Driver};

const STATS: usize = 2;
const REPORTS: usize = 3;

/// Where page numbers and statistics lie.
const LIST: u64 = 0x1000;

fn driver(features: u64) -> (Driver, Arc<Figures>) {
    let balloon = Balloon::new(64 << 20).unwrap();
    let figures = balloon.figures().clone();
    let mut driver = Driver::new(Box::new(balloon));
    driver.start(features);
    (driver, figures)
}

fn numbers(driver: &Driver, numbers: &[u32]) -> Buffer {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    driver.ram.write(&bytes, LIST).unwrap();
    Buffer::Readable(LIST, bytes.len() as u32)
}

#[test]
fn pages_that_are_given_away_read_as_zeros_and_others_stay() {
    let (mut driver, _) = driver(F_STATS | F_REPORTING);
    let page = sys::page_size() as u32;
    let per_host_page = page / PAGE as u32;
    driver.ram.write(&vec![7; 0x4_0000], 0x2_0000).unwrap();
    let first = 0x2_0000 / PAGE as u32;
    let taken: Vec<u32> = (first..first + 4 * per_host_page).collect();
    let list = numbers(&driver, &taken);
    assert_eq!(driver.request(INFLATE, &[list]), 0);
    let at = |offset: u32| driver.ram.peek(0x2_0000 + u64::from(offset), 1)[0];
    assert_eq!([at(0), at(4 * page - 1), at(4 * page)], [0, 0, 7]);
    let list = numbers(&driver, &taken);
    assert_eq!(driver.request(DEFLATE, &[list]), 0);

    // Free pages are reported as buffers; of what is no whole page nothing is lost.
    let from = 0x3_0000 - 1;
    let buffers = [Buffer::Writable(from, 2 * page), Buffer::Writable(0x5_0000, page - 1)];
    assert_eq!(driver.request(REPORTS, &buffers), 0);
    let at = |guest_addr: u64| driver.ram.peek(guest_addr, 1)[0];
    assert_eq!([at(from), at(from + 1), at(from + u64::from(page))], [7, 0, 0]);
    assert_eq!([at(from + u64::from(page) + 1), at(0x5_0000)], [7, 7]);
}

#[test]
fn the_guest_is_told_what_to_give_and_tells_what_it_gave() {
    let (mut driver, figures) = driver(F_STATS);
    assert_eq!(driver.config(0, 8), [0, 0x40, 0, 0, 0, 0, 0, 0]);
    assert!(figures.line().starts_with("balloon: 0 of 64 MiB taken, 0 MiB given back"));
    driver.device.write_config(4, &0x2000u32.to_le_bytes());
    assert_eq!(driver.config(4, 4), [0, 0x20, 0, 0]);
    assert!(figures.line().starts_with("balloon: 32 of 64 MiB taken"), "{}", figures.line());
    // Without the feature of statistics, reports have their number.
    driver.start(F_REPORTING);
    let page = sys::page_size() as u32;
    driver.ram.write(&[7], 0x8_0000).unwrap();
    driver.request(STATS, &[Buffer::Writable(0x8_0000, page)]);
    assert_eq!(driver.ram.peek(0x8_0000, 1), [0]);
}

fn stats(driver: &Driver, entries: &[(u16, u64)]) -> Buffer {
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
        .collect();
    driver.ram.write(&bytes, LIST).unwrap();
    Buffer::Readable(LIST, bytes.len() as u32)
}

#[test]
fn statistics_are_asked_for_when_somebody_wants_to_see_them() {
    let (mut driver, figures) = driver(F_STATS);
    let list = stats(&driver, &[(4, 100 << 20), (5, 200 << 20)]);
    let head = driver.send(STATS, &[list]);
    let two = [figures.clone(), figures.clone()];
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !figures.line().contains("100 MiB free, 200 MiB in all") {
        assert!(std::time::Instant::now() < deadline, "{}", figures.line());
    }
    assert_eq!(driver.used(STATS), None);
    two.iter().for_each(|figures| figures.ask());
    assert_eq!(driver.wait_for_used(STATS), (head, 0));
    let list = stats(&driver, &[(4, 50 << 20), (0x7777, 1)]);
    driver.send(STATS, &[list]);
    while !figures.line().contains(", 50 MiB free") {
        assert!(std::time::Instant::now() < deadline, "{}", figures.line());
    }
}

// HOSTILE 43: pages that there are not, statistics that are none, and lies.
#[test]
fn hostile_43_pages_statistics_and_lies() {
    let (mut driver, figures) = driver(F_STATS | F_REPORTING);
    let last = (driver.ram_len() / PAGE - 1) as u32;
    for list in [
        &[u32::MAX][..],
        &[u32::MAX, 0, u32::MAX - 1, u32::MAX],
        &[last + 1],
        // A run that begins in RAM and does not end there.
        &[last, last + 1],
        &[],
    ] {
        let list = numbers(&driver, list);
        assert_eq!(driver.request(INFLATE, &[list]), 0, "{list:?}");
    }
    driver.ram.write(&[7; 8], 0x9_0000).unwrap();
    for len in [1, 3, 5, 7] {
        driver.ram.write(&0x90u32.to_le_bytes(), LIST).unwrap();
        driver.request(INFLATE, &[Buffer::Readable(LIST, len)]);
        driver.request(DEFLATE, &[Buffer::Readable(LIST, len)]);
    }
    // Buffers of the wrong direction say nothing.
    driver.request(INFLATE, &[Buffer::Writable(LIST, 4)]);
    driver.request(REPORTS, &[Buffer::Readable(0x9_0000, 0x1000)]);
    // Page 0, very often.
    driver.ram.write(&vec![0; 0x1_0000], 0x2_0000).unwrap();
    driver.request(INFLATE, &[Buffer::Readable(0x2_0000, 0x1_0000)]);

    for len in [0, 1, 9, 11, 160, 161, 4096] {
        let head = driver.send(STATS, &[Buffer::Readable(LIST, len)]);
        let next = driver.send(STATS, &[Buffer::Readable(LIST, 10)]);
        assert_eq!(driver.wait_for_used(STATS).0, head, "{len}");
        figures.ask();
        assert_eq!(driver.wait_for_used(STATS).0, next, "{len}");
    }
    for (offset, bytes) in
        [(4, &[0xff; 4][..]), (4, &[0; 4]), (4, &[1; 8]), (0, &[9; 4]), (5, &[1])]
    {
        driver.device.write_config(offset, bytes);
    }
    assert_eq!(driver.config(0, 8), [0, 0x40, 0, 0, 0, 0, 0, 0]);
}
