//! Back ends that end, that are silent and that talk nonsense: an error, or a device that needs a
//! reset, and never a wait without an end.

use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::*;
use crate::virtio::driver::Driver;

/// For back ends that would make it wait. Our choice: the tests take that long.
const SHORT: Duration = Duration::from_millis(500);

const NEEDS_RESET: u32 = 64;

/// Why no device comes of the back end behind `socket`.
fn refused(socket: UnixStream, patience: Duration) -> String {
    format!("{:#}", block_on("disk".into(), socket, 1, patience).err().expect("it is refused"))
}

fn traits() -> Traits {
    Traits { config: vec![0; 60], ..Traits::default() }
}

/// Answers well, but for the message number `at`.
fn bad_at(at: usize, mut bad: impl FnMut(&Message) -> Answer + Send + 'static) -> UnixStream {
    let (traits, mut count) = (traits(), 0);
    let answer = move |message: &Message| {
        count += 1;
        if count == at + 1 { bad(message) } else { traits.answer(message) }
    };
    peer(answer).1
}

/// Messages until a disk's back end is known, the first that has an answer, and those until it runs.
const INTRODUCTION: usize = 6;
const FIRST_ANSWER: usize = 1;
const START: usize = 8;

#[test]
fn a_back_end_that_ends_in_between_is_told_of() {
    for at in 0..INTRODUCTION {
        let error = refused(bad_at(at, |_| Answer::Close), PATIENCE);
        assert!(error.ends_with("the back end has closed the connection"), "{at}: {error}");
    }
    for at in INTRODUCTION..INTRODUCTION + START {
        let socket = bad_at(at, |_| Answer::Close);
        let disk = block_on("disk".into(), socket, 1, PATIENCE).unwrap();
        let mut driver = Driver::new(Box::new(disk));
        driver.start(0);
        driver.wait_for_failure();
        // It does not come back.
        driver.start(0);
        assert_eq!(driver.get(VIRTIO_MMIO_STATUS) & NEEDS_RESET, NEEDS_RESET, "{at}");
    }
}

#[test]
fn a_back_end_that_never_answers_is_not_waited_for() {
    for at in FIRST_ANSWER..INTRODUCTION {
        // Sent without a wish for an answer, before one can be wished for.
        if at == 3 {
            continue;
        }
        let start = Instant::now();
        let error = refused(bad_at(at, |_| Answer::None), SHORT);
        assert!(error.contains("does not answer within 500ms"), "{at}: {error}");
        assert!(start.elapsed() < PATIENCE, "{at}");
    }
    let silent = UnixStream::pair().unwrap();
    assert!(refused(silent.0, SHORT).contains("does not answer"));
    for at in [INTRODUCTION, INTRODUCTION + START - 1] {
        let socket = bad_at(at, |_| Answer::None);
        let mut driver = Driver::new(Box::new(block_on("disk".into(), socket, 1, SHORT).unwrap()));
        driver.start(0);
        assert_eq!(driver.get(VIRTIO_MMIO_STATUS) & NEEDS_RESET, NEEDS_RESET, "{at}");
    }
}

#[test]
fn a_back_end_that_sends_byte_by_byte_has_no_more_time() {
    let (ours, mut its) = UnixStream::pair().unwrap();
    let trickle = std::thread::spawn(move || {
        // Each alone comes in time.
        while std::io::Write::write_all(&mut its, &[1]).is_ok() {
            std::thread::sleep(SHORT / 50);
        }
    });
    let error = refused(ours, SHORT);
    assert!(error.contains("does not answer") || error.contains("makes no sense"), "{error}");
    trickle.join().unwrap();
}

#[test]
fn answers_that_make_no_sense_are_refused() {
    let words =
        |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    for at in FIRST_ANSWER..INTRODUCTION {
        if at == 3 {
            continue;
        }
        let (flags, huge) = (1 | 1 << 2, u32::MAX);
        for kind in 0..8 {
            let answer = move |message: &Message| {
                let request = message.request;
                let bytes = match kind {
                    // Another request's answer, none at all, another version's.
                    0 => words(&[request + 1, flags, 8, 1, 0]),
                    1 => words(&[request, 1, 8, 1, 0]),
                    2 => words(&[request, 2 | 1 << 2, 8, 1, 0]),
                    3 => words(&[huge, flags, 8, 1, 0]),
                    // Too short, too long, far too long.
                    4 => words(&[request, flags, 4, 1]),
                    5 => words(&[request, flags, 0]),
                    6 => words(&[request, flags, 4000]),
                    _ => words(&[request, flags, huge]),
                };
                Answer::Last(bytes)
            };
            let error = refused(bad_at(at, answer), PATIENCE);
            assert!(!error.is_empty() && !error.contains('\n'), "{at} {kind}: {error}");
        }
    }
}

#[test]
fn back_ends_that_lack_what_is_needed_are_refused_with_it() {
    let usual = traits();
    for (traits, message) in [
        (Traits { features: PROTOCOL, ..usual.clone() }, "older than virtio 1.0"),
        (Traits { protocol: MQ, ..usual.clone() }, "does not tell its configuration space"),
        (Traits { features: VERSION_1, ..usual.clone() }, "does not tell its configuration space"),
        (Traits { queues: 0, ..usual.clone() }, "has no more than 0 of 1 queues"),
        (Traits { queues: u64::MAX, ..usual.clone() }, "GET_QUEUE_NUM"),
    ] {
        let error = refused(good(traits).1, PATIENCE);
        assert!(error.contains(message), "{error}");
    }
    let error = fs("tag", good(Traits { queues: 1, ..usual }).1, PATIENCE).err().unwrap();
    assert!(error.to_string().contains("has no more than 1 of 2 queues"), "{error}");
}

#[test]
fn a_back_end_that_refuses_what_it_is_told_is_named_with_that() {
    let refuse = |_: &Message| Answer::Payload(1u64.to_le_bytes().to_vec());
    let socket = bad_at(INTRODUCTION + 1, refuse);
    let mut driver = Driver::new(Box::new(block_on("disk".into(), socket, 1, PATIENCE).unwrap()));
    driver.start(0);
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS) & NEEDS_RESET, NEEDS_RESET);
}

#[test]
fn a_back_end_that_ends_while_the_guest_runs_has_the_device_need_a_reset() {
    let (peer, socket) = good(Traits::default());
    let ends = socket.try_clone().unwrap();
    let mut driver = Driver::new(Box::new(fs("tag", socket, PATIENCE).unwrap()));
    driver.start(0);
    serves(&mut driver);
    ends.shutdown(std::net::Shutdown::Both).unwrap();
    driver.wait_for_failure();
    peer.thread.join().unwrap();
    // A driver that tries again is told again, and a reset is one.
    driver.set(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 0);
    driver.start(0);
    driver.wait_for_failure();
}

#[test]
fn a_reset_does_not_wait_for_a_back_end_that_has_gone_silent() {
    let usual = traits();
    let (_peer, socket) = peer(move |message| match message.request {
        GET_VRING_BASE => Answer::None,
        _ => usual.answer(message),
    });
    let mut driver = Driver::new(Box::new(fs("tag", socket, SHORT).unwrap()));
    driver.start(0);
    serves(&mut driver);
    let start = Instant::now();
    driver.set(VIRTIO_MMIO_STATUS, 0);
    assert!(start.elapsed() < PATIENCE);
    driver.start(0);
    driver.wait_for_failure();
}
