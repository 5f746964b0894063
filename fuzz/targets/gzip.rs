//! Unpacking of gzip.

#![no_main]

use fuzzing::bivisor::payload::unpack::Compression;

fuzzing::target!([fuzzing::seeds::PACKED[0].to_vec()], |bytes| {
    fuzzing::unpack(Compression::Gzip, bytes)
});
