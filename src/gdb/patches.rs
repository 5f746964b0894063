//! Breakpoints in the guest's code: which instructions were replaced, and by whom.
//!
//! What a debugger reads and writes is the code without them. A breakpoint is found again by its
//! guest-physical address, whatever the page tables say by then.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

/// Breakpoints at the most. Our choice: more than anyone sets, and no load for the lists.
const MOST: usize = 1000;

/// Guest-physical memory.
pub trait Memory {
    /// Fills `bytes`.
    fn read(&self, bytes: &mut [u8], guest_addr: u64) -> Result<()>;
    /// Writes code or data.
    fn write(&self, bytes: &[u8], guest_addr: u64) -> Result<()>;
}

/// One breakpoint.
struct Patch {
    virtual_addr: u64,
    guest_addr: u64,
    original: Vec<u8>,
}

/// All breakpoints, each as long as `instruction`.
pub struct Patches {
    instruction: &'static [u8],
    all: Vec<Patch>,
    /// Where the debugger wrote such an instruction as data: those are breakpoints too.
    written: BTreeSet<u64>,
}

impl Patches {
    /// None yet; `instruction` is what a breakpoint looks like.
    pub fn new(instruction: &'static [u8]) -> Self {
        Self { instruction, all: Vec::new(), written: BTreeSet::new() }
    }

    fn len(&self) -> u64 {
        self.instruction.len() as u64
    }

    /// True if there is any.
    pub fn any(&self) -> bool {
        !self.all.is_empty() || !self.written.is_empty()
    }

    /// True if a breakpoint of the debugger's is there.
    pub fn has(&self, virtual_addr: u64, guest_addr: Option<u64>) -> bool {
        let is_here = |patch: &Patch| {
            patch.virtual_addr == virtual_addr || Some(patch.guest_addr) == guest_addr
        };
        self.all.iter().any(is_here) || guest_addr.is_some_and(|at| self.written.contains(&at))
    }

    /// Puts a breakpoint there.
    pub fn insert(&mut self, memory: &impl Memory, virtual_addr: u64, at: u64) -> Result<()> {
        ensure!(self.all.len() < MOST, "more than {MOST} breakpoints");
        ensure!(at.is_multiple_of(self.len()), "no instruction begins at {virtual_addr:#x}");
        let mut original = vec![0; self.instruction.len()];
        self.read(memory, &mut original, at)?;
        memory.write(self.instruction, at)?;
        self.all.push(Patch { virtual_addr, guest_addr: at, original });
        Ok(())
    }

    /// Takes one away again; `false` if there is none.
    pub fn remove(&mut self, memory: &impl Memory, virtual_addr: u64) -> Result<bool> {
        let Some(index) = self.all.iter().position(|patch| patch.virtual_addr == virtual_addr)
        else {
            return Ok(false);
        };
        let patch = self.all.swap_remove(index);
        // The same code may have two addresses.
        if !self.all.iter().any(|other| other.guest_addr == patch.guest_addr) {
            memory.write(&patch.original, patch.guest_addr)?;
        }
        Ok(true)
    }

    /// Takes all away, as far as that can be done.
    pub fn clear(&mut self, memory: &impl Memory) {
        for patch in self.all.drain(..) {
            // Its RAM was there when it was set, and RAM stays.
            let _ = memory.write(&patch.original, patch.guest_addr);
        }
        self.written.clear();
    }

    /// Reads without breakpoints.
    pub fn read(&self, memory: &impl Memory, bytes: &mut [u8], at: u64) -> Result<()> {
        memory.read(bytes, at)?;
        for patch in &self.all {
            for (offset, byte) in patch.original.iter().enumerate() {
                let place = (patch.guest_addr + offset as u64).checked_sub(at);
                if let Some(place) = place.and_then(|place| bytes.get_mut(place as usize)) {
                    *place = *byte;
                }
            }
        }
        Ok(())
    }

