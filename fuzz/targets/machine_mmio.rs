//! A guest that does anything whatever to a whole machine whose devices are registers in memory.
#![no_main]

fuzzing::target!("machine_mmio");
