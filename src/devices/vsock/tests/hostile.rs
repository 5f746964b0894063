//! Packets, buffers, programs and amounts that nobody should send.

use std::io::ErrorKind;

use proptest::prelude::*;

use super::*;
use crate::effort;

// HOSTILE 42: a guest that sends more than it may loses the connection, and nothing grows.
#[test]
fn hostile_42_more_than_the_credit_ends_the_connection() {
    let mut guest = Guest::new();
    let _stream = guest.connect(1, 2);
    let mut over = false;
    for _ in 0..100 {
        guest.write((1, 2), &[1; 0x8000], 0);
        while let Some((head, written)) = guest.driver.used(RX) {
            let at = IN + u64::from(head) * u64::from(IN_LEN);
            let bytes = guest.driver.ram.peek(at, written as usize);
            over |= Header::parse(bytes.first_chunk().unwrap()).op == OP_RST;
            guest.offer(head);
        }
    }
    assert!(over, "there is no end to what it takes");
}

// HOSTILE 42: each is answered with a reset or not at all, and the next connection works.
#[test]
fn hostile_42_packets() {
    let mut guest = Guest::new();
    let good = Guest::header(5, 6, OP_RW);
    let mut answered = |header: Header, data: &[u8]| {
        guest.send(header, data);
        // Another one whose answer is known, and which comes behind.
        guest.send(Guest::header(77, 78, OP_RW), &[]);
        let (first, _) = guest.receive();
        if first.dst_port == 77 {
            return false;
        }
        let expected = (OP_RST, header.src_port, header.dst_port, header.dst_cid, header.kind);
        let got = (first.op, first.dst_port, first.src_port, first.src_cid, first.kind);
        assert_eq!(got, expected);
        assert_eq!(guest.receive().0.dst_port, 77);
        true
    };
    for (header, expected) in [
        (good, true),
        (Header { op: OP_RST, ..good }, false),
        (Header { op: 0, ..good }, true),
        (Header { op: 8, ..good }, true),
        (Header { op: u16::MAX, ..good }, true),
        (Header { kind: 0, op: OP_REQUEST, ..good }, true),
        (Header { kind: 2, op: OP_REQUEST, ..good }, true),
        (Header { kind: u16::MAX, ..good }, true),
        (Header { dst_cid: 0, op: OP_REQUEST, ..good }, true),
        (Header { dst_cid: 3, op: OP_REQUEST, ..good }, true),
        (Header { dst_cid: u64::MAX, op: OP_REQUEST, ..good }, true),
        (Header { src_cid: 43, op: OP_REQUEST, ..good }, false),
        (Header { src_cid: 1 << 32 | 42, op: OP_REQUEST, ..good }, false),
        (Header { op: OP_REQUEST, ..good }, true),
        (Header { op: OP_RESPONSE, len: u32::MAX, ..good }, true),
        (Header { op: OP_SHUTDOWN, flags: u32::MAX, buf_alloc: 0, ..good }, true),
    ] {
        assert_eq!(answered(header, b"data"), expected, "{header:?}");
    }

    // On a connection that there is.
    for (index, (change, expected)) in [
        (Header { op: 0, ..good }, true),
        (Header { op: 99, ..good }, true),
        (Header { op: OP_REQUEST, ..good }, true),
        (Header { op: OP_RESPONSE, ..good }, true),
        (Header { op: OP_RW, len: 5, ..good }, true),
        (Header { op: OP_RW, len: u32::MAX, ..good }, true),
        (Header { op: OP_RW, len: 3, ..good }, false),
        (Header { op: OP_RW, len: 0, ..good }, false),
        (Header { op: OP_SHUTDOWN, flags: 0, ..good }, false),
        (Header { op: OP_SHUTDOWN, flags: !NEITHER, ..good }, false),
        (Header { op: OP_CREDIT_UPDATE, buf_alloc: 0, fwd_cnt: 9, ..good }, false),
        (Header { op: OP_RST, ..good }, false),
    ]
    .into_iter()
    .enumerate()
    {
        let ports = (5, 100 + index as u32);
        let _stream = guest.connect(ports.0, ports.1);
        guest.send(Header { dst_port: ports.1, ..change }, b"data");
        guest.send(Guest::header(77, 78, OP_RW), &[]);
        let first = loop {
            // It may ask for room, too.
            match guest.receive().0 {
                header if header.op == OP_RST => break header,
                header => assert_eq!(header.op, OP_CREDIT_REQUEST),
            }
        };
        assert_eq!(first.dst_port != 77, expected, "{change:?}: {first:?}");
        if expected {
            assert_eq!(first.src_port, ports.1);
            guest.expect(OP_RST);
        }
        guest.send(Guest::header(ports.0, ports.1, OP_RST), &[]);
    }
}

