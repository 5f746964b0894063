//! Setup headers of Linux for x86.

#![no_main]

use fuzzing::bivisor::formats::{bzimage::Header, samples};
use fuzzing::bivisor::payload::Payload;

fuzzing::target!([samples::bzimage(b"packed kernel")], |bytes: &[u8]| {
    let (head, len) = fuzzing::image::head(bytes);
    if let Ok(Some(header)) = Header::read(head, len) {
        let _ = (header.facts(), header.starts());
        let _ = header.kernel_version(&Payload::Memory(bytes.to_vec()));
        assert!(header.packed().is_none_or(|(at, packed)| at + packed <= len));
    }
});
