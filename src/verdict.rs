//! The verdict: how a run ended, as one line of JSON for machines and as a few lines for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Serialize, Serializer};

use crate::journal::{Access, Kind};
use crate::outcome::Outcome;
use crate::symbols::Symbols;

/// What `--verdict` writes. Addresses and registers are hexadecimal strings, since JSON's numbers
/// lose bits above 2^53; times are milliseconds.
#[derive(Serialize)]
pub struct Verdict {
    /// `power-off`, `halt`, `exit`, `reset`, `panic`, `crash`, `time-out`, `exit-limit`,
    /// `no-progress`, `expected`, `fail-on`, `unshown`, `signal`, `failure`, `bad-image`.
    cause: &'static str,
    /// The process status.
    status: u8,
    /// The full value that the guest wrote to the exit register, or the signal's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u64>,
    /// In words, where the end was not the guest's own wish.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The vCPU that ended the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    vcpu: Option<usize>,
    /// `build`, `run`, `cpu`.
    times_ms: BTreeMap<&'static str, f64>,
    /// How often the guest was started anew, where it was.
    #[serde(skip_serializing_if = "is_zero")]
    reboots: u64,
    /// By kind, and `total`.
    exits: BTreeMap<&'static str, u64>,
    /// The last line that the console showed, after no progress or with a text watched for.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_line: Option<String>,
    /// Where every vCPU was, after a crash, a panic or a limit.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vcpus: Vec<Cpu>,
}

#[derive(Serialize)]
struct Cpu {
    pc: String,
    mode: String,
    /// Bytes from the pc on, in hexadecimal; empty where they can't be read.
    code: String,
    /// In the order in which people read them.
    #[serde(serialize_with = "in_order")]
    registers: Vec<(&'static str, String)>,
    /// Oldest first, as in a trace.
    last_exits: Vec<String>,
}

/// An object whose members keep their order.
fn in_order<S: Serializer>(members: &[(&'static str, String)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(members.iter().map(|(name, value)| (name, value)))
}

/// Bytes as people read them: `0f 0b`.
fn hex_bytes(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// An access in words, and how often it was made in a row.
fn repeated((access, times): &(Access, u64)) -> String {
    match times {
        1 => access.to_string(),
        _ => format!("{access}, {times} times"),
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Verdict {
    /// The same, of a guest that had been started anew `reboots` times.
    pub fn after(self, reboots: u64) -> Self {
        Self { reboots, ..self }
    }

    /// The verdict on `outcome`.
    pub fn new(outcome: &Outcome) -> Self {
        use crate::exit::Stop;
        let stop = &outcome.stop;
        let kinds = Kind::ALL.iter().map(|kind| (kind.name(), outcome.exits.kind(*kind)));
        let mut exits: BTreeMap<_, _> = kinds.filter(|(_, count)| *count > 0).collect();
        exits.insert("total", outcome.exits.total());
        let millis = |time: std::time::Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        Self {
            cause: stop.word(),
            status: stop.status(),
            code: match stop {
                Stop::Exit(code) => Some(*code),
                Stop::Signal(number) => Some(*number as u64),
                _ => None,
            },
            reason: stop.explanation(),
            vcpu: outcome.vcpu,
            times_ms: [
                ("build", millis(outcome.timeline.start())),
                ("run", millis(outcome.run_time)),
                ("cpu", millis(crate::sys::cpu_time())),
            ]
            .into(),
            reboots: 0,
            exits,
            last_line: outcome.last_line.clone(),
            vcpus: outcome
                .cpus
                .iter()
                .map(|cpu| Cpu {
                    pc: format!("{:#x}", cpu.state.pc),
                    mode: cpu.state.mode.clone(),
                    code: hex_bytes(&cpu.code),
                    registers: (cpu.state.registers.iter())
                        .map(|(name, value)| (*name, format!("{value:#x}")))
                        .collect(),
                    last_exits: cpu.last.iter().map(repeated).collect(),
                })
                .collect(),
        }
    }

    /// The verdict on a guest that was never started.
    pub fn refused(error: &anyhow::Error, status: u8) -> Self {
        use crate::outcome::status::BAD_IMAGE;
        Self {
            cause: if status == BAD_IMAGE { "bad-image" } else { "failure" },
            status,
            code: None,
            reason: Some(format!("{error:#}")),
            vcpu: None,
            times_ms: BTreeMap::new(),
            reboots: 0,
            exits: BTreeMap::new(),
            last_line: None,
            vcpus: Vec::new(),
        }
    }

    /// One line of JSON, with its end.
    pub fn json(&self) -> String {
        let mut line = serde_json::to_string(self).expect("strings and finite numbers only");
        line.push('\n');
        line
    }
}

/// For people: the last line of the console, and every vCPU: where it was, by name too if it has
/// one, its registers three a line, its last exits.
pub fn report(outcome: &Outcome, symbols: Option<&Symbols>) -> String {
    let mut text = String::new();
    if let Some(line) = outcome.last_line.as_ref().filter(|_| outcome.stop.shows_cpus()) {
        // What the guest put into it must not move the reader's cursor.
        let _ = writeln!(text, "last console line: {}", line.escape_debug());
    }
    for (index, cpu) in outcome.cpus.iter().enumerate() {
        let name = symbols.and_then(|symbols| symbols.name(cpu.state.pc));
        let name = name.map_or(String::new(), |name| format!(" ({name})"));
        let _ = writeln!(text, "vcpu {index}: pc {:#x}{name}, {}", cpu.state.pc, cpu.state.mode);
        if !cpu.code.is_empty() {
            let _ = writeln!(text, "  code at pc  {}", hex_bytes(&cpu.code));
        }
        for row in cpu.state.registers.chunks(3) {
            let cells: Vec<_> =
                row.iter().map(|(name, value)| format!("{name:>9} {value:016x}")).collect();
            let _ = writeln!(text, "  {}", cells.join("  "));
        }
        if !cpu.last.is_empty() {
            let _ = writeln!(text, "  last exits, oldest first:");
            for entry in &cpu.last {
                let _ = writeln!(text, "    {}", repeated(entry));
            }
        }
    }
    text
}
