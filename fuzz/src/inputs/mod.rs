//! Everything that foreign bytes are given to: for each input what it begins with, what is done with
//! any bytes, and what has been found.
//!
//! Shared by the fuzz targets and the tests of the library, which replay what was found. An input
//! that needs a machine has one for each thread, and needs /dev/kvm, though no vCPU ever runs.

mod console;
mod gdb;
mod image;
mod kernels;
mod peers;
mod qcow2;
mod rings;
pub mod seeds;
mod symbols;
mod tables;
#[cfg(test)]
mod tests;
mod unpack;
mod whole;

use bivisor::virtio::Carrier;

/// Bytes that anything may unpack to. Our choice: several times what a seed does, and little enough
/// to be filled hundreds of times a second.
pub const LIMIT: u64 = 1 << 20;

/// One kind of foreign bytes.
pub struct Input {
    /// The target's name.
    pub name: &'static str,
    /// What to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// What is done with bytes; a panic is a finding.
    pub run: fn(&[u8]),
    /// What was found: see [`found`].
    pub corpus: &'static [u8],
}

macro_rules! inputs {
    ($($name:ident: $seeds:expr, $run:expr;)*) => {
        /// All of them.
        pub const ALL: &[Input] = &[$(Input {
            name: stringify!($name),
            seeds: || $seeds,
            run: $run,
            corpus: include_bytes!(concat!("../../corpora/", stringify!($name))),
        }),*];

        /// A test for each, so that a failure says which.
        #[cfg(test)]
        mod replays {
            $(
                #[test]
                fn $name() {
                    super::tests::replay(super::find(stringify!($name)));
                }
            )*
        }
    };
}

inputs! {
    image: seeds::images(), image::run;
    elf: kernels::elf_seeds(), kernels::elf;
    note: kernels::note_seeds(), kernels::note;
    bzimage: kernels::bzimage_seeds(), kernels::bzimage;
    arm64_image: kernels::arm64_image_seeds(), kernels::arm64_image;
    multiboot: kernels::multiboot_seeds(), kernels::multiboot;
    pe: kernels::pe_seeds(), kernels::pe;
    zboot: kernels::zboot_seeds(), kernels::zboot;
    version: kernels::version_seeds(), kernels::version;
    gzip: unpack::seeds(0), unpack::gzip;
    zstd: unpack::seeds(1), unpack::zstd;
    lz4: unpack::seeds(2), unpack::lz4;
    xz: unpack::seeds(3), unpack::xz;
    tables: tables::seeds(), tables::run;
    symbols: symbols::seeds(), symbols::run;
    qcow2: qcow2::seeds(), qcow2::run;
    block: rings::seeds(), |bytes| rings::play(bytes, rings::block);
    net: rings::seeds(), |bytes| rings::play(bytes, rings::net);
    vsock: rings::seeds(), |bytes| rings::play(bytes, rings::vsock);
    net_peer: peers::net_seeds(), peers::net;
    vsock_peer: peers::vsock_seeds(), peers::vsock;
    vhost_user: peers::vhost_user_seeds(), peers::vhost_user;
    gdb: gdb::seeds(), gdb::run;
    keys: console::keys_seeds(), console::keys;
    printed: console::printed_seeds(), console::printed;
    machine_mmio: whole::seeds(), |bytes| whole::play(bytes, Carrier::Mmio);
    machine_pci: whole::seeds(), |bytes| whole::play(bytes, Carrier::Pci);
}

/// The input of that name.
pub fn find(name: &str) -> &'static Input {
    ALL.iter().find(|input| input.name == name).expect("a target has the name of an input")
}

/// Each of the byte strings in a corpus, which has the length of each in two bytes, big-endian, before
/// it. One file for all of them, since tests are carried to other hosts as programs alone.
pub fn found(corpus: &'static [u8]) -> impl Iterator<Item = &'static [u8]> {
    let mut rest = corpus;
    std::iter::from_fn(move || {
        let (len, behind) = rest.split_first_chunk::<2>()?;
        let (bytes, later) = behind.split_at_checked(u16::from_be_bytes(*len).into())?;
        rest = later;
        Some(bytes)
    })
}
