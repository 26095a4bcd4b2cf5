//! What NVML, the library that comes with NVIDIA's driver, knows of a GPU. Where it is missing, the reason is returned
//! and nothing is measured in its place.

use std::{collections::BTreeMap, env, sync::OnceLock};

use anyhow::{Context, Result, anyhow};
use nvml_wrapper::{
    Device, Nvml,
    enum_wrappers::device::{Clock, TemperatureSensor},
    error::NvmlError,
};
use serde::Serialize;

use crate::{record::Gpu, subject::DeviceChoice};

/// Started once: it loads a library.
static NVML: OnceLock<Result<Nvml, String>> = OnceLock::new();

fn with_device<T>(ordinal: usize, look: impl FnOnce(&Nvml, &Device) -> Result<T>) -> Result<T> {
    let nvml = NVML.get_or_init(|| Nvml::init().map_err(|error| error.to_string()));
    let nvml = nvml.as_ref().map_err(|error| anyhow!("NVML is not to be had: {error}"))?;
    let visible = env::var("CUDA_VISIBLE_DEVICES").ok();
    let device = match which(ordinal, visible.as_deref())? {
        Which::Index(index) => nvml.device_by_index(index)?,
        Which::Uuid(start) => {
            let uuids = (0..nvml.device_count()?).filter_map(|index| nvml.device_by_index(index).ok()?.uuid().ok());
            let uuid = uuids.into_iter().find(|uuid| uuid.starts_with(start));
            // What is no GPU may be a slice of one, which NVML finds by its whole name only.
            nvml.device_by_uuid(uuid.as_deref().unwrap_or(start))?
        }
    };
    look(nvml, &device)
}

/// How NVML names a device.
#[derive(Debug, PartialEq)]
enum Which<'a> {
    Index(u32),
    /// A UUID, or the start of one.
    Uuid(&'a str),
}

/// CUDA counts the devices that it is shown, NVML counts all. Both count along the bus where the GPUs are of one kind;
/// where they are not, CUDA has the fastest first unless `CUDA_DEVICE_ORDER=PCI_BUS_ID` is set, as it should be there.
fn which(ordinal: usize, visible: Option<&str>) -> Result<Which<'_>> {
    let Some(visible) = visible else { return Ok(Which::Index(u32::try_from(ordinal)?)) };
    let name = visible.split(',').nth(ordinal).map(str::trim).filter(|name| !name.is_empty());
    let name = name.with_context(|| format!("CUDA_VISIBLE_DEVICES='{visible}' shows no device {ordinal}"))?;
    Ok(name.parse().map_or(Which::Uuid(name), Which::Index))
}

/// What a record says of the GPU that is used, if that is one of NVIDIA's.
///
/// # Errors
/// When NVML is missing or does not know the device.
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

/// Energy that a GPU has drawn since its driver was loaded, in joules.
///
/// # Errors
/// When NVML is missing, or the GPU does not count its energy.
pub fn energy_joules(ordinal: usize) -> Result<f64> {
    with_device(ordinal, |_, device| Ok(joules(device.total_energy_consumption()?)))
}

fn joules(millijoules: u64) -> f64 {
    millijoules as f64 / 1e3
}

fn watts(milliwatts: u32) -> f64 {
    f64::from(milliwatts) / 1e3
}

/// A GPU's counters at one moment. What a GPU does not count is `None`, and `unmeasured` says why.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Counters {
    pub sm_mhz: Option<u32>,
    pub sm_max_mhz: Option<u32>,
    pub memory_mhz: Option<u32>,
    pub temperature_celsius: Option<u32>,
    pub power_watts: Option<f64>,
    pub power_limit_watts: Option<f64>,
    /// Since the driver was loaded.
    pub energy_joules: Option<f64>,
    /// NVML's names of what holds the clocks back, in lower case. Having nothing to do is not among them.
    pub throttle_reasons: Option<Vec<String>>,
    /// Field → why it is `None`.
    pub unmeasured: BTreeMap<&'static str, String>,
}

impl Counters {
    /// Reads them.
    ///
    /// # Errors
    /// When NVML is missing or does not know the device.
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let errors = [Counters::sample(0).err(), energy_joules(0).err(), of(DeviceChoice::Cuda(0)).err()];
        for error in errors.into_iter().flatten().map(|error| error.to_string()) {
            assert!(error.len() > 10 && !error.contains('\n'), "{error}");
        }
    }
}
