//! Conditions of a benchmark: how busy the machine was. A benchmark on a busy machine also measures other processes,
//! and its record says so.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use super::{clocks, cpu_time, gpu, processes};
use crate::{
    device::DeviceChoice,
    record::{Conditions, GpuLoad, HeldBack, Hindrance},
};

/// Share of the machine's CPU time that other processes and other guests of a hypervisor may take together. A result with more is
/// doubtful. The guide's chapter on methodology has the runs that gave it.
const TAKEN: f64 = 0.08;

/// Ticks of each core by which the kernel's counts may be off between two moments. A sample is held back only if more are
/// missing, so in a sample of a tenth of a second others must have taken a quarter of the CPU time.
const UNCERTAIN_TICKS: u64 = 2;

/// Shorter benchmarks report nothing: the kernel counts in ticks of ten milliseconds, and one tick more or less on
/// each core must not exceed [`TAKEN`].
const ENOUGH: Duration = Duration::from_millis(500);

/// Observes the machine from its start to its end.
pub struct Watch {
    /// Other processes that belong to the benchmark.
    helpers: Vec<u32>,
    started: Moment,
    gpu: Option<gpu::Watch>,
}

/// The counters of the machine at one moment.
#[derive(Clone, Debug)]
pub struct Moment {
    at: Instant,
    ticks: Option<Ticks>,
    throttled: Option<u64>,
}

impl Moment {
    /// Reads the counters of a benchmark in this process.
    pub fn now() -> Self {
        Self::with(&[])
    }

    /// Reads the counters. The CPU time of `helpers` counts as this process's.
    fn with(helpers: &[u32]) -> Self {
        Self { at: Instant::now(), ticks: ticks(helpers), throttled: clocks::throttled() }
    }

    /// Causes that held the CPU back from this moment to a later one.
    fn hindrances_until(&self, end: &Self) -> BTreeSet<Hindrance> {
        let mut found = BTreeSet::new();
        if let (Some(started), Some(ended)) = (self.ticks, end.ticks) {
            let spent = started.until(ended);
            let uncertain = (UNCERTAIN_TICKS * ended.cores) as f64;
            let exceeds = |ticks: u64| ticks as f64 > TAKEN * spent.total as f64 + uncertain;
            if exceeds(spent.others()) {
                found.insert(Hindrance::OtherProcesses);
            }
            if exceeds(spent.stolen) {
                found.insert(Hindrance::Hypervisor);
            }
        }
        if self.throttled.zip(end.throttled).is_some_and(|(before, after)| after > before) {
            found.insert(Hindrance::Clocks);
        }
        found
    }
}

/// The time of one sample.
#[derive(Clone, Debug)]
pub struct Window {
    /// Just before the sample.
    pub from: Moment,
    /// Just after it.
    pub to: Moment,
}

/// CPU time so far, in the kernel's clock ticks, over all cores.
#[derive(Clone, Copy, Debug)]
struct Ticks {
    total: u64,
    busy: u64,
    stolen: u64,
    own: u64,
    cores: u64,
}

impl Ticks {
    fn until(self, end: Self) -> Self {
        Self {
            total: end.total.saturating_sub(self.total),
            busy: end.busy.saturating_sub(self.busy),
            stolen: end.stolen.saturating_sub(self.stolen),
            own: end.own.saturating_sub(self.own),
            cores: end.cores,
        }
    }

    /// Ticks of other processes.
    fn others(self) -> u64 {
        self.busy.saturating_sub(self.own)
    }
}

impl Watch {
    /// Starts observing for a benchmark on this device. The CPU time of the processes `helpers` counts as the benchmark's.
    pub fn start(device: DeviceChoice, helpers: Vec<u32>) -> Self {
        let gpu = match device {
            DeviceChoice::Cuda(ordinal) => gpu::Watch::start(ordinal),
            DeviceChoice::Cpu | DeviceChoice::Metal => None,
        };
        Self { started: Moment::with(&helpers), helpers, gpu }
    }

    /// Runs a sample, and reads the counters around it. Reading takes some tens of microseconds.
    pub fn around<T>(&self, run: impl FnOnce() -> T) -> (T, Window) {
        let from = self.moment();
        let done = run();
        (done, Window { from, to: self.moment() })
    }

    fn moment(&self) -> Moment {
        Moment::with(&self.helpers)
    }

    /// Ends the observation.
    pub fn end(self) -> Seen {
        let conditions = judge(&self.started, &self.moment(), || {
            processes::strays().into_iter().filter(|id| !self.helpers.contains(id)).collect()
        });
        let (load, throttled) = self.gpu.and_then(gpu::Watch::end).unzip();
        Seen { conditions: conditions.with_gpu(load), throttled: throttled.unwrap_or_default() }
    }
}

