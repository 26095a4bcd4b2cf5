//! Counters of NVIDIA GPUs, read by NVML, the library of the driver. If it is missing, the functions return the
//! reason and measure nothing else instead.

use std::{
    collections::BTreeMap,
    env,
    sync::{OnceLock, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use nvml_wrapper::{
    Device, Nvml,
    enum_wrappers::device::{Clock, TemperatureSensor},
    error::NvmlError,
};
use serde::Serialize;

use crate::{
    device::DeviceChoice,
    record::{Gpu, GpuLoad},
};

/// Initialised once, because it loads a library.
static NVML: OnceLock<Result<Nvml, String>> = OnceLock::new();

fn nvml() -> Result<&'static Nvml> {
    let nvml = NVML.get_or_init(|| Nvml::init().map_err(|error| error.to_string()));
    nvml.as_ref().map_err(|error| anyhow!("NVML is unavailable: {error}"))
}

fn with_device<T>(ordinal: usize, look: impl FnOnce(&Nvml, &Device) -> Result<T>) -> Result<T> {
    let nvml = nvml()?;
    let visible = env::var("CUDA_VISIBLE_DEVICES").ok();
    let device = match which(ordinal, visible.as_deref())? {
        Which::Index(index) => {
            nvml.device_by_index(index).with_context(|| format!("NVML does not know device {index}"))?
        }
        Which::Uuid(start) => {
            let uuids = (0..nvml.device_count()?).filter_map(|index| nvml.device_by_index(index).ok()?.uuid().ok());
            let uuid = uuids.into_iter().find(|uuid| uuid.starts_with(start));
            // An id without the prefix of a GPU may name a MIG device, which NVML finds only by its whole name.
            let named = nvml.device_by_uuid(uuid.as_deref().unwrap_or(start));
            named.with_context(|| format!("NVML does not know device {start}"))?
        }
    };
    look(nvml, &device)
}

/// How NVML identifies a device.
#[derive(Debug, PartialEq)]
enum Which<'a> {
    Index(u32),
    /// A UUID, or the start of one.
    Uuid(&'a str),
}

/// Maps CUDA's number of a device to NVML's name. CUDA counts the visible devices, NVML counts all. Both count in the
/// order of the bus if all GPUs are of one kind. Otherwise CUDA puts the fastest first, unless
/// `CUDA_DEVICE_ORDER=PCI_BUS_ID` is set, which is recommended there.
fn which(ordinal: usize, visible: Option<&str>) -> Result<Which<'_>> {
    let Some(visible) = visible else { return Ok(Which::Index(u32::try_from(ordinal)?)) };
    let name = visible.split(',').nth(ordinal).map(str::trim).filter(|name| !name.is_empty());
    let name = name.with_context(|| format!("CUDA_VISIBLE_DEVICES='{visible}' shows no device {ordinal}"))?;
    Ok(name.parse().map_or(Which::Uuid(name), Which::Index))
}

/// Describes the GPU in use for records, if it is an NVIDIA GPU.
///
/// # Errors
/// Returns an error if NVML is unavailable or does not know the device.
pub fn of(device: DeviceChoice) -> Result<Option<Gpu>> {
    let DeviceChoice::Cuda(ordinal) = device else { return Ok(None) };
    with_device(ordinal, |nvml, device| {
        Ok(Some(Gpu {
            name: device.name()?,
            driver: nvml.sys_driver_version().ok(),
            compute_capability: device
                .cuda_compute_capability()
                .ok()
                .map(|capability| format!("{}.{}", capability.major, capability.minor)),
            memory_bytes: device.memory_info().ok().map(|memory| memory.total),
        }))
    })
}

/// Names of the GPUs that CUDA shows, in its order.
///
/// # Errors
/// Returns an error if NVML is unavailable, or does not know a device that CUDA shows.
pub fn names() -> Result<Vec<String>> {
    let count = match env::var("CUDA_VISIBLE_DEVICES") {
        Ok(visible) => visible.split(',').filter(|name| !name.trim().is_empty()).count(),
        Err(_) => nvml()?.device_count()? as usize,
    };
    (0..count).map(|ordinal| with_device(ordinal, |_, device| Ok(device.name()?))).collect()
}

