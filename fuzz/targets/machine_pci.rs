//! A guest that does anything whatever to a whole machine whose devices are on a PCI bus.
#![no_main]

fuzzing::target!("machine_pci");
