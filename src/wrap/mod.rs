//! Commands that are measured while they run, for `candlepower memory` and `candlepower power`. A `Meter` reads counters
//! at intervals and makes a report: totals, their course, and the reason for each value that could not be measured.

mod course;
mod memory;
mod power;

pub(crate) use memory::MemoryMeter;
pub use memory::{GpuMemory, Memory};
pub(crate) use power::PowerMeter;
pub use power::{Power, PowerSource};

use schemars::JsonSchema;
use serde::Serialize;

use crate::text;

/// Version of both schemas. It is raised when a field changes its meaning or is removed, not when one is added.
pub(crate) const SCHEMA: u32 = 1;

/// Reads counters while a command runs.
pub(crate) trait Meter: Sized {
    /// The result.
    type Report: Report;

    /// Reads the counters before the command starts.
    fn start() -> Self;

    /// Reads the counters while the process runs, at a time in seconds from its start.
    fn look(&mut self, process: u32, at_s: f64);

    /// Reads the counters after the command has ended.
    fn end(self, ran: Ran) -> Self::Report;
}

/// The result of a meter.
pub(crate) trait Report: Serialize {
    /// A short text for people.
    fn text(&self) -> String;

    /// An SVG plot over time; `None` if nothing was measured.
    fn plot(&self) -> Option<String>;
}

/// A command, and how it ended.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Ran {
    /// Version of the schema.
    pub schema: u32,
    /// Version of this crate.
    pub candlepower: String,
    /// Name of the machine, as in records.
    pub machine: String,
    /// The command and its arguments. Bytes that are not UTF-8 are replaced.
    pub command: Vec<String>,
    /// Time at which the command started, in UTC, as RFC 3339.
    pub started_at: String,
    /// Time from the start of the command to its end.
    pub duration_s: f64,
    /// Exit code; `null` if a signal ended the command.
    pub exit_code: Option<i32>,
    /// Number of the signal that ended the command; `null` if it exited.
    pub signal: Option<i32>,
    /// Time from one reading of the counters to the next, as asked for.
    pub interval_ms: u64,
    /// Readings of the counters while the command ran.
    pub looks: u64,
}

impl Ran {
    /// One line about the command.
    fn line(&self) -> String {
        let words: Vec<String> = self.command.iter().map(|word| text::shell(word)).collect();
        let end = match (self.exit_code, self.signal) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "an unknown end".to_owned(),
        };
        format!("{}: {:.3} s, {end}", words.join(" "), self.duration_s)
    }
}

/// Lines for the values that were not measured.
fn reasons(unmeasured: &std::collections::BTreeMap<String, String>) -> String {
    unmeasured.iter().map(|(what, why)| format!("\n{what} not measured: {why}")).collect()
}
