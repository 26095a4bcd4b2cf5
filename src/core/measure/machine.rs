//! The machine and the software of a measurement.

use std::{collections::BTreeMap, env, fs, path::Path, sync::LazyLock};

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use crate::{
    git::git,
    record::{GLIBC_TUNABLES, Gpu, Machine, Software, VARIABLES},
};

/// Describes the machine. `threads` is the number of threads that Candle uses, `gpu` is the result of
/// [`super::gpu::of`].
pub fn machine(threads: usize, gpu: Option<Gpu>) -> Machine {
    let system = System::new_with_specifics(
        RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()).with_memory(MemoryRefreshKind::nothing().with_ram()),
    );
    let system = system.ok();
    let brand = system.as_ref().and_then(|system| Some(system.cpus().first()?.brand().trim().to_owned()));
    let cpu = brand.filter(|brand| !brand.is_empty()).unwrap_or_else(|| env::consts::ARCH.to_owned());
    let logical_cores = std::thread::available_parallelism().map_or(1, usize::from);
    Machine {
        name: name(gpu.as_ref().map_or(&cpu, |gpu| &gpu.name), logical_cores),
        cpu,
        physical_cores: System::physical_core_count().ok(),
        logical_cores,
        threads,
        memory_bytes: system.map(|system| system.total_memory()),
        os: System::long_os_version().unwrap_or_else(|_| env::consts::OS.into()),
        kernel: System::kernel_version().ok(),
        governor: first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        simd_available: simd().into_iter().filter(|simd| simd.available).map(|simd| simd.name.into()).collect(),
        simd_compiled: simd().into_iter().filter(|simd| simd.compiled).map(|simd| simd.name.into()).collect(),
        gpu,
    }
}

/// A name for folders and tables that does not reveal the host: the processor or GPU, and the number of cores. Trade
/// marks and the nominal clock, as in "Intel(R) Xeon(R) CPU @ 2.20GHz", are removed.
fn name(what: &str, logical_cores: usize) -> String {
    let words = what.split('@').next().unwrap_or(what).to_lowercase().replace("(r)", " ").replace("(tm)", " ");
    let words: Vec<_> = words
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !["", "cpu", "processor"].contains(word))
        .collect();
    format!("{}-{logical_cores}c", words.join("-"))
}

/// A SIMD extension, whether the program was compiled for it, and whether the CPU has it.
pub struct Simd {
    /// Name of the extension, as in Rust's `target_feature`.
    pub name: &'static str,
    /// True if the program was compiled for it.
    pub compiled: bool,
    /// True if the CPU has it.
    pub available: bool,
}

macro_rules! extensions {
    ($detected:ident: $($name:tt),*) => {
        vec![$(Simd {
            name: $name,
            compiled: cfg!(target_feature = $name),
            available: std::arch::$detected!($name),
        }),*]
    };
}

/// The extensions that Candle or its dependencies use.
pub fn simd() -> Vec<Simd> {
    #[cfg(target_arch = "x86_64")]
    return extensions!(
        is_x86_feature_detected: "sse2", "sse4.1", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vnni",
        "avx512bf16"
    );
    #[cfg(target_arch = "aarch64")]
    return extensions!(is_aarch64_feature_detected: "neon", "fp16", "dotprod", "i8mm", "bf16", "sve");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    Vec::new()
}

/// Versions that the build found, and the commit of the current folder.
pub fn software() -> Software {
    let mut environment = environment().clone();
    Software {
        candlepower: env!("CARGO_PKG_VERSION").into(),
        candle: env!("BUILT_WITH_CANDLE").into(),
        candle_crates: crates(env!("BUILT_WITH_CANDLE_CRATES")),
        criterion: env!("BUILT_WITH_CRITERION").into(),
        rustc: env!("BUILT_WITH_RUSTC").into(),
        commit: commit(),
        profile: env!("BUILT_WITH_PROFILE").into(),
        features: features().iter().map(|feature| (*feature).into()).collect(),
        glibc_tunables: environment.remove(GLIBC_TUNABLES),
        environment,
    }
}

/// The [`VARIABLES`] that this process was given, with their values. What sets one of them calls this first.
pub fn environment() -> &'static BTreeMap<String, String> {
    static GIVEN: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
        let value = |name| Some((String::from(name), env::var_os(name)?.to_string_lossy().into_owned()));
        VARIABLES.iter().filter_map(|variable| value(variable.name)).collect()
    });
    &GIVEN
}

/// Unpacks the list that the build script made: a name and a version for each crate. `None` if it is empty.
fn crates(list: &str) -> Option<BTreeMap<String, String>> {
    let crates: BTreeMap<String, String> = list
        .split(';')
        .filter_map(|entry| entry.split_once('='))
        .map(|(name, version)| (name.to_owned(), version.to_owned()))
        .collect();
    (!crates.is_empty()).then_some(crates)
}

