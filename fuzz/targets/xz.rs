//! Unpacking of xz.

#![no_main]

use fuzzing::bivisor::payload::unpack::Compression;

fuzzing::target!([fuzzing::seeds::PACKED[3].to_vec()], |bytes| {
    fuzzing::unpack(Compression::Xz, bytes)
});
