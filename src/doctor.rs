//! Checks for problems that would make results untrustworthy, and for CPU features that this build does not use.

use std::{collections::BTreeMap, fmt::Write, path::Path, thread, time::Duration};

use anyhow::Result;
use candle_core::Device;
use serde::Serialize;

use crate::{
    device::DeviceChoice,
    error::one_line,
    measure::{
        clocks::{Clocks, on_battery},
        conditions::Watch,
        gpu, limits,
        machine::{self, features, simd},
        memory, processes,
    },
    model::{ModelSpec, seeded_config},
    record::{VARIABLES, Variable},
    report::{
        summary::matrix_rate,
        text_table::{width, wrapped},
    },
    settings::Settings,
    text,
};

/// The result of one check.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    /// Name of the check.
    pub topic: &'static str,
    /// Severity.
    pub level: Level,
    /// The state and, for a warning, what to do about it.
    pub text: String,
}

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// No problem.
    Ok,
    /// Worth knowing, but not a problem.
    Note,
    /// A problem that makes results untrustworthy.
    Warning,
}

use Level::{Note, Ok as Fine, Warning};

/// Checks the machine, the build and the settings. Takes two to three seconds.
pub(crate) fn examine(settings: &Settings) -> Vec<Finding> {
    let threads = settings.threads_in_force();
    let machine = machine::machine(threads, None);
    let software = machine::software();
    let mut findings = vec![
        finding(
            "machine",
            Fine,
            format!("{}, {} cores, {threads} threads, {}", machine.cpu, machine.logical_cores, machine.os),
        ),
        finding(
            "software",
            Fine,
            format!("candle {}, criterion {}, {}", software.candle, software.criterion, software.rustc),
        ),
        if cfg!(debug_assertions) {
            finding(
                "build",
                Warning,
                "this is a debug build and its results are meaningless: build with --release".into(),
            )
        } else {
            finding("build", Fine, format!("profile {}", software.profile))
        },
        finding("features", Fine, if features().is_empty() { "none".into() } else { features().join(", ") }),
        simd_finding(),
    ];
    findings.extend(room(settings, machine.memory_bytes, memory::available_bytes(&Device::Cpu)));
    findings.extend(caches(settings, machine::last_level_cache_bytes()));
    findings.push(device(settings));
    findings.extend(variables(machine::environment()));
    findings.push(quiet());
    findings.extend(strays(&processes::strays()));
    // Measuring the limits loads the machine, so clocks and heat are checked just after it.
    let before = Clocks::read();
    findings.push(memory_and_matrix(settings));
    findings.extend(clocks(&before, &Clocks::read(), on_battery()));
    findings.extend(gpu(settings.device));
    #[cfg(feature = "hub")]
    findings.extend(tokens(settings, crate::model::hub::token().is_some()));
    findings.push(output(&settings.out));
    findings
}

/// Columns of the marks and of the topics.
const MARK: usize = 8;
const TOPIC: usize = 10;

/// Formats the findings as aligned lines.
pub(crate) fn render(findings: &[Finding]) -> String {
    let mut lines = String::new();
    for Finding { topic, level, text: what } in findings {
        let mark = match level {
            Fine => "ok",
            Note => "note",
            Warning => "WARNING",
        };
        // The lines of a finding stand below each other, so that the marks are a column.
        for (number, line) in wrapped(&text::line(what), width() - MARK - TOPIC).iter().enumerate() {
            let (mark, topic) = if number == 0 { (mark, *topic) } else { ("", "") };
            let _ = writeln!(lines, "{mark:<MARK$}{topic:<TOPIC$}{line}");
        }
    }
    lines
}

fn finding(topic: &'static str, level: Level, text: String) -> Finding {
    Finding { topic, level, text }
}

