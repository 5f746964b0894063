//! A guest that does anything whatever to a whole machine whose devices are on a PCI bus.

#![no_main]

use fuzzing::bivisor::virtio::Carrier;

fuzzing::target!(fuzzing::whole::seeds(Carrier::Pci), |bytes| fuzzing::whole::play(
    bytes,
    Carrier::Pci
));
