//! The console device, driven through its registers, between pipes and on a terminal.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INTERRUPT_STATUS,
};

use super::*;
use crate::console::EOT;
use crate::console::watch::{Wanted, Watch as TextWatch};
use crate::exit::Stop;
use crate::sys;
use crate::virtio::driver::{Buffer, Driver};

const OUT: u64 = 0x1000;
const IN: u64 = 0x8000;

/// A driver, and the host's ends of the pipes.
struct Rig {
    driver: Driver,
    printed: PipeReader,
    typing: Option<PipeWriter>,
    output: Arc<Output>,
    input: Arc<Input>,
    wake: Arc<EventFd>,
}

impl Rig {
    fn new(expect: &[String]) -> Self {
        let (printed, to) = io::pipe().unwrap();
        let (from, typing) = io::pipe().unwrap();
        let event = || Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let (wake, stopping) = (event(), Arc::<AtomicBool>::default());
        let to = (File::from(OwnedFd::from(to)), "test".into(), Nature::Files);
        let watch = TextWatch::new(&Wanted { expect, ..Wanted::default() });
        let output = Arc::new(Output::new(to, wake.clone(), stopping, watch));
        let from = Some(File::from(OwnedFd::from(from)));
        let input = Input::new(Vec::new(), from, Nature::Files, event());
        let device = Console::new(output.clone(), input.clone(), None).unwrap();
        let mut driver = Driver::new(Box::new(device));
        driver.start(0);
        Self { driver, printed, typing: Some(typing), output, input, wake }
    }

    /// What the event loop does: waits until something is to be written, and writes it.
    fn flush(&self) -> Option<Stop> {
        let mut fds = [sys::poll_entry(&*self.wake, libc::POLLIN)];
        // Second by second: where the host itself is stopped for a while, one of them is lost.
        let woken = (0..20).any(|_| {
            sys::poll(&mut fds, Some(Duration::from_secs(1))).unwrap();
            fds[0].revents != 0
        });
        assert!(woken, "nobody has anything to write");
        let _ = self.wake.read();
        // It may find the device at it.
        while self.output.waiting().is_some() {
            if let ControlFlow::Break(stop) = self.output.flush_ready() {
                return Some(stop);
            }
        }
        None
    }
}

#[test]
fn output_is_printed_and_input_is_read_once_there_is_a_buffer_for_it() {
    let mut rig = Rig::new(&[]);
    assert_eq!(rig.driver.offered() & F_SIZE, 0);
    rig.driver.ram.write(b"Hello,\nworld", OUT).unwrap();
    let parts = [Buffer::Readable(OUT, 3), Buffer::Readable(OUT + 3, 9)];
    assert_eq!(rig.driver.request(TRANSMIT, &parts), 0);
    assert!(rig.output.hurries(), "a line has ended");
    assert!(rig.flush().is_none() && !rig.output.hurries());
    let mut bytes = [0; 12];
    rig.printed.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"Hello,\nworld");

    rig.typing.as_mut().unwrap().write_all(b"typed").unwrap();
    assert!(!rig.input.is_started());
    assert_eq!(rig.driver.request(RECEIVE, &[Buffer::Writable(IN, 3)]), 3);
    assert_eq!(rig.driver.request(RECEIVE, &[Buffer::Writable(IN + 3, 300)]), 2);
    assert_eq!(rig.driver.ram.peek(IN, 5), b"typed");
    // A buffer that waits is filled when something comes; at the end that is one EOT.
    rig.driver.send(RECEIVE, &[Buffer::Writable(IN, 9)]);
    assert_eq!(rig.driver.used(RECEIVE), None);
    rig.typing.as_mut().unwrap().write_all(b"!").unwrap();
    assert_eq!(rig.driver.wait_for_used(RECEIVE).1, 1);
    rig.driver.send(RECEIVE, &[Buffer::Writable(IN + 1, 9)]);
    rig.typing = None;
    assert_eq!(rig.driver.wait_for_used(RECEIVE).1, 1);
    assert_eq!(rig.driver.ram.peek(IN, 2), [b'!', EOT]);
}

#[test]
fn a_slow_reader_has_the_guest_wait_and_nothing_is_lost() {
    let mut rig = Rig::new(&[]);
    let bytes: Vec<u8> = (0..10_000u32).map(|at| (at / 100) as u8).collect();
    rig.driver.ram.write(&bytes, OUT).unwrap();
    let head = rig.driver.send(TRANSMIT, &[Buffer::Readable(OUT, 10_000)]);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.driver.used(TRANSMIT), None);
    let mut got: Vec<u8> = Vec::new();
    while got.len() < bytes.len() {
        assert!(rig.flush().is_none());
        let mut part = [0; 8192];
        let count = rig.printed.read(&mut part).unwrap();
        got.extend(&part[..count]);
    }
    assert!(got == bytes);
    assert_eq!(rig.driver.wait_for_used(TRANSMIT), (head, 0));
}

#[test]
fn a_text_that_is_expected_ends_the_machine_once_it_is_written() {
    let mut rig = Rig::new(&["login:".into()]);
    rig.driver.ram.write(b"host login: never", OUT).unwrap();
    rig.driver.request(TRANSMIT, &[Buffer::Readable(OUT, 17)]);
    let stop = rig.flush();
    assert!(matches!(stop, Some(Stop::Expected)), "{stop:?}");
    let mut bytes = [0; 64];
    let count = rig.printed.read(&mut bytes).unwrap();
    assert_eq!(&bytes[..count], b"host login:");
    // What comes after it goes nowhere, and nobody waits for it.
    rig.driver.request(TRANSMIT, &[Buffer::Readable(OUT, 17)]);
}