impl Conditions {
    /// The same conditions with the load of a GPU.
    pub fn with_gpu(mut self, gpu: Option<GpuLoad>) -> Self {
        self.doubts.extend(gpu.iter().flat_map(held_back));
        self.gpu = gpu;
        self
    }
}

/// The result of an observation.
pub struct Seen {
    /// The conditions of the whole time, without marks of samples.
    pub conditions: Conditions,
    /// Moments at which a GPU's clocks were throttled.
    throttled: Vec<Instant>,
}

impl Seen {
    /// The conditions of a benchmark whose samples were taken in these windows, in order.
    pub fn of(&self, samples: &[Window]) -> Conditions {
        let held_back = samples.iter().enumerate().filter_map(|(sample, Window { from, to })| {
            let mut by = from.hindrances_until(to);
            if self.throttled.iter().any(|at| (from.at..=to.at).contains(at)) {
                by.insert(Hindrance::Clocks);
            }
            (!by.is_empty()).then_some(HeldBack { sample, by })
        });
        Conditions { held_back: held_back.collect(), ..self.conditions.clone() }
    }
}

/// A GPU is doubtful if its clocks were throttled in more than this share of the samples.
const HELD_BACK: f64 = 0.1;

fn held_back(load: &GpuLoad) -> Vec<String> {
    let often = load.throttle_reasons.iter().filter(|(_, share)| **share > HELD_BACK);
    often
        .map(|(reason, share)| format!("{reason} throttled the GPU's clocks {:.0} % of the time", share * 100.0))
        .collect()
}

fn judge(started: &Moment, ended: &Moment, strays: impl FnOnce() -> Vec<u32>) -> Conditions {
    let (Some(before), Some(after)) = (started.ticks, ended.ticks) else { return Conditions::default() };
    if ended.at.duration_since(started.at) < ENOUGH {
        return Conditions::default();
    }
    let spent = before.until(after);
    let share = |ticks: u64| ticks as f64 / spent.total.max(1) as f64;
    let (others, stolen) = (share(spent.others()), share(spent.stolen));
    let mut doubts = Vec::new();
    // One of the two has at least half of what is too much.
    let is_cause = |share: f64| others + stolen > TAKEN && share > TAKEN / 2.0;
    if is_cause(others) {
        doubts.push(format!("other processes took {:.0} % of the CPU time{}", others * 100.0, also_runs(&strays())));
    }
    if is_cause(stolen) {
        doubts.push(format!("the hypervisor gave other guests {:.0} % of the CPU time", stolen * 100.0));
    }
    Conditions { other_cpu_share: Some(others), stolen_cpu_share: Some(stolen), doubts, ..Conditions::default() }
}

/// The clause about processes of candlepower that run beside a benchmark.
fn also_runs(strays: &[u32]) -> String {
    let ids = strays.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    if ids.is_empty() { ids } else { format!(", and candlepower also runs, as process {ids}") }
}

/// Reads Linux's /proc; `None` elsewhere. The time of this process and of `helpers` is `own`.
fn ticks(helpers: &[u32]) -> Option<Ticks> {
    let mut ticks = parse(&fs::read_to_string("/proc/stat").ok()?, &fs::read_to_string("/proc/self/stat").ok()?)?;
    let of_helper = |process: &u32| own_ticks(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?);
    ticks.own += helpers.iter().filter_map(of_helper).sum::<u64>();
    Some(ticks)
}

fn parse(stat: &str, own: &str) -> Option<Ticks> {
    let cpu = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = cpu.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let &[user, nice, system, idle, iowait, irq, softirq, stolen, ..] = fields.as_slice() else { return None };
    let busy = user + nice + system + irq + softirq;
    let is_core =
        |line: &&str| line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let cores = stat.lines().filter(is_core).count() as u64;
    Some(Ticks { total: busy + idle + iowait + stolen, busy, stolen, own: own_ticks(own)?, cores })
}

