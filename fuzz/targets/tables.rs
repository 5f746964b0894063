//! Tables for boards of every kind.

#![no_main]

fuzzing::target!(fuzzing::tables::seeds(), fuzzing::tables::run);
