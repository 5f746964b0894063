//! MSI-X: a function's interrupts as messages that its driver writes into a table (PCI Local Bus
//! Specification 3.0, 6.8.2 "MSI-X Capability and Table Structures").
//!
//! Workers send while vCPUs write the table. What is sent to a masked vector waits, and goes out when
//! the mask is lifted: neither side takes a lock, and between them nothing is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::board::Message;
use crate::devices::{answer, value};
use crate::irq::{Irq, Route, Vector};

/// The capability's number, and where its control word lies in it.
pub const CAPABILITY: u8 = 0x11;
/// See [`CAPABILITY`].
pub const CONTROL: usize = 2;

/// Bits of the control word: all are masked; they are in use.
const MASK_ALL: u16 = 1 << 14;
const ENABLE: u16 = 1 << 15;

/// Bytes of an entry of the table: address, data, control.
const ENTRY_LEN: usize = 16;
/// Bit of an entry's control word.
const MASKED: u32 = 1;

/// One vector as those who send see it.
struct Sending {
    irq: Irq,
    /// It has a route and no mask.
    open: AtomicBool,
    /// Something was to be sent while it was not open.
    pending: AtomicBool,
}

impl Sending {
    /// Either this sees that it is open, or [`Self::open`] sees what is pending.
    fn send(&self) {
        if !self.open.load(SeqCst) {
            self.pending.store(true, SeqCst);
            if !self.open.load(SeqCst) || !self.pending.swap(false, SeqCst) {
                return;
            }
        }
        self.irq.trigger();
    }

    fn open(&self) {
        self.open.store(true, SeqCst);
        if self.pending.swap(false, SeqCst) {
            self.irq.trigger();
        }
    }
}

/// The way to send the interrupts of a function.
#[derive(Clone)]
pub struct Sender {
    vectors: Arc<[Sending]>,
    enabled: Arc<AtomicBool>,
}

impl Sender {
    /// Sends interrupt number `vector`; none, if there is no such one or the driver does not use them.
    pub fn send(&self, vector: u16) {
        if let Some(vector) = self.vectors.get(usize::from(vector))
            && self.enabled.load(SeqCst)
        {
            vector.send();
        }
    }
}

/// One entry of the table.
struct Entry {
    message: Message,
    control: u32,
    /// The message that is sent now.
    routed: Option<Message>,
    route: Route,
}

/// A function's table, and the bits of what is pending.
pub struct MsiX {
    entries: Vec<Entry>,
    control: u16,
    sender: Sender,
}

impl MsiX {
    /// `vectors` of `function` (as [`Message::sender`] has it): all masked, as after a reset.
    pub fn new(vectors: Vec<Vector>, function: u32) -> Self {
        let mut sending = Vec::new();
        let mut entries = Vec::new();
        for vector in vectors {
            let (irq, route) = vector.into_parts();
            sending.push(Sending { irq, open: false.into(), pending: false.into() });
            let message = Message { sender: function, ..Message::default() };
            entries.push(Entry { message, control: MASKED, routed: None, route });
        }
        let sender = Sender { vectors: sending.into(), enabled: Arc::default() };
        Self { entries, control: 0, sender }
    }

