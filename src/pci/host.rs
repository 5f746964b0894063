//! The host bridge: a bus with up to 32 devices, its configuration space in memory and a window to
//! the memory of functions.
//!
//! A function's memory lies where the guest puts it. In the window it answers; elsewhere nothing
//! forwards accesses to it, so it can't be laid over RAM or over another device. Where two
//! functions claim an address, the first one has it.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use super::config::{ConfigSpace, Identity};
use super::{Function, VENDOR_QEMU};
use crate::bus::Device;
use crate::exit::Stop;
use crate::layout_check::Region;

/// Devices of a bus.
pub const DEVICES: usize = 32;

/// An offset into the configuration space of a bus: 4 KiB for each function, of which a device has
/// eight (PCI Express Base 6.0, 7.2.2).
const FUNCTION_SHIFT: u32 = 12;
const FUNCTIONS: usize = 8;

/// Bytes of it.
pub const CONFIG_LEN: u64 = ((DEVICES * FUNCTIONS) as u64) << FUNCTION_SHIFT;

/// The bridge as a function: there is nothing to set.
pub struct Bridge(ConfigSpace);

impl Default for Bridge {
    fn default() -> Self {
        Self(ConfigSpace::new(Identity {
            // Our choice: the bridge without properties that QEMU made for its own boards, which
            // drivers know to leave alone.
            vendor: VENDOR_QEMU,
            device: 0x0008,
            class: 0x06_0000,
            ..Identity::default()
        }))
    }
}

impl Function for Bridge {
    fn read_config(&mut self, register: usize, data: &mut [u8]) {
        self.0.read(register, data);
    }

    fn write_config(&mut self, register: usize, data: &[u8]) {
        self.0.write(register, data);
    }
}

/// What lies on the bus, by device number.
type Functions = Arc<Mutex<Vec<Box<dyn Function>>>>;

/// The bus's configuration space.
pub struct Config(Functions);

/// The window, and where it begins.
pub struct Window(Functions, u64);

/// A bus with `functions`, from device 0 on, and with `window`.
pub fn bus(functions: Vec<Box<dyn Function>>, window: Region) -> (Config, Window) {
    let functions: Functions = Arc::new(Mutex::new(functions));
    (Config(functions.clone()), Window(functions, window.start))
}

impl Config {
    /// Calls `access` with the function that `offset` is in, and the register.
    fn at(&self, offset: u64, access: impl FnOnce(&mut dyn Function, usize)) -> Option<()> {
        let mut functions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, register) = (offset >> FUNCTION_SHIFT, offset as usize & 0xfff);
        let (device, function) = (number as usize / FUNCTIONS, number as usize % FUNCTIONS);
        let found = functions.get_mut(device).filter(|_| function == 0)?;
        access(found.as_mut(), register);
        Some(())
    }
}

impl Device for Config {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let read = self.at(offset, |function, register| function.read_config(register, data));
        if read.is_none() {
            // Nobody is there.
            data.fill(0xff);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> ControlFlow<Stop> {
        let _ = self.at(offset, |function, register| function.write_config(register, data));
        ControlFlow::Continue(())
    }
}

impl Window {
    /// Calls `access` with the function that has all of `len` bytes at `offset`, and its own offset.
    fn at(
        &self,
        offset: u64,
        len: usize,
        access: impl FnOnce(&mut dyn Function, u64),
    ) -> Option<()> {
        let mut functions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let guest_addr = self.1 + offset;
        let (function, inside) = functions.iter_mut().find_map(|function| {
            let memory = function.memory()?;
            let inside = guest_addr.checked_sub(memory.start)?;
            (inside.checked_add(len as u64)? <= memory.len).then_some((function, inside))
        })?;
        access(function.as_mut(), inside);
        Some(())
    }
}

impl Device for Window {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let len = data.len();
        let read = self.at(offset, len, |function, inside| function.read(inside, data));
        if read.is_none() {
            data.fill(0xff);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> ControlFlow<Stop> {
        let _ = self.at(offset, data.len(), |function, inside| function.write(inside, data));
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Region = Region { name: "window", start: 0x1000_0000, len: 0x10_0000 };

    /// Answers with its number at all offsets, where it was told to lie.
    struct Numbered(u8, Option<Region>);

    impl Function for Numbered {
        fn read_config(&mut self, register: usize, data: &mut [u8]) {
            data.fill(self.0 + register as u8);
        }

        fn write_config(&mut self, register: usize, data: &[u8]) {
            let start = WINDOW.start + register as u64 * 0x1000;
            self.1 = (data[0] != 0).then_some(Region { name: "its own", start, len: 0x1000 });
        }

        fn memory(&self) -> Option<Region> {
            self.1
        }

        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
    }

    fn read(device: &mut impl Device, offset: u64) -> u8 {
        let mut data = [0xaa; 2];
        device.read(offset, &mut data);
        assert_eq!(data[0], data[1]);
        data[0]
    }

    #[test]
    fn a_configuration_access_reaches_the_function_that_is_there() {
        let functions: Vec<Box<dyn Function>> =
            vec![Box::new(Bridge::default()), Box::new(Numbered(0x40, None))];
        let (mut config, _) = bus(functions, WINDOW);
        let mut data = [0; 4];
        config.read(0, &mut data);
        assert_eq!(data, [0x36, 0x1b, 8, 0]);
        config.read(8, &mut data);
        assert_eq!(data, [0, 0, 0, 6], "a host bridge");
        assert_eq!(read(&mut config, 1 << 15), 0x40);
        assert_eq!(read(&mut config, (1 << 15) + 7), 0x47);
        for nobody in [1 << 12, (1 << 15) + (1 << 12), 2 << 15, CONFIG_LEN - 2, u64::MAX - 1] {
            assert_eq!(read(&mut config, nobody), 0xff, "{nobody:#x}");
            assert!(config.write(nobody, &[0xff; 4]).is_continue());
        }
    }

    #[test]
    fn memory_answers_where_it_was_put_and_the_first_wins() {
        let functions: Vec<Box<dyn Function>> =
            vec![Box::new(Numbered(0x10, None)), Box::new(Numbered(0x20, None))];
        let (mut config, mut window) = bus(functions, WINDOW);
        assert_eq!(read(&mut window, 0x3000), 0xff);
        assert!(config.write((1 << 15) + 3, &[1]).is_continue());
        assert_eq!((read(&mut window, 0x3004), read(&mut window, 0x4000)), (0x24, 0xff));
        assert_eq!(read(&mut window, 0x3fff), 0xff, "half outside");
        assert!(config.write(3, &[1]).is_continue());
        assert_eq!(read(&mut window, 0x3004), 0x14);
        assert!(config.write(3, &[0]).is_continue());
        assert_eq!(read(&mut window, 0x3004), 0x24);
        assert!(window.write(0x5000, &[0; 8]).is_continue());
    }
}