/// Memory of a GPU that is in use, by all processes together.
///
/// # Errors
/// Returns an error if NVML is unavailable, or does not report it.
pub fn used_bytes(ordinal: usize) -> Result<u64> {
    with_device(ordinal, |_, device| Ok(device.memory_info()?.used))
}

/// Energy that a GPU has used since its driver was loaded, in joules.
///
/// # Errors
/// Returns an error if NVML is unavailable, or the GPU has no energy counter.
pub fn energy_joules(ordinal: usize) -> Result<f64> {
    with_device(ordinal, |_, device| Ok(joules(device.total_energy_consumption()?)))
}

fn joules(millijoules: u64) -> f64 {
    millijoules as f64 / 1e3
}

fn watts(milliwatts: u32) -> f64 {
    f64::from(milliwatts) / 1e3
}

/// Power that a GPU draws now, in watts.
///
/// # Errors
/// Returns an error if NVML is unavailable, or the GPU does not report it.
pub fn power_watts(ordinal: usize) -> Result<f64> {
    with_device(ordinal, |_, device| Ok(watts(device.power_usage()?)))
}

/// Counters of a GPU at one moment. A counter that the GPU lacks is `None`, with the reason in `unmeasured`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Counters {
    /// Clock of the streaming multiprocessors.
    pub sm_mhz: Option<u32>,
    /// Their highest clock.
    pub sm_max_mhz: Option<u32>,
    /// Clock of the memory.
    pub memory_mhz: Option<u32>,
    /// Temperature of the GPU.
    pub temperature_celsius: Option<u32>,
    /// Current power.
    pub power_watts: Option<f64>,
    /// Enforced power limit.
    pub power_limit_watts: Option<f64>,
    /// Since the driver was loaded.
    pub energy_joules: Option<f64>,
    /// NVML's names of the throttling reasons, in lower case, without idleness.
    pub throttle_reasons: Option<Vec<String>>,
    /// Field → why it is `None`.
    pub unmeasured: BTreeMap<&'static str, String>,
}

impl Counters {
    /// Reads the counters.
    ///
    /// # Errors
    /// Returns an error if NVML is unavailable or does not know the device.
    pub fn sample(ordinal: usize) -> Result<Self> {
        with_device(ordinal, |_, device| {
            let mut counters = Self::default();
            counters.sm_mhz = counters.noted("sm_mhz", device.clock_info(Clock::SM));
            counters.sm_max_mhz = counters.noted("sm_max_mhz", device.max_clock_info(Clock::SM));
            counters.memory_mhz = counters.noted("memory_mhz", device.clock_info(Clock::Memory));
            counters.temperature_celsius =
                counters.noted("temperature_celsius", device.temperature(TemperatureSensor::Gpu));
            counters.power_watts = counters.noted("power_watts", device.power_usage().map(watts));
            counters.power_limit_watts = counters.noted("power_limit_watts", device.enforced_power_limit().map(watts));
            counters.energy_joules = counters.noted("energy_joules", device.total_energy_consumption().map(joules));
            counters.throttle_reasons = counters.noted(
                "throttle_reasons",
                device.current_throttle_reasons().map(|reasons| {
                    let names = reasons.iter_names().map(|(name, _)| name.to_lowercase());
                    names.filter(|name| name != "gpu_idle").collect()
                }),
            );
            Ok(counters)
        })
    }

    fn noted<T>(&mut self, field: &'static str, read: Result<T, NvmlError>) -> Option<T> {
        read.map_err(|error| self.unmeasured.insert(field, error.to_string())).ok()
    }
}

/// Samples the counters of a GPU from its start to its end, in a separate thread, because throttling ends when the
/// load ends.
pub struct Watch {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Vec<(Instant, Counters)>>,
}

impl Watch {
    const INTERVAL: Duration = Duration::from_millis(250);

    /// `None` if there is no GPU.
    pub fn start(ordinal: usize) -> Option<Self> {
        Counters::sample(ordinal).ok()?;
        let (stop, stopped) = mpsc::channel();
        let look = move || {
            let mut looks = Vec::new();
            while stopped.recv_timeout(Self::INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
                looks.extend(Counters::sample(ordinal).map(|look| (Instant::now(), look)));
            }
            looks
        };
        let thread = thread::Builder::new().name("gpu-watch".into()).spawn(look).ok()?;
        Some(Self { stop, thread })
    }

