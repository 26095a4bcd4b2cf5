//! The memory of a command: the resident sets of its processes, and the memory of GPUs.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::{Meter, Ran, Report, course::Course, reasons};
use crate::{
    error::one_line,
    measure::{gpu, processes::Tree},
    report::{over_seconds, text_table},
};

/// Memory that a command used. The command's processes are it and its descendants.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Memory {
    /// The command.
    #[serde(flatten)]
    pub ran: Ran,
    /// Highest sum of the resident sets of all processes in a reading. A page that processes share counts in each of them.
    pub tree_peak_bytes: Option<u64>,
    /// Most processes in a reading.
    pub most_processes: Option<u64>,
    /// The kernel's own high-water mark of the resident set of the largest process. It includes peaks between readings,
    /// except for those after the last reading of that process.
    pub process_peak_bytes: Option<u64>,
    /// Name of that process, at most 15 bytes.
    pub process_peak_name: Option<String>,
    /// GPUs, in CUDA's order.
    pub gpus: Vec<GpuMemory>,
    /// Why a value is `null`, by field.
    pub unmeasured: BTreeMap<String, String>,
    /// Seconds from the start, and the sum of the resident sets.
    pub tree_bytes: Vec<(f64, u64)>,
}

/// Memory of a GPU in use, by all processes of the machine together.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct GpuMemory {
    /// Number and model of the GPU.
    pub name: String,
    /// Before the command started.
    pub before_bytes: Option<u64>,
    /// Highest value in a reading.
    pub peak_bytes: Option<u64>,
    /// Seconds from the start, and bytes.
    pub used_bytes: Vec<(f64, u64)>,
}

/// Reads the memory of a command.
pub struct MemoryMeter {
    tree: Option<Tree>,
    tree_bytes: Course,
    tree_peak_bytes: Option<u64>,
    most_processes: Option<u64>,
    gpus: Vec<WatchedGpu>,
    unmeasured: BTreeMap<String, String>,
}

struct WatchedGpu {
    report: GpuMemory,
    used_bytes: Course,
}

impl Meter for MemoryMeter {
    type Report = Memory;

    fn start() -> Self {
        let mut unmeasured = BTreeMap::new();
        let gpus = named_gpus(&mut unmeasured).into_iter().enumerate().map(|(ordinal, name)| {
            let before_bytes = gpu::used_bytes(ordinal);
            if let Err(error) = &before_bytes {
                unmeasured.insert(format!("gpus[{ordinal}]"), one_line(&format!("{error:#}")));
            }
            let report = GpuMemory { name, before_bytes: before_bytes.ok(), ..GpuMemory::default() };
            WatchedGpu { report, used_bytes: Course::of_peaks() }
        });
        let gpus = gpus.collect();
        Self {
            tree: None,
            tree_bytes: Course::of_peaks(),
            tree_peak_bytes: None,
            most_processes: None,
            gpus,
            unmeasured,
        }
    }

    fn look(&mut self, process: u32, at_s: f64) {
        if self.tree.is_none() && !self.unmeasured.contains_key("tree_peak_bytes") {
            match Tree::of(process) {
                Ok(tree) => self.tree = Some(tree),
                Err(error) => drop(self.unmeasured.insert("tree_peak_bytes".into(), one_line(&error))),
            }
        }
        // A process that has just ended has no memory, which is no measurement of 0.
        if let Some(seen) = self.tree.as_mut().map(Tree::look).filter(|seen| seen.processes > 0) {
            self.tree_peak_bytes = self.tree_peak_bytes.max(Some(seen.bytes));
            self.most_processes = self.most_processes.max(Some(seen.processes));
            self.tree_bytes.push(at_s, seen.bytes as f64);
        }
        for (ordinal, gpu) in self.gpus.iter_mut().enumerate() {
            if let Ok(bytes) = gpu::used_bytes(ordinal) {
                gpu.report.peak_bytes = gpu.report.peak_bytes.max(Some(bytes));
                gpu.used_bytes.push(at_s, bytes as f64);
            }
        }
    }

    fn end(mut self, ran: Ran) -> Memory {
        if self.tree_peak_bytes.is_none() {
            let too_short = || "the command ended before its first reading".to_owned();
            self.unmeasured.entry("tree_peak_bytes".into()).or_insert_with(too_short);
        }
        let largest = self.tree.as_ref().and_then(Tree::largest);
        let gpus = self.gpus.into_iter().map(|gpu| GpuMemory { used_bytes: whole(gpu.used_bytes), ..gpu.report });
        Memory {
            ran,
            tree_peak_bytes: self.tree_peak_bytes,
            most_processes: self.most_processes,
            process_peak_bytes: largest.map(|largest| largest.peak_bytes),
            process_peak_name: largest.map(|largest| largest.name.clone()),
            gpus: gpus.collect(),
            unmeasured: self.unmeasured,
            tree_bytes: whole(self.tree_bytes),
        }
    }
}

