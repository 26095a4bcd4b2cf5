//! The first commands of a new user: a model by its name alone, why it is as fast as it is, and what a terminal shows meanwhile.

use std::{
    fs::File,
    io::Read,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

const GGUF: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/gguf/qwen3-gqa-tied.gguf");

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlepower"));
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("CANDLEPOWER_")) {
        command.env_remove(key);
    }
    command.current_dir(folder).args(arguments);
    command
}

fn candlepower(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    command(folder.path(), arguments).output().expect("the command starts")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

#[test]
fn a_model_alone_is_measured_on_each_engine() {
    let text = stdout(&candlepower(&[GGUF, "--budget", "2s"]));
    let rows = text.lines().filter(|line| line.starts_with("tuned-") || line.starts_with("stock-")).count();
    assert_eq!(rows, 2, "{text}");
    // Lines are wrapped between words.
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in ["decode", "prefill", "MBU", "prompt tokens", "time / stock", "next: candlepower run --model "] {
        assert!(words.contains(part), "{part} is missing from\n{text}");
    }
    assert!(text.lines().count() <= 24, "it fits a screen:\n{text}");
    // The settings of a command that takes one model apply.
    let json =
        stdout(&candlepower(&["llama-mini", "--engine", "tuned", "--dtype", "bf16", "--budget", "1s", "--json"]));
    let record: Value = serde_json::from_str(&json).expect("one record");
    assert_eq!(record["id"], "glance/llama-mini/tuned-bf16-cpu");
}

#[test]
fn what_is_no_model_is_a_misspelt_command() {
    for (argument, part) in [
        ("perplexty", "unrecognized subcommand 'perplexty': did you mean perplexity?"),
        ("./none.gguf", "none.gguf"),
        ("owner/", "unrecognized subcommand 'owner/'"),
    ] {
        let output = candlepower(&[argument]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.lines().count() == 1 && error.contains(part), "{argument}: {error}");
    }
}

#[test]
fn the_parts_of_a_pass_sum_to_its_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = folder.path().join("trace.json");
    for engine in ["tuned", "stock"] {
        let output = candlepower(&[
            "why",
            "--model",
            "llama-mini",
            "--engine",
            engine,
            "--prompt-tokens",
            "32",
            "--new-tokens",
            "16",
            "--rounds",
            "2",
            "--advice",
            "0s",
            "--json",
            "--trace",
            trace.to_str().expect("UTF-8"),
        ]);
        let found: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
        let phases = found["explanation"]["phases"].as_array().expect("phases");
        assert_eq!(phases.len(), 2, "{found}");
        for phase in phases {
            let parts = phase["parts"].as_array().expect("parts");
            let sum: f64 = parts.iter().filter_map(|part| part["ms"].as_f64()).sum();
            let whole = phase["ms"].as_f64().expect("a time");
            assert!((sum / whole - 1.0).abs() < 0.02, "{engine}: {sum} of {whole} ms: {phase}");
            assert!(parts.len() > 3 && parts.iter().any(|part| part["name"] == "sampling"), "{engine}: {phase}");
            assert!(phase["parts"][0]["allocations"].is_number(), "{phase}");
            if engine == "tuned" {
                let head = parts.iter().find(|part| part["name"] == "head").expect("a head");
                let kernel = head["kernels"][0].as_str().expect("a kernel");
                assert!(kernel.starts_with("f32 ") && head["kernels"].as_array().map(Vec::len) == Some(1), "{head}");
            }
        }
        // Two rounds, each with a prompt and 15 steps.
        assert_eq!((&phases[0]["passes"], &phases[1]["passes"]), (&2.into(), &30.into()));
        let spans: Value = serde_json::from_slice(&std::fs::read(&trace).expect("a trace")).expect("JSON");
        let passes = spans.as_array().expect("events").iter().filter(|span| span["name"] == "decode").count();
        assert_eq!(passes, 30);
    }
}

/// A process that still runs is named; those that this one comes from are not.
#[test]
#[cfg(target_os = "linux")]
fn the_doctor_names_processes_that_still_run() {
    let doctor = || stdout(&candlepower(&["doctor", "--json"]));
    let folder = tempfile::tempdir().expect("a folder");
    let serve = ["serve", "--model", "llama-mini", "--engine", "tuned", "--port", "0"];
    let mut stray =
        command(folder.path(), &serve).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a stray");
    let during = doctor();
    stray.kill().expect("killed");
    stray.wait().expect("ended");
    let id = stray.id().to_string();
    assert!(during.contains("already runs") && during.contains(&id), "{id}: {during}");
    assert!(!doctor().contains(&format!(" {id}")), "it has ended");
}

/// Runs a command on a terminal of its own and returns what it showed, and the longest time without a sign of life.
#[cfg(unix)]
fn on_a_terminal(arguments: &[&str]) -> (String, Duration) {
    use rustix::{
        fs::{Mode, OFlags, open},
        pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    };
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&terminal).expect("granted");
    unlockpt(&terminal).expect("unlocked");
    let name = ptsname(&terminal, Vec::new()).expect("a name");
    let side = File::from(open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("opened"));
    let size = rustix::termios::Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&side, size).expect("a size");
    let folder = tempfile::tempdir().expect("a folder");
    let mut child = command(folder.path(), arguments)
        .stdin(Stdio::null())
        .stdout(side.try_clone().expect("a copy"))
        .stderr(side)
        .spawn()
        .expect("the command starts");
    let (mut shown, mut longest, mut last) = (Vec::new(), Duration::ZERO, Instant::now());
    let (mut terminal, mut part) = (File::from(terminal), [0; 4096]);
    // The end of the last process on it is an error.
    while let Ok(count) = terminal.read(&mut part) {
        longest = longest.max(last.elapsed());
        last = Instant::now();
        shown.extend_from_slice(&part[..count]);
    }
    let status = child.wait().expect("it ends");
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert!(status.success(), "{shown}");
    (shown, longest)
}

#[cfg(unix)]
#[test]
fn a_terminal_is_never_silent_for_long() {
    for arguments in [
        &[
            "why",
            "--model",
            "qwen3-mini",
            "--prompt-tokens",
            "64",
            "--new-tokens",
            "32",
            "--rounds",
            "3",
            "--advice",
            "0s",
        ][..],
        &["run", "--model", "qwen3-mini", "--engine", "stock", "--prompt-tokens", "64", "--max-new-tokens", "64"],
        &["gemma3-mini", "--budget", "4s"],
    ] {
        let started = Instant::now();
        let (shown, longest) = on_a_terminal(arguments);
        assert!(
            longest < Duration::from_secs(2),
            "{arguments:?}: silent for {longest:?} of {:?}:\n{shown}",
            started.elapsed()
        );
        assert!(shown.contains('·'), "{arguments:?}: no step is named:\n{shown}");
    }
}