/// Where instructions are selected, as of candle 0.11.1 and gemm 0.19.0. At run time: our kernels; Candle's matrix products,
/// which use FMA, NEON or plain code, and AVX-512 only with gemm's feature `x86-v4`, which Candle disables (`init_gemm_fn` in
/// gemm-common/src/gemm.rs); Candle's dot products and sums, AVX2 or NEON (candle-core/src/cpu/features.rs);
/// quantised products. At compile time: all other loops, which are vectorised for the compilation target, and the
/// loads of f16 dot products (candle-core/src/cpu/avx.rs).
fn simd_finding() -> Finding {
    let simd = simd();
    let names = |of: &dyn Fn(&machine::Simd) -> bool| {
        let names: Vec<_> = simd.iter().filter(|simd| of(simd)).map(|simd| simd.name).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(" ") }
    };
    let compiled = names(&|simd| simd.compiled);
    let left_out = names(&|simd| simd.available && !simd.compiled);
    let library = features().into_iter().find(|feature| ["mkl", "accelerate"].contains(feature));
    let products = match library {
        Some(library) => format!("Matrix products use {library}"),
        None if simd.iter().any(|simd| simd.name == "avx512f" && simd.available) => {
            "Kernels of engine tuned and of trainings select instructions at run time. So do Candle's matrix products, AVX2 with \
             FMA at best, because Candle as published disables AVX-512"
                .into()
        }
        None => "Matrix products select instructions at run time".into(),
    };
    if left_out == "none" {
        return finding("simd", Fine, format!("compiled in: {compiled}. {products}"));
    }
    finding(
        "simd",
        Note,
        format!(
            "compiled in: {compiled}; the CPU also has {left_out}. {products}. Activations, RoPE, softmax, norms and conversions between precisions are compiled for the target: RUSTFLAGS='-C target-cpu=native' compiles them for this CPU"
        ),
    )
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// The models whose shape is known without a download, and the size of their weights.
fn known_weights(settings: &Settings) -> Vec<(&ModelSpec, u64)> {
    let weight_bytes = |spec: &ModelSpec| {
        let parameters = seeded_config(spec)?.ok()?.parameters();
        settings.dtype.iter().map(|dtype| dtype.bytes(parameters)).max()
    };
    settings.models.iter().filter_map(|spec| Some((spec, weight_bytes(spec)?))).collect()
}

fn room(settings: &Settings, total: Option<u64>, available: Option<u64>) -> Vec<Finding> {
    let (Some(total), Some(available)) = (total, available) else {
        return vec![finding("memory", Note, "the system does not report its memory".into())];
    };
    let what = format!("{} of {} available", gigabytes(available), gigabytes(total));
    // The kernel evicts memory in use well before nothing is left.
    let mut findings = vec![if available < total / 10 {
        finding(
            "memory",
            Warning,
            format!("{what}: memory shortage slows benchmarks down; stop other programs that use memory"),
        )
    } else {
        finding("memory", Fine, what)
    }];
    let too_large = known_weights(settings).into_iter().filter(|(_, bytes)| *bytes > available);
    if settings.device == DeviceChoice::Cpu {
        findings.extend(too_large.map(|(spec, bytes)| {
            let text = format!(
                "the weights of {spec} alone take {}: choose a smaller model or a 16-bit dtype",
                gigabytes(bytes)
            );
            finding("memory", Warning, text)
        }));
    }
    findings
}

/// Decode of a model that the caches largely hold is not memory-bound, and its MBU says little.
fn caches(settings: &Settings, cache_bytes: Option<u64>) -> Vec<Finding> {
    let Some(cache_bytes) = cache_bytes else { return Vec::new() };
    let held: Vec<_> = known_weights(settings)
        .into_iter()
        .filter(|(_, bytes)| settings.device == DeviceChoice::Cpu && *bytes < 2 * cache_bytes)
        .map(|(spec, bytes)| format!("{spec} ({:.0} MB)", bytes as f64 / 1e6))
        .collect();
    let what = format!("{:.1} MB in the last level", cache_bytes as f64 / 1e6);
    vec![if held.is_empty() {
        finding("caches", Fine, what)
    } else {
        finding(
            "caches",
            Note,
            format!(
                "{what}, which may hold half or more of {}: their MBU says little; a real shape is bound by memory",
                held.join(", ")
            ),
        )
    }]
}

/// The variables that change what Candle or the C library does, where they are set.
fn variables(given: &BTreeMap<String, String>) -> Vec<Finding> {
    let told = |Variable { name, does }: &Variable| {
        let value = text::shell(given.get(*name)?);
        Some(finding("variable", Note, format!("{name}={value} {does}")))
    };
    VARIABLES.iter().filter_map(told).collect()
}

