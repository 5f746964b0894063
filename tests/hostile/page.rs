//! The page that says which test tries what, held against the tests that there are.

use std::fs;
use std::path::Path;

use libtest_mimic::Trial;

use crate::common::cases;

const GROUPS: usize = 60;

/// All of the project's Rust code below `folder`, one behind the other.
fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *text += &fs::read_to_string(&path).unwrap();
        }
    }
}

/// The cells of the table's rows.
fn rows(page: &str) -> Vec<Vec<&str>> {
    let lines = page.lines().filter(|line| line.starts_with("| ") && !line.contains("group"));
    lines.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

fn every_group_has_its_tests_or_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/hostile.md")).unwrap();
    let mut code = String::new();
    ["src", "arch", "tests"].iter().for_each(|folder| sources(&root.join(folder), &mut code));
    let rows = rows(&page);
    let numbers: Vec<_> = rows.iter().map(|row| row[0].parse::<usize>().unwrap()).collect();
    assert_eq!(numbers, (1..=GROUPS).collect::<Vec<_>>());
    for row in rows {
        let names: Vec<_> = row[2].split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty() || row[2].len() > 10, "group {} has nothing", row[0]);
        for name in names.iter().filter(|name| name.contains('_')) {
            let there =
                code.contains(&format!("fn {name}(")) || code.contains(&format!("\"{name}\""));
            assert!(there, "group {}: there is no test {name}", row[0]);
        }
    }
}

pub fn trials() -> Vec<Trial> {
    cases![every_group_has_its_tests_or_a_reason;]
}
