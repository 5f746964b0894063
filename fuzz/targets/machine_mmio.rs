//! A guest that does anything whatever to a whole machine whose devices are registers in memory.

#![no_main]

use fuzzing::bivisor::virtio::Carrier;

fuzzing::target!(fuzzing::whole::seeds(Carrier::Mmio), |bytes| fuzzing::whole::play(
    bytes,
    Carrier::Mmio
));
