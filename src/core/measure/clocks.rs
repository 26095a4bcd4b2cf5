//! Clocks of the CPU as Linux reports them: governor, limits and thermal throttling. Other systems and most virtual
//! machines report nothing.

use std::{collections::BTreeSet, fs, path::Path};

use super::machine::first_line;

/// The state at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Clocks {
    /// Governors of all processors, usually one.
    pub governors: BTreeSet<String>,
    /// Current clock of the slowest processor.
    pub now_mhz: Option<u64>,
    /// The highest clock that the system allows.
    pub allowed_mhz: Option<u64>,
    /// The highest clock that the CPU supports.
    pub possible_mhz: Option<u64>,
    /// Number of times a core was throttled by heat since the machine was started.
    pub throttled: Option<u64>,
}

impl Clocks {
    /// Reads the state of this machine.
    pub fn read() -> Self {
        Self::from(Path::new("/sys/devices/system/cpu"))
    }

    /// Reads Linux's folder of processors.
    fn from(cpus: &Path) -> Self {
        let entries = fs::read_dir(cpus).into_iter().flatten().flatten();
        let cpus: Vec<_> = entries.map(|cpu| cpu.path()).filter(|cpu| cpu.join("topology").is_dir()).collect();
        let each = |file: &str| cpus.iter().filter_map(|cpu| first_line(cpu.join(file))).collect::<Vec<_>>();
        let numbers = |file: &str| each(file).iter().filter_map(|text| text.parse().ok()).collect::<Vec<u64>>();
        let mhz = |kilohertz: Option<u64>| kilohertz.map(|kilohertz| kilohertz / 1000);
        let throttled = numbers("thermal_throttle/core_throttle_count");
        Self {
            governors: each("cpufreq/scaling_governor").into_iter().collect(),
            now_mhz: mhz(numbers("cpufreq/scaling_cur_freq").into_iter().min()),
            allowed_mhz: mhz(numbers("cpufreq/scaling_max_freq").into_iter().max()),
            possible_mhz: mhz(numbers("cpufreq/cpuinfo_max_freq").into_iter().max()),
            throttled: (!throttled.is_empty()).then(|| throttled.iter().sum()),
        }
    }
}

/// Number of times a core was throttled by heat since the machine was started: the field of [`Clocks`] alone, which is
/// read around every sample.
pub fn throttled() -> Option<u64> {
    let cpus = fs::read_dir("/sys/devices/system/cpu").ok()?.flatten().map(|cpu| cpu.path());
    let counts = cpus.filter_map(|cpu| first_line(cpu.join("thermal_throttle/core_throttle_count"))?.parse().ok());
    counts.reduce(|sum: u64, count: u64| sum + count)
}

/// Returns whether the machine runs on battery; `None` if it has none or the system does not report it.
pub fn on_battery() -> Option<bool> {
    draws_on_battery(Path::new("/sys/class/power_supply"))
}

fn draws_on_battery(supplies: &Path) -> Option<bool> {
    let supplies = fs::read_dir(supplies).ok()?.flatten();
    let batteries: Vec<_> = supplies
        .map(|supply| supply.path())
        // Peripherals such as a mouse have batteries too.
        .filter(|supply| first_line(supply.join("type")).is_some_and(|kind| kind == "Battery"))
        .filter(|supply| first_line(supply.join("scope")).is_none_or(|scope| scope != "Device"))
        .filter_map(|supply| first_line(supply.join("status")))
        .collect();
    (!batteries.is_empty()).then(|| batteries.iter().any(|status| status == "Discharging"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates a folder with these files.
    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (file, text) in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().expect("it has one")).expect("made");
            fs::write(path, format!("{text}\n")).expect("written");
        }
        folder
    }

    #[test]
    fn every_processor_is_looked_at() {
        let cpus = folder(&[
            ("cpu0/topology/core_id", "0"),
            ("cpu0/cpufreq/scaling_governor", "performance"),
            ("cpu0/cpufreq/scaling_cur_freq", "3400000"),
            ("cpu0/cpufreq/scaling_max_freq", "4000000"),
            ("cpu0/cpufreq/cpuinfo_max_freq", "5000000"),
            ("cpu0/thermal_throttle/core_throttle_count", "3"),
            ("cpu1/topology/core_id", "1"),
            ("cpu1/cpufreq/scaling_governor", "powersave"),
            ("cpu1/cpufreq/scaling_cur_freq", "1200000"),
            ("cpu1/cpufreq/scaling_max_freq", "3900000"),
            ("cpu1/cpufreq/cpuinfo_max_freq", "4900000"),
            ("cpu1/thermal_throttle/core_throttle_count", "4"),
            ("cpuidle/current_driver", "none"),
        ]);
        let clocks = Clocks::from(cpus.path());
        assert_eq!(clocks.governors, ["performance", "powersave"].map(String::from).into());
        assert_eq!((clocks.now_mhz, clocks.allowed_mhz, clocks.possible_mhz), (Some(1200), Some(4000), Some(5000)));
        assert_eq!(clocks.throttled, Some(7));
    }

    #[test]
    fn what_the_system_does_not_say_is_not_known() {
        assert_eq!(Clocks::from(folder(&[("cpu0/topology/core_id", "0")]).path()), Clocks::default());
        assert_eq!(Clocks::from(Path::new("no/such/folder")), Clocks::default());
    }

    #[test]
    fn a_battery_is_told_from_a_mouse() {
        let on = |files: &[(&str, &str)]| draws_on_battery(folder(files).path());
        assert_eq!(on(&[("BAT0/type", "Battery"), ("BAT0/status", "Discharging")]), Some(true));
        assert_eq!(on(&[("BAT0/type", "Battery"), ("BAT0/status", "Full"), ("AC/type", "Mains")]), Some(false));
        let mouse = [("hid/type", "Battery"), ("hid/status", "Discharging"), ("hid/scope", "Device")];
        assert_eq!(on(&mouse), None);
    }
}