// HOSTILE 42: buffers that no packet fits end the device, and a reset mends it.
#[test]
fn hostile_42_buffers() {
    let mut guest = Guest::new();
    guest.driver.send(TX, &[Buffer::Readable(OUT, HEADER_LEN as u32 - 1)]);
    guest.driver.wait_for_failure();
    guest.start();
    guest.driver.send(TX, &[Buffer::Writable(OUT, 100)]);
    guest.driver.wait_for_failure();
    guest.driver.start(0);
    guest.driver.send(RX, &[Buffer::Writable(IN, HEADER_LEN as u32)]);
    guest.driver.send(TX, &[Buffer::Readable(OUT, HEADER_LEN as u32)]);
    guest.driver.ram.write(&Guest::header(1, 1, OP_RW).bytes(), OUT).unwrap();
    guest.driver.send(TX, &[Buffer::Readable(OUT, HEADER_LEN as u32)]);
    guest.driver.wait_for_failure();
    guest.start();
    guest.connect(1, 2);
}

// HOSTILE 42: beyond the most connections each is refused, and those that end make room.
#[test]
fn hostile_42_many_connects_from_both_sides() {
    let mut guest = Guest::new();
    let most = table::MOST as u32;
    let listener = guest.listen(1);
    let mut streams = Vec::new();
    let all = effort::long_rounds(100_000) as u32;
    for port in 0..all.max(2 * most) {
        guest.send(Guest::header(port, 1, OP_REQUEST), &[]);
        let answer = guest.receive().0;
        assert_eq!(answer.op, if port < most { OP_RESPONSE } else { OP_RST }, "{port}");
        if port < most {
            streams.push(listener.accept().unwrap().0);
        }
    }
    // The host's are closed without a word.
    for _ in 0..10 {
        let mut stream = UnixStream::connect(guest.path("socket")).unwrap();
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    }
    guest.send(Guest::header(3, 1, OP_RST), &[]);
    assert_eq!(streams[3].read(&mut [0]).unwrap(), 0);
    guest.dial("CONNECT 8\n");
    guest.expect(OP_REQUEST);

    // A storm of resets, for those that are there and those that aren't.
    for port in 0..most * 2 {
        guest.send(Guest::header(port, 1, OP_RST), &[]);
    }
    for stream in &mut streams {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    guest.connect(1, 2);
}

// HOSTILE 42: without buffers for the answers, packets wait, and nothing is lost or grows.
#[test]
fn hostile_42_a_guest_without_buffers_waits() {
    let mut guest = Guest::new();
    guest.refills = false;
    // Sixteen buffers, and as many answers as may wait.
    for port in 0..16 + 128 {
        guest.send(Guest::header(port, 9, OP_RW), &[]);
    }
    for _ in 0..5 {
        guest.driver.send(TX, &[Buffer::Readable(OUT, HEADER_LEN as u32)]);
    }
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(guest.driver.used(TX), None);
    guest.refills = true;
    for port in 0..16 + 128 {
        assert_eq!(guest.receive().0.dst_port, port);
    }
    for _ in 0..5 {
        guest.expect(OP_RST);
        guest.driver.wait_for_used(TX);
    }
}

// HOSTILE 42: what a host's program may say first.
#[test]
fn hostile_42_greetings() {
    let mut guest = Guest::new();
    let long = "C".repeat(1 << 20);
    for line in ["CONNECT 99999999999\n", "HELLO\n", &long] {
        let mut stream = UnixStream::connect(guest.path("socket")).unwrap();
        let _ = stream.write_all(line.as_bytes());
        let end = stream.read(&mut [0]);
        let reset = |error: &std::io::Error| error.kind() == ErrorKind::ConnectionReset;
        assert!(matches!(&end, Ok(0)) || end.as_ref().is_err_and(reset), "{end:?}");
    }
    let mut slow = guest.dial("CONN");
    assert!(guest.driver.used(RX).is_none());
    slow.write_all(b"ECT 3\n").unwrap();
    let request = guest.expect(OP_REQUEST);
    guest.send(Guest::header(3, request.src_port, OP_RST), &[]);
    assert_eq!(slow.read(&mut [0]).unwrap(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: effort::rounds(300) as u32, ..ProptestConfig::default() })]

    /// Any packets in any order on a few ports: the device goes on.
    #[test]
    fn any_packets_leave_a_device_that_works(
        packets in proptest::collection::vec(
            (0u32..3, 6u32..9, 0u16..9, any::<[u32; 3]>(), 0u32..20, any::<bool>()), 1..40),
    ) {
        let mut guest = Guest::new();
        let _listener = guest.listen(6);
        for (src_port, dst_port, op, [flags, buf_alloc, fwd_cnt], len, small) in packets {
            let header = Guest::header(src_port, dst_port, op);
            let fwd_cnt = if small { fwd_cnt % 64 } else { fwd_cnt };
            guest.send(Header { flags, buf_alloc, fwd_cnt, len, ..header }, &[3; 16]);
            guest.refill();
        }
        guest.start();
        guest.connect(100, 200);
    }
}
