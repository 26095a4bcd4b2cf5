//! Tests `candlepower memory -- COMMAND` and `candlepower power -- COMMAND`.
#![cfg(unix)]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

fn candlepower(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlepower"));
    command.current_dir(folder).args(arguments).stdin(Stdio::null());
    command
}

fn output(folder: &Path, arguments: &[&str]) -> Output {
    candlepower(folder, arguments).output().expect("the command starts")
}

fn json(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("result.json")).expect("a result")).expect("JSON")
}

/// Asserts that a value is above 0, or `null` with a reason.
fn assert_known_or_explained(report: &Value, field: &str) {
    match report[field].as_f64() {
        Some(value) => assert!(value > 0.0, "{field}: {report}"),
        None => assert!(report["unmeasured"][field].as_str().is_some_and(|why| why.len() > 5), "{field}: {report}"),
    }
}

#[test]
fn streams_and_exit_codes_are_those_of_the_command() {
    let folder = tempfile::tempdir().expect("a folder");
    for wrapper in ["memory", "power"] {
        let script = "cat; echo problem >&2; exit 7";
        let arguments = [wrapper, "--json", "result.json", "--interval-ms", "5", "--", "sh", "-c", script];
        let mut command = candlepower(folder.path(), &arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the command starts");
        // The result does not go to standard output, and its bytes are arbitrary.
        child.stdin.take().expect("piped").write_all(b"\x1b[1mdata\xff\n").expect("written");
        let output = child.wait_with_output().expect("it ends");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(7), &b"\x1b[1mdata\xff\n"[..]), "{error}");
        assert!(error.starts_with("problem\n") && error.contains("exit code 7\n"), "{error}");
        let report = json(folder.path());
        assert_eq!((&report["schema"], &report["exit_code"], &report["signal"]), (&1.into(), &7.into(), &Value::Null));
        assert_eq!(report["command"], serde_json::json!(["sh", "-c", script]));
        assert!(report["duration_s"].as_f64().expect("seconds") > 0.0);
    }
}

#[test]
fn signals_reach_the_command_and_end_both() {
    let folder = tempfile::tempdir().expect("a folder");
    let killed = output(folder.path(), &["memory", "--json", "result.json", "--", "sh", "-c", "kill -KILL $$"]);
    assert_eq!(killed.status.code(), Some(128 + 9));
    assert_eq!((&json(folder.path())["exit_code"], &json(folder.path())["signal"]), (&Value::Null, &9.into()));

    for (signal, wrapper) in [("TERM", "memory"), ("INT", "power"), ("HUP", "memory")] {
        let script = format!("trap 'exit 5' {signal}; echo ready; while :; do sleep 0.02; done");
        let arguments = [wrapper, "--json", "result.json", "--", "sh", "-c", &script];
        let mut child = candlepower(folder.path(), &arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
        let sent = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status();
        assert!(sent.expect("kill").success());
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(5), "{signal}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(json(folder.path())["exit_code"], 5, "{signal}");
    }
}

/// `tail` holds what it reads until its input ends, and then until its reader takes it.
#[cfg(target_os = "linux")]
#[test]
fn the_memory_of_all_processes_is_found() {
    const HELD: u64 = 64 << 20;
    let folder = tempfile::tempdir().expect("a folder");
    let one = format!("head -c {HELD} /dev/zero | tail -c {HELD} | (sleep 1.5; cat >/dev/null)");
    let script = format!("({one}) & {one}; wait");
    let arguments = ["memory", "--json", "result.json", "--plot", "memory.svg", "--interval-ms", "20"];
    let output = output(folder.path(), &[&arguments[..], &["--", "sh", "-c", &script]].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout.is_empty(), "{error}");
    let report = json(folder.path());
    let bytes = |field: &str| report[field].as_u64().unwrap_or_else(|| panic!("{field}: {report}"));
    assert!((HELD..2 * HELD).contains(&bytes("process_peak_bytes")), "{report}");
    assert_eq!(report["process_peak_name"], "tail");
    assert!((2 * HELD..4 * HELD).contains(&bytes("tree_peak_bytes")), "{report}");
    assert!(bytes("most_processes") >= 5 && bytes("looks") > 20, "{report}");
    let most = report["tree_bytes"].as_array().expect("points").iter().filter_map(|point| point[1].as_u64()).max();
    assert_eq!(most, Some(bytes("tree_peak_bytes")));
    assert!(error.contains("largest process (tail)"), "{error}");
    let plot = fs::read_to_string(folder.path().join("memory.svg")).expect("a plot");
    assert!(plot.starts_with("<svg") && plot.contains("MB") && plot.contains("<polyline"), "{plot}");
}

#[test]
fn power_that_is_not_counted_is_null_with_a_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = output(folder.path(), &["power", "--json", "result.json", "--", "sleep", "0.5"]);
    assert!(output.status.success() && output.stdout.is_empty());
    let report = json(folder.path());
    for field in ["joules", "mean_watts"] {
        assert_known_or_explained(&report, field);
    }
    let sources = report["sources"].as_array().expect("a list");
    if sources.is_empty() {
        for kind in ["cpus", "gpus"] {
            assert!(report["unmeasured"][kind].is_string(), "{report}");
        }
    }
    for source in sources {
        assert_ne!(source["joules"], 0.0, "{report}");
    }
}

