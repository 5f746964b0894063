//! A function as a guest's PCI code sees it: configuration space, capabilities, a memory that moves;
//! and as one that breaks the rules does.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

use proptest::prelude::*;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;

use super::*;
use crate::devices::entropy::Entropy;
use crate::devices::value;
use crate::effort;
use crate::virtio::Carrier;
use crate::virtio::driver::carried::{Carried, WINDOW};
use crate::virtio::driver::{Buffer, Driver};

const COMMAND: usize = 4;
const BAR: usize = 0x10;

fn driver() -> Driver {
    Driver::with(Carrier::Pci, Box::new(Entropy::new().unwrap()))
}

fn function(driver: &mut Driver) -> &mut VirtioPci {
    match &mut driver.device {
        Carried::Pci(function) => function,
        Carried::Mmio(_) => panic!("it is on a PCI bus"),
    }
}

fn get(function: &mut VirtioPci, register: usize, len: usize) -> u64 {
    let mut data = [0xaa; 8];
    function.read_config(register, &mut data[..len]);
    value(&data[..len])
}

fn set(function: &mut VirtioPci, register: usize, value: u32) {
    function.write_config(register, &value.to_le_bytes());
}

/// What `moved` is told.
fn moves(function: &mut VirtioPci) -> Receiver<Option<u64>> {
    let (told, heard) = channel();
    let told = Mutex::new(told);
    function.on_move(Box::new(move |start| told.lock().unwrap().send(start).unwrap()));
    heard
}

#[test]
fn the_capabilities_lead_to_every_structure() {
    let mut driver = driver();
    let function = function(&mut driver);
    assert_eq!(get(function, 0, 8), 0x0010_0000_1044_1af4);
    // Revision 1, no class fits.
    assert_eq!(get(function, 8, 4), 0xff00_0001);
    assert_eq!((get(function, 0x2c, 4), get(function, 0x3d, 1)), (0x40_1af4, 0), "no pin");
    let mut found = vec![];
    let mut at = get(function, 0x34, 1) as usize;
    while at != 0 {
        match get(function, at, 1) as u8 {
            VENDOR_SPECIFIC => {
                let word = |function: &mut VirtioPci, offset| get(function, at + offset, 4) as u32;
                let kind = get(function, at + 3, 1) as u8;
                let (offset, len) = (word(function, CAP_OFFSET), word(function, CAP_LENGTH));
                found.push((kind, get(function, at + 2, 1), offset, len));
                if kind == CAP_NOTIFY {
                    assert_eq!(word(function, CAP_DATA), 4, "the multiplier");
                }
            }
            msix::CAPABILITY => {
                assert_eq!(get(function, at + 2, 2), 1, "two vectors");
                assert_eq!((get(function, at + 4, 4), get(function, at + 8, 4)), (0x4000, 0x5000));
            }
            other => panic!("capability {other:#x}"),
        }
        at = get(function, at + 1, 1) as usize;
    }
    assert_eq!(
        found,
        [
            (CAP_COMMON, 16, 0, 0x38),
            (CAP_STATUS, 16, 0x1000, 1),
            (CAP_DEVICE, 16, 0x2000, 0x100),
            (CAP_NOTIFY, 20, 0x3000, 4),
            (CAP_ACCESS, 20, 0, 0),
        ]
    );
}

