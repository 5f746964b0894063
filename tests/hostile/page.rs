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

/// The cells of the rows of the table whose first column is called `column`.
fn rows<'a>(page: &'a str, column: &str) -> Vec<Vec<&'a str>> {
    let (_, table) = page.split_once(&format!("\n| {column} |")).expect("the page has it");
    let (_, rows) = table.split_once('\n').expect("a table has rows");
    let page = rows.split("\n\n").next().unwrap_or_default();
    let lines = page.lines().filter(|line| line.starts_with("| "));
    lines.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

fn every_group_has_its_tests_or_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/hostile.md")).unwrap();
    let mut code = String::new();
    ["src", "arch", "tests"].iter().for_each(|folder| sources(&root.join(folder), &mut code));
    let rows = rows(&page, "group");
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

/// A number as the code writes it: with signs between its digits, shifted, or a product or a sum.
fn number(text: &str) -> u64 {
    for (sign, apply) in [
        (" + ", u64::wrapping_add as fn(u64, u64) -> u64),
        (" << ", |a, b| a << b),
        (" * ", u64::wrapping_mul),
    ] {
        if let Some((left, right)) = text.split_once(sign) {
            return apply(number(left), number(right));
        }
    }
    text.replace('_', "").parse().unwrap_or_else(|_| panic!("{text} is no number"))
}

/// The value of a constant of ours, by `file NAME`.
fn constant(root: &Path, place: &str) -> u64 {
    let (file, name) = place.split_once(' ').expect("a file and a name");
    let code = fs::read_to_string(root.join("src").join(file)).expect(file);
    let (_, rest) = code.split_once(&format!("const {name}: ")).expect(place);
    let (_, value) = rest.split_once(" = ").expect(place);
    number(value.split_once(';').expect(place).0)
}

/// Bytes, as the page writes them, or lines of text, which have no bytes here.
fn amount(text: &str) -> u64 {
    let (count, unit) = text.split_once(' ').expect("a number and its unit");
    let count = count.parse::<u64>().unwrap();
    match unit {
        "bytes" | "lines" => count,
        "KiB" => count << 10,
        "MiB" => count << 20,
        _ => panic!("{text}"),
    }
}

fn what_a_guest_can_have_us_hold_is_what_the_page_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/hostile.md")).unwrap();
    let mut sum = 0;
    for row in rows(&page, "holds") {
        let factor = |text: &str| match text.strip_prefix('`') {
            Some(place) => constant(root, place.trim_end_matches('`')),
            None => number(text),
        };
        let product: u64 = row[3].split(" × ").map(factor).product();
        assert_eq!(product, amount(row[2]), "{row:?}");
        sum += if row[2].ends_with("lines") { 0 } else { product };
    }
    let told = format!("With one of each that is {} MiB.", sum.div_ceil(1 << 20));
    assert!(page.contains(&told), "{told}");
}

pub fn trials() -> Vec<Trial> {
    cases![
        every_group_has_its_tests_or_a_reason;
        what_a_guest_can_have_us_hold_is_what_the_page_says;
    ]
}
