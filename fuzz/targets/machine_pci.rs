//! A guest that does anything whatever to a whole machine whose devices are found on a PCI bus.

#![no_main]

fuzzing::target!(fuzzing::whole::seeds(), |bytes| fuzzing::whole::play(
    bytes,
    fuzzing::bivisor::virtio::Carrier::Pci
));