    /// What follows the capability's header, and what of it can be written; the table and the pending
    /// bits lie in the first base address register's memory.
    pub fn capability(&self, table: u32, pending: u32) -> ([u8; 10], [u8; 10]) {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(self.entries.len() as u16 - 1).to_le_bytes());
        body[2..6].copy_from_slice(&table.to_le_bytes());
        body[6..].copy_from_slice(&pending.to_le_bytes());
        let mut writable = [0; 10];
        writable[..2].copy_from_slice(&(ENABLE | MASK_ALL).to_le_bytes());
        (body, writable)
    }

    /// How many vectors there are.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// What sends them.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// The control word is this now.
    pub fn set_control(&mut self, control: u16) {
        if control != self.control {
            self.control = control;
            self.sender.enabled.store(control & ENABLE != 0, SeqCst);
            (0..self.entries.len()).for_each(|index| self.update(index));
        }
    }

    /// Opens or closes a vector as the masks have it, with its message routed first.
    fn update(&mut self, index: usize) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        let vector = &self.sender.vectors[index];
        let wanted = self.control & (ENABLE | MASK_ALL) == ENABLE && entry.control & MASKED == 0;
        if !wanted {
            vector.open.store(false, SeqCst);
            return;
        }
        if entry.routed != Some(entry.message) {
            vector.open.store(false, SeqCst);
            entry.routed = (entry.route)(Some(entry.message)).then_some(entry.message);
        }
        if entry.routed.is_some() {
            vector.open();
        }
    }

    /// Reads the table: words of 32 or 64 bits; others read as zeros.
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        if !is_whole(offset, data.len()) {
            return;
        }
        if let Some(entry) = self.entries.get(offset / ENTRY_LEN) {
            let high = u64::from(entry.control) << 32 | u64::from(entry.message.data);
            let words = u128::from(high) << 64 | u128::from(entry.message.guest_addr);
            answer(data, (words >> (8 * (offset % ENTRY_LEN))) as u64);
        }
    }

    /// Writes the table, likewise.
    pub fn write_table(&mut self, offset: usize, data: &[u8]) {
        if !is_whole(offset, data.len()) {
            return;
        }
        let index = offset / ENTRY_LEN;
        let Some(entry) = self.entries.get_mut(index) else { return };
        for (word, at) in data.chunks_exact(4).zip((offset % ENTRY_LEN..).step_by(4)) {
            let word = value(word);
            let guest_addr = &mut entry.message.guest_addr;
            match at {
                0 => *guest_addr = *guest_addr & !0xffff_ffff | word,
                4 => *guest_addr = *guest_addr & 0xffff_ffff | word << 32,
                8 => entry.message.data = word as u32,
                _ => entry.control = word as u32 & MASKED,
            }
        }
        self.update(index);
    }

    /// Reads the bits of what is pending, likewise.
    pub fn read_pending(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        if !is_whole(offset, data.len()) {
            return;
        }
        let vectors =
            self.sender.vectors.iter().skip(offset.saturating_mul(8)).take(8 * data.len());
        let bits = vectors.enumerate().filter(|(_, vector)| vector.pending.load(SeqCst));
        answer(data, bits.fold(0, |bits, (index, _)| bits | 1 << index));
    }
}

