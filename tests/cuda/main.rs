//! Tests the programs and their errors on the simulated CUDA device that `scripts/cuda-simulated.sh` makes. No real
//! GPU has run them. The golden tests, which run on any device, are with the models.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::LazyLock,
};

use serde_json::Value;

const LLAMA: &str = concat!("path:", env!("CARGO_MANIFEST_DIR"), "/fixtures/generation/llama-gqa-tied");
const SWEEP: &str = "architectures: [state_space, hybrid_transformer]\nmodel_dims: [16]\ndepths: [1]\nhorizons: [2]\nwindows: [12]\n\
                     batch: 2\nfeatures: 4\nsteps: 3\nwarmup_steps: 1\ndtype: f32\naccelerator: cuda:0\n";

/// Folder of the simulated device.
static SIMULATED: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simulated");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/cuda-simulated.sh");
    let made = Command::new("sh").arg(script).arg(&folder).output().expect("a shell");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    folder
});

fn candlepower(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlepower"));
    for (key, _) in
        std::env::vars().filter(|(key, _)| key.starts_with("CANDLEPOWER_") || key.starts_with("CUDA_VISIBLE"))
    {
        command.env_remove(key);
    }
    let before = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    command.env("LD_LIBRARY_PATH", format!("{}:{before}", SIMULATED.display()));
    // Programs that one `cargo` starts would share a run.
    command.env_remove("CARGO");
    // With this variable set, Candle's messages have backtraces.
    command.env("RUST_BACKTRACE", "1").env("CANDLEPOWER_DEVICE", "cuda:0").envs(environment.iter().copied());
    command.current_dir(folder).args(arguments).output().expect("the command starts")
}

/// Returns the record of a short generation.
fn generated(arguments: &[&str], environment: &[(&str, &str)]) -> Value {
    let folder = tempfile::tempdir().expect("a folder");
    let always = ["run", "--json", "--model", LLAMA, "--prompt-tokens", "16", "--warmup", "1", "--trials", "1"];
    let output = candlepower(folder.path(), &[&always, arguments].concat(), environment);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("a record")
}

fn one_line(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.starts_with("error: ") && error.lines().count() == 1, "one line, not\n{error}");
    error
}

