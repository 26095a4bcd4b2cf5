//! What would make results untrustworthy, and what the machine could do that this build does not ask of it.

use std::{fmt::Write, path::Path, thread, time::Duration};

use anyhow::Result;
use serde::Serialize;

use super::{
    conditions::Watch,
    gpu, limits,
    machine::{self, features, first_line, simd},
};
use crate::{
    settings::Settings,
    subject::{DeviceChoice, ModelSpec},
};

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub topic: &'static str,
    pub level: Level,
    /// What is so, and for a warning what to do about it.
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    Note,
    Warning,
}

use Level::{Note, Ok as Fine, Warning};

/// Looks at the machine, the build and what the settings ask for.
pub fn examine(settings: &Settings) -> Vec<Finding> {
    let threads = settings.threads.unwrap_or_else(candle_core::utils::get_num_threads);
    let machine = machine::machine(threads, settings.device);
    let software = machine::software();
    let mut findings = vec![
        finding(
            "machine",
            Fine,
            format!(
                "{}, {} cores, {threads} threads, {} of memory, {}",
                machine.cpu,
                machine.logical_cores,
                machine.memory_bytes.map_or("unknown".into(), |bytes| format!("{:.1} GB", bytes as f64 / 1e9)),
                machine.os
            ),
        ),
        finding(
            "software",
            Fine,
            format!("candle {}, criterion {}, {}", software.candle, software.criterion, software.rustc),
        ),
        if cfg!(debug_assertions) {
            finding("build", Warning, "a debug build: its figures mean nothing; build with --release".into())
        } else {
            finding("build", Fine, format!("profile {}", software.profile))
        },
        finding("features", Fine, if features().is_empty() { "none".into() } else { features().join(", ") }),
        simd_finding(),
        device(settings),
    ];
    findings.extend(clocks(settings.device));
    findings.push(quiet());
    findings.push(memory_and_matrix(settings));
    let has_token = std::env::var("HF_TOKEN").is_ok_and(|token| !token.trim().is_empty())
        || hf_hub::hf_home().join("token").is_file();
    findings.extend(tokens(settings, has_token));
    findings.push(output(&settings.out));
    findings
}

/// The findings as aligned lines.
pub fn render(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { topic, level, text: what } in findings {
        let mark = match level {
            Fine => "ok",
            Note => "note",
            Warning => "WARNING",
        };
        let _ = writeln!(text, "{mark:<8}{topic:<10}{what}");
    }
    text
}

fn finding(topic: &'static str, level: Level, text: String) -> Finding {
    Finding { topic, level, text }
}

/// The matrix products of the `gemm` crate and Candle's dot products choose when they run (`gemm-common/src/gemm.rs`,
/// `candle-core/src/cpu/features.rs`, as of candle 0.11.1). Everything else is loops that the compiler vectorises for
/// the target it was given: activations, RoPE, softmax, norms, conversions between precisions.
fn simd_finding() -> Finding {
    let simd = simd();
    let names = |of: &dyn Fn(&machine::Simd) -> bool| {
        let names: Vec<_> = simd.iter().filter(|simd| of(simd)).map(|simd| simd.name).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(" ") }
    };
    let compiled = names(&|simd| simd.compiled);
    if simd.iter().all(|simd| simd.compiled == simd.available) {
        return finding("simd", Fine, format!("compiled in: {compiled}"));
    }
    let left_out = names(&|simd| simd.available && !simd.compiled);
    finding(
        "simd",
        Note,
        format!(
            "compiled in: {compiled}; the processor also has {left_out}. Matrix products choose at run time; activations, RoPE, softmax and conversions are compiled for the target: RUSTFLAGS='-C target-cpu=native' lets them use these too"
        ),
    )
}

fn device(settings: &Settings) -> Finding {
    match settings.device.open() {
        Ok(_) => finding("device", Fine, settings.device.to_string()),
        Err(error) => finding("device", Warning, format!("{error:#}")),
    }
}

