//! Requests as drivers make them: a header of the script's, data, and room for an outcome.

use std::thread;
use std::time::{Duration, Instant};

use super::{POOL, Player, Script};

/// How long a device has for a request. Our choice: longer than most take; some wait for the host.
const PATIENCE: Duration = Duration::from_micros(300);

/// Bytes of a header at the most. Our choice: those of a packet of a socket, and some of its data.
const HEADER_MAX: usize = 64;

/// Where in the pool headers, data and outcomes are, and the most bytes of data.
const HEADERS: u64 = 0;
const DATA: u64 = 0x1000;
const DATA_LEN: u64 = 0x2000;
const OUTCOME: u64 = 0x3000;

/// Bytes of a header that a socket's packet begins with: addresses and ports of both ends (virtio v1.3,
/// 5.10.6).
const ENDS: usize = 24;

impl Player {
    /// Makes a request to a queue. The script has how it is to look, the bytes of data and those of the
    /// header, and the header.
    pub(super) fn request(&mut self, device: usize, queue: usize, script: &mut Script<'_>) {
        let kind = script.number(1);
        let data_len = script.number(2) % DATA_LEN;
        let len = script.number(1) as usize % (HEADER_MAX + 1);
        let mut header = script.bytes(len).to_vec();
        let [at, data, outcome] = [HEADERS, DATA, OUTCOME].map(|place| self.ram() + POOL + place);
        if kind & 8 != 0 {
            self.turn_around(&mut header, data);
        }
        let _ = self.machine.ram.write(&header, at);
        let [table, ..] = self.rings(device, queue);
        let (more, write) = (1, 2);
        let mut next = 0;
        let mut add = |at, len, flags| {
            next += 1;
            self.describe(table, next - 1, at, len, flags, next as u16);
        };
        // A header, unless there is nothing but room; data; an outcome.
        let (has_outcome, has_data) = (kind & 2 != 0, kind & 4 == 0);
        if kind & 1 == 0 {
            let flags = if has_data || has_outcome { more } else { 0 };
            add(at, header.len() as u32, flags);
        }
        if has_data || kind & 1 != 0 {
            let writable = if kind & 0x10 != 0 { write } else { 0 };
            add(data, data_len as u32, writable | if has_outcome { more } else { 0 });
        }
        if has_outcome {
            add(outcome, 1, write);
        }
        self.send(device, queue, 0);
        self.settle(device, queue);
    }

    /// Waits until the device has used what it was given, though not for long: what comes next would else
    /// be written over it.
    fn settle(&self, device: usize, queue: usize) {
        let [.., used] = self.rings(device, queue);
        let all = self.available[device][queue].to_le_bytes();
        let until = Instant::now() + PATIENCE;
        while self.machine.ram.peek(used + 2, 2) != all && Instant::now() < until {
            thread::yield_now();
        }
    }

    /// Makes `header` answer the packet that the device has put at `data`, if it did: its ends change
    /// places.
    fn turn_around(&self, header: &mut [u8], data: u64) {
        let Some(ends) = header.first_chunk_mut::<ENDS>() else { return };
        let packet = self.machine.ram.peek(data, ENDS);
        if packet.len() == ENDS {
            ends[..8].copy_from_slice(&packet[8..16]);
            ends[8..16].copy_from_slice(&packet[..8]);
            ends[16..20].copy_from_slice(&packet[20..24]);
            ends[20..].copy_from_slice(&packet[16..20]);
        }
    }
}
