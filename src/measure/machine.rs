//! What it is that measures: the machine and the software.

use std::{fs, process::Command};

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use super::gpu;
use crate::{
    record::{Machine, Software},
    subject::DeviceChoice,
};

/// Looks at the machine. `threads` is how many Candle uses.
pub fn machine(threads: usize, device: DeviceChoice) -> Machine {
    let system = System::new_with_specifics(
        RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()).with_memory(MemoryRefreshKind::nothing().with_ram()),
    );
    let system = system.ok();
    let brand = system.as_ref().and_then(|system| Some(system.cpus().first()?.brand().trim().to_owned()));
    let cpu = brand.filter(|brand| !brand.is_empty()).unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let gpu = match device {
        DeviceChoice::Cuda(ordinal) => gpu::describe(ordinal).ok(),
        DeviceChoice::Cpu | DeviceChoice::Metal => None,
    };
    let logical_cores = std::thread::available_parallelism().map_or(1, usize::from);
    Machine {
        name: name(gpu.as_ref().map_or(&cpu, |gpu| &gpu.name), logical_cores),
        cpu,
        physical_cores: System::physical_core_count().ok(),
        logical_cores,
        threads,
        memory_bytes: system.map(|system| system.total_memory()),
        os: System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.into()),
        kernel: System::kernel_version().ok(),
        governor: first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        simd_available: simd().into_iter().filter(|simd| simd.available).map(|simd| simd.name.into()).collect(),
        simd_compiled: simd().into_iter().filter(|simd| simd.compiled).map(|simd| simd.name.into()).collect(),
        gpu,
    }
}

/// A name for folders and tables that gives no host away: what computes, and how many cores there are.
fn name(what: &str, logical_cores: usize) -> String {
    let words = what.to_lowercase();
    let words: Vec<_> = words.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    format!("{}-{logical_cores}c", words.join("-"))
}

/// A SIMD extension, and whether the program was compiled for it and the processor has it.
pub struct Simd {
    pub name: &'static str,
    pub compiled: bool,
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

/// The extensions that Candle or the crates below it make use of.
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

/// Versions that the build found, and the commit of the folder that the program was started in.
pub fn software() -> Software {
    Software {
        candlepower: env!("CARGO_PKG_VERSION").into(),
        candle: env!("BUILT_WITH_CANDLE").into(),
        criterion: env!("BUILT_WITH_CRITERION").into(),
        rustc: env!("BUILT_WITH_RUSTC").into(),
        commit: commit(),
        profile: env!("BUILT_WITH_PROFILE").into(),
        features: features().iter().map(|feature| (*feature).into()).collect(),
    }
}

/// Cargo features that are on.
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
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok()
    };
    let commit = git(&["rev-parse", "HEAD"])?;
    let dirty = !git(&["status", "--porcelain", "--untracked-files=no"])?.trim().is_empty();
    Some(format!("{}{}", commit.trim(), if dirty { "-dirty" } else { "" }))
}

/// The first line of one of the kernel's small files.
pub(super) fn first_line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.lines().next()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_named_by_what_computes() {
        assert_eq!(name("AMD EPYC 9R45 (x2)", 2), "amd-epyc-9r45-x2-2c");
        assert_eq!(name("NVIDIA H200", 16), "nvidia-h200-16c");
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
    }
}