#[test]
fn the_memory_answers_in_the_window_alone_and_notifications_move_with_it() {
    let mut driver = driver();
    let function = function(&mut driver);
    let heard = moves(function);
    let own = WINDOW.start + LEN;
    assert_eq!((function.memory(), get(function, BAR, 8)), (None, own | 4));
    set(function, COMMAND, 2);
    assert_eq!(function.memory().map(|memory| (memory.start, memory.len)), Some((own, LEN)));
    // Sized as Linux and as others do: with and without the memory switched off.
    for command in [0, 2] {
        set(function, COMMAND, command);
        set(function, BAR, u32::MAX);
        set(function, BAR + 4, u32::MAX);
        assert_eq!(get(function, BAR, 8), !(LEN - 1) | 4);
        set(function, BAR, own as u32);
        set(function, BAR + 4, 0);
    }
    assert_eq!(
        heard.try_iter().collect::<Vec<_>>(),
        [Some(own + NOTIFY), None, Some(own + NOTIFY), None, Some(own + NOTIFY)]
    );
    let end = WINDOW.end();
    for (start, answers) in [
        (WINDOW.start, true),
        (end - LEN, true),
        (WINDOW.start - LEN, false),
        (end, false),
        (0, false),
        (1 << 32 | WINDOW.start, false),
        (0u64.wrapping_sub(LEN), false),
    ] {
        set(function, BAR + 4, (start >> 32) as u32);
        set(function, BAR, start as u32);
        assert_eq!(function.memory().map(|memory| memory.start), answers.then_some(start));
    }
    let told: Vec<_> = heard.try_iter().flatten().collect();
    assert_eq!(told, [WINDOW.start + NOTIFY, end - LEN + NOTIFY]);
}

#[test]
fn the_configuration_space_reaches_the_memory_too() {
    let mut driver = driver();
    let function = function(&mut driver);
    let at = function.access_at;
    let access = |function: &mut VirtioPci, bar: u8, offset: u64, len: u32| {
        function.write_config(at + CAP_BAR, &[bar]);
        set(function, at + CAP_OFFSET, offset as u32);
        set(function, at + CAP_LENGTH, len);
    };
    access(function, 0, COMMON + common::DEVICE_STATUS, 1);
    set(function, at + CAP_DATA, 3);
    assert_eq!((function.transport.status(), get(function, at + CAP_DATA, 1)), (3, 3));
    access(function, 0, COMMON + common::NUM_QUEUES, 2);
    assert_eq!(get(function, at + CAP_DATA, 4), 1);
    // Another memory, outside, unaligned, odd widths: what is read is what was.
    for (bar, offset, len) in [
        (1, 0x14, 1),
        (255, 0x14, 1),
        (0, LEN, 4),
        (0, 0xffff_fffc, 4),
        (0, 0x16, 4),
        (0, 0x14, 0),
        (0, 0x14, 3),
        (0, 0x10, 8),
        (0, 0x14, u32::MAX),
    ] {
        access(function, bar, offset, len);
        set(function, at + CAP_DATA, 0);
        assert_eq!(get(function, at + CAP_DATA, 4), 0);
        assert_eq!(function.transport.status(), 3, "{bar} {offset:#x} {len}");
    }
}

#[test]
fn fields_take_accesses_of_their_own_width() {
    let mut driver = driver();
    driver.negotiate(0);
    let function = function(&mut driver);
    let read = |function: &mut VirtioPci, offset, len: usize| {
        let mut data = [0xaa; 8];
        Function::read(function, offset, &mut data[..len]);
        value(&data[..len])
    };
    for (offset, len, expected) in [
        (common::QUEUE_SIZE, 2, 8),
        (common::QUEUE_SIZE, 1, 0),
        (common::QUEUE_SIZE, 4, 0),
        (common::QUEUE_SIZE + 1, 1, 0),
        (common::NUM_QUEUES, 2, 1),
        (common::DEVICE_STATUS, 1, 11),
        (common::DEVICE_STATUS, 2, 0),
        (common::LEN, 4, 0),
        (0xffe, 2, 0),
    ] {
        assert_eq!(read(function, offset, len), expected, "{len} bytes at {offset:#x}");
    }
    Function::write(function, common::QUEUE_DESC, &0x1_2345_6780u64.to_le_bytes());
    assert_eq!(read(function, common::QUEUE_DESC, 8), 0x1_2345_6780);
    assert_eq!(read(function, common::QUEUE_DESC, 4), 0x2345_6780);
    assert_eq!(read(function, common::QUEUE_DESC + 4, 4), 1);
    Function::write(function, common::QUEUE_DESC + 4, &[0xff; 8]);
    assert_eq!(read(function, common::QUEUE_DESC, 8), 0x1_2345_6780);
    // Where no structure is.
    for offset in [0x800, STATUS + 1, PENDING + 8, 0x6000, LEN - 8] {
        Function::write(function, offset, &[0xff; 8]);
        assert_eq!(read(function, offset, 8), 0, "{offset:#x}");
    }
}

