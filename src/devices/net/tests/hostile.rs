//! Hostile guests and peers: frames that are none, buffers without room, chains of anything.

use std::io::Write;

use proptest::prelude::*;

use super::super::header::{Header, MAX_FRAME};
use super::*;
use crate::effort;
use crate::virtio::driver::Buffer;

// HOSTILE 41: what a guest sends that is no frame is dropped, and the next one is sent.
#[test]
fn hostile_41_bad_frames_are_dropped_one_by_one() {
    let (mut driver, mut peer) = with_stream(EVENT_IDX | MERGEABLE);
    let good = with_header(Header::default(), &frame(60, 1));
    let needs_sum = Header { flags: 1, csum_start: 34, csum_offset: 16, ..Header::default() };
    let parts = Header { gso_type: 1, gso_size: 1000, ..needs_sum };
    for bytes in [
        vec![],
        vec![0],
        vec![0; 11],
        vec![0; 12],
        vec![0; 25],
        with_header(needs_sum, &frame(60, 0)),
        with_header(parts, &frame(9000, 0)),
        with_header(Header { csum_offset: 0xffff, ..needs_sum }, &frame(60, 0)),
        with_header(Header::default(), &frame(MAX_FRAME + 1, 0)),
        with_header(Header::default(), &frame(0x2_0000, 0)),
    ] {
        send(&mut driver, &bytes);
        send(&mut driver, &good);
        assert_eq!(get(&mut peer), good[12..], "after one of {} bytes", bytes.len());
    }
    // The longest one is one.
    let longest = with_header(Header::default(), &frame(MAX_FRAME, 4));
    send(&mut driver, &longest);
    assert_eq!(get(&mut peer), longest[12..]);
}

// HOSTILE 41: buffers for frames.
#[test]
fn hostile_41_buffers_that_hold_no_header_end_the_device() {
    for len in [1, 11] {
        let (mut driver, mut peer) = with_stream(MERGEABLE);
        put(&mut peer, &frame(60, 0));
        driver.send(RECEIVE, &[Buffer::Writable(ROOM, len)]);
        driver.wait_for_failure();
        // After a reset it is as good as new.
        driver.start(MERGEABLE);
        give(&mut driver, 1, 2048);
        assert_eq!(received(&mut driver, 1, 2048), frame(60, 0));
    }
    let (mut driver, mut peer) = with_stream(0);
    put(&mut peer, &frame(60, 0));
    driver.send(RECEIVE, &[Buffer::Readable(ROOM, 2048)]);
    driver.wait_for_failure();
}

// HOSTILE 41: a frame that no buffers of the guest can hold is passed over.
#[test]
fn hostile_41_frames_that_never_fit_are_passed_over() {
    for (features, count, len) in [(0, 1, 100), (MERGEABLE, 16, 64)] {
        let (mut driver, mut peer) = with_stream(features);
        give(&mut driver, count, len);
        put(&mut peer, &frame(count * len - 11, 0));
        put(&mut peer, &frame(5, 0));
        put(&mut peer, &[]);
        let small = frame(50, 2);
        put(&mut peer, &small);
        assert_eq!(received(&mut driver, 1, len), small);
    }
}

// HOSTILE 41: a peer that says a length that no frame has speaks something else.
#[test]
fn hostile_41_a_length_of_no_frame_ends_the_link() {
    for length in [MAX_FRAME as u32 + 1, u32::MAX] {
        let (mut driver, mut peer) = with_stream(MERGEABLE);
        give(&mut driver, 1, 2048);
        peer.write_all(&length.to_be_bytes()).unwrap();
        driver.wait("a link that is down", |driver| driver.config(6, 2) == [0, 0]);
    }
}

#[test]
fn hostile_41_packets_that_never_fit_are_passed_over() {
    for (features, count) in [(0, 1), (MERGEABLE, 16)] {
        let (mut driver, peer) = with_packets(features);
        give(&mut driver, count, 64);
        for len in [64 * count - 11, 1, 13, 9000] {
            peer.send(&frame(len, 4)).unwrap();
        }
        peer.send(&frame(30, 5)).unwrap();
        assert_eq!(received(&mut driver, 1, 64), frame(30, 5));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: effort::rounds(64) as u32, ..ProptestConfig::default() })]

    /// Whatever a guest sends, in whatever pieces: what comes out are frames, and the device goes on
    /// or needs a reset.
    #[test]
    fn any_chain_is_a_frame_or_none(
        chains in proptest::collection::vec(
            proptest::collection::vec((0u64..0x2_0000, 0u32..3000, any::<bool>()), 1..4), 1..8),
        bytes in proptest::collection::vec(any::<u8>(), 64),
    ) {
        let (mut driver, mut peer) = with_stream(MERGEABLE);
        driver.ram.write(&bytes, 0x100).unwrap();
        for chain in &chains {
            let buffers: Vec<_> = chain.iter().map(|(at, len, write)| match write {
                true => Buffer::Writable(*at, *len),
                false => Buffer::Readable(*at, *len),
            }).collect();
            driver.offer(TRANSMIT, &buffers);
        }
        driver.notify(TRANSMIT);
        driver.start(MERGEABLE);
        send(&mut driver, &with_header(Header::default(), &frame(61, 1)));
        loop {
            let got = get(&mut peer);
            prop_assert!((14..=MAX_FRAME).contains(&got.len()));
            if got == frame(61, 1) {
                break;
            }
        }
    }
}