fn whole(course: Course) -> Vec<(f64, u64)> {
    course.points().into_iter().map(|(at_s, bytes)| (at_s, bytes as u64)).collect()
}

/// Numbers and models of the GPUs. Without any, `unmeasured` gets the reason.
pub(super) fn named_gpus(unmeasured: &mut BTreeMap<String, String>) -> Vec<String> {
    let names = gpu::names().unwrap_or_else(|error| {
        unmeasured.insert("gpus".into(), one_line(&format!("{error:#}")));
        Vec::new()
    });
    if names.is_empty() {
        unmeasured.entry("gpus".into()).or_insert_with(|| "NVML shows no GPU".into());
    }
    names.into_iter().enumerate().map(|(ordinal, name)| format!("GPU {ordinal}, {name}")).collect()
}

impl Report for Memory {
    fn text(&self) -> String {
        let mb = |bytes: Option<u64>| bytes.map_or("n/a".to_owned(), |bytes| format!("{:.1}", bytes as f64 / 1e6));
        let mut rows = vec![vec!["memory".to_owned(), "before MB".to_owned(), "peak MB".to_owned()]];
        let processes = self.most_processes.map_or(String::new(), |most| format!(" (at most {most})"));
        rows.push(vec![format!("processes, sum of resident sets{processes}"), String::new(), mb(self.tree_peak_bytes)]);
        let name = self.process_peak_name.as_ref().map_or(String::new(), |name| format!(" ({name})"));
        rows.push(vec![format!("largest process{name}"), String::new(), mb(self.process_peak_bytes)]);
        for gpu in &self.gpus {
            rows.push(vec![format!("{}, all processes", gpu.name), mb(gpu.before_bytes), mb(gpu.peak_bytes)]);
        }
        if self.gpus.is_empty() {
            rows.iter_mut().for_each(|row| drop(row.remove(1)));
        }
        format!("{}\n{}{}", self.ran.line(), text_table::terminal(&rows, 1).trim_end(), reasons(&self.unmeasured))
    }

    fn plot(&self) -> Option<String> {
        let line = |points: &[(f64, u64)]| points.iter().map(|(at_s, bytes)| (*at_s, *bytes as f64 / 1e6)).collect();
        let mut lines = vec![("sum of resident sets".to_owned(), line(&self.tree_bytes))];
        lines.extend(self.gpus.iter().map(|gpu| (gpu.name.clone(), line(&gpu.used_bytes))));
        over_seconds("Memory of a command over time", "MB", &lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Memory {
        Memory {
            ran: Ran { command: vec!["sh".into(), "-c".into(), "a b".into()], exit_code: Some(3), ..Ran::default() },
            tree_peak_bytes: Some(2_000_000),
            most_processes: Some(2),
            process_peak_bytes: Some(1_500_000),
            process_peak_name: Some("python3".into()),
            tree_bytes: vec![(0.0, 1), (0.1, 2_000_000), (0.2, 1_000_000)],
            ..Memory::default()
        }
    }

    #[test]
    fn the_text_has_what_was_measured_and_why_the_rest_was_not() {
        let gpu = GpuMemory { name: "GPU 0, A".into(), before_bytes: Some(1_000_000), ..GpuMemory::default() };
        let unmeasured = [("gpus[0]".to_owned(), "NVML failed".to_owned())].into();
        let text = Memory { gpus: vec![gpu], unmeasured, ..report() }.text();
        for part in [
            "sh -c 'a b': 0.000 s, exit code 3\n",
            "sum of resident sets (at most 2)",
            "2.0\n",
            "largest process (python3)",
            "1.5\n",
            "GPU 0, A, all processes",
            "n/a",
            "gpus[0] not measured: NVML failed",
        ] {
            assert!(text.contains(part), "{part} is missing from\n{text}");
        }
        assert!(!report().text().contains("before"), "{}", report().text());
    }

    #[test]
    fn a_plot_needs_a_value() {
        let plot = report().plot().expect("values");
        assert!(
            plot.starts_with("<svg") && plot.contains("<polyline") && plot.contains("sum of resident sets"),
            "{plot}"
        );
        assert!(Memory::default().plot().is_none());
    }

    #[test]
    fn a_command_that_was_never_seen_has_no_memory_of_0() {
        let report = MemoryMeter::start().end(Ran::default());
        assert_eq!((report.tree_peak_bytes, report.process_peak_bytes), (None, None));
        assert!(report.unmeasured["tree_peak_bytes"].contains("before its first reading"));
    }
}
