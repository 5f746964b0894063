//! Unpacking of zstd.

#![no_main]

use fuzzing::bivisor::payload::unpack::Compression;

fuzzing::target!([fuzzing::seeds::PACKED[1].to_vec()], |bytes| {
    fuzzing::unpack(Compression::Zstd, bytes)
});