    /// Writes below breakpoints.
    pub fn write(&mut self, memory: &impl Memory, bytes: &[u8], at: u64) -> Result<()> {
        memory.write(bytes, at)?;
        let end = at + bytes.len() as u64;
        let touched = at.saturating_sub(self.len() - 1)..end;
        for patch in &mut self.all {
            if !touched.contains(&patch.guest_addr) {
                continue;
            }
            for (offset, original) in patch.original.iter_mut().enumerate() {
                let place = (patch.guest_addr + offset as u64).checked_sub(at);
                if let Some(byte) = place.and_then(|place| bytes.get(place as usize)) {
                    *original = *byte;
                }
            }
            memory.write(self.instruction, patch.guest_addr)?;
        }
        self.written.retain(|written| !touched.contains(written));
        if bytes == self.instruction && self.written.len() < MOST {
            self.written.insert(at);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    struct Ram(RefCell<Vec<u8>>);

    impl Memory for Ram {
        fn read(&self, bytes: &mut [u8], at: u64) -> Result<()> {
            let at = at as usize;
            let ram = self.0.borrow();
            ensure!(at + bytes.len() <= ram.len(), "no RAM");
            bytes.copy_from_slice(&ram[at..at + bytes.len()]);
            Ok(())
        }
        fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
            let at = at as usize;
            let mut ram = self.0.borrow_mut();
            ensure!(at + bytes.len() <= ram.len(), "no RAM");
            ram[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        }
    }

    fn setup() -> (Ram, Patches) {
        (Ram(RefCell::new((0..16).collect())), Patches::new(&[0xaa, 0xbb]))
    }

    #[test]
    fn a_breakpoint_is_in_memory_but_not_in_what_is_read() {
        let (ram, mut patches) = setup();
        patches.insert(&ram, 0x1004, 4).unwrap();
        assert_eq!(ram.0.borrow()[3..7], [3, 0xaa, 0xbb, 6]);
        for (at, expected) in [(3, [3, 4]), (4, [4, 5]), (5, [5, 6]), (6, [6, 7])] {
            let mut bytes = [0; 2];
            patches.read(&ram, &mut bytes, at).unwrap();
            assert_eq!(bytes, expected, "{at}");
        }
        assert!(patches.has(0x1004, None) && patches.has(0, Some(4)) && patches.any());
        assert!(!patches.has(0x1005, Some(5)));
        assert!(patches.remove(&ram, 0x1004).unwrap() && !patches.remove(&ram, 0x1004).unwrap());
        assert_eq!(*ram.0.borrow(), (0..16).collect::<Vec<u8>>());
        assert!(!patches.any());
    }

    #[test]
    fn writes_go_below_breakpoints() {
        for (at, bytes, after) in [
            (3, &[0x13, 0x14][..], [3 + 0x10, 0x14, 5, 6]),
            (5, &[0x15, 0x16], [3, 4, 0x15, 0x16]),
            (3, &[1, 2, 3, 4], [1, 2, 3, 4]),
            (6, &[9], [3, 4, 5, 9]),
        ] {
            let (ram, mut patches) = setup();
            patches.insert(&ram, 0x1004, 4).unwrap();
            patches.write(&ram, bytes, at).unwrap();
            assert_eq!(ram.0.borrow()[4..6], [0xaa, 0xbb]);
            patches.clear(&ram);
            assert_eq!(ram.0.borrow()[3..7], after, "{at} {bytes:?}");
        }
    }

    #[test]
    fn one_place_with_two_addresses_is_restored_once() {
        let (ram, mut patches) = setup();
        patches.insert(&ram, 0x1004, 4).unwrap();
        patches.insert(&ram, 0x2004, 4).unwrap();
        patches.remove(&ram, 0x1004).unwrap();
        assert_eq!(ram.0.borrow()[4..6], [0xaa, 0xbb]);
        patches.remove(&ram, 0x2004).unwrap();
        assert_eq!(ram.0.borrow()[4..6], [4, 5]);
    }

    #[test]
    fn a_written_breakpoint_counts_until_it_is_overwritten() {
        let (ram, mut patches) = setup();
        patches.write(&ram, &[0xaa, 0xbb], 6).unwrap();
        assert!(patches.has(0, Some(6)) && patches.any());
        patches.write(&ram, &[7], 7).unwrap();
        assert!(!patches.any());
    }

    #[test]
    fn bad_places_and_too_many_are_refused() {
        let (ram, mut patches) = setup();
        assert!(patches.insert(&ram, 5, 5).is_err());
        assert!(patches.insert(&ram, 16, 16).is_err());
        for n in 0..MOST as u64 {
            patches.insert(&ram, n, 4).unwrap();
        }
        assert!(patches.insert(&ram, 6, 6).is_err());
        patches.clear(&ram);
        assert_eq!(*ram.0.borrow(), (0..16).collect::<Vec<u8>>());
    }
}