// HOSTILE 43: buffers of the wrong kind.
#[test]
fn hostile_43_wrong_buffers_end_the_device_or_do_nothing() {
    let mut rig = Rig::new(&[]);
    rig.driver.request(TRANSMIT, &[Buffer::Writable(OUT, 9)]);
    rig.driver.send(RECEIVE, &[Buffer::Readable(IN, 9)]);
    rig.driver.wait_for_failure();
    rig.driver.start(0);
    rig.driver.send(TRANSMIT, &[Buffer::Readable(0xffff_0000, 9)]);
    rig.driver.wait_for_failure();
    rig.driver.start(0);
    rig.typing.as_mut().unwrap().write_all(b"x").unwrap();
    assert_eq!(rig.driver.request(RECEIVE, &[Buffer::Writable(IN, 9)]), 1);
}

#[test]
fn the_size_of_a_terminal_is_told_and_told_again() {
    let (upper, path) = terminal::open_pty().unwrap();
    terminal::resize(upper.as_fd(), (80, 25)).unwrap();
    let lower = File::options().read(true).write(true).open(path).unwrap();
    let screen = Screen::new(lower).unwrap().expect("a terminal");
    let rig = Rig::new(&[]);
    let device = Console::new(rig.output.clone(), rig.input.clone(), Some(screen.clone()));
    let mut driver = Driver::new(Box::new(device.unwrap()));
    driver.start(F_SIZE);
    assert_eq!(driver.config(0, 12), [80, 0, 25, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let generation = |driver: &mut Driver| driver.get(VIRTIO_MMIO_CONFIG_GENERATION);
    let before = generation(&mut driver);
    screen.look();
    terminal::resize(upper.as_fd(), (132, 43)).unwrap();
    screen.look();
    driver.wait("change", |driver| {
        driver.get(VIRTIO_MMIO_INTERRUPT_STATUS) == VIRTIO_MMIO_INT_CONFIG
    });
    assert_ne!(generation(&mut driver), before);
    assert_eq!(driver.config(0, 4), [132, 0, 43, 0]);

    // With control queues by a message, once the driver knows the port.
    driver.start(F_SIZE | F_MULTIPORT);
    for at in 0..4 {
        driver.offer(CONTROL_RECEIVE, &[Buffer::Writable(IN + 16 * at, 16)]);
    }
    driver.notify(CONTROL_RECEIVE);
    let mut messages = 0..;
    let mut expect = |driver: &mut Driver, message: &[u8]| {
        assert_eq!(driver.wait_for_used(CONTROL_RECEIVE).1, message.len() as u32);
        let at = IN + 16 * messages.next().unwrap();
        assert_eq!(driver.ram.peek(at, message.len()), message);
    };
    say(&mut driver, &[0, 0, 0, 0, 0, 0, 1, 0]);
    expect(&mut driver, &[0, 0, 0, 0, 1, 0, 1, 0]);
    say(&mut driver, &[0, 0, 0, 0, 3, 0, 1, 0]);
    expect(&mut driver, &[0, 0, 0, 0, 4, 0, 1, 0]);
    expect(&mut driver, &[0, 0, 0, 0, 5, 0, 0, 0, 132, 0, 43, 0]);
    terminal::resize(upper.as_fd(), (90, 20)).unwrap();
    screen.look();
    expect(&mut driver, &[0, 0, 0, 0, 5, 0, 0, 0, 90, 0, 20, 0]);
    assert!(Screen::new(tempfile::tempfile().unwrap()).unwrap().is_none());
}

/// A control message from the driver.
fn say(driver: &mut Driver, message: &[u8]) {
    driver.ram.write(message, OUT).unwrap();
    driver.request(CONTROL_TRANSMIT, &[Buffer::Readable(OUT, message.len() as u32)]);
}

#[test]
fn a_driver_that_says_when_it_is_ready_gets_no_input_before() {
    let mut rig = Rig::new(&[]);
    rig.driver.start(F_MULTIPORT);
    rig.typing.as_mut().unwrap().write_all(b"typed").unwrap();
    rig.driver.send(RECEIVE, &[Buffer::Writable(IN, 9)]);
    // HOSTILE 43: of no port, of no event, too short, too long, or about another port.
    for message in [
        &[0, 0, 0, 0, 3, 0, 1, 0][..],
        &[1, 0, 0, 0, 6, 0, 1, 0],
        &[0, 0, 0, 0, 99, 99, 1, 0],
        &[0, 0, 0, 0, 6, 0, 0, 0, 1],
        &[0, 0, 0, 0, 6, 0, 1],
        &[],
    ] {
        say(&mut rig.driver, message);
    }
    assert!(!rig.input.is_started() && rig.driver.used(RECEIVE).is_none());
    say(&mut rig.driver, &[0, 0, 0, 0, 6, 0, 1, 0]);
    assert_eq!(rig.driver.wait_for_used(RECEIVE).1, 5);
    rig.driver.send(CONTROL_RECEIVE, &[Buffer::Writable(IN, 7)]);
    rig.driver.wait_for_failure();
}
