//! The trace: each exit in words, a line each, with the counts at the end; or as events that a trace
//! viewer shows on a line of time.
//!
//! Off, it costs one test of a pointer per exit. A line of words is one write, so that lines of
//! several vCPUs never mix. Events are gathered, and of so many that no viewer could show them the
//! rest is counted only.
//!
//! Source: "Trace Event Format" of Chromium (JSON array of complete, instant and metadata events),
//! which Perfetto opens too.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bus::Bus;
use crate::journal::{Access, Counts, Kind};
use crate::timeline::Timeline;

/// Name for accesses that no device answers.
const NOTHING: &str = "nothing there";
/// Our choice: some 500 MB of text, as much as a viewer takes.
const EVENTS_MAX: u64 = 4_000_000;

/// Where the trace goes.
pub struct Trace(Form);

enum Form {
    Words(File),
    Events(Mutex<Events>),
}

/// The file of events, with its opening bracket written.
struct Events {
    file: BufWriter<File>,
    began: Instant,
    written: u64,
    dropped: u64,
}

/// What a run leaves to be told in the end.
pub struct Summary<'a> {
    /// Exits of all vCPUs.
    pub counts: &'a Counts,
    /// Exits of each vCPU.
    pub per_cpu: &'a [u64],
    /// The devices.
    pub bus: &'a Bus,
    /// The phases of the start.
    pub timeline: &'a Timeline,
}

impl Trace {
    /// Lines of words.
    pub fn words(file: File) -> Self {
        Self(Form::Words(file))
    }

    /// Events since `began`.
    pub fn events(file: File, began: Instant) -> Self {
        let file = BufWriter::with_capacity(1 << 16, file);
        Self(Form::Events(Mutex::new(Events { file, began, written: 0, dropped: 0 })))
    }

    /// Now, if the trace says how long an access takes.
    pub fn clock(&self) -> Option<Instant> {
        matches!(self.0, Form::Events(_)).then(Instant::now)
    }

    /// One access of `vcpu`, to the device `name` or to none, which left the guest at `since`.
    pub fn access(
        &self,
        vcpu: usize,
        access: &Access,
        name: Option<&str>,
        since: Option<Instant>,
    ) -> io::Result<()> {
        let words = access.to_string();
        let name = name.unwrap_or(NOTHING);
        match &self.0 {
            Form::Words(file) => line(file, &format!("vcpu {vcpu}  {words:<40}  {name}\n")),
            Form::Events(events) => {
                let mut events = events.lock().unwrap_or_else(PoisonError::into_inner);
                let now = Instant::now();
                let start = since.unwrap_or(now);
                let took = micros(now.duration_since(start));
                let start = micros(start.duration_since(events.began));
                events.add(json!({
                    "ph": "X", "name": name, "cat": "exit", "pid": 1, "tid": vcpu + 1,
                    "ts": start, "dur": took, "args": { "access": words.trim_end() },
                }))
            }
        }
    }

    /// Any other thing that `vcpu` did.
    pub fn event(&self, vcpu: usize, words: &str) -> io::Result<()> {
        match &self.0 {
            Form::Words(file) => line(file, &format!("vcpu {vcpu}  {words}\n")),
            Form::Events(events) => {
                let mut events = events.lock().unwrap_or_else(PoisonError::into_inner);
                let at = micros(events.began.elapsed());
                events.add(json!({
                    "ph": "i", "name": words, "s": "t", "pid": 1, "tid": vcpu + 1, "ts": at,
                }))
            }
        }
    }

    /// What is known in the end: the counts per kind and per device; as events also the phases.
    pub fn summary(&self, summary: &Summary<'_>) -> io::Result<()> {
        match &self.0 {
            Form::Words(file) => line(file, &summary.words()),
            Form::Events(events) => {
                events.lock().unwrap_or_else(PoisonError::into_inner).end(summary)
            }
        }
    }
}

fn line(mut file: &File, text: &str) -> io::Result<()> {
    file.write_all(text.as_bytes())
}

/// Microseconds, the format's unit.
fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}

