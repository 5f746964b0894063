//! From a recognised image to RAM: how it starts, and where its bytes go.

use anyhow::{Result, bail, ensure};

use super::bad_image;
use super::image::{Form, Image, Layer};
use crate::arch::formats::Kernel;
use crate::memory::GuestRam;
use crate::places::Places;

/// What the user asked for, where the image leaves a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Where a flat binary goes (guest-physical).
    pub load: Option<u64>,
    /// Where the first vCPU starts (guest-physical).
    pub entry: Option<u64>,
}

/// Where a kernel in a format of its own goes, and how it starts there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot<M> {
    /// The mode to start in.
    pub mode: M,
    /// Where its first byte goes, which is its entry (guest-physical).
    pub start: u64,
    /// Memory that it takes from there, its file included.
    pub len: u64,
}

/// The mode for what was packed in a kernel, and what of that kernel the boot protocol hands over.
pub type Packed<M> = (M, Vec<u8>);

/// What an architecture says about images.
pub struct Rules<M> {
    /// The mode of a flat binary.
    pub flat_mode: M,
    /// Where a flat binary goes in that mode, given the start of RAM.
    pub flat_load: fn(M, u64) -> u64,
    /// The mode for an ELF file by its class (bits) and `e_machine`, if it runs here.
    pub elf_mode: fn(u8, u16) -> Option<M>,
    /// The mode for an ELF file with a PVH note, entered where that says.
    pub pvh_mode: Option<M>,
    /// The mode for an ELF file that was packed in this kernel, and the part of that kernel which
    /// its boot protocol hands over.
    pub packed: fn(&Kernel) -> Option<Packed<M>>,
    /// Where this kernel goes, given the start of RAM, if it runs here.
    pub place: fn(&Kernel, u64) -> Option<Spot<M>>,
}

/// How the guest starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Where the first vCPU starts (guest-physical).
    pub entry: u64,
    /// What the boot protocol hands over of the image.
    pub header: Vec<u8>,
}

/// The kernel in which `image` was packed, as far as this architecture starts what is in it.
fn packed<M>(image: &Image, rules: &Rules<M>) -> Option<Packed<M>> {
    image.layers.iter().rev().find_map(|layer| match layer {
        Layer::Kernel(kernel) => (rules.packed)(kernel),
        _ => None,
    })
}

/// The mode in which `image` starts: the one that was `asked` for, else what the image says.
pub fn mode<M: Copy>(image: &Image, asked: Option<M>, rules: &Rules<M>) -> Result<M> {
    let found = match &image.form {
        Form::Flat => rules.flat_mode,
        Form::Elf { elf, pvh_entry, .. } => {
            let machine = elf.machine_mode(rules.elf_mode)?;
            let pvh = rules.pvh_mode.filter(|_| pvh_entry.is_some());
            packed(image, rules).map(|(mode, _)| mode).or(pvh).unwrap_or(machine)
        }
        Form::Kernel(kernel) => match (rules.place)(kernel, 0) {
            Some(spot) => spot.mode,
            None => {
                let facts = kernel.facts();
                bad_image!("is a {} for {}: it can't run here", facts.format, facts.architecture)
            }
        },
    };
    Ok(asked.unwrap_or(found))
}

/// Places `image` in RAM, to be started in `mode`.
pub fn load<M: Copy + PartialEq>(
    image: &Image,
    ram: &GuestRam,
    places: &mut Places,
    wish: Wish,
    mode: M,
    rules: &Rules<M>,
) -> Result<Loaded> {
    if wish.load.is_some() && image.form != Form::Flat {
        bail!("--load is for flat binaries: this image says itself where it goes");
    }
    let bytes = &image.bytes;
    let (entry, header) = match &image.form {
        Form::Elf { elf, pvh_entry, .. } => {
            elf.place(bytes, ram, places)?;
            let entry = match pvh_entry.filter(|_| rules.pvh_mode == Some(mode)) {
                Some(entry) => entry,
                None => elf.entry_guest_addr()?,
            };
            let header = packed(image, rules).map(|(_, header)| header);
            (entry, header.unwrap_or_default())
        }
        Form::Kernel(kernel) => {
            let Some(spot) = (rules.place)(kernel, places.ram_start()) else {
                bad_image!("can't be placed here");
            };
            places.reserve(spot.start, spot.len, "kernel")?;
            bytes.place(ram, 0, bytes.len(), spot.start)?;
            (spot.start, Vec::new())
        }
        Form::Flat => {
            let start = wish.load.unwrap_or_else(|| (rules.flat_load)(mode, places.ram_start()));
            places.reserve(start, bytes.len(), "image")?;
            bytes.place(ram, 0, bytes.len(), start)?;
            (start, Vec::new())
        }
    };
    let entry = wish.entry.unwrap_or(entry);
    ensure!(
        places.in_ram(entry, 1),
        "entry {entry:#x} lies outside RAM: choose an --entry inside it"
    );
    Ok(Loaded { entry, header })
}
