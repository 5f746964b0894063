//! What a guest prints while texts are waited for.
#![no_main]

fuzzing::target!("printed");
