//! The connections there are, by slot and by the ports that the guest knows them by. Its size is
//! bounded, and all of its room but the buffers' is taken when it is made.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use super::connection::Connection;

/// The most connections. Our choice: each has a descriptor, of which a process usually may have
/// 1024, and with all buffers full they take 32 MiB.
pub const MOST: usize = 256;

/// Ports of the host's programs, as the guest sees them. Our choice: in the middle, where neither
/// side's programs listen.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;

/// The guest's port and the host's.
type Ports = (u32, u32);

/// The table.
pub struct Table {
    slots: Vec<Option<Connection>>,
    free: Vec<u32>,
    by_ports: HashMap<Ports, u32>,
    /// Slots with something for the guest, in turn.
    waiting: VecDeque<u32>,
    next_port: u32,
}

impl Table {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            slots: (0..MOST).map(|_| None).collect(),
            free: (0..MOST as u32).rev().collect(),
            by_ports: HashMap::with_capacity(2 * MOST),
            waiting: VecDeque::with_capacity(MOST),
            next_port: FIRST_PORT,
        }
    }

    /// True if there is no room for one more.
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// The connection in `slot`, if there is one.
    pub fn get(&mut self, slot: u32) -> Option<&mut Connection> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    /// The slot of the connection that the guest knows by these ports.
    pub fn find(&self, ports: Ports) -> Option<u32> {
        self.by_ports.get(&ports).copied()
    }

    /// Adds one, and gives its slot; there must be room.
    pub fn insert(&mut self, connection: Connection) -> u32 {
        let slot = self.free.pop().expect("whoever inserts has looked");
        if connection.is_known() {
            self.by_ports.insert((connection.guest_port, connection.host_port), slot);
        }
        self.slots[slot as usize] = Some(connection);
        slot
    }

    /// The connection in `slot` has said that it wants to `guest_port`.
    pub fn request(&mut self, slot: u32, guest_port: u32) {
        // Fewer connections than ports: one is free.
        let host_port = loop {
            let port = self.next_port;
            self.next_port = if port == LAST_PORT { FIRST_PORT } else { port + 1 };
            if !self.by_ports.contains_key(&(guest_port, port)) {
                break port;
            }
        };
        let Some(connection) = self.get(slot) else { return };
        connection.request(guest_port, host_port);
        self.by_ports.insert((guest_port, host_port), slot);
    }

    /// The guest no longer knows the connection in `slot`.
    pub fn forget(&mut self, slot: u32) {
        let Some(connection) = self.get(slot) else { return };
        let ports = (connection.guest_port, connection.host_port);
        if std::mem::take(&mut connection.queued) {
            self.waiting.retain(|&waiting| waiting != slot);
        }
        if self.find(ports) == Some(slot) {
            self.by_ports.remove(&ports);
        }
    }

    /// Removes it.
    pub fn remove(&mut self, slot: u32) -> Option<Connection> {
        self.forget(slot);
        let removed = self.slots[slot as usize].take()?;
        self.free.push(slot);
        Some(removed)
    }

    /// Gives the connection in `slot` a turn to send, if it has something for the guest.
    pub fn enqueue(&mut self, slot: u32) {
        if let Some(connection) = self.get(slot)
            && connection.wants_to_send()
            && !std::mem::replace(&mut connection.queued, true)
        {
            self.waiting.push_back(slot);
        }
    }

    /// True if a connection has something for the guest.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The slot whose turn it is.
    pub fn next(&mut self) -> Option<u32> {
        let slot = self.waiting.pop_front()?;
        if let Some(connection) = self.get(slot) {
            connection.queued = false;
        }
        Some(slot)
    }

    /// A slot whose connection has had its time, at `now`.
    pub fn late(&self, now: Instant) -> Option<u32> {
        let late = |slot: &Option<Connection>| {
            slot.as_ref().and_then(|connection| connection.deadline).is_some_and(|at| at <= now)
        };
        self.slots.iter().position(late).map(|slot| slot as u32)
    }

    /// When the next one will have had its time.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.slots.iter().flatten().filter_map(|connection| connection.deadline).min()
    }
}
