//! What fuzzing has found is survived, by every input.

use super::*;

/// Those that have a machine.
const WITH_KVM: [&str; 3] = ["gdb", "machine_mmio", "machine_pci"];

/// Gives an input its seeds and what was found for it.
pub fn replay(input: &Input) {
    if WITH_KVM.contains(&input.name) && bivisor::machine::open_kvm().is_err() {
        println!("skipped: no usable /dev/kvm");
        return;
    }
    let mut count = 0;
    for bytes in found(input.corpus) {
        (input.run)(bytes);
        count += 1;
    }
    assert!(count > 0, "nothing in fuzz/corpora/{}", input.name);
    (input.seeds)().iter().for_each(|seed| (input.run)(seed));
}

#[test]
fn a_corpus_is_whole() {
    for input in ALL {
        let bytes: usize = found(input.corpus).map(|bytes| 2 + bytes.len()).sum();
        assert_eq!(bytes, input.corpus.len(), "{}", input.name);
        assert!(bytes <= 64 << 10, "{}: {bytes} bytes", input.name);
    }
}

#[test]
fn every_input_has_a_target() {
    // An emulated host has no sources.
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/targets");
    let Ok(files) = std::fs::read_dir(folder) else { return };
    let name = |file: std::fs::DirEntry| file.path().file_stem().unwrap().to_owned();
    let mut targets: Vec<_> = files.map(|file| name(file.unwrap())).collect();
    let mut inputs: Vec<std::ffi::OsString> = ALL.iter().map(|input| input.name.into()).collect();
    targets.sort();
    inputs.sort();
    assert_eq!(targets, inputs);
}
