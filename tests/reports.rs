//! Tests reports, exports, histories and the nightly run. Records are synthetic or copied; nothing is measured.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use candlepower::record::{Measures, RECORDS, Record};
use serde_json::Value;

const SAMPLE: &str = include_str!("../src/record/sample.json");

fn candlepower(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlepower"));
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("CANDLEPOWER_")) {
        command.env_remove(key);
    }
    command.env_remove("CARGO_TARGET_DIR").env_remove("CRITERION_HOME").env("RUST_BACKTRACE", "1");
    command.envs(environment.iter().copied()).current_dir(folder).args(arguments).output().expect("the command starts")
}

fn succeeds(folder: &Path, arguments: &[&str]) -> String {
    let output = candlepower(folder, arguments, &[]);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Returns the only folder in a folder.
fn inside(folder: &Path) -> PathBuf {
    let folders: Vec<_> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir())
        .collect();
    assert_eq!(folders.len(), 1, "{folders:?}");
    folders[0].clone()
}

/// Returns the sample with its times and its memory multiplied.
fn record(id: &str, slower: f64, peak_bytes: u64) -> String {
    let mut record: Record = serde_json::from_str(SAMPLE).expect("the sample");
    record.id = id.into();
    let Some(Measures::Generation(measures)) = &mut record.measures else { panic!("a generation") };
    measures.sample_total_ms = (0..10).map(|n| slower * (100.0 + 0.1 * f64::from(n))).collect();
    measures.tokens_per_s = 180.0 / slower;
    measures.peak_bytes = Some(peak_bytes);
    serde_json::to_string(&record).expect("a line") + "\n"
}

#[test]
fn a_sandbox_makes_every_kind_of_file_and_is_marked_in_each() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    succeeds(here, &["sandbox"]);
    let again = candlepower(here, &["sandbox"], &[]);
    assert!(
        !again.status.success() && String::from_utf8_lossy(&again.stderr).contains("choose another run with --run")
    );

    succeeds(here, &["report", "--zip"]);
    let machine = here.join("target-reports").join("sandbox");
    let report = inside(&machine);
    let readme = fs::read_to_string(report.join("README.md")).expect("README.md");
    assert!(readme.starts_with("# Made-up figures"), "{}", &readme[..60]);
    for title in
        ["## Generation", "## Mixtures of experts: prefill", "## Mixtures of experts: decode", "## Architecture sweep"]
    {
        assert!(readme.contains(title), "{title}");
    }
    let page = fs::read_to_string(report.join("index.html")).expect("index.html");
    assert!(page.contains("Made-up figures"));
    // A page must not load anything. The namespace of SVG is an address, but is not loaded.
    assert!(!page.replace("http://www.w3.org/2000/svg", "").contains("http"), "the page loads something");
    for plot in [
        "tokens_per_s",
        "mbu",
        "mfu",
        "roofline",
        "step_latency",
        "expert_load",
        "throughput_forward",
        "throughput_train",
    ] {
        let png = fs::read(report.join(plot).with_extension("png")).expect(plot);
        assert!(png.starts_with(b"\x89PNG") && png.len() > 5000, "{plot}: {} bytes", png.len());
        assert!(report.join(plot).with_extension("svg").is_file(), "{plot}");
    }
    let parquet = fs::read(report.join("results.parquet")).expect("results.parquet");
    assert!(parquet.starts_with(b"PAR1"));
    assert!(report.with_extension("zip").is_file());

    assert!(succeeds(here, &["export", "--format", "openmetrics"]).ends_with("# EOF\n"));
    assert!(succeeds(here, &["export", "--format", "registry"]).contains("source: candlepower sandbox"));
    let compared = candlepower(here, &["compare", "sandbox", "sandbox"], &[]);
    assert!(String::from_utf8_lossy(&compared.stderr).contains("no benchmark in common"));
    let history = candlepower(here, &["history", "medium"], &[]);
    assert!(!history.status.success(), "made-up figures have no history");
}

