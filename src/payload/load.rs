//! From a recognised image to RAM: how it starts, and where its bytes go.
//!
//! An image can often be entered in several ways: an ELF file at its entry or by what a boot
//! protocol says, a packed kernel in what is packed in it or by its own unpacking. The architecture
//! lists them, the preferred one first; the user may choose another.

use anyhow::{Context, Result, bail, ensure};

use super::bad_image;
use super::image::{Form, Image, Layer};
use crate::board::Takes;
use crate::memory::GuestRam;
use crate::places::Places;

/// What the user asked for, where the image leaves a choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Where a flat binary goes (guest-physical).
    pub load: Option<u64>,
    /// Where the first vCPU starts (guest-physical).
    pub entry: Option<u64>,
    /// The protocol by which the image is entered: a [`Way`]'s.
    pub protocol: Option<String>,
}

/// A part of a file that goes to RAM in one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its first byte's offset in the file.
    pub offset: u64,
    /// Bytes of the file.
    pub len: u64,
    /// Where it may go (guest-physical), the preferred place first; never empty.
    pub starts: Vec<u64>,
    /// Memory that it takes there, `len` included.
    pub memory: u64,
    /// The entry, from its start.
    pub entry: u64,
}

/// Which bytes go to RAM, and where they are entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The file as it is, at its first byte.
    Flat,
    /// The segments of an ELF file, at this guest-physical address or where its header says.
    Elf(Option<u64>),
    /// Parts of the file, of which the first is entered.
    Parts(Vec<Part>),
}

/// One way to enter an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way<M> {
    /// What `--entry-protocol` calls it.
    pub protocol: &'static str,
    /// The mode to start in.
    pub mode: M,
    /// What goes to RAM.
    pub source: Source,
    /// A part of the image that the protocol wants handed back.
    pub header: Vec<u8>,
    /// What the image can be given.
    pub takes: Takes,
}

impl<M> Way<M> {
    /// True if nothing is known of how the image finds its devices: bare-metal code, say, which expects
    /// them at fixed places, and not a kernel with drivers for what its tables tell.
    pub fn is_bare(&self) -> bool {
        matches!(self.protocol, "flat" | "elf" | "multiboot")
    }
}

/// What an architecture says about images.
pub struct Rules<M: 'static> {
    /// Where a flat binary goes in that mode, given the start of RAM.
    pub flat_load: fn(M, u64) -> u64,
    /// The mode for an ELF file by its class (bits) and `e_machine`, if it runs here.
    pub elf_mode: fn(u8, u16) -> Option<M>,
    /// The ways to enter an image, the preferred one first, given the start of RAM. An image for
    /// elsewhere has none.
    pub ways: fn(&Image, u64) -> Vec<Way<M>>,
    /// The protocols by which a kernel with another one in it is entered itself.
    pub unpack_themselves: &'static [&'static str],
}

impl<M> Rules<M> {
    /// False if an image that is to be entered by `protocol` has to unpack itself.
    pub fn unpacks(&self, protocol: Option<&str>) -> bool {
        !protocol.is_some_and(|name| self.unpack_themselves.contains(&name))
    }
}

/// The way in which `image` is entered: by the protocol or in the mode that was asked for, else
/// the one that the architecture prefers.
pub fn choose<M: Copy + PartialEq>(
    image: &Image,
    ram_start: u64,
    protocol: Option<&str>,
    asked: Option<M>,
    rules: &Rules<M>,
) -> Result<Way<M>> {
    if let Form::Elf { elf, .. } = &image.form {
        elf.machine_mode(rules.elf_mode)?;
    }
    let mut ways = (rules.ways)(image, ram_start);
    if let (Form::Kernel(kernel), true) = (&image.form, ways.is_empty()) {
        let facts = kernel.facts();
        match facts.refused {
            Some(why) => bad_image!("is a {}: {why}", facts.format),
            None => {
                bad_image!("is a {} for {}: it can't run here", facts.format, facts.architecture)
            }
        }
    }
    let found = match (protocol, asked) {
        (Some(name), _) => {
            let found = ways.iter().position(|way| way.protocol == name);
            let names = offered(image, &ways, rules).join(", ");
            ensure!(found.is_some(), "--entry-protocol {name}: this image is entered by {names}");
            found
        }
        // What knows no protocol starts in any mode.
        (None, Some(mode)) => {
            let bare = || ways.iter().position(|way| way.takes == Takes::Nothing);
            ways.iter().position(|way| way.mode == mode).or_else(bare)
        }
        (None, None) => None,
    };
    ensure!(!ways.is_empty(), "this image can't be entered here");
    let mut way = ways.swap_remove(found.unwrap_or(0));
    if let Some(mode) = asked.filter(|mode| *mode != way.mode) {
        ensure!(
            protocol.is_none() || way.takes == Takes::Nothing,
            "--mode: the protocol {} says in which mode it starts: leave one of both out",
            way.protocol
        );
        (way.mode, way.takes) = (mode, Takes::Nothing);
    }
    Ok(way)
}

/// The names of the protocols by which `image` can be entered, those of its packed form included.
pub fn offered<M>(image: &Image, ways: &[Way<M>], rules: &Rules<M>) -> Vec<&'static str> {
    let mut names: Vec<_> = ways.iter().map(|way| way.protocol).collect();
    if image.layers.iter().any(|layer| matches!(layer, Layer::Kernel(_))) {
        names.extend(rules.unpack_themselves);
    }
    names
}

/// Places `image` in RAM, to be entered in this `way`; gives the guest-physical address of its
/// first instruction.
pub fn load<M: Copy>(
    image: &Image,
    ram: &GuestRam,
    places: &mut Places,
    wish: &Wish,
    way: &Way<M>,
    rules: &Rules<M>,
) -> Result<u64> {
    if wish.load.is_some() && way.source != Source::Flat {
        bail!("--load is for flat binaries: this image says itself where it goes");
    }
    let bytes = &image.bytes;
    let entry = match (&way.source, &image.form) {
        (Source::Elf(entry), Form::Elf { elf, .. }) => {
            elf.place(bytes, ram, places)?;
            entry.map_or_else(|| elf.entry_guest_addr(), Ok)?
        }
        (Source::Parts(parts), _) => {
            let mut entry = None;
            for part in parts {
                let fits = part.starts.iter().find(|start| places.in_ram(**start, part.memory));
                let start = *fits.unwrap_or(&part.starts[0]);
                places.reserve(start, part.memory, "kernel")?;
                bytes.place(ram, part.offset, part.len, start)?;
                entry.get_or_insert(start + part.entry);
            }
            entry.context("the image has no part to be entered")?
        }
        (Source::Flat | Source::Elf(_), _) => {
            let start =
                wish.load.unwrap_or_else(|| (rules.flat_load)(way.mode, places.ram_start()));
            places.reserve(start, bytes.len(), "image")?;
            bytes.place(ram, 0, bytes.len(), start)?;
            start
        }
    };
    let entry = wish.entry.unwrap_or(entry);
    ensure!(
        places.in_ram(entry, 1),
        "entry {entry:#x} lies outside RAM: choose an --entry inside it"
    );
    Ok(entry)
}
