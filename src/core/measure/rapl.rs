//! Energy counters of CPUs (RAPL), as Linux exposes them in `/sys/class/powercap`. Most virtual machines expose none.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

use super::machine::first_line;

/// The counter of a CPU package or of the memory that belongs to it. The two do not overlap.
pub struct Zone {
    name: String,
    counter: PathBuf,
    /// The counter starts again at 0 after this value.
    range_uj: u64,
    last_uj: u64,
    joules: f64,
}

/// The counters of this machine. They count from now on.
///
/// # Errors
/// Returns the reason if there are none, or if they cannot be read.
pub fn zones() -> Result<Vec<Zone>> {
    zones_of(Path::new("/sys/class/powercap"))
}

fn zones_of(powercap: &Path) -> Result<Vec<Zone>> {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(powercap).into_iter().flatten().flatten().map(|zone| zone.path()).collect();
    folders.sort();
    let mut zones = Vec::new();
    for folder in &folders {
        // `intel-rapl:0` is a package, also of AMD. `intel-rapl:0:1` is a part of it. Memory is beside the package.
        let id = folder.file_name().unwrap_or_default().to_string_lossy();
        let Some(place) = id.strip_prefix("intel-rapl:") else { continue };
        let package = place.split(':').next().unwrap_or(place);
        let name = match first_line(folder.join("name")).as_deref() {
            Some(name) if name.starts_with("package") => format!("CPU package {package}"),
            Some("dram") => format!("memory of CPU package {package}"),
            _ => continue,
        };
        zones.push(Zone::open(name, folder)?);
    }
    ensure!(!zones.is_empty(), "the kernel exposes no RAPL counter in {}", powercap.display());
    Ok(zones)
}

impl Zone {
    fn open(name: String, folder: &Path) -> Result<Self> {
        let counter = folder.join("energy_uj");
        let last_uj = number(&counter)?;
        let range_uj = number(&folder.join("max_energy_range_uj"))?;
        Ok(Self { name, counter, range_uj, last_uj, joules: 0.0 })
    }

    /// Name for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Joules since the zone was opened. Read it more often than the counter starts again, which takes minutes.
    ///
    /// # Errors
    /// Returns an error if the counter cannot be read.
    pub fn joules(&mut self) -> Result<f64> {
        let now_uj = number(&self.counter)?;
        let passed = match now_uj.checked_sub(self.last_uj) {
            Some(passed) => passed,
            None => self.range_uj.saturating_sub(self.last_uj).saturating_add(now_uj),
        };
        self.last_uj = now_uj;
        self.joules += passed as f64 / 1e6;
        Ok(self.joules)
    }
}

fn number(file: &Path) -> Result<u64> {
    match fs::read_to_string(file) {
        Ok(text) => text.trim().parse().with_context(|| format!("{} is not a number", file.display())),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            bail!("{} cannot be read: only root may, unless its permissions are changed", file.display())
        }
        Err(error) => bail!("{} cannot be read: {error}", file.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(powercap: &Path, id: &str, name: &str, energy_uj: u64) {
        let folder = powercap.join(id);
        fs::create_dir_all(&folder).expect("made");
        for (file, text) in [
            ("name", name.to_owned()),
            ("energy_uj", energy_uj.to_string()),
            ("max_energy_range_uj", "1000000000".into()),
        ] {
            fs::write(folder.join(file), text + "\n").expect("written");
        }
    }

    #[test]
    fn packages_and_their_memory_are_counted_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let here = folder.path();
        zone(here, "intel-rapl:0", "package-0", 500_000_000);
        zone(here, "intel-rapl:0:0", "core", 1);
        zone(here, "intel-rapl:0:1", "dram", 10);
        zone(here, "intel-rapl:1", "psys", 1);
        zone(here, "intel-rapl-mmio:0", "package-0", 1);
        let mut zones = zones_of(here).expect("zones");
        let names: Vec<&str> = zones.iter().map(Zone::name).collect();
        assert_eq!(names, ["CPU package 0", "memory of CPU package 0"]);
        assert_eq!(zones[0].joules().expect("read"), 0.0);
        zone(here, "intel-rapl:0", "package-0", 900_000_000);
        assert_eq!(zones[0].joules().expect("read"), 400.0);
        // The counter started again.
        zone(here, "intel-rapl:0", "package-0", 50_000_000);
        assert_eq!(zones[0].joules().expect("read"), 550.0);
        fs::remove_file(here.join("intel-rapl:0/energy_uj")).expect("removed");
        assert!(zones[0].joules().expect_err("gone").to_string().contains("energy_uj cannot be read"));
    }

    #[test]
    fn without_a_counter_the_reason_is_given() {
        let folder = tempfile::tempdir().expect("a folder");
        let reason = |powercap: &Path| zones_of(powercap).err().expect("no counter").to_string();
        assert!(reason(folder.path()).contains("exposes no RAPL counter"));
        assert!(reason(Path::new("no/such/folder")).contains("exposes no RAPL counter"));
        zone(folder.path(), "intel-rapl:0", "package-0", 1);
        fs::write(folder.path().join("intel-rapl:0/energy_uj"), "much\n").expect("written");
        assert!(reason(folder.path()).contains("is not a number"));
    }
}