fn clocks(device: DeviceChoice) -> Vec<Finding> {
    let mut findings = Vec::new();
    let cpufreq = |file: &str| first_line(&format!("/sys/devices/system/cpu/cpu0/cpufreq/{file}"));
    match cpufreq("scaling_governor").as_deref() {
        Some("performance") => findings.push(finding("clocks", Fine, "governor performance".into())),
        Some(governor) => findings.push(finding(
            "clocks",
            Warning,
            format!("governor {governor} changes the clock with the load: cpupower frequency-set -g performance"),
        )),
        None => findings.push(finding("clocks", Note, "the system does not say how the clock is governed".into())),
    }
    let throttled = first_line("/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count");
    if throttled.is_some_and(|count| count != "0") {
        findings.push(finding(
            "heat",
            Warning,
            "the processor has throttled since it was started: see to its cooling".into(),
        ));
    }
    if let DeviceChoice::Cuda(ordinal) = device {
        findings.push(match gpu::clocks(ordinal) {
            Ok(clocks) if clocks.throttle_reasons.is_empty() => {
                finding("gpu", Fine, format!("{} of {} MHz", clocks.sm_mhz, clocks.sm_max_mhz))
            }
            Ok(clocks) => finding(
                "gpu",
                Warning,
                format!(
                    "{} of {} MHz, held back by {}",
                    clocks.sm_mhz,
                    clocks.sm_max_mhz,
                    clocks.throttle_reasons.join(", ")
                ),
            ),
            Err(error) => finding("gpu", Note, format!("{error:#}")),
        });
    }
    findings
}

fn quiet() -> Finding {
    let watch = Watch::start();
    thread::sleep(Duration::from_secs(1));
    let conditions = watch.end();
    if conditions.doubts.is_empty() {
        let text = match conditions.other_cpu_share {
            Some(others) => format!("other processes take {:.0} % of the processor time", others * 100.0),
            None => "this system does not say how busy it is".into(),
        };
        return finding("quiet", Fine, text);
    }
    finding("quiet", Warning, format!("{}: stop what else runs", conditions.doubts.join("; ")))
}

fn memory_and_matrix(settings: &Settings) -> Finding {
    let measured = || -> Result<_> { limits(&settings.device.open()?) };
    match measured() {
        Ok(limits) => finding(
            "limits",
            Fine,
            format!(
                "memory is read at {:.1} GB/s, matrices are multiplied at {:.0} GFLOP/s in {}",
                limits.read_bytes_per_s / 1e9,
                limits.matrix_flops_per_s / 1e9,
                limits.matrix_dtype
            ),
        ),
        Err(error) => finding("limits", Warning, format!("not measured: {error:#}")),
    }
}

/// Owners whose models want their licence accepted first.
const GATED: [&str; 2] = ["meta-llama", "google"];

fn tokens(settings: &Settings, has_token: bool) -> Vec<Finding> {
    let gated = |spec: &&ModelSpec| match spec {
        ModelSpec::Hub { repo, .. } => repo.split_once('/').is_some_and(|(owner, _)| GATED.contains(&owner)),
        _ => false,
    };
    let missing = |spec: &ModelSpec| {
        finding("token", Warning, format!("{spec} is gated: accept its licence on the Hub and set HF_TOKEN"))
    };
    settings.models.iter().filter(gated).filter(|_| !has_token).map(missing).collect()
}

fn output(out: &Path) -> Finding {
    let existing = out.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    match tempfile::tempfile_in(existing) {
        Ok(_) => finding("output", Fine, format!("records go to {}", out.display())),
        Err(error) => {
            finding("output", Warning, format!("{} can't be written to ({error}): set CANDLEPOWER_OUT", out.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gated_model_wants_a_token() {
        let settings = |models: &[&str]| Settings {
            models: models.iter().map(|model| model.parse().expect("a model")).collect(),
            ..Settings::default()
        };
        let gated = settings(&["llama-mini", "meta-llama/Llama-3.2-1B-Instruct", "Qwen/Qwen3-1.7B"]);
        assert_eq!(tokens(&gated, false).len(), 1);
        assert!(tokens(&gated, true).is_empty());
    }

    #[test]
    fn an_output_folder_below_a_file_is_found_out() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(output(&folder.path().join("a/b")).level, Fine);
    }
}
