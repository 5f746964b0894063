//! What a benchmark tells: a table for people, and a line for `benches/report`, which makes plots and a
//! file of everything.

use serde::Serialize;

/// What such a line begins with. `benches/report` knows it too.
const MARK: &str = "@bench ";

/// One thing that is measured, of several candidates in turn.
#[derive(Serialize)]
pub struct Measure {
    /// What it is.
    name: String,
    /// What the numbers are in; "ms", for one.
    unit: &'static str,
    /// Whether less is better.
    less: bool,
    candidates: Vec<Candidate>,
}

#[derive(Serialize)]
struct Candidate {
    name: String,
    values: Vec<f64>,
}

impl Measure {
    /// A measure without candidates; the first one is what others are compared with.
    pub fn new(name: impl Into<String>, unit: &'static str, less: bool) -> Self {
        Self { name: name.into(), unit, less, candidates: Vec::new() }
    }

    /// Adds what was measured of a candidate; nothing if that is nothing.
    pub fn add(&mut self, name: impl Into<String>, mut values: Vec<f64>) {
        values.sort_by(f64::total_cmp);
        if !values.is_empty() {
            self.candidates.push(Candidate { name: name.into(), values });
        }
    }

    /// Prints the table: minimum, median and 90th percentile, and the ratio of the median to the first
    /// candidate's.
    pub fn tell(&self) {
        let better = if self.less { "less" } else { "more" };
        println!("\n{}, {} ({better} is better)\n", self.name, self.unit);
        println!("| | rounds | minimum | median | 90 % | ratio |\n|---|---|---|---|---|---|");
        for candidate in &self.candidates {
            let (name, count) = (&candidate.name, candidate.values.len());
            let at = |candidate: &Candidate, tenths: usize| {
                let values = &candidate.values;
                values[(values.len() * tenths / 10).min(values.len() - 1)]
            };
            let [least, median, most] = [0, 5, 9].map(|tenths| at(candidate, tenths));
            let ratio = median / at(&self.candidates[0], 5);
            println!("| {name} | {count} | {least:.2} | {median:.2} | {most:.2} | {ratio:.2} |");
        }
        println!("{MARK}{}", serde_json::to_string(self).expect("it is text and numbers"));
    }
}