#[test]
fn doctor_shows_the_counters() {
    let folder = tempfile::tempdir().expect("a folder");
    let output =
        candlepower(folder.path(), &["doctor"], &[("SIMULATED_NVML_REASONS", "4"), ("SIMULATED_NVML_LACKS", "energy")]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in [
        "simulated device, compute capability 9.0, driver simulated, 17.2 GB of memory",
        "1500 of 1980 MHz, 350 of 700 W, 61 °C",
        "no energy_joules: ",
        "clocks held back by sw_power_cap",
        " of its memory available, ",
        " GFLOP/s in bf16",
    ] {
        assert!(text.contains(part), "'{part}' is missing from\n{text}");
    }
}

#[test]
fn a_generation_is_the_processors_and_is_counted() {
    let (here, there) = (["--dtype", "f32", "--device", "cpu"], ["--dtype", "f32", "--device", "cuda:0"]);
    let on_cpu = generated(&[&here[..], &["--max-new-tokens", "32"]].concat(), &[]);
    let on_device = generated(&[&there[..], &["--max-new-tokens", "200"]].concat(), &[("SIMULATED_NVML_REASONS", "4")]);
    let tokens = |record: &Value| record["tokens"].as_array().expect("tokens")[..32].to_vec();
    assert_eq!(tokens(&on_cpu), tokens(&on_device));

    let (measures, conditions) = (&on_device["measures"], &on_device["conditions"]);
    assert_eq!(on_device["machine"]["gpu"]["name"], "simulated device");
    // The weights are f32. The cache and activations come on top.
    let (weights, peak) = (on_device["subject"]["weight_bytes"].as_u64(), measures["peak_bytes"].as_u64());
    assert!(peak > weights && weights > Some(0), "{peak:?} of {weights:?}");
    // The simulated power is always 350 W.
    let joules =
        measures["joules_per_token"].as_f64().expect("joules") * measures["generated_tokens"].as_f64().expect("tokens");
    let seconds = measures["total_ms"].as_f64().expect("ms") / 1e3;
    assert!((joules / seconds - 350.0).abs() < 35.0, "{joules} J in {seconds} s");
    assert_eq!(conditions["gpu"]["throttle_reasons"]["sw_power_cap"], 1.0);
    let doubts = conditions["doubts"].as_array().expect("doubts");
    assert!(
        doubts.iter().any(|doubt| doubt == "sw_power_cap throttled the GPU's clocks 100 % of the time"),
        "{doubts:?}"
    );
}

#[test]
fn what_the_device_is_waited_for_is_told_from_what_it_is_given() {
    let share = |environment: &[(&str, &str)]| {
        let record = generated(&["--max-new-tokens", "8"], environment);
        record["measures"]["waiting_share"].as_f64().expect("a share")
    };
    // Each step waits once for 100 ms and takes one or two to submit its work.
    let (slow, quick) = (share(&[("SIMULATED_CUDA_WAIT_MS", "100")]), share(&[]));
    assert!(slow > 0.5 && slow < 1.0 && quick < 0.25, "{slow} and {quick}");
}

#[test]
fn what_is_not_counted_is_null_with_a_reason() {
    let record = generated(&["--max-new-tokens", "8"], &[("SIMULATED_NVML_LACKS", "energy")]);
    assert!(record["measures"]["joules_per_token"].is_null());
    assert!(record["unmeasured"]["joules_per_token"].as_str().is_some_and(|reason| reason.len() > 10), "{record}");
}

#[test]
fn a_device_that_does_not_start_is_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = ["run", "--model", LLAMA];
    for (setting, error, part) in [
        ("SIMULATED_CUDA_INIT_ERROR", "100", "no GPU is to be seen"),
        ("SIMULATED_CUDA_INIT_ERROR", "34", "install NVIDIA's driver"),
        ("SIMULATED_CUDA_INIT_ERROR", "802", "nvidia-fabricmanager"),
        ("SIMULATED_CUDA_INIT_ERROR", "803", "restart the machine"),
        ("SIMULATED_CUDA_MODULE_ERROR", "209", "set CUDA_COMPUTE_CAP and build again"),
        ("SIMULATED_CUDA_MODULE_ERROR", "222", "the driver is older than the CUDA"),
    ] {
        let output = candlepower(folder.path(), &run, &[(setting, error)]);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(one_line(&output).contains(part), "{error}: {}", one_line(&output));
    }
    let output = candlepower(folder.path(), &run, &[("CANDLEPOWER_DEVICE", "cuda:1")]);
    assert!(one_line(&output).contains("there is no GPU with this number"), "{}", one_line(&output));
    let output = candlepower(folder.path(), &["doctor"], &[("SIMULATED_CUDA_MODULE_ERROR", "222")]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let limits = text.lines().find(|line| line.contains(" limits ")).expect("limits");
    assert!(limits.contains("the driver is older than") && !text.contains("   0: "), "{text}");
}

#[test]
fn when_memory_is_exhausted_the_others_go_on() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("sweep.yaml"), SWEEP).expect("written");
    let sweep =
        |environment: &[(&str, &str)]| candlepower(folder.path(), &["sweep", "--config", "sweep.yaml"], environment);
    let output = sweep(&[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Exhausts memory in the first training: measuring the limits takes some hundred allocations.
    let output = sweep(&[("SIMULATED_CUDA_FULL_AT", "1500")]);
    let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{text}{error}");
    let failed =
        text.lines().chain(error.lines()).filter(|line| line.contains("the device's memory is exhausted")).count();
    assert!(error.contains("1 of 4 combinations failed") && failed >= 1, "{text}{error}");
    assert!(!text.contains("   0: ") && !error.contains("   0: "), "{text}{error}");
}

#[test]
fn what_does_not_fit_is_not_tried() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = ["run", "--model", "synthetic:llama-3.2-1b"];
    let output = candlepower(folder.path(), &run, &[("SIMULATED_CUDA_BYTES", "2147483648")]);
    assert!(one_line(&output).contains("it does not fit: "), "{}", one_line(&output));
}
