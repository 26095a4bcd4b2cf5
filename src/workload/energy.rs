//! Energy of iterations, where the device counts it: a GPU by NVML, and the CPU packages with their memory by RAPL.

use anyhow::Result;

use crate::{
    device::DeviceChoice,
    error::one_line,
    measure::{gpu, pauses, rapl},
};

/// Energy of iterations.
pub struct Energy {
    counter: Result<Counter, String>,
    joules: Vec<f64>,
    /// Why the energy of an iteration is unknown.
    unknown: Option<String>,
}

enum Counter {
    /// Number of the GPU.
    Gpu(usize),
    Cpu(Vec<rapl::Zone>),
}

impl Energy {
    /// Nothing yet.
    pub fn of(device: DeviceChoice) -> Self {
        let counter = match device {
            DeviceChoice::Cuda(ordinal) => Ok(Counter::Gpu(ordinal)),
            DeviceChoice::Cpu => reason(rapl::zones()).map(Counter::Cpu),
            DeviceChoice::Metal => Err(format!("energy is not measured on {device}")),
        };
        Self { counter, joules: Vec::new(), unknown: None }
    }

    /// Returns whether a counter shows the energy. It also counts everything else that runs on the device.
    pub fn is_counted(&self) -> bool {
        self.counter.is_ok()
    }

    fn counted(&mut self) -> Result<f64, String> {
        match &mut self.counter {
            // An observation takes no pauses where energy is counted.
            Ok(_) if pauses::is_used() => Err("the counter also counts the other side of the duel".into()),
            Ok(Counter::Gpu(ordinal)) => reason(gpu::energy_joules(*ordinal)),
            Ok(Counter::Cpu(zones)) => reason(zones.iter_mut().map(rapl::Zone::joules).sum()),
            Err(why) => Err(why.clone()),
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
            (Err(why), _) | (_, Err(why)) => self.unknown = Some(why),
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
        let mean = self.joules.iter().sum::<f64>() / self.joules.len() as f64;
        match (self.joules.is_empty(), &self.unknown) {
            (false, _) if mean > 0.0 => Ok(mean),
            (false, _) => Err("the counter did not move: the iterations were too short"),
            (true, Some(why)) => Err(why),
            (true, None) => Err("nothing was run"),
        }
    }
}

fn reason<T>(read: Result<T>) -> Result<T, String> {
    read.map_err(|error| one_line(&format!("{error:#}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn energy_is_a_mean_or_has_a_reason_and_is_never_0() {
        let energy =
            |joules: &[f64]| Energy { counter: Err("no counter".into()), joules: joules.to_vec(), unknown: None };
        assert_eq!(energy(&[2.0, 4.0]).mean_joules(), Ok(3.0));
        assert!(energy(&[0.0, 0.0]).mean_joules().expect_err("too short").contains("did not move"));
        let mut unknown = energy(&[]);
        assert_eq!(unknown.mean_joules(), Err("nothing was run"));
        unknown.over(|| Ok(())).expect("it ran");
        assert_eq!(unknown.mean_joules(), Err("no counter"));
    }

    #[test]
    fn an_idle_cpu_has_energy_where_the_kernel_counts_it() {
        let mut energy = Energy::of(DeviceChoice::Cpu);
        let sleep = || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            Ok(())
        };
        energy.over(sleep).expect("it ran");
        match (rapl::zones(), energy.mean_joules()) {
            (Ok(_), Ok(joules)) => assert!(joules > 0.0 && joules < 1e3, "{joules} J"),
            // A virtual machine may have counters that stand still.
            (Ok(_), Err(why)) => assert!(why.contains("did not move"), "{why}"),
            (Err(error), why) => assert_eq!(why, Err(one_line(&format!("{error:#}")).as_str())),
        }
    }
}
