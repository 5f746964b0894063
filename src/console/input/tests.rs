//! The input side, by pipes.

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use super::*;

fn event() -> Arc<EventFd> {
    Arc::new(EventFd::new(0).unwrap())
}

fn from_pipe() -> (Arc<Input>, io::PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    let file = File::from(OwnedFd::from(reader));
    (Input::new(Vec::new(), Some(file), Nature::Files, event()), writer)
}

fn soon<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what} within a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn next(input: &Arc<Input>) -> u8 {
    soon("input", || input.next())
}

#[test]
fn input_comes_whole_and_in_order_and_ends_with_one_eot() {
    let (input, mut writer) = from_pipe();
    let sent: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
    let bytes = sent.clone();
    let sender = std::thread::spawn(move || writer.write_all(&bytes));
    let received: Vec<u8> = sent.iter().map(|_| next(&input)).collect();
    assert!(received == sent);
    assert_eq!(next(&input), EOT);
    assert_eq!(input.next(), None);
    sender.join().unwrap().unwrap();
}

#[test]
fn without_a_file_there_is_only_an_eot() {
    let input = Input::new(Vec::new(), None, Nature::Files, event());
    assert!(input.look());
    assert_eq!((input.next(), input.next()), (Some(EOT), None));
    assert!(!input.look());
}

#[test]
fn what_is_put_back_comes_again_first() {
    let (input, mut writer) = from_pipe();
    writer.write_all(b"abcdef").unwrap();
    let mut buffer = [0; 4];
    soon("input", || (input.take(&mut buffer) == 4).then_some(()));
    input.put_back(&buffer[1..]);
    drop(writer);
    let rest: Vec<u8> = (0..6).map(|_| next(&input)).collect();
    assert_eq!(rest, b"bcdef\x04");
}

struct Count(AtomicUsize);
impl Listener for Count {
    fn input_arrived(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_listener_hears_of_each_arrival_and_of_the_end_and_may_be_gone() {
    let (input, mut writer) = from_pipe();
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let listener: Arc<dyn Listener> = count.clone();
    input.listen(Arc::downgrade(&listener));
    drop(listener);
    input.listen(Weak::<Count>::new());
    let heard = |times| {
        soon("news", || (count.0.load(Ordering::Relaxed) == times).then_some(()));
    };
    assert!(!input.look());
    writer.write_all(b"ab").unwrap();
    heard(1);
    assert_eq!((input.next(), input.next()), (Some(b'a'), Some(b'b')));
    drop(writer);
    heard(2);
    assert_eq!(input.next(), Some(EOT));
}

#[test]
fn a_guest_that_takes_nothing_leaves_the_rest_in_the_pipe() {
    let (input, mut writer) = from_pipe();
    let (sent, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        while writer.write_all(&[b'x'; INPUT_LEN]).is_ok() && sent.send(()).is_ok() {}
    });
    assert!(!input.look());
    // The pipe (pipe(7): 16 pages, whatever a page is), the queue, and no more.
    let mut blocks = 0;
    while told.recv_timeout(Duration::from_millis(300)).is_ok() {
        blocks += 1;
        assert!(blocks < 1000, "it takes without end");
    }
    assert!(input.lock().bytes.len() <= INPUT_LEN);
}

#[test]
fn what_one_machine_has_not_taken_is_the_next_one_s() {
    let (reader, mut writer) = io::pipe().unwrap();
    let source = File::from(OwnedFd::from(reader));
    writer.write_all(b"abcdef").unwrap();
    let stop = event();
    let file = source.try_clone().unwrap();
    let first = Input::new(b"12".to_vec(), Some(file), Nature::Files, stop.clone());
    let mut taken = Vec::new();
    while taken.len() < 4 {
        taken.extend(first.next());
    }
    assert_eq!(taken, b"12ab");
    first.put_back(b"b");
    first.stop();
    stop.write(1).unwrap();
    let unread = first.unread();
    assert_eq!(unread, b"bcdef");
    writer.write_all(b"gh").unwrap();
    drop(writer);
    let second = Input::new(unread, Some(source), Nature::Files, event());
    let mut taken = Vec::new();
    while taken.last() != Some(&EOT) {
        taken.extend(second.next());
    }
    assert_eq!(taken, b"bcdefgh\x04");
}