#[test]
fn made_up_records_among_measured_ones_are_left_out_and_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = folder.path().join("target/candlepower/mixed");
    fs::create_dir_all(&run).expect("made");
    let mut made_up: Record = serde_json::from_str(SAMPLE).expect("the sample");
    made_up.sandbox = true;
    made_up.id = "short/made-up/stock-f32-cpu".into();
    let lines = record("short/a/stock-f32-cpu", 1.0, 1) + &serde_json::to_string(&made_up).expect("a line") + "\n";
    fs::write(run.join(RECORDS), lines).expect("written");
    let output = candlepower(folder.path(), &["report"], &[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("short/made-up/stock-f32-cpu: a sandbox record"));
    let report = inside(&inside(&folder.path().join("target-reports")));
    let results = fs::read_to_string(report.join("results.jsonl")).expect("results");
    assert_eq!(results.lines().count(), 1);
}

#[test]
fn a_history_says_where_it_moved() {
    let folder = tempfile::tempdir().expect("a folder");
    for number in 0..12 {
        let report = folder.path().join(format!("target-reports/box/202611{:02}T000000Z", number + 1));
        fs::create_dir_all(&report).expect("made");
        let slower = if number < 7 { 1.0 } else { 1.1 } + 0.001 * f64::from(number % 3);
        let mut record: Record = serde_json::from_str(&record("medium/a/stock-f32-cpu", slower, 1)).expect("a record");
        record.at = format!("2026-11-{:02}T00:00:00.000Z", number + 1);
        record.software.commit = Some(format!("{number:040x}"));
        fs::write(report.join("results.jsonl"), serde_json::to_string(&record).expect("a line") + "\n")
            .expect("written");
    }
    let text = succeeds(folder.path(), &["history", "medium/"]);
    let moved: Vec<&str> = text.lines().filter(|line| line.contains("worse by")).collect();
    assert!(moved.len() == 1 && moved[0].contains("2026-11-08"), "{text}");
    let json = succeeds(folder.path(), &["history", "medium/", "--format", "json", "--svg", "h.svg"]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json[0]["moves"][0]["commit"], format!("{:040x}", 7));
    assert!(fs::read_to_string(folder.path().join("h.svg")).expect("a plot").contains("<svg"));
    let output = candlepower(folder.path(), &["history", "medium", "--metric", "speed"], &[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("no benchmark has a figure 'speed': there are"));
}

/// A script in place of Cargo: it writes the records of a file, or waits.
#[cfg(unix)]
#[test]
fn a_nightly_run_fails_on_a_regression_keeps_to_its_budget_and_prunes() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let cargo = here.join("cargo");
    let script = "#!/bin/sh\nset -e\n[ -f slow ] && sleep 60\nmkdir -p \"$CANDLEPOWER_OUT/$CANDLEPOWER_RUN\"\n\
                  cat next.jsonl >> \"$CANDLEPOWER_OUT/$CANDLEPOWER_RUN/records.jsonl\"\n";
    fs::write(&cargo, script).expect("written");
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).expect("made executable");
    let nightly = |config: &str| {
        fs::write(here.join("nightly.json"), config).expect("written");
        let output = candlepower(here, &["nightly", "nightly.json"], &[("CARGO", cargo.to_str().expect("UTF-8"))]);
        // The name of a run is the time in seconds.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let config = r#"{"benchmarks": [{"bench": "generation"}], "keep": 2}"#;
    let next = |slower, peak| fs::write(here.join("next.jsonl"), record("short/a/v", slower, peak)).expect("written");
    let last_good = || fs::read_to_string(here.join("target/nightly/last-good")).expect("a good run");

    next(1.0, 1_000_000);
    let (code, text) = nightly(config);
    assert_eq!(code, Some(0), "{text}");
    let good = last_good();
    next(1.1, 1_000_000);
    let (code, text) = nightly(config);
    assert!(code == Some(1) && text.contains("short/a/v: 10.0 % slower"), "{text}");
    next(1.0, 1_010_000);
    let (code, text) = nightly(config);
    assert!(code == Some(1) && text.contains("short/a/v: 1.0 % more memory"), "{text}");
    assert_eq!(last_good(), good, "a bad run is none to compare with");
    next(1.0, 1_000_000);
    assert_eq!(nightly(config).0, Some(0));
    assert_ne!(last_good(), good);
    let runs = fs::read_dir(here.join("target/nightly/runs")).expect("runs").count();
    assert_eq!(runs, 2);
    let summary = here.join("target/nightly/runs").join(last_good()).join("summary.json");
    let summary: Value = serde_json::from_slice(&fs::read(summary).expect("a summary")).expect("JSON");
    assert_eq!((&summary["good"], &summary["compared_with"]), (&Value::Bool(true), &Value::from(good)));
    assert_eq!(summary["benchmarks"][0]["metrics"][0]["name"], "tokens_per_s");

    fs::write(here.join("slow"), "").expect("written");
    let (code, text) = nightly(
        r#"{"benchmarks": [{"bench": "generation", "budget_minutes": 0.005}, {"bench": "moe"}], "budget_minutes": 0.005}"#,
    );
    assert!(code == Some(1) && text.contains("generation: stopped after") && text.contains("moe: skipped"), "{text}");
}