/// Enabled Cargo features.
pub fn features() -> Vec<&'static str> {
    let all = [
        ("cuda", cfg!(feature = "cuda")),
        ("cudnn", cfg!(feature = "cudnn")),
        ("flash-attn", cfg!(feature = "flash-attn")),
        ("metal", cfg!(feature = "metal")),
        ("mkl", cfg!(feature = "mkl")),
        ("accelerate", cfg!(feature = "accelerate")),
    ];
    all.into_iter().filter(|(_, on)| *on).map(|(feature, _)| feature).collect()
}

fn commit() -> Option<String> {
    let git = |arguments: &[&str]| git(Path::new("."), arguments).ok();
    let commit = git(&["rev-parse", "HEAD"])?;
    let dirty = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Some(format!("{commit}{}", if dirty { "-dirty" } else { "" }))
}

/// Total size of the last-level caches of the CPU; `None` if the system does not report it.
pub fn last_level_cache_bytes() -> Option<u64> {
    last_level_bytes(Path::new("/sys/devices/system/cpu"))
}

/// Reads the same from Linux's folder of processors, where each lists its caches and the processors that share them.
fn last_level_bytes(cpus: &Path) -> Option<u64> {
    let caches = fs::read_dir(cpus).ok()?.flatten().flat_map(|cpu| fs::read_dir(cpu.path().join("cache")));
    // One entry per cache: the list of sharing processors identifies it.
    let sizes: BTreeMap<(u32, String), u64> = caches
        .flat_map(|caches| caches.flatten())
        .filter_map(|cache| {
            let read = |file: &str| first_line(cache.path().join(file));
            let kibibytes: u64 = read("size")?.strip_suffix('K')?.parse().ok()?;
            let level = read("level")?.parse().ok()?;
            (read("type")? != "Instruction").then_some(((level, read("shared_cpu_list")?), kibibytes << 10))
        })
        .collect();
    let last = sizes.keys().map(|(level, _)| *level).max()?;
    Some(sizes.iter().filter(|((level, _), _)| *level == last).map(|(_, bytes)| bytes).sum())
}

/// The first line of a small file of the kernel.
pub(super) fn first_line(path: impl AsRef<Path>) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.lines().next()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_named_by_what_computes() {
        assert_eq!(name("AMD EPYC 9R45 (x2)", 2), "amd-epyc-9r45-x2-2c");
        assert_eq!(name("Intel(R) Xeon(R) CPU @ 2.20GHz", 4), "intel-xeon-4c");
        assert_eq!(name("NVIDIA H200", 16), "nvidia-h200-16c");
    }

    #[test]
    fn caches_of_the_last_level_are_counted_once() {
        let cpus = tempfile::tempdir().expect("a folder");
        // Two processors share 32 MiB, one has its own 16 MiB. The second level does not count.
        for (cpu, shared, size) in [("cpu0", "0-1", "32768K"), ("cpu1", "0-1", "32768K"), ("cpu2", "2", "16384K")] {
            for (index, level, kind, size) in [
                ("index1", "1", "Instruction", "32K"),
                ("index2", "2", "Unified", "1024K"),
                ("index3", "3", "Unified", size),
            ] {
                let cache = cpus.path().join(cpu).join("cache").join(index);
                fs::create_dir_all(&cache).expect("made");
                for (file, text) in [("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)] {
                    fs::write(cache.join(file), format!("{text}\n")).expect("written");
                }
            }
        }
        fs::create_dir(cpus.path().join("cpufreq")).expect("made");
        assert_eq!(last_level_bytes(cpus.path()), Some(48 << 20));
        assert_eq!(last_level_bytes(&cpus.path().join("cpufreq")), None);
    }

    #[test]
    fn what_a_program_was_compiled_for_is_there_to_run_it() {
        for simd in simd() {
            assert!(simd.available || !simd.compiled, "{}", simd.name);
        }
    }

    #[test]
    fn the_software_is_known() {
        let software = software();
        assert!(software.candle.starts_with("0.") && software.rustc.starts_with("rustc "), "{software:?}");
        let crates = software.candle_crates.expect("this package has a lock file");
        for name in ["candle-core", "candle-nn", "candle-transformers"] {
            assert!(crates[name].starts_with("0."), "{crates:?}");
        }
        assert_eq!(crates["candle-core"], software.candle);
    }

    #[test]
    fn a_patched_crate_shows_its_source() {
        let list =
            "candle-core=0.11.1;candle-transformers=0.11.1 (path);candle-nn=0.11.1 (git+https://host/candle?rev=a#b)";
        let found = crates(list).expect("three");
        assert_eq!((found.len(), found["candle-transformers"].as_str()), (3, "0.11.1 (path)"));
        assert_eq!(found["candle-nn"], "0.11.1 (git+https://host/candle?rev=a#b)");
        assert_eq!(crates(""), None);
    }
}