#[test]
fn vectors_that_are_not_there_become_none_and_a_reset_takes_all() {
    let mut driver = driver();
    let function = function(&mut driver);
    let vector = |function: &mut VirtioPci, offset, number: u16| {
        Function::write(function, offset, &number.to_le_bytes());
        let mut data = [0; 2];
        Function::read(function, offset, &mut data);
        u16::from_le_bytes(data)
    };
    for (number, taken) in [(0, 0), (1, 1), (2, NO_VECTOR), (0x7fff, NO_VECTOR), (1, 1)] {
        assert_eq!(vector(function, common::CONFIG_MSIX_VECTOR, number), taken);
        assert_eq!(vector(function, common::QUEUE_MSIX_VECTOR, number), taken);
    }
    Function::write(function, common::QUEUE_SELECT, &[1, 0]);
    assert_eq!(vector(function, common::QUEUE_MSIX_VECTOR, 1), NO_VECTOR, "no such queue");
    Function::write(function, common::DEVICE_STATUS, &[0]);
    assert_eq!(function.vectors.changed.load(Ordering::Relaxed), NO_VECTOR);
    assert_eq!(function.vectors.used[0].load(Ordering::Relaxed), NO_VECTOR);
}

#[test]
fn a_driver_without_vectors_polls() {
    let mut driver = driver();
    driver.start(0);
    function(&mut driver).write_config(0x42, &[0, 0]);
    driver.send(0, &[Buffer::Writable(0x5000, 8)]);
    while driver.get(virtio_bindings::virtio_mmio::VIRTIO_MMIO_INTERRUPT_STATUS) == 0 {
        std::thread::yield_now();
    }
    assert_eq!(driver.used(0), Some((0, 8)));
    assert!(driver.edges.read().is_err(), "an interrupt came");
    assert_eq!(driver.get(virtio_bindings::virtio_mmio::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: effort::rounds(400) as u32, ..ProptestConfig::default() })]

    /// Any accesses to configuration space and memory: then a reset, and the device serves.
    #[test]
    fn any_sequence_of_accesses_is_survived(
        accesses in proptest::collection::vec(
            (any::<bool>(), 0u64..LEN + 0x1000, 0usize..4, any::<u64>(), any::<bool>()), 0..120),
    ) {
        let mut driver = driver();
        for (write, at, width, value, small) in accesses {
            let function = function(&mut driver);
            let len = 1 << width;
            let value = if small { value % 16 } else { value };
            let bytes = value.to_le_bytes();
            let data = &mut [0; 8][..len];
            // Above the memory: the configuration space, most of whose registers lie low. In the
            // memory, likewise.
            match at.checked_sub(LEN) {
                Some(register) if write => {
                    function.write_config(register as usize % 0x110, &bytes[..len]);
                }
                Some(register) => function.read_config(register as usize % 0x110, data),
                None => {
                    let at = at / PAGE * PAGE + at % PAGE % 0x48;
                    if write {
                        Function::write(function, at, &bytes[..len]);
                    } else {
                        Function::read(function, at, data);
                    }
                }
            }
        }
        driver.set(VIRTIO_MMIO_STATUS, 0);
        driver.start(0);
        prop_assert_eq!(driver.request(0, &[Buffer::Writable(0x5000, 8)]), 8);
    }
}
