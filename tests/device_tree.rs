//! The golden device trees, as `dtc` reads them: without a warning, and as the sources beside them
//! say. That bivisor makes these trees is a test of the library's (arch/aarch64/golden.rs), which
//! also tells how to write them anew.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::trial;
use libtest_mimic::Trial;

fn golden() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let files = fs::read_dir(folder).expect("there are golden trees");
    let paths = files.map(|entry| entry.expect("it can be listed").path());
    let mut blobs: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|e| e == "dtb")).collect();
    blobs.sort();
    blobs
}

/// `dtc` is installed.
fn dtc() -> Option<String> {
    let version = Command::new("dtc").arg("--version").stdout(Stdio::null()).status();
    version.err().map(|error| format!("no dtc (package device-tree-compiler): {error}"))
}

/// What `dtc` makes of the file at `path`; it must not have anything to say.
fn convert(path: &Path, from: &str, to: &str) -> Vec<u8> {
    let mut command = Command::new("dtc");
    if from == "dts" {
        // In a source made from a blob, references are numbers.
        for property in ["clocks", "interrupts", "msi_parent"] {
            command.args(["-W", &format!("no-{property}_property")]);
        }
    }
    let output = command.args(["-s", "-I", from, "-O", to]).arg(path).output().expect("run dtc");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{}: {said}", path.display());
    output.stdout
}

fn is_what_its_source_says(blob: &Path) {
    let source = blob.with_extension("dts");
    let read = String::from_utf8(convert(blob, "dtb", "dts")).expect("a source is text");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&source, &read).unwrap();
    }
    let expected = fs::read_to_string(&source).unwrap_or_default();
    for (line, (read, expected)) in read.lines().zip(expected.lines()).enumerate() {
        assert_eq!(read, expected, "{}:{}", source.display(), line + 1);
    }
    assert_eq!(read.lines().count(), expected.lines().count(), "{}", source.display());
    // The source can be compiled, and is still the same then.
    let folder = common::folder();
    let compiled = folder.path().join("compiled.dtb");
    fs::write(&compiled, convert(&source, "dts", "dtb")).unwrap();
    assert!(convert(&compiled, "dtb", "dts") == read.as_bytes(), "{}", source.display());
}

fn main() {
    let blobs = golden();
    assert!(!blobs.is_empty(), "no golden tree");
    let trials: Vec<Trial> = blobs
        .into_iter()
        .map(|blob| {
            let name = blob.file_stem().expect("it has a name").to_string_lossy().into_owned();
            trial(&name, &[dtc], move || is_what_its_source_says(&blob))
        })
        .collect();
    common::conclude(trials);
}