fn device(settings: &Settings) -> Finding {
    match settings.device.open() {
        Ok(_) => finding("device", Fine, settings.device.to_string()),
        Err(error) => finding("device", Warning, format!("{error:#}")),
    }
}

/// Under load on all cores, the slowest should reach this share of the highest clock. The highest clock is that of a
/// single busy core, which all cores together do not reach. Less than half of it indicates a problem.
const SLOWED: f64 = 0.5;

fn clocks(before: &Clocks, loaded: &Clocks, on_battery: Option<bool>) -> Vec<Finding> {
    let governors = loaded.governors.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let mut findings = vec![match governors.as_str() {
        "" => finding("clocks", Note, "the system does not report the governor of the clock".into()),
        "performance" => finding("clocks", Fine, "governor performance".into()),
        _ => finding(
            "clocks",
            Warning,
            format!("governor {governors} changes the clock with the load: cpupower frequency-set -g performance"),
        ),
    }];
    if let (Some(allowed), Some(possible)) = (loaded.allowed_mhz, loaded.possible_mhz)
        && allowed < possible
    {
        let text = format!("limited to {allowed} of {possible} MHz: cpupower frequency-set --max {possible}MHz");
        findings.push(finding("clocks", Warning, text));
    }
    if let (Some(now), Some(allowed)) = (loaded.now_mhz, loaded.allowed_mhz) {
        let slowed = (now as f64) < SLOWED * allowed as f64;
        let text = format!("{now} of {allowed} MHz just after load");
        findings.push(if slowed {
            finding("clocks", Warning, format!("{text}: check cooling and power"))
        } else {
            finding("clocks", Fine, text)
        });
    }
    match (before.throttled, loaded.throttled) {
        (Some(before), Some(loaded)) if loaded > before => findings.push(finding(
            "heat",
            Warning,
            "the CPU was throttled within a second of load: check its cooling".into(),
        )),
        (_, Some(count @ 1..)) => {
            findings.push(finding(
                "heat",
                Note,
                format!("cores were throttled {count} times since the start, not now"),
            ));
        }
        _ => {}
    }
    if on_battery == Some(true) {
        findings.push(finding(
            "power",
            Warning,
            "on battery, which slows most machines down: connect the power supply".into(),
        ));
    }
    findings
}

fn gpu(device: DeviceChoice) -> Vec<Finding> {
    let DeviceChoice::Cuda(ordinal) = device else { return Vec::new() };
    let looked = || -> Result<_> { Ok((gpu::of(device)?, gpu::Counters::sample(ordinal)?)) };
    let mut findings = match looked() {
        Ok((found, counters)) => {
            let unknown = || "unknown".to_owned();
            let described = found.map(|gpu| {
                let text = format!(
                    "{}, compute capability {}, driver {}, {} of memory",
                    gpu.name,
                    gpu.compute_capability.unwrap_or_else(unknown),
                    gpu.driver.unwrap_or_else(unknown),
                    gpu.memory_bytes.map_or_else(unknown, gigabytes)
                );
                finding("gpu", Fine, text)
            });
            described.into_iter().chain([counted(&counters)]).collect()
        }
        Err(error) => vec![finding("gpu", Note, format!("{error:#}"))],
    };
    findings.extend(device.open().ok().map(|device| pool(&device)));
    findings
}

fn pool(device: &Device) -> Finding {
    match (memory::available_bytes(device), memory::reserved_bytes(device)) {
        (Some(available), Ok(reserved)) => {
            let text =
                format!("{} of its memory available, {} held for tensors", gigabytes(available), gigabytes(reserved));
            finding("gpu", Fine, text)
        }
        (_, reserved) => {
            let reason = reserved.err().map_or("the driver does not report it".into(), |error| format!("{error:#}"));
            finding("gpu", Note, format!("its memory is not counted: {reason}"))
        }
    }
}

