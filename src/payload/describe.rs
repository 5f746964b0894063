//! What there is to tell about an image, for people and for programs.
//!
//! Everything comes from the parsers that loading uses, so what is said here is what would be run.
//! Strings of the file are foreign: control characters in them are escaped.

use anyhow::Result;
use serde::Serialize;

use super::image::{Form, Image, Layer};
use super::load;
use crate::arch::{self, formats};

/// What an image is. Addresses are guest-physical, sizes are bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// The innermost format.
    pub format: String,
    /// What it is packed in, outermost first.
    pub packed_in: Vec<String>,
    /// The architecture that it is for, as target triples call it; nothing if it does not say.
    pub architecture: Option<String>,
    /// The version that the kernel gives itself.
    pub version: Option<String>,
    /// Where it starts, unless the loader chooses.
    pub entry: Option<u64>,
    /// Where a PVH loader starts it.
    pub pvh_entry: Option<u64>,
    /// What `--entry-protocol` takes, the default first; empty for an image for elsewhere.
    pub entry_protocols: Vec<&'static str>,
    /// The first byte of memory that it takes, unless the loader chooses.
    pub load_start: Option<u64>,
    /// Memory that it takes from there.
    pub load_len: u64,
    /// Size of the innermost image.
    pub unpacked_size: u64,
    /// What else its headers say.
    pub details: Vec<(&'static str, String)>,
    /// Why it can't be run on this host, in one sentence; nothing if it can.
    pub refused: Option<String>,
}

/// `text` without what could move a terminal's cursor.
fn printable(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        match c {
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

fn is_for(architecture: &str) -> String {
    format!("it is for {architecture}, and this host is {}", arch::NAME)
}

impl Description {
    /// Describes `image`.
    pub fn of(image: &Image) -> Result<Self> {
        let mut description = Self {
            format: "flat binary".into(),
            packed_in: image.layers.iter().map(layer_name).collect(),
            architecture: None,
            version: None,
            entry: None,
            pvh_entry: None,
            entry_protocols: Vec::new(),
            load_start: None,
            load_len: image.bytes.len(),
            unpacked_size: image.bytes.len(),
            details: Vec::new(),
            refused: None,
        };
        for layer in &image.layers {
            if let Layer::Kernel(kernel) = layer {
                description.details.extend(kernel.facts().details);
            }
        }
        match &image.form {
            Form::Flat => {
                description.enter(image);
                return Ok(description);
            }
            Form::Kernel(kernel) => description.take(kernel.facts()),
            Form::Elf { elf, pvh_entry, kernel, .. } => {
                let (start, end) = elf.load_range();
                let known = formats::elf_architecture(elf.machine());
                let architecture = known.map_or_else(|| elf.machine_name(), Into::into);
                if (arch::RULES.elf_mode)(elf.bits(), elf.machine()).is_none() {
                    description.refused = Some(is_for(&architecture));
                }
                description.format = format!("ELF, {} bits", elf.bits());
                description.architecture = Some(architecture);
                description.entry = Some(elf.entry_guest_addr()?);
                description.pvh_entry = *pvh_entry;
                description.load_start = Some(start);
                description.load_len = end - start;
                if let Some(kernel) = kernel {
                    description.take_besides(kernel.facts());
                }
            }
        }
        description.enter(image);
        description.version = image.version().map(|version| printable(&version));
        Ok(description)
    }

    /// Takes the ways in which this host enters the image.
    fn enter(&mut self, image: &Image) {
        if self.refused.is_none() {
            let ways = (arch::RULES.ways)(image, 0);
            self.entry_protocols = load::offered(image, &ways, &arch::RULES);
        }
        if self.refused.is_none() && self.entry_protocols.is_empty() {
            self.refused = Some("there is no way to enter it".into());
        }
    }

    fn take(&mut self, facts: formats::Facts) {
        let runs = formats::host_runs(arch::NAME, facts.architecture);
        let elsewhere = (!runs).then(|| is_for(facts.architecture));
        self.refused = elsewhere.or_else(|| facts.refused.map(Into::into));
        self.format = facts.format;
        self.architecture = Some(facts.architecture.into());
        self.entry = facts.entry;
        (self.load_start, self.load_len) = facts.load;
        self.details.extend(facts.details);
    }

    /// Takes what a second header of an ELF file says; where it places the file, that wins.
    fn take_besides(&mut self, facts: formats::Facts) {
        self.format = format!("{}, {}", self.format, facts.format);
        if facts.entry.is_some() {
            self.entry = facts.entry;
            (self.load_start, self.load_len) = facts.load;
        }
        self.details.extend(facts.details);
    }

    /// As a table for people, of `file`, which has `size` bytes.
    pub fn table(&self, file: &str, size: u64) -> String {
        let address = |at: Option<u64>| at.map(|at| format!("{at:#x}"));
        let load = match self.load_start {
            Some(start) => Some(format!("{start:#x}..{:#x}", start.saturating_add(self.load_len))),
            None if self.load_len > 0 => Some(format!("{:#x} bytes", self.load_len)),
            None => None,
        };
        let sizes = match self.packed_in.is_empty() {
            true => format!("{size} bytes"),
            false => format!("{size} bytes, {} unpacked", self.unpacked_size),
        };
        let packed = (!self.packed_in.is_empty()).then(|| self.packed_in.join(" > "));
        let runs = self.refused.as_ref().map_or("yes".into(), |reason| format!("no: {reason}"));
        let protocols = self.entry_protocols.join(", ");
        let mut rows = vec![
            ("file", Some(printable(file))),
            ("format", Some(self.format.clone())),
            ("packed in", packed),
            ("architecture", self.architecture.clone()),
            ("version", self.version.clone()),
            ("entry", address(self.entry)),
            ("PVH entry", address(self.pvh_entry)),
            ("entered by", (!protocols.is_empty()).then_some(protocols)),
            ("memory", load),
            ("size", Some(sizes)),
        ];
        rows.extend(self.details.iter().map(|(name, value)| (*name, Some(value.clone()))));
        rows.push(("runs here", Some(runs)));
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        let line = |(name, value): (&str, Option<String>)| {
            value.map(|value| format!("{name:width$}  {value}\n"))
        };
        rows.into_iter().filter_map(line).collect()
    }
}

fn layer_name(layer: &Layer) -> String {
    match layer {
        Layer::Compressed(compression) => compression.name().into(),
        Layer::Kernel(kernel) => kernel.facts().format,
        Layer::Zboot => "EFI zboot".into(),
    }
}