/// CPU time of a process, and of the processes that it started and that have ended.
fn own_ticks(stat: &str) -> Option<u64> {
    Some(cpu_time::counts(stat)?.into_iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The moment `ms` after a fixed one, on two cores.
    fn moment(ms: u64, total: u64, busy: u64, own: u64, stolen: u64) -> Moment {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        let at = *START.get_or_init(Instant::now) + Duration::from_millis(ms);
        Moment { at, ticks: Some(Ticks { total, busy, stolen, own, cores: 2 }), throttled: Some(0) }
    }

    #[test]
    fn the_kernels_files_are_read() {
        let stat = "cpu  100 10 50 1000 40 5 5 30 0 0\ncpu0 1 2 3";
        let own = "4242 (a (strange) name) R 1 2 3 4 5 6 7 8 9 10 70 20 0 0 20 0 2 0 5";
        let ticks = parse(stat, own).expect("both are well formed");
        assert_eq!((ticks.total, ticks.busy, ticks.stolen, ticks.own, ticks.cores), (1240, 170, 30, 90, 1));
        assert!(parse("intr 5", own).is_none());
    }

    #[test]
    fn a_busy_machine_is_doubted() {
        let started = moment(0, 0, 0, 0, 0);
        let quiet = judge(&started, &moment(1000, 1000, 510, 500, 1), || vec![7]);
        assert_eq!(quiet.other_cpu_share, Some(0.01));
        assert!(quiet.doubts.is_empty());
        let busy = judge(&started, &moment(1000, 1000, 800, 500, 50), || vec![7, 9]);
        assert_eq!(busy.doubts.len(), 2, "{:?}", busy.doubts);
        // The percentages of other processes and of other guests, and the doubts.
        for (others, stolen, doubts) in [(8, 0, 0), (0, 8, 0), (4, 4, 0), (9, 0, 1), (0, 9, 1), (3, 6, 1), (5, 5, 2)] {
            let busy = judge(&started, &moment(1000, 1000, 500 + 10 * others, 500, 10 * stolen), Vec::new);
            assert_eq!(busy.doubts.len(), doubts, "{others} % and {stolen} %: {:?}", busy.doubts);
        }
        assert_eq!(
            busy.doubts[0],
            "other processes took 30 % of the CPU time, and candlepower also runs, as process 7, 9"
        );
    }

    #[test]
    fn a_gpu_that_is_held_back_is_doubted() {
        let load = GpuLoad {
            sm_mhz: Some(1200),
            power_watts: None,
            temperature_celsius: None,
            throttle_reasons: [("sw_power_cap".into(), 0.45), ("hw_slowdown".into(), 0.05)].into(),
        };
        assert_eq!(held_back(&load), ["sw_power_cap throttled the GPU's clocks 45 % of the time"]);
    }

    #[test]
    fn a_moment_is_not_judged() {
        assert_eq!(judge(&moment(0, 0, 0, 0, 0), &moment(20, 4, 4, 2, 0), Vec::new), Conditions::default());
    }

    #[test]
    fn samples_are_marked_one_by_one() {
        let window = |from, to| Window { from, to };
        let mut throttled = moment(700, 240, 140, 140, 0);
        throttled.throttled = Some(1);
        let samples = [
            // A quiet sample, one with another process on half of a core, one that lost time to another guest.
            window(moment(0, 0, 0, 0, 0), moment(200, 40, 42, 40, 0)),
            window(moment(200, 40, 42, 40, 0), moment(400, 80, 92, 80, 0)),
            window(moment(400, 80, 92, 80, 0), moment(600, 120, 112, 100, 20)),
            // Five milliseconds are too short to be judged.
            window(moment(600, 120, 112, 100, 20), moment(605, 121, 114, 101, 20)),
            window(moment(605, 230, 140, 140, 0), throttled),
        ];
        let gpu = moment(100, 0, 0, 0, 0).at;
        let seen = |throttled| Seen { conditions: Conditions::default(), throttled };
        let marks = |seen: Seen| {
            let marked = seen.of(&samples).held_back.into_iter();
            marked.map(|held| (held.sample, held.by.into_iter().collect::<Vec<_>>())).collect::<Vec<_>>()
        };
        let by_cpu =
            [(1, vec![Hindrance::OtherProcesses]), (2, vec![Hindrance::Hypervisor]), (4, vec![Hindrance::Clocks])];
        assert_eq!(marks(seen(Vec::new())), by_cpu);
        assert_eq!(marks(seen(vec![gpu]))[0], (0, vec![Hindrance::Clocks]));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_is_seen_to_work() {
        let watch = Watch::start(DeviceChoice::Cpu, Vec::new());
        let started = std::time::Instant::now();
        while started.elapsed().as_millis() < 100 {
            std::hint::spin_loop();
        }
        let own = |ticks: Option<Ticks>| ticks.expect("Linux has /proc").own;
        assert!(own(ticks(&[])) > own(watch.started.ticks));
        let once = own(ticks(&[]));
        assert!(own(ticks(&[std::process::id()])) >= 2 * once, "the time of a helper counts too");
    }
}
