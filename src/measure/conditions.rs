//! Conditions of a benchmark: how busy the machine was. A benchmark on a busy machine also measures other processes,
//! and its record says so.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::gpu;
use crate::{
    device::DeviceChoice,
    record::{Conditions, GpuLoad},
};

/// Shares of the machine's CPU time above which a result is doubtful. 5 % of two cores is a tenth of one core, the
/// size of a small regression. A hypervisor that takes a visible share takes it unevenly.
const OTHERS: f64 = 0.05;
const STOLEN: f64 = 0.02;

/// Shorter benchmarks report nothing: the kernel counts in ticks of ten milliseconds, and one tick more or less on
/// each core must not exceed [`OTHERS`].
const ENOUGH: Duration = Duration::from_millis(500);

/// Observes the machine from its start to its end.
pub struct Watch {
    at: Instant,
    /// Other processes that belong to the benchmark.
    helpers: Vec<u32>,
    started: Option<Ticks>,
    gpu: Option<gpu::Watch>,
}

/// CPU time so far, in the kernel's clock ticks, over all cores.
#[derive(Clone, Copy)]
struct Ticks {
    total: u64,
    busy: u64,
    stolen: u64,
    own: u64,
}

impl Watch {
    /// Starts observing for a benchmark on this device.
    pub fn start(device: DeviceChoice) -> Self {
        let gpu = match device {
            DeviceChoice::Cuda(ordinal) => gpu::Watch::start(ordinal),
            DeviceChoice::Cpu | DeviceChoice::Metal => None,
        };
        Self { at: Instant::now(), helpers: Vec::new(), started: ticks(&[]), gpu }
    }

    /// Starts observing a benchmark that runs in these processes on a CPU.
    pub fn start_for(processes: Vec<u32>) -> Self {
        Self { at: Instant::now(), started: ticks(&processes), helpers: processes, gpu: None }
    }

    /// Ends the observation.
    pub fn end(self) -> Conditions {
        let conditions = match (self.started, ticks(&self.helpers)) {
            (Some(started), Some(ended)) => judge(self.at.elapsed(), started, ended),
            _ => UNKNOWN,
        };
        conditions.with_gpu(self.gpu.and_then(gpu::Watch::end))
    }
}

impl Conditions {
    /// The same conditions with the load of a GPU.
    pub(crate) fn with_gpu(mut self, gpu: Option<GpuLoad>) -> Self {
        self.doubts.extend(gpu.iter().flat_map(held_back));
        self.gpu = gpu;
        self
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

const UNKNOWN: Conditions = Conditions { other_cpu_share: None, stolen_cpu_share: None, gpu: None, doubts: Vec::new() };

fn judge(elapsed: Duration, started: Ticks, ended: Ticks) -> Conditions {
    if elapsed < ENOUGH {
        return UNKNOWN;
    }
    let total = ended.total.saturating_sub(started.total).max(1) as f64;
    let busy = ended.busy.saturating_sub(started.busy) as f64;
    let own = ended.own.saturating_sub(started.own) as f64;
    let stolen = ended.stolen.saturating_sub(started.stolen) as f64 / total;
    let others = (busy - own).max(0.0) / total;
    let mut doubts = Vec::new();
    if others > OTHERS {
        doubts.push(format!("other processes took {:.0} % of the CPU time", others * 100.0));
    }
    if stolen > STOLEN {
        doubts.push(format!("the hypervisor gave other guests {:.0} % of the CPU time", stolen * 100.0));
    }
    Conditions { other_cpu_share: Some(others), stolen_cpu_share: Some(stolen), gpu: None, doubts }
}

/// Reads Linux's /proc; `None` elsewhere. The time of this process and of `helpers` is `own`.
fn ticks(helpers: &[u32]) -> Option<Ticks> {
    let mut ticks = parse(&fs::read_to_string("/proc/stat").ok()?, &fs::read_to_string("/proc/self/stat").ok()?)?;
    for process in helpers {
        ticks.own += own_ticks(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)?;
    }
    Some(ticks)
}

fn parse(stat: &str, own: &str) -> Option<Ticks> {
    let cpu = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = cpu.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let &[user, nice, system, idle, iowait, irq, softirq, stolen, ..] = fields.as_slice() else { return None };
    let busy = user + nice + system + irq + softirq;
    Some(Ticks { total: busy + idle + iowait + stolen, busy, stolen, own: own_ticks(own)? })
}

/// CPU time of a process.
fn own_ticks(stat: &str) -> Option<u64> {
    // The name, in parentheses, can contain any characters. The state is the first field after it.
    let (_, after_name) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let (utime, stime): (u64, u64) = (fields.get(11)?.parse().ok()?, fields.get(12)?.parse().ok()?);
    Some(utime + stime)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_kernels_files_are_read() {
        let stat = "cpu  100 10 50 1000 40 5 5 30 0 0\ncpu0 1 2 3";
        let own = "4242 (a (strange) name) R 1 2 3 4 5 6 7 8 9 10 70 20 0 0 20 0 2 0 5";
        let ticks = parse(stat, own).expect("both are well formed");
        assert_eq!((ticks.total, ticks.busy, ticks.stolen, ticks.own), (1240, 170, 30, 90));
        assert!(parse("intr 5", own).is_none());
    }

    #[test]
    fn a_busy_machine_is_doubted() {
        let started = Ticks { total: 0, busy: 0, stolen: 0, own: 0 };
        let quiet = judge(SECOND, started, Ticks { total: 1000, busy: 510, stolen: 1, own: 500 });
        assert_eq!(quiet.other_cpu_share, Some(0.01));
        assert!(quiet.doubts.is_empty());
        let busy = judge(SECOND, started, Ticks { total: 1000, busy: 800, stolen: 50, own: 500 });
        assert_eq!(busy.doubts.len(), 2, "{:?}", busy.doubts);
        assert!(busy.doubts[0].contains("30 %"));
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
        let started = Ticks { total: 0, busy: 0, stolen: 0, own: 0 };
        let ended = Ticks { total: 4, busy: 4, stolen: 0, own: 2 };
        assert_eq!(judge(Duration::from_millis(20), started, ended), UNKNOWN);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_is_seen_to_work() {
        let watch = Watch::start(DeviceChoice::Cpu);
        let started = std::time::Instant::now();
        while started.elapsed().as_millis() < 100 {
            std::hint::spin_loop();
        }
        let own = |ticks: Option<Ticks>| ticks.expect("Linux has /proc").own;
        assert!(own(ticks(&[])) > own(watch.started));
        let once = own(ticks(&[]));
        assert!(own(ticks(&[std::process::id()])) >= 2 * once, "the time of a helper counts too");
    }
}
