//! `report FOLDER LOG…`: what benchmarks have measured, from what they printed: a table (`results.md`), all
//! of the numbers (`results.json`) and a plot of each measure (`*.svg`). A log's name without its suffix
//! says where it was measured.

mod plot;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// What a line of a measure begins with (benches/common/report.rs).
const MARK: &str = "@bench ";

/// One thing that was measured, of several candidates in turn. The first is what the others are compared
/// with.
#[derive(Deserialize, Serialize)]
struct Measure {
    /// Where.
    #[serde(default)]
    host: String,
    name: String,
    unit: String,
    /// Whether less is better.
    less: bool,
    candidates: Vec<Candidate>,
}

#[derive(Deserialize, Serialize)]
struct Candidate {
    name: String,
    /// Ascending; at least one.
    values: Vec<f64>,
}

impl Candidate {
    /// The value that so many tenths of all are below.
    fn at(&self, tenths: usize) -> f64 {
        self.values[(self.values.len() * tenths / 10).min(self.values.len() - 1)]
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, logs @ ..] = &arguments[..] else { bail!("usage: report FOLDER LOG…") };
    let mut measures = Vec::new();
    for log in logs {
        measures.extend(read(Path::new(log)).with_context(|| log.clone())?);
    }
    let folder = Path::new(folder);
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let mut table = String::new();
    let mut host = "";
    for measure in &measures {
        if host != measure.host {
            host = &measure.host;
            let _ = writeln!(
                table,
                "\n### {host}\n\n| measure | candidate | rounds | minimum | median | 90 % | ratio |\n\
                 |---|---|---|---|---|---|---|"
            );
        }
        add_rows(&mut table, measure);
        let file = folder.join(format!("{}.svg", file_name(measure)));
        plot::draw(measure, &file).with_context(|| format!("draw {}", file.display()))?;
    }
    fs::write(folder.join("results.md"), table.trim_start())?;
    fs::write(folder.join("results.json"), serde_json::to_string_pretty(&measures)?)?;
    Ok(())
}

/// The measures that a benchmark has printed.
fn read(log: &Path) -> Result<Vec<Measure>> {
    let text = fs::read_to_string(log)?;
    let host = log.file_stem().unwrap_or_default().to_string_lossy();
    let lines = text.lines().filter_map(|line| line.strip_prefix(MARK));
    let measures = lines.map(|line| -> Result<Measure> {
        let measure: Measure = serde_json::from_str(line)?;
        let whole = !measure.candidates.is_empty();
        if !whole || measure.candidates.iter().any(|candidate| candidate.values.is_empty()) {
            bail!("nothing was measured: {line}");
        }
        Ok(Measure { host: host.clone().into_owned(), ..measure })
    });
    measures.collect()
}

fn add_rows(table: &mut String, measure: &Measure) {
    for candidate in &measure.candidates {
        let [least, median, most] = [0, 5, 9].map(|tenths| number(candidate.at(tenths)));
        let ratio = candidate.at(5) / measure.candidates[0].at(5);
        let (name, unit) = (&measure.name, &measure.unit);
        let (who, rounds) = (&candidate.name, candidate.values.len());
        let _ = writeln!(
            table,
            "| {name}, {unit} | {who} | {rounds} | {least} | {median} | {most} | {ratio:.2} |"
        );
    }
}

/// With three digits that say something.
fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// What a plot is called: letters and digits of what it is of.
fn file_name(measure: &Measure) -> String {
    let text = format!("{} {}", measure.host, measure.name).to_lowercase();
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric());
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure() -> Measure {
        let candidate =
            |name: &str, values: &[f64]| Candidate { name: name.into(), values: values.into() };
        let candidates =
            vec![candidate("floor", &[1.0, 1.0, 2.0]), candidate("bivisor", &[1.5, 2.0, 20.25])];
        let (host, name) = ("native".into(), "hello: to the end".into());
        Measure { host, name, unit: "ms".into(), less: true, candidates }
    }

    #[test]
    fn a_row_has_least_median_most_and_ratio() {
        let mut table = String::new();
        add_rows(&mut table, &measure());
        assert_eq!(
            table,
            "| hello: to the end, ms | floor | 3 | 1.00 | 1.00 | 2.00 | 1.00 |\n\
             | hello: to the end, ms | bivisor | 3 | 1.50 | 2.00 | 20.2 | 2.00 |\n"
        );
    }

    #[test]
    fn a_plot_shows_every_candidate() {
        let measure = measure();
        assert_eq!(file_name(&measure), "native-hello-to-the-end");
        let file = std::env::temp_dir().join(format!("bivisor-report-{}.svg", std::process::id()));
        plot::draw(&measure, &file).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        fs::remove_file(&file).unwrap();
        assert!(
            text.contains("bivisor") && text.contains("floor") && text.starts_with("<svg"),
            "{text}"
        );
    }
}
