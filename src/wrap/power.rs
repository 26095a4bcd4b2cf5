//! The energy of the machine while a command runs: CPU packages, their memory, and GPUs.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::{Meter, Ran, Report, course::Course, memory::named_gpus, reasons};
use crate::{
    error::one_line,
    measure::{gpu, rapl},
    report::{over_seconds, text_table},
};

/// Energy and power while a command ran. The counters are of whole devices, so other processes count too.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Power {
    /// The command.
    #[serde(flatten)]
    pub ran: Ran,
    /// Energy of all sources together.
    pub joules: Option<f64>,
    /// Mean power of all sources together.
    pub mean_watts: Option<f64>,
    /// The devices that were read.
    pub sources: Vec<PowerSource>,
    /// Why a value is `null` or a kind of source is missing.
    pub unmeasured: BTreeMap<String, String>,
}

/// A device with counters of energy or power.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct PowerSource {
    /// Name of the device.
    pub name: String,
    /// Interface that the counters are read from: `rapl` or `nvml`.
    pub interface: String,
    /// Energy while the command ran.
    pub joules: Option<f64>,
    /// Energy divided by time. Without a counter of energy, the mean of the readings of power.
    pub mean_watts: Option<f64>,
    /// Highest power: with `rapl`, the mean between two readings.
    pub peak_watts: Option<f64>,
    /// Seconds from the start, and watts.
    pub watts: Vec<(f64, f64)>,
}

/// Reads the counters of the machine.
pub struct PowerMeter {
    sources: Vec<Source>,
    unmeasured: BTreeMap<String, String>,
}

struct Source {
    name: String,
    counter: Counter,
    /// Time and energy of the last point of the course.
    last: (f64, f64),
    peak_watts: Option<f64>,
    watts: Course,
}

enum Counter {
    Rapl(rapl::Zone),
    Nvml {
        ordinal: usize,
        /// Energy before the command, or why it is unknown.
        before_joules: Result<f64, String>,
    },
}

/// Least time between two readings of RAPL. Its counters move about once in a millisecond.
const LEAST_S: f64 = 0.005;

impl Source {
    fn new(name: String, counter: Counter) -> Self {
        Self { name, counter, last: (0.0, 0.0), peak_watts: None, watts: Course::of_means() }
    }

    /// Energy since the start.
    fn joules(&mut self) -> Result<f64, String> {
        let joules = match &mut self.counter {
            Counter::Rapl(zone) => reason(zone.joules()),
            Counter::Nvml { ordinal, before_joules } => {
                let before = before_joules.clone()?;
                reason(gpu::energy_joules(*ordinal)).map(|joules| joules - before)
            }
        }?;
        if joules > 0.0 { Ok(joules) } else { Err("the counter did not move: the command was too short".into()) }
    }

    /// Adds a point to the course.
    fn look(&mut self, at_s: f64) {
        let (from_s, watts) = match &mut self.counter {
            Counter::Rapl(zone) => {
                let (last_s, last_joules) = self.last;
                let joules = if at_s - last_s < LEAST_S { None } else { zone.joules().ok() };
                let Some(joules) = joules else { return };
                self.last = (at_s, joules);
                (last_s, (joules - last_joules) / (at_s - last_s))
            }
            Counter::Nvml { ordinal, .. } => match gpu::power_watts(*ordinal) {
                Ok(watts) => (at_s, watts),
                Err(_) => return,
            },
        };
        self.peak_watts = Some(self.peak_watts.map_or(watts, |peak| peak.max(watts)));
        self.watts.push(from_s, watts);
    }

    fn end(mut self, duration_s: f64, unmeasured: &mut BTreeMap<String, String>) -> PowerSource {
        let interface = match self.counter {
            Counter::Rapl(_) => {
                self.look(duration_s);
                "rapl"
            }
            Counter::Nvml { .. } => "nvml",
        };
        let joules = self.joules().map_err(|why| unmeasured.insert(format!("{}: joules", self.name), why)).ok();
        let watts = self.watts.points();
        let mean = || watts.iter().map(|point| point.1).sum::<f64>() / watts.len() as f64;
        let mean_watts = joules.map(|joules| joules / duration_s).or_else(|| (!watts.is_empty()).then(mean));
        if mean_watts.is_none() {
            unmeasured.insert(format!("{}: mean_watts", self.name), "its power was not read".into());
        }
        let peak_watts = self.peak_watts;
        PowerSource { name: self.name, interface: interface.into(), joules, mean_watts, peak_watts, watts }
    }
}

fn reason<T>(read: anyhow::Result<T>) -> Result<T, String> {
    read.map_err(|error| one_line(&format!("{error:#}")))
}

impl Meter for PowerMeter {
    type Report = Power;