/// A disturbed run can be looked at, but neither a kept report nor the last good night is made of it.
#[cfg(unix)]
#[test]
fn a_disturbed_run_becomes_no_reference() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let mut disturbed: Record = serde_json::from_str(&record("short/a/v", 1.0, 1_000_000)).expect("a record");
    disturbed.conditions.as_mut().expect("conditions").doubts.push("other processes took 40 % of the CPU time".into());
    let line = serde_json::to_string(&disturbed).expect("a line") + "\n";
    let run = here.join("target/candlepower/busy");
    fs::create_dir_all(&run).expect("made");
    fs::write(run.join(RECORDS), &line).expect("written");

    let output = candlepower(here, &["report"], &[]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), errors.lines().count()), (Some(2), 1), "{errors}");
    assert!(errors.contains("1 of 1 benchmarks are doubtful, for example short/a/v: other processes"), "{errors}");
    assert!(!here.join("target-reports").exists());
    succeeds(here, &["report", "--even-if-disturbed"]);
    let readme = inside(&inside(&here.join("target-reports"))).join("README.md");
    assert!(fs::read_to_string(readme).expect("a table").contains("other processes took 40 %"));

    let cargo = here.join("cargo");
    let script = "#!/bin/sh\nset -e\nmkdir -p \"$CANDLEPOWER_OUT/$CANDLEPOWER_RUN\"\n\
                  cat next.jsonl >> \"$CANDLEPOWER_OUT/$CANDLEPOWER_RUN/records.jsonl\"\n";
    fs::write(&cargo, script).expect("written");
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).expect("made executable");
    fs::write(here.join("next.jsonl"), line).expect("written");
    fs::write(here.join("nightly.json"), r#"{"benchmarks": [{"bench": "generation"}]}"#).expect("written");
    let nightly = |arguments: &[&str]| {
        let arguments = [&["nightly", "nightly.json"], arguments].concat();
        let output = candlepower(here, &arguments, &[("CARGO", cargo.to_str().expect("UTF-8"))]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // The name of a run is the time in seconds.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let last_good = here.join("target/nightly/last-good");
    let text = nightly(&[]);
    assert!(text.contains("is no reference for later ones: 1 of 1 benchmarks") && !last_good.exists(), "{text}");
    nightly(&["--even-if-disturbed"]);
    assert!(last_good.exists());
}

#[test]
fn a_nightly_file_that_can_not_be_used_is_refused_in_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    for (config, part) in [
        ("{", "nightly.json: EOF"),
        (r#"{"benchmark": []}"#, "unknown field `benchmark`"),
        (r#"{"benchmarks": []}"#, "list at least one"),
        (r#"{"benchmarks": [{"bench": "a", "settings": {"model": "b"}}]}"#, "unknown setting 'model'"),
        (r#"{"benchmarks": [{"bench": "a"}], "budget_minutes": 0}"#, "0 is not a positive number"),
        (r#"{"benchmarks": [{"bench": "a"}], "keep": 0}"#, "keep: it must be at least 1"),
        (r#"{"benchmarks": [{"bench": "a"}], "fail_above": "much"}"#, "expected a share"),
    ] {
        fs::write(folder.path().join("nightly.json"), config).expect("written");
        let output = candlepower(folder.path(), &["nightly", "nightly.json"], &[]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.lines().count() == 1 && error.contains(part), "{config}: {error}");
        assert!(!folder.path().join("target").exists(), "{config} left something behind");
    }
}
