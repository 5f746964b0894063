//! Files of symbols: `System.map` and ELF.
#![no_main]

fuzzing::target!("symbols");