    fn start() -> Self {
        let mut unmeasured = BTreeMap::new();
        let mut sources = Vec::new();
        match reason(rapl::zones()) {
            Ok(zones) => {
                sources.extend(zones.into_iter().map(|zone| Source::new(zone.name().to_owned(), Counter::Rapl(zone))))
            }
            Err(why) => drop(unmeasured.insert("cpus".into(), why)),
        }
        for (ordinal, name) in named_gpus(&mut unmeasured).into_iter().enumerate() {
            let before_joules = reason(gpu::energy_joules(ordinal));
            sources.push(Source::new(name, Counter::Nvml { ordinal, before_joules }));
        }
        Self { sources, unmeasured }
    }

    fn look(&mut self, _: u32, at_s: f64) {
        self.sources.iter_mut().for_each(|source| source.look(at_s));
    }

    fn end(mut self, ran: Ran) -> Power {
        let sources: Vec<PowerSource> =
            self.sources.into_iter().map(|source| source.end(ran.duration_s, &mut self.unmeasured)).collect();
        let joules = sum(&sources, |source| source.joules);
        let mean_watts = sum(&sources, |source| source.mean_watts);
        for (field, value) in [("joules", joules), ("mean_watts", mean_watts)] {
            if value.is_none() {
                let why = if sources.is_empty() { "there is no counter" } else { "a source lacks it" };
                self.unmeasured.insert(field.into(), why.into());
            }
        }
        Power { ran, joules, mean_watts, sources, unmeasured: self.unmeasured }
    }
}

/// The sum over all sources, if each has the value.
fn sum(sources: &[PowerSource], get: fn(&PowerSource) -> Option<f64>) -> Option<f64> {
    let values: Vec<f64> = sources.iter().map(get).collect::<Option<_>>()?;
    (!values.is_empty()).then(|| values.iter().sum())
}

impl Report for Power {
    fn text(&self) -> String {
        let number = |value: Option<f64>| value.map_or("n/a".to_owned(), |value| format!("{value:.1}"));
        let header = ["power", "energy J", "mean W", "peak W"].map(str::to_owned);
        let mut rows = vec![header.to_vec()];
        for source in &self.sources {
            let PowerSource { joules, mean_watts, peak_watts, .. } = *source;
            rows.push(vec![source.name.clone(), number(joules), number(mean_watts), number(peak_watts)]);
        }
        if self.sources.len() != 1 {
            rows.push(vec!["all".into(), number(self.joules), number(self.mean_watts), String::new()]);
        }
        format!("{}\n{}{}", self.ran.line(), text_table::terminal(&rows, 1).trim_end(), reasons(&self.unmeasured))
    }

    fn plot(&self) -> Option<String> {
        let lines: Vec<_> = self.sources.iter().map(|source| (source.name.clone(), source.watts.clone())).collect();
        over_seconds("Power of the machine while a command runs", "W", &lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, joules: Option<f64>) -> PowerSource {
        let mean_watts = joules.map(|joules| joules / 2.0);
        let watts = vec![(0.0, 10.0), (0.5, 20.0), (1.0, 15.0)];
        PowerSource { name: name.into(), interface: "rapl".into(), joules, mean_watts, peak_watts: Some(20.0), watts }
    }

    #[test]
    fn a_sum_needs_all_its_parts() {
        let get = |source: &PowerSource| source.joules;
        assert_eq!(sum(&[source("a", Some(3.0)), source("b", Some(4.0))], get), Some(7.0));
        assert_eq!(sum(&[source("a", Some(3.0)), source("b", None)], get), None);
        assert_eq!(sum(&[], get), None);
    }

    #[test]
    fn without_a_counter_every_value_has_a_reason_and_none_is_0() {
        let meter = PowerMeter { sources: Vec::new(), unmeasured: [("cpus".into(), "none here".into())].into() };
        let report = meter.end(Ran { duration_s: 1.0, ..Ran::default() });
        assert_eq!((report.joules, report.mean_watts), (None, None));
        assert!(report.unmeasured.contains_key("joules") && report.unmeasured.contains_key("mean_watts"));
        let text = report.text();
        assert!(text.contains("n/a") && text.contains("cpus not measured: none here"), "{text}");
        assert!(report.plot().is_none());
    }

    #[test]
    fn the_text_and_the_plot_have_every_source() {
        let sources = vec![source("CPU package 0", Some(31.5)), source("GPU 0, A", None)];
        let report = Power { sources, ..Power::default() };
        let (text, plot) = (report.text(), report.plot().expect("values"));
        for name in ["CPU package 0", "GPU 0, A"] {
            assert!(text.contains(name) && plot.contains(name), "{text}\n{plot}");
        }
        assert!(text.contains("31.5") && text.contains("15.8") && text.contains("20.0"), "{text}");
    }
}