/// An access of the widths that drivers have to use.
fn is_whole(offset: usize, len: usize) -> bool {
    matches!(len, 4 | 8) && offset.is_multiple_of(len)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    /// Where all go that this refuses.
    const NOWHERE: u64 = 0xbad0_0000;

    struct Rig {
        msix: MsiX,
        events: Vec<EventFd>,
        routed: Arc<Mutex<Vec<(usize, u64, u32)>>>,
    }

    fn rig(count: usize) -> Rig {
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let events: Vec<_> = (0..count).map(|_| event()).collect();
        let routed: Arc<Mutex<Vec<_>>> = Arc::default();
        let vector = |(index, event): (usize, &EventFd)| {
            let routed = routed.clone();
            Vector::new(Irq::new(event.try_clone().unwrap()), move |message| {
                let message = message.expect("a masked vector waits by itself");
                routed.lock().unwrap().push((index, message.guest_addr, message.data));
                assert_eq!(message.sender, 8);
                message.guest_addr != NOWHERE
            })
        };
        let vectors = events.iter().enumerate().map(vector).collect();
        Rig { msix: MsiX::new(vectors, 8), events, routed }
    }

    impl Rig {
        fn set_up(&mut self, vector: usize, message: (u64, u32), control: u32) {
            let at = ENTRY_LEN * vector;
            self.msix.write_table(at, &message.0.to_le_bytes());
            self.msix.write_table(at + 8, &message.1.to_le_bytes());
            self.msix.write_table(at + 12, &control.to_le_bytes());
        }

        fn sent(&self, vector: usize) -> u64 {
            self.events[vector].read().unwrap_or(0)
        }

        fn pending(&self) -> u64 {
            let mut data = [0xaa; 8];
            self.msix.read_pending(0, &mut data);
            u64::from_le_bytes(data)
        }

        fn routed(&self) -> Vec<(usize, u64, u32)> {
            std::mem::take(&mut self.routed.lock().unwrap())
        }
    }

    #[test]
    fn what_is_masked_waits_and_is_sent_once_when_it_is_not() {
        let mut rig = rig(3);
        let sender = rig.msix.sender();
        sender.send(1);
        assert_eq!((rig.sent(1), rig.pending()), (0, 0), "they are not in use");
        rig.msix.set_control(ENABLE | MASK_ALL);
        rig.set_up(1, (0xfee0_1000, 0x41), 0);
        assert_eq!(rig.routed(), [], "all are masked");
        sender.send(1);
        sender.send(1);
        sender.send(2);
        assert_eq!((rig.sent(1), rig.pending()), (0, 0b110));
        rig.msix.set_control(ENABLE);
        assert_eq!((rig.sent(1), rig.sent(2), rig.pending()), (1, 0, 0b100));
        assert_eq!(rig.routed(), [(1, 0xfee0_1000, 0x41)]);
        sender.send(1);
        assert_eq!(rig.sent(1), 1);
        // A mask, and the same message again: no new route.
        rig.msix.write_table(ENTRY_LEN + 12, &1u32.to_le_bytes());
        sender.send(1);
        assert_eq!((rig.sent(1), rig.pending()), (0, 0b110));
        rig.set_up(1, (0xfee0_1000, 0x41), 0);
        assert_eq!((rig.sent(1), rig.routed()), (1, vec![]));
        // Another message while it is open.
        rig.msix.write_table(ENTRY_LEN + 8, &0x42u32.to_le_bytes());
        assert_eq!(rig.routed(), [(1, 0xfee0_1000, 0x42)]);
        for wild in [3, 0x7ff, u16::MAX] {
            sender.send(wild);
        }
    }

    #[test]
    fn a_message_to_nowhere_stays_pending_until_it_has_an_address() {
        let mut rig = rig(1);
        rig.msix.set_control(ENABLE);
        rig.set_up(0, (NOWHERE, 1), 0);
        rig.msix.sender().send(0);
        assert_eq!((rig.sent(0), rig.pending()), (0, 1));
        rig.msix.write_table(0, &0u32.to_le_bytes());
        assert_eq!((rig.sent(0), rig.pending()), (1, 0));
    }

    #[test]
    fn odd_widths_and_places_change_nothing() {
        let mut rig = rig(2);
        rig.msix.set_control(ENABLE);
        for (offset, len) in
            [(0, 1), (0, 2), (2, 4), (4, 8), (1, 8), (32, 4), (4096, 8), (usize::MAX - 7, 8)]
        {
            rig.msix.write_table(offset, &[0xff; 8][..len]);
            let mut data = [0xaa; 8];
            rig.msix.read_table(offset, &mut data[..len]);
            rig.msix.read_pending(offset, &mut data[..len]);
        }
        let mut data = [0; 8];
        rig.msix.read_table(8, &mut data);
        assert_eq!(data, [0, 0, 0, 0, 1, 0, 0, 0], "masked, as it was");
        rig.set_up(1, (0x1122_3344_5566_7788, 0x99aa_bbcc), u32::MAX);
        for (offset, expected) in [(16, 0x5566_7788), (20, 0x1122_3344), (24, 0x99aa_bbcc), (28, 1)]
        {
            let mut data = [0; 4];
            rig.msix.read_table(offset, &mut data);
            assert_eq!(u32::from_le_bytes(data), expected, "{offset}");
        }
        assert_eq!(rig.routed(), []);
    }

    #[test]
    fn nothing_is_lost_between_a_mask_and_who_sends() {
        const SENT: u64 = 20_000;
        let mut rig = rig(1);
        rig.msix.set_control(ENABLE);
        rig.set_up(0, (0x1000, 0), 0);
        let sender = rig.msix.sender();
        let last = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                for number in 1..=SENT {
                    last.store(number, SeqCst);
                    sender.send(0);
                }
            });
            // A driver that looks at what there is with every interrupt has seen the last.
            let mut seen = 0;
            while !worker.is_finished() || rig.pending() != 0 {
                rig.msix.write_table(12, &1u32.to_le_bytes());
                rig.msix.write_table(12, &0u32.to_le_bytes());
                if rig.sent(0) > 0 {
                    seen = last.load(SeqCst);
                }
            }
            if rig.sent(0) > 0 {
                seen = last.load(SeqCst);
            }
            assert_eq!(seen, SENT);
        });
    }
}
