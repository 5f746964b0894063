//! What fuzzing has found is survived, by every input.

use super::*;
use crate::effort;

/// Those that have a machine.
const WITH_KVM: [&str; 3] = ["gdb", "machine_mmio", "machine_pci"];

/// Gives an input its seeds and what was found for it.
pub fn replay(input: &Input) {
    if WITH_KVM.contains(&input.name) && bivisor::machine::open_kvm().is_err() {
        println!("skipped: no usable /dev/kvm");
        return;
    }
    assert!(found(input.corpus).count() > 0, "nothing in fuzz/corpora/{}", input.name);
    let mut all = (input.seeds)();
    all.extend(found(input.corpus).map(Vec::from));
    // In an emulated host a quarter of them.
    let some = effort::rounds(5 * all.len()).clamp(1, all.len());
    all.iter().step_by(all.len() / some).for_each(|bytes| (input.run)(bytes));
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