fn counted(counters: &gpu::Counters) -> Finding {
    let number = |value: Option<f64>| value.map_or("?".to_owned(), |value| format!("{value:.0}"));
    let mut text = format!(
        "{} of {} MHz, {} of {} W, {} °C",
        number(counters.sm_mhz.map(f64::from)),
        number(counters.sm_max_mhz.map(f64::from)),
        number(counters.power_watts),
        number(counters.power_limit_watts),
        number(counters.temperature_celsius.map(f64::from)),
    );
    for (field, reason) in &counters.unmeasured {
        let _ = write!(text, "; no {field}: {reason}");
    }
    match counters.throttle_reasons.as_deref() {
        None | Some([]) => finding("gpu", Fine, text),
        Some(reasons) => finding("gpu", Warning, format!("{text}; clocks throttled by {}", reasons.join(", "))),
    }
}

fn quiet() -> Finding {
    let watch = Watch::start(DeviceChoice::Cpu, Vec::new());
    thread::sleep(Duration::from_secs(1));
    let conditions = watch.end().conditions;
    if conditions.doubts.is_empty() {
        let text = match conditions.other_cpu_share {
            Some(others) => format!("other processes use {:.0} % of the CPU time", others * 100.0),
            None => "this system does not report its load".into(),
        };
        return finding("quiet", Fine, text);
    }
    finding("quiet", Warning, format!("{}: stop other programs", conditions.doubts.join("; ")))
}

/// Processes of this program that disturb benchmarks, such as a view that nobody closed.
fn strays(ids: &[u32]) -> Option<Finding> {
    let ids = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let text =
        format!("candlepower already runs: look at its processes with `ps {ids}`, and end them with `kill {ids}`");
    (!ids.is_empty()).then(|| finding("processes", Warning, text))
}

fn memory_and_matrix(settings: &Settings) -> Finding {
    let measured = || -> Result<_> { limits(&settings.device.open()?, settings.first_dtype()) };
    match measured() {
        Ok(limits) => finding(
            "limits",
            Fine,
            format!(
                "read bandwidth {:.1} GB/s, matrix products {}",
                limits.read_bytes_per_s / 1e9,
                matrix_rate(&limits)
            ),
        ),
        Err(error) => finding("limits", Warning, format!("not measured: {}", one_line(&format!("{error:#}")))),
    }
}

/// Prefixes of repositories whose licence must be accepted first.
#[cfg(feature = "hub")]
const GATED: [&str; 2] = ["meta-llama/", "google/gemma"];

#[cfg(feature = "hub")]
fn tokens(settings: &Settings, has_token: bool) -> Vec<Finding> {
    let gated = |spec: &&ModelSpec| match spec {
        ModelSpec::Hub { repo, .. } => GATED.iter().any(|start| repo.starts_with(start)),
        _ => false,
    };
    let missing = |spec: &ModelSpec| {
        finding("token", Warning, format!("{spec} is gated: accept its licence on the Hub and set HF_TOKEN"))
    };
    settings.models.iter().filter(gated).filter(|_| !has_token).map(missing).collect()
}