/// NVML of the simulated device, which always draws 350 W.
#[test]
fn gpus_are_read_with_nvml() {
    let folder = tempfile::tempdir().expect("a folder");
    let library = folder.path().join("libnvidia-ml.so.1");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cuda/nvml.c");
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
    assert!(made.expect("a C compiler").success());
    fs::copy(&library, folder.path().join("libnvidia-ml.so")).expect("copied");
    let report = |wrapper: &str, lacks: &str| {
        let arguments = [wrapper, "--json", "result.json", "--plot", "plot.svg", "--", "sleep", "0.5"];
        let mut command = candlepower(folder.path(), &arguments);
        command.env("LD_LIBRARY_PATH", folder.path()).env("SIMULATED_NVML_USED", "3000000000");
        let output = command.env_remove("CUDA_VISIBLE_DEVICES").env("SIMULATED_NVML_LACKS", lacks).output();
        let output = output.expect("the command starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let plot = fs::read_to_string(folder.path().join("plot.svg")).expect("a plot");
        assert!(plot.contains("GPU 0, simulated device"), "{plot}");
        (json(folder.path()), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (memory, text) = report("memory", "none");
    let gpu = &memory["gpus"][0];
    assert_eq!((&gpu["before_bytes"], &gpu["peak_bytes"]), (&3_000_000_000_u64.into(), &3_000_000_000_u64.into()));
    assert!(text.contains("GPU 0, simulated device, all processes") && text.contains("3000.0"), "{text}");

    let (power, text) = report("power", "none");
    let gpus: Vec<&Value> =
        power["sources"].as_array().expect("a list").iter().filter(|s| s["interface"] == "nvml").collect();
    let (joules, duration_s) = (gpus[0]["joules"].as_f64().expect("energy"), power["duration_s"].as_f64().expect("s"));
    assert!((joules / duration_s - 350.0).abs() < 20.0 && gpus[0]["peak_watts"] == 350.0, "{power}");
    assert!(text.contains("simulated device") && text.contains("350.0"), "{text}");

    let (power, text) = report("power", "energy");
    let gpu = power["sources"].as_array().and_then(|sources| sources.last()).expect("a source");
    assert_eq!((&gpu["joules"], &gpu["mean_watts"]), (&Value::Null, &350.0.into()), "{power}");
    assert!(power["unmeasured"]["GPU 0, simulated device: joules"].is_string() && text.contains("n/a"), "{power}");
    assert_eq!(power["joules"], Value::Null);
}

#[test]
fn a_command_that_can_not_start_ends_as_in_a_shell() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("text"), "no program").expect("written");
    for (command, code, part) in
        [("no-such-command", 127, "no-such-command: command not found"), ("./text", 126, "./text: ")]
    {
        let output = output(folder.path(), &["memory", "--json", "result.json", "--", command]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.starts_with("error: ") && error.contains(part) && error.lines().count() == 1, "{error}");
        assert!(!folder.path().join("result.json").exists());
    }
}

#[test]
fn mistakes_are_refused_in_one_line_before_the_command_starts() {
    let folder = tempfile::tempdir().expect("a folder");
    let touch = ["--", "touch", "started"];
    for (arguments, part) in [
        (&["memory"][..], "<COMMAND>"),
        (&["power", "--"], "<COMMAND>"),
        (&["memory", "touch", "started"], "touch"),
        (&["power", "--interval-ms", "0"], "--interval-ms"),
        (&["power", "--interval-ms", "60001"], "--interval-ms"),
        (&["power", "--interval-ms", "99999999999999999999999"], "--interval-ms"),
        (&["power", "--interval-ms", "soon"], "--interval-ms"),
        (&["memory", "--json", "no/such/folder/result.json"], "no/such/folder/result.json can't be written"),
        (&["memory", "--json", "."], "it is a folder"),
    ] {
        let whole = if part == "<COMMAND>" { arguments.to_vec() } else { [arguments, &touch].concat() };
        let mut child = candlepower(folder.path(), &whole).stderr(Stdio::piped()).spawn().expect("the command starts");
        let mut error = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut error).expect("UTF-8");
        assert_eq!(child.wait().expect("it ends").code(), Some(2), "{whole:?}");
        assert_eq!(error.lines().count(), 1, "{whole:?}: {error}");
        assert!(error.starts_with("error: ") && error.contains(part), "{whole:?}: {error}");
        assert!(!folder.path().join("started").exists(), "{whole:?}");
    }
}
