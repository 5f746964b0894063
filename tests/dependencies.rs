//! What the project is built from: licences that go with its own, no crate twice but those that are known,
//! and nothing that is compiled from C. Advisories have a database that no package registry has.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use common::cases;
use serde_json::Value;

/// Licences that ask no more than to be named (SPDX identifiers).
const LICENCES: [&str; 10] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates of which there are two versions, and who wants the older one.
const TWICE: [(&str, &str); 3] = [
    ("bitflags", "vmm-sys-util's is of the first version"),
    ("miniz_oxide", "imago's is older than ours"),
    ("syn", "the macros that derive things do not all have the same one"),
];

/// Crates that compile C, or bind to it by themselves.
const COMPILERS: [&str; 4] = ["bindgen", "cc", "cmake", "pkg-config"];

/// All packages.
fn packages() -> Vec<Value> {
    let mut cargo = Command::new(env!("CARGO"));
    let folder = env!("CARGO_MANIFEST_DIR");
    cargo.args(["metadata", "--format-version", "1", "--locked"]).current_dir(folder);
    let output = cargo.output().expect("start cargo");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo metadata: {error}");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    metadata["packages"].as_array().expect("a list").clone()
}

/// What lists the packages is here.
fn cargo() -> Option<String> {
    (!Path::new(env!("CARGO")).exists()).then(|| "no cargo here".into())
}

fn text<'a>(package: &'a Value, key: &str) -> &'a str {
    package[key].as_str().unwrap_or_default()
}

/// True if each part of the expression leaves a choice that we take. No licence here nests deeper.
fn is_fine(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let mut parts = expression.split(" AND ");
    let known = |licence: &str| LICENCES.contains(&licence.trim_matches(['(', ')', ' ']));
    !expression.is_empty() && parts.all(|part| part.split(" OR ").any(known))
}

fn licences_are_those_that_go_with_ours() {
    for (expression, fine) in [
        ("MIT", true),
        ("MIT/Apache-2.0", true),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("MIT OR GPL-2.0", true),
        ("MIT AND GPL-2.0", false),
        ("GPL-3.0", false),
        ("", false),
    ] {
        assert_eq!(is_fine(expression), fine, "{expression}");
    }
    for package in packages() {
        let licence = text(&package, "license");
        assert!(is_fine(licence), "{}: licence {licence:?}", text(&package, "name"));
    }
}

fn no_crate_is_there_twice_unknown() {
    let packages = packages();
    let mut versions: BTreeMap<&str, usize> = BTreeMap::new();
    packages.iter().for_each(|package| *versions.entry(text(package, "name")).or_default() += 1);
    for (name, count) in &versions {
        let known = TWICE.iter().any(|(known, _)| known == name);
        assert!(*count == 1 || *count == 2 && known, "{name}: {count} versions (cargo tree -d)");
    }
    for (name, why) in TWICE {
        assert_eq!(versions.get(name), Some(&2), "{name} is no longer there twice ({why})");
    }
}

fn nothing_is_compiled_from_c() {
    for package in packages() {
        let name = text(&package, "name");
        assert!(!COMPILERS.contains(&name), "{name} (cargo tree -i {name})");
    }
}

fn main() {
    common::conclude(cases![
        licences_are_those_that_go_with_ours, cargo;
        no_crate_is_there_twice_unknown, cargo;
        nothing_is_compiled_from_c, cargo;
    ]);
}
