//! When a machine's start reached what, and when its guest first showed something.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// What the time up to the guest's first instruction was spent on, and moments of its life.
#[derive(Clone, Debug)]
pub struct Timeline {
    began: Instant,
    phases: Vec<(&'static str, Instant)>,
    moments: Vec<(String, Instant)>,
}

impl Timeline {
    /// A timeline whose first phase began at `began`.
    pub fn new(began: Instant) -> Self {
        // Our choice: no start has more phases, so that none allocates.
        Self { began, phases: Vec::with_capacity(12), moments: Vec::new() }
    }

    /// The phase `name` ends now.
    pub fn reached(&mut self, name: &'static str) {
        self.phases.push((name, Instant::now()));
    }

    /// Something was seen at `at`.
    pub fn seen(&mut self, name: impl Into<String>, at: Instant) {
        self.moments.push((name.into(), at));
    }

    /// From the start to the end of the last phase.
    pub fn start(&self) -> Duration {
        self.phases.last().map_or(Duration::ZERO, |(_, end)| end.duration_since(self.began))
    }

    /// Every phase in order: its name, when it began, since the start, and how long it took.
    pub fn phases(&self) -> impl Iterator<Item = (&'static str, Duration, Duration)> {
        let starts = std::iter::once(self.began).chain(self.phases.iter().map(|(_, end)| *end));
        starts.zip(&self.phases).map(|(start, (name, end))| {
            (*name, start.duration_since(self.began), end.duration_since(start))
        })
    }

    /// Every moment, the earliest first: its name, and when it was, since the start.
    pub fn moments(&self) -> Vec<(&str, Duration)> {
        let mut moments: Vec<_> = (self.moments.iter())
            .map(|(name, at)| (name.as_str(), at.duration_since(self.began)))
            .collect();
        moments.sort_by_key(|(_, at)| *at);
        moments
    }

    /// A table for people; a line each.
    pub fn table(&self) -> String {
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        let mut text = format!("{:<32} {:>10} {:>10}\n", "phase, in ms", "took", "ended at");
        for (name, start, took) in self.phases() {
            let end = millis(start + took);
            let _ = writeln!(text, "{name:<32} {:>10.2} {end:>10.2}", millis(took));
        }
        for (name, at) in self.moments() {
            let _ = writeln!(text, "{name:<32} {:>10} {:>10.2}", "", millis(at));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_follow_each_other_and_moments_are_in_order() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut timeline = Timeline::new(began);
        timeline.phases = vec![("image", at(20)), ("vCPUs", at(25))];
        timeline.seen("end", at(90));
        timeline.seen("first output", at(30));
        let table = timeline.table();
        let rows: Vec<Vec<_>> =
            table.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        let expected: [&[&str]; 4] = [
            &["image", "20.00", "20.00"],
            &["vCPUs", "5.00", "25.00"],
            &["first", "output", "30.00"],
            &["end", "90.00"],
        ];
        assert_eq!(rows, expected);
    }
}