    /// Returns the load, and the moments at which the clocks were throttled. Returns `None` if the time was too short for
    /// a sample.
    pub fn end(self) -> Option<(GpuLoad, Vec<Instant>)> {
        drop(self.stop);
        let looks = self.thread.join().ok()?;
        let is_throttled = |look: &Counters| look.throttle_reasons.as_ref().is_some_and(|reasons| !reasons.is_empty());
        let throttled = looks.iter().filter(|(_, look)| is_throttled(look)).map(|(at, _)| *at).collect();
        let looks: Vec<Counters> = looks.into_iter().map(|(_, look)| look).collect();
        Some((load(&looks)?, throttled))
    }
}

fn load(looks: &[Counters]) -> Option<GpuLoad> {
    if looks.is_empty() {
        return None;
    }
    let mut clocks: Vec<u32> = looks.iter().filter_map(|look| look.sm_mhz).collect();
    clocks.sort_unstable();
    let watts: Vec<f64> = looks.iter().filter_map(|look| look.power_watts).collect();
    let mut times: BTreeMap<&String, usize> = BTreeMap::new();
    for reason in looks.iter().filter_map(|look| look.throttle_reasons.as_ref()).flatten() {
        *times.entry(reason).or_default() += 1;
    }
    let share = |(reason, times): (&String, usize)| (reason.clone(), times as f64 / looks.len() as f64);
    Some(GpuLoad {
        sm_mhz: clocks.get(clocks.len() / 2).copied(),
        power_watts: (!watts.is_empty()).then(|| watts.iter().sum::<f64>() / watts.len() as f64),
        temperature_celsius: looks.iter().filter_map(|look| look.temperature_celsius).max(),
        throttle_reasons: times.into_iter().map(share).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_what_was_seen_of_it() {
        let look = |sm_mhz, power_watts, reasons: &[&str]| Counters {
            sm_mhz,
            power_watts,
            temperature_celsius: sm_mhz.map(|mhz| mhz / 30),
            throttle_reasons: Some(reasons.iter().map(|reason| (*reason).to_owned()).collect()),
            ..Counters::default()
        };
        let looks = [
            look(Some(1980), Some(500.0), &[]),
            look(Some(1500), Some(700.0), &["sw_power_cap"]),
            look(Some(1800), None, &["sw_power_cap", "hw_slowdown"]),
            look(None, None, &[]),
        ];
        let load = load(&looks).expect("a load");
        assert_eq!((load.sm_mhz, load.power_watts, load.temperature_celsius), (Some(1800), Some(600.0), Some(66)));
        assert_eq!(load.throttle_reasons, [("hw_slowdown".into(), 0.25), ("sw_power_cap".into(), 0.5)].into());
        assert_eq!(super::load(&[]), None);
    }

    #[test]
    fn the_devices_that_cuda_shows_are_found() {
        assert_eq!(which(1, None).expect("shown"), Which::Index(1));
        assert_eq!(which(1, Some("3, 2")).expect("shown"), Which::Index(2));
        assert_eq!(which(0, Some("GPU-8932f937")).expect("shown"), Which::Uuid("GPU-8932f937"));
        for (ordinal, visible) in [(0, ""), (2, "0,1"), (1, "0,")] {
            let error = which(ordinal, Some(visible)).expect_err(visible).to_string();
            assert!(error.contains("CUDA_VISIBLE_DEVICES"), "{error}");
        }
    }

    #[test]
    fn what_is_no_gpu_of_nvidias_is_not_looked_for() {
        assert_eq!(of(DeviceChoice::Cpu).expect("nothing to fail"), None);
    }

    #[test]
    fn without_a_gpu_the_reason_is_given() {
        // On a machine that has one, the counters are there instead.
        let errors = [
            Counters::sample(0).err(),
            energy_joules(0).err(),
            power_watts(0).err(),
            used_bytes(0).err(),
            names().err(),
            of(DeviceChoice::Cuda(0)).err(),
        ];
        for error in errors.into_iter().flatten().map(|error| error.to_string()) {
            assert!(error.len() > 10 && !error.contains('\n'), "{error}");
        }
    }
}
