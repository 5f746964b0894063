//! Unpacking of lz4.

#![no_main]

use fuzzing::bivisor::payload::unpack::Compression;

fuzzing::target!([fuzzing::seeds::PACKED[2].to_vec()], |bytes| {
    fuzzing::unpack(Compression::Lz4, bytes)
});