impl Summary<'_> {
    fn words(&self) -> String {
        let mut text = format!("exits by kind: {} in all\n", self.counts.total());
        for (name, count) in self.by_kind() {
            let _ = writeln!(text, "{count:>12}  {name}");
        }
        text.push_str("accesses by device:\n");
        let devices = self.counts.devices().iter().enumerate();
        for (index, count) in devices.filter(|(_, count)| **count > 0) {
            let name = if index < self.bus.len() { self.bus.name(index) } else { NOTHING };
            let _ = writeln!(text, "{count:>12}  {name}");
        }
        text
    }

    fn by_kind(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = Kind::ALL.into_iter().map(|kind| (kind.name(), self.counts.kind(kind)));
        counts.filter(|(_, count)| *count > 0)
    }
}

impl Events {
    /// Adds one event of a guest.
    fn add(&mut self, event: Value) -> io::Result<()> {
        if self.written >= EVENTS_MAX {
            self.dropped += 1;
            return Ok(());
        }
        self.put(&event)
    }

    fn put(&mut self, event: &Value) -> io::Result<()> {
        let before = if self.written == 0 { "[\n" } else { ",\n" };
        self.written += 1;
        write!(self.file, "{before}{event}")
    }

    /// The phases, moments and counts, and the closing bracket.
    fn end(&mut self, summary: &Summary<'_>) -> io::Result<()> {
        let named = |what: &str, tid, name: String| json!({ "ph": "M", "name": what, "pid": 1, "tid": tid, "args": { "name": name } });
        self.put(&named("process_name", 0, "bivisor".into()))?;
        self.put(&named("thread_name", 0, "start".into()))?;
        for (index, exits) in summary.per_cpu.iter().enumerate() {
            self.put(&named("thread_name", index + 1, format!("vCPU {index} ({exits} exits)")))?;
        }
        for (name, start, took) in summary.timeline.phases() {
            self.put(&json!({
                "ph": "X", "name": name, "cat": "start", "pid": 1, "tid": 0,
                "ts": micros(start), "dur": micros(took),
            }))?;
        }
        for (name, at) in summary.timeline.moments() {
            self.put(&json!({
                "ph": "i", "name": name, "s": "g", "pid": 1, "tid": 0, "ts": micros(at),
            }))?;
        }
        let mut counts: serde_json::Map<_, _> =
            summary.by_kind().map(|(name, count)| (name.into(), count.into())).collect();
        counts.insert("not shown".into(), self.dropped.into());
        self.put(&json!({
            "ph": "i", "name": "exits by kind", "s": "p", "pid": 1, "tid": 0,
            "ts": micros(self.began.elapsed()), "args": counts,
        }))?;
        self.file.write_all(b"\n]\n")?;
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::exit::BusAddr;

    #[test]
    fn events_are_json_with_phases_moments_and_accesses_in_microseconds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        let began = Instant::now();
        let trace = Trace::events(File::create(&path).unwrap(), began);
        let at = BusAddr::memory(0x1000);
        let access = Access::new(Kind::of(at.space, true), at, 1, b"x");
        let left = began + Duration::from_micros(1500);
        trace.access(1, &access, Some("a \"console\""), Some(left)).unwrap();
        trace.event(0, "stop: halt").unwrap();
        let mut timeline = Timeline::new(began);
        timeline.reached("image");
        timeline.seen("end", began + Duration::from_millis(7));
        let (counts, bus) = (Counts::new(0), Bus::default());
        let (counts, per_cpu, bus, timeline) = (&counts, &[3, 4][..], &bus, &timeline);
        trace.summary(&Summary { counts, per_cpu, bus, timeline }).unwrap();

        let events: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let events = events.as_array().unwrap();
        let named = |name: &str| events.iter().find(|event| event["name"] == name).unwrap();
        let console = named("a \"console\"");
        assert_eq!((&console["ts"], &console["tid"]), (&json!(1500.0), &json!(2)));
        assert_eq!(named("stop: halt")["ph"], "i");
        assert_eq!(named("image")["ts"], 0.0);
        assert_eq!(named("end")["ts"], 7000.0);
        assert!(events.iter().any(|event| event["args"]["name"] == "vCPU 1 (4 exits)"));
    }

    #[test]
    fn too_many_events_are_counted_and_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        let file = BufWriter::new(File::create(&path).unwrap());
        let mut events =
            Events { file, began: Instant::now(), written: EVENTS_MAX - 1, dropped: 0 };
        for _ in 0..3 {
            events.add(json!({ "name": "one" })).unwrap();
        }
        assert_eq!(events.dropped, 2);
        events.file.flush().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().matches("one").count(), 1);
    }
}