/// Does not create the folder; the first record does.
fn output(out: &Path) -> Finding {
    // A relative path starts from the current folder.
    let existing = out.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
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

    fn settings(models: &[&str]) -> Settings {
        Settings { models: models.iter().map(|model| model.parse().expect("a model")).collect(), ..Settings::default() }
    }

    fn levels(findings: &[Finding]) -> Vec<(&'static str, Level)> {
        findings.iter().map(|finding| (finding.topic, finding.level)).collect()
    }

    #[cfg(feature = "hub")]
    #[test]
    fn a_gated_model_wants_a_token() {
        let gated = settings(&["llama-mini", "meta-llama/some-model", "Qwen/Qwen3-1.7B", "google/gemma-x", "google/t"]);
        assert_eq!(tokens(&gated, false).len(), 2);
        assert!(tokens(&gated, true).is_empty());
    }

    #[test]
    fn variables_that_are_set_are_explained() {
        let given = [("MALLOC_ARENA_MAX", "1"), ("CANDLE_CPU_MASK", "0 -1"), ("PATH", "/bin")];
        let found = variables(&given.map(|(name, value)| (name.into(), value.into())).into());
        let texts: Vec<&str> = found.iter().map(|finding| finding.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "CANDLE_CPU_MASK='0 -1' binds the threads of Candle's own pool to these CPUs",
                "MALLOC_ARENA_MAX=1 limits the number of glibc's arenas"
            ]
        );
    }

    #[test]
    fn an_output_folder_below_a_file_is_found_out() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(output(&folder.path().join("a/b")).level, Fine);
        std::fs::write(folder.path().join("file"), "").expect("written");
        let below = output(&folder.path().join("file/b"));
        assert_eq!(below.level, Warning);
        assert!(below.text.contains("CANDLEPOWER_OUT"), "{}", below.text);
    }

    /// A finding quotes names of devices, models and folders.
    #[test]
    fn names_in_findings_are_shown_without_escape_sequences() {
        let text = "records go to \u{1b}]0;owned\u{7}\u{202e}\nheat".to_owned();
        let shown = render(&[finding("output", Fine, text), finding("heat", Note, "none".into())]);
        let expected =
            "ok      output    records go to \\u{1b}]0;owned\\u{7}\\u{202e}\\nheat\nnote    heat      none\n";
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_model_that_memory_has_no_room_for_is_named() {
        let models = settings(&["llama-mini", "synthetic:llama-3.2-1b"]);
        let gb = |gb: u64| Some(gb * 1_000_000_000);
        assert_eq!(levels(&room(&models, gb(16), gb(8))), [("memory", Fine)]);
        let tight = room(&models, gb(16), gb(2));
        assert_eq!(levels(&tight), [("memory", Fine), ("memory", Warning)]);
        assert!(tight[1].text.contains("synthetic:llama-3.2-1b"), "{}", tight[1].text);
        assert_eq!(levels(&room(&settings(&["llama-mini"]), gb(16), gb(1))), [("memory", Warning)]);
        assert_eq!(levels(&room(&models, gb(16), None)), [("memory", Note)]);
    }

    #[test]
    fn a_model_that_caches_hold_is_named() {
        let models = settings(&["llama-mini", "synthetic:llama-3.2-1b"]);
        assert_eq!(levels(&caches(&models, Some(32 << 20))), [("caches", Fine)]);
        let held = caches(&models, Some(256 << 20));
        assert_eq!(levels(&held), [("caches", Note)]);
        assert!(held[0].text.contains("llama-mini") && !held[0].text.contains("3.2"), "{}", held[0].text);
        assert!(caches(&models, None).is_empty());
    }

    #[test]
    fn clocks_that_are_not_what_they_could_be_are_found_out() {
        let steady = Clocks {
            governors: ["performance".to_owned()].into(),
            now_mhz: Some(3000),
            allowed_mhz: Some(4000),
            possible_mhz: Some(4000),
            throttled: Some(0),
        };
        assert_eq!(levels(&clocks(&steady, &steady, None)), [("clocks", Fine), ("clocks", Fine)]);
        let hot = Clocks {
            governors: ["powersave".to_owned()].into(),
            now_mhz: Some(1000),
            allowed_mhz: Some(3000),
            possible_mhz: Some(4000),
            throttled: Some(2),
        };
        let found = levels(&clocks(&steady, &hot, Some(true)));
        assert_eq!(found, ["clocks", "clocks", "clocks", "heat", "power"].map(|topic| (topic, Warning)));
        assert_eq!(levels(&clocks(&hot, &hot, None))[3], ("heat", Note));
        assert_eq!(levels(&clocks(&Clocks::default(), &Clocks::default(), None)), [("clocks", Note)]);
    }

    #[test]
    fn a_gpu_that_is_held_back_is_found_out() {
        let mut counters = gpu::Counters { power_watts: Some(650.0), ..gpu::Counters::default() };
        counters.unmeasured.insert("energy_joules", "not supported".into());
        let free = counted(&counters);
        assert_eq!(free.level, Fine);
        assert!(
            free.text.contains("650 of ? W") && free.text.contains("no energy_joules: not supported"),
            "{}",
            free.text
        );
        counters.throttle_reasons = Some(vec!["sw_power_cap".into()]);
        let held = counted(&counters);
        assert_eq!(held.level, Warning);
        assert!(held.text.contains("sw_power_cap"), "{}", held.text);
    }
}
