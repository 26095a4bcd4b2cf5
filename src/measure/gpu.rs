//! What NVML, the library that comes with NVIDIA's driver, knows of a GPU. Where it is missing, the reason is returned
//! and nothing is measured in its place.

use std::sync::OnceLock;

use anyhow::{Result, anyhow};
use nvml_wrapper::{Device, Nvml, enum_wrappers::device::Clock};

use crate::record::Gpu;

/// Started once: it loads a library.
static NVML: OnceLock<Result<Nvml, String>> = OnceLock::new();

fn with_device<T>(ordinal: usize, look: impl FnOnce(&Nvml, &Device) -> Result<T>) -> Result<T> {
    let nvml = NVML.get_or_init(|| Nvml::init().map_err(|error| error.to_string()));
    let nvml = nvml.as_ref().map_err(|error| anyhow!("NVML is not to be had: {error}"))?;
    look(nvml, &nvml.device_by_index(ordinal as u32)?)
}

/// What a record says of a GPU.
///
/// # Errors
/// When NVML is missing or does not know the device.
pub fn describe(ordinal: usize) -> Result<Gpu> {
    with_device(ordinal, |nvml, device| {
        Ok(Gpu {
            name: device.name()?,
            driver: nvml.sys_driver_version().ok(),
            compute_capability: device
                .cuda_compute_capability()
                .ok()
                .map(|capability| format!("{}.{}", capability.major, capability.minor)),
            memory_bytes: device.memory_info().ok().map(|memory| memory.total),
        })
    })
}

/// Energy that a GPU has drawn since its driver was loaded, in joules.
///
/// # Errors
/// When NVML is missing, or the GPU does not count its energy.
pub fn energy_joules(ordinal: usize) -> Result<f64> {
    with_device(ordinal, |_, device| Ok(device.total_energy_consumption()? as f64 / 1e3))
}

/// Clocks in MHz and what holds them back.
#[derive(Clone, Debug)]
pub struct Clocks {
    pub sm_mhz: u32,
    pub sm_max_mhz: u32,
    /// NVML's names of the reasons, without "idle".
    pub throttle_reasons: Vec<String>,
}

/// The clocks now.
///
/// # Errors
/// When NVML is missing.
pub fn clocks(ordinal: usize) -> Result<Clocks> {
    with_device(ordinal, |_, device| {
        Ok(Clocks {
            sm_mhz: device.clock_info(Clock::SM)?,
            sm_max_mhz: device.max_clock_info(Clock::SM)?,
            throttle_reasons: device
                .current_throttle_reasons()?
                .iter_names()
                .map(|(name, _)| name.to_lowercase())
                .filter(|name| name != "gpu_idle")
                .collect(),
        })
    })
}
