//! Energy of iterations, where the device counts it.

use anyhow::{Result, anyhow};

use crate::{device::DeviceChoice, measure::gpu};

/// Energy of iterations.
pub struct Energy {
    device: DeviceChoice,
    joules: Vec<f64>,
    /// Why the energy of an iteration is unknown.
    unknown: Option<String>,
}

impl Energy {
    /// Nothing yet.
    pub fn of(device: DeviceChoice) -> Self {
        Self { device, joules: Vec::new(), unknown: None }
    }

    fn counted(&self) -> Result<f64> {
        match self.device {
            DeviceChoice::Cuda(ordinal) => gpu::energy_joules(ordinal),
            DeviceChoice::Cpu | DeviceChoice::Metal => Err(anyhow!("energy is not measured on {}", self.device)),
        }
    }

    /// Runs one iteration.
    ///
    /// # Errors
    /// As `iteration`. An iteration that fails is not counted.
    pub fn over<T>(&mut self, iteration: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = self.counted();
        let done = iteration()?;
        match (before, self.counted()) {
            (Ok(before), Ok(after)) => self.joules.push(after - before),
            (Err(error), _) | (_, Err(error)) => self.unknown = Some(format!("{error:#}")),
        }
        Ok(done)
    }

    /// Energy of each iteration.
    pub fn iterations(&mut self) -> &mut Vec<f64> {
        &mut self.joules
    }

    /// Mean energy of an iteration.
    ///
    /// # Errors
    /// Returns the reason if it is unknown.
    pub fn mean_joules(&self) -> Result<f64, &str> {
        match (self.joules.is_empty(), &self.unknown) {
            (false, _) => Ok(self.joules.iter().sum::<f64>() / self.joules.len() as f64),
            (true, Some(reason)) => Err(reason),
            (true, None) => Err("nothing was run"),
        }
    }
}
