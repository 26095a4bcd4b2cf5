//! Tests reports, exports, histories and the nightly run. Records are synthetic or copied; nothing is measured.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use candlepower_core::record::{Measures, RECORDS, Record};
use serde_json::Value;

const SAMPLE: &str = include_str!("../../src/core/record/sample.json");

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
    let page = page.replace("http://www.w3.org/2000/svg", "").replace("<meta http-equiv", "");
    assert!(!page.contains("://"), "the page loads something");
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
    assert!(succeeds(here, &["compare", "sandbox", "sandbox"]).contains("Every value is synthetic"));
    let history = candlepower(here, &["history", "medium"], &[]);
    assert!(!history.status.success(), "made-up figures have no history");
}

/// SQLite reads the text, by its shell or by Python, and has every record once although it reads it twice.
#[test]
fn an_export_as_sql_is_a_table_of_sqlite() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let records = record("short/a'b/stock-f32-cpu", 1.0, 1000) + &record("short/c/stock-f32-cpu", 2.0, 3000);
    fs::write(here.join("records.jsonl"), records).expect("written");
    succeeds(here, &["export", "records.jsonl", "--format", "sql", "--to", "results.sql"]);
    let query = "SELECT count(*) || ' ' || sum(peak_bytes) || ' ' || max(json_extract(record, '$.id')) FROM results";
    let load = "for _ in 1 2; do sqlite3 results.sqlite < results.sql; done";
    let python = "import sqlite3\nbase = sqlite3.connect('results.sqlite')\nfor _ in range(2): \
                  base.executescript(open('results.sql').read())\nprint(base.execute(QUERY).fetchone()[0])";
    let shell = Command::new("sh")
        .args(["-c", &format!("{load}; sqlite3 results.sqlite \"{query}\"")])
        .current_dir(here)
        .output()
        .expect("a shell");
    let output = match shell.status.success() {
        true => shell,
        false => {
            let python = python.replace("QUERY", &format!("\"{query}\""));
            match Command::new("python3").args(["-c", &python]).current_dir(here).output() {
                Ok(output) if output.status.success() => output,
                _ => return println!("skipped: neither SQLite's shell nor Python's module is here"),
            }
        }
    };
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "2 4000 short/c/stock-f32-cpu");
}

/// The shell of SQLite writes the database. Without the shell or the name of a file, one line says what to do.
#[test]
fn an_export_to_sqlite_is_a_database_or_says_why_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let records = record("short/a/stock-f32-cpu", 1.0, 1000) + &record("short/b/stock-f32-cpu", 2.0, 3000);
    fs::write(here.join("records.jsonl"), records).expect("written");
    fs::write(here.join("text.sqlite"), "no database").expect("written");
    let export = |to: &[&str], path: Option<&str>| {
        let arguments = [&["export", "records.jsonl", "--format", "sqlite"], to].concat();
        candlepower(here, &arguments, &path.map(|path| ("PATH", path)).into_iter().collect::<Vec<_>>())
    };
    let refused = |output: Output, part: &str| {
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(part) && error.lines().count() == 1, "{error}");
    };
    refused(export(&[], None), "name the file of the database with --to");
    refused(export(&["--to", "a.sqlite"], Some("")), "sqlite3, was not found");
    assert!(!here.join("a.sqlite").exists());
    if Command::new("sqlite3").arg("--version").output().is_err() {
        return println!("skipped: SQLite's shell is not here");
    }
    refused(export(&["--to", "text.sqlite"], None), "text.sqlite: ");
    for _ in 0..2 {
        let output = export(&["--to", "a.sqlite"], None);
        assert!(output.status.success() && output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let query = ["a.sqlite", "SELECT count(*) || ' ' || sum(peak_bytes) FROM results"];
    let found = Command::new("sqlite3").args(query).current_dir(here).output().expect("the shell");
    assert_eq!(String::from_utf8_lossy(&found.stdout).trim(), "2 4000");
}

#[test]
fn an_export_for_readers_of_llama_bench_is_one_object_a_line() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("records.jsonl"), record("short/a/stock-f32-cpu", 1.0, 1000)).expect("written");
    let text = succeeds(folder.path(), &["export", "records.jsonl", "--format", "llama-bench-jsonl"]);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let names: Vec<&String> = lines[0].as_object().expect("an object").keys().collect();
    for name in ["build_commit", "model_n_params", "type_k", "n_prompt", "n_gen", "n_depth", "avg_ts", "samples_ns"] {
        assert!(names.iter().any(|known| *known == name), "{name} is missing from {names:?}");
    }
    assert_eq!(lines.len(), 3);
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

/// Two reports of a run may have the same second. The log has its rows once, and the history its points.
#[test]
fn a_run_may_be_reported_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = folder.path().join("target/candlepower/mine");
    fs::create_dir_all(&run).expect("made");
    fs::write(run.join(RECORDS), record("medium/a/stock-f32-cpu", 1.0, 1).replace("\"short\"", "\"medium\""))
        .expect("written");
    let reports: Vec<String> = (0..3).map(|_| succeeds(folder.path(), &["report", "mine"])).collect();
    let distinct: std::collections::BTreeSet<&String> = reports.iter().collect();
    assert_eq!(distinct.len(), 3, "{reports:?}");
    let last = folder.path().join(reports[2].lines().next().expect("a line"));
    let log = fs::read_to_string(last.with_file_name("GENERATION_LOG.md")).expect("a log");
    let name = last.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(log.contains("| date | model | variant | short | medium | prefill |"), "{log}");
    assert!(log.matches("stock-f32-cpu").count() == 1 && log.contains(&format!("({name}/README.md)")), "{log}");
    let json = succeeds(folder.path(), &["history", "medium/", "--format", "json"]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json[0]["points"].as_array().map(Vec::len), Some(1), "{json}");
}

#[test]
fn the_environment_lists_the_doubts_of_every_benchmark() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut records = [0.02, 0.15, 0.07].map(|share| {
        let id = format!("short/a{share}/stock-f32-cpu");
        let mut record: Record = serde_json::from_str(&record(&id, 1.0, 1)).expect("a record");
        let conditions = record.conditions.as_mut().expect("conditions");
        conditions.other_cpu_share = Some(share);
        conditions.doubts.push(format!("other processes took {:.0} % of the CPU time", share * 100.0));
        record
    });
    records[0].conditions.as_mut().expect("conditions").doubts.clear();
    let lines: String = records.iter().map(|record| serde_json::to_string(record).expect("a line") + "\n").collect();
    fs::write(folder.path().join("mine.jsonl"), lines).expect("written");
    let report = succeeds(folder.path(), &["report", "mine.jsonl", "--even-if-disturbed"]);
    let report = folder.path().join(report.lines().next().expect("a line"));
    let environment = fs::read_to_string(report.join("environment.yaml")).expect("environment.yaml");
    let environment: Value = serde_saphyr::from_str(&environment).expect("YAML");
    let conditions = &environment["conditions"];
    assert_eq!(conditions["observed_benchmarks"], 3);
    assert_eq!(conditions["largest_other_cpu_share"], 0.15);
    let doubts = conditions["doubts"].as_object().expect("doubts");
    assert_eq!(doubts.len(), 2, "{doubts:?}");
    assert_eq!(doubts["short/a0.15/stock-f32-cpu"][0], "other processes took 15 % of the CPU time");
}

#[test]
fn a_history_says_where_it_moved() {
    let folder = tempfile::tempdir().expect("a folder");
    for number in 0..12 {
        let report = folder.path().join(format!("target-reports/amd-epyc-2c/202611{:02}T000000Z", number + 1));
        fs::create_dir_all(&report).expect("made");
        let slower = if number < 7 { 1.0 } else { 1.1 } + 0.001 * f64::from(number % 3);
        let mut record: Record = serde_json::from_str(&record("medium/a/stock-f32-cpu", slower, 1)).expect("a record");
        record.at = format!("2026-11-{:02}T00:00:00.000Z", number + 1);
        record.software.commit = Some(format!("{number:012x}{number:028x}"));
        fs::write(report.join("results.jsonl"), serde_json::to_string(&record).expect("a line") + "\n")
            .expect("written");
    }
    let text = succeeds(folder.path(), &["history", "medium/"]);
    let moved: Vec<&str> = text.lines().filter(|line| line.contains("worse by")).collect();
    assert!(moved.len() == 1 && moved[0].contains("2026-11-08"), "{text}");
    assert!(moved[0].contains("000000000006 to 000000000007"), "the commits of the step are named: {}", moved[0]);
    let overview = succeeds(folder.path(), &["history", "--html"]);
    assert!(overview.contains("worse by"), "{overview}");
    let page = fs::read_to_string(folder.path().join("target-reports/amd-epyc-2c/history.html")).expect("a page");
    for part in ["<svg", "class=\"step\"", "worse by", "<code>000000000006</code> to <code>000000000007</code>"] {
        assert!(page.contains(part), "{part} is missing from\n{page}");
    }
    let json = succeeds(folder.path(), &["history", "medium/", "--format", "json", "--svg", "h.svg"]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json[0]["moves"][0]["commit"], format!("{0:012x}{0:028x}", 7));
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
    let config = r#"{"benchmarks": [{"bench": "generation", "settings": {"threads": 2}}], "keep": 2}"#;
    let commits = std::cell::Cell::new(0);
    let next = |slower, peak| {
        let mut record: Record = serde_json::from_str(&record("short/a/v", slower, peak)).expect("a record");
        commits.set(commits.get() + 1);
        record.software.commit = Some(format!("{:012}{:028}", commits.get(), 0));
        fs::write(here.join("next.jsonl"), serde_json::to_string(&record).expect("a line") + "\n").expect("written");
    };
    let last_good = || fs::read_to_string(here.join("target/nightly/last-good")).expect("a good run");

    next(1.0, 1_000_000);
    let (code, text) = nightly(config);
    assert_eq!(code, Some(0), "{text}");
    let good = last_good();
    next(1.4, 1_000_000);
    let (code, text) = nightly(config);
    assert!(code == Some(1) && text.contains("short/a/v: 40.0 % slower"), "{text}");
    let bisect = |kind| {
        // The first twelve digits are shown.
        let [good, bad] = [1, commits.get()].map(|number| format!("{number:012}"));
        format!("`candlepower bisect {good}+threads=2 {bad}+threads=2 --for {kind} -- '^short/a/v$'`")
    };
    assert!(text.contains(&bisect("slower")), "{text}");
    next(1.0, 1_010_000);
    let (code, text) = nightly(config);
    assert!(code == Some(1) && text.contains("short/a/v: 1.0 % more memory"), "{text}");
    assert!(text.contains(&bisect("memory")), "{text}");
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

/// The parts run on different machines, and a report merges them.
#[cfg(unix)]
#[test]
fn shards_of_a_nightly_list_run_each_benchmark_once_and_are_merged() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let cargo = here.join("cargo");
    // The third argument is the bench target. Each has a record of its own, and one that all targets have.
    let script = "#!/bin/sh\nset -e\nmkdir -p \"$CANDLEPOWER_OUT/$CANDLEPOWER_RUN\"\n\
                  cat \"$3.jsonl\" >> \"$CANDLEPOWER_OUT/$CANDLEPOWER_RUN/records.jsonl\"\n";
    fs::write(&cargo, script).expect("written");
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).expect("made executable");
    for (number, bench) in ["generation", "moe", "sweep"].into_iter().enumerate() {
        let mut one: Record = serde_json::from_str(&record(&format!("short/{bench}/v"), 1.0, 1)).expect("a record");
        one.machine.name = if number == 1 { "other".into() } else { "box".into() };
        fs::write(here.join(format!("{bench}.jsonl")), serde_json::to_string(&one).expect("a line") + "\n")
            .expect("written");
    }
    let config = r#"{"benchmarks": [{"bench": "generation"}, {"bench": "moe"}, {"bench": "sweep"}]}"#;
    fs::write(here.join("nightly.json"), config).expect("written");
    let environment = [("CARGO", cargo.to_str().expect("UTF-8"))];
    let mut files = Vec::new();
    for shard in ["1/2", "2/2"] {
        let output = candlepower(here, &["nightly", "nightly.json", "--shard", shard], &environment);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let run = inside(&here.join(format!("target/nightly/shard-{}/runs", shard.replace('/', "-of-"))));
        files.push(run.join(RECORDS).display().to_string());
    }
    let records = |file: &String| fs::read_to_string(file).expect("records").lines().count();
    assert_eq!(files.iter().map(records).collect::<Vec<_>>(), [2, 1]);

    let again = candlepower(here, &["report", &files[0], &files[1], &files[0]], &[]);
    let errors = String::from_utf8_lossy(&again.stderr);
    assert!(errors.contains("ran on several machines: box, other"), "{errors}");
    assert!(errors.contains("short/sweep/v: in several files"), "{errors}");
    let report = inside(&here.join("target-reports/box"));
    let results = fs::read_to_string(report.join("results.jsonl")).expect("results");
    let ids: Vec<_> = ["generation", "sweep", "moe"].iter().map(|bench| format!("\"short/{bench}/v\"")).collect();
    assert_eq!(results.lines().count(), 3);
    assert!(results.lines().zip(&ids).all(|(line, id)| line.contains(id.as_str())), "{results}");

    let output = candlepower(here, &["nightly", "nightly.json", "--shard", "4/4"], &environment);
    assert!(String::from_utf8_lossy(&output.stderr).contains("shard 4/4 has none of the 3 benchmarks"));
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
        (r#"{"benchmarks": [{"bench": "a"}], "budget_minutes": 0}"#, "budget_minutes: 0.0 is not a positive number"),
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

/// Explanations stand beside an engine, beside an earlier file, and in a report.
#[test]
fn explanations_are_compared_and_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let short = ["why", "--prompt-tokens", "8", "--new-tokens", "4", "--rounds", "1", "--advice", "0s"];
    let why = |more: &[&str]| candlepower(here, &[&short, more].concat(), &[]);
    let written = |output: Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let json = written(why(&["--engine", "tuned", "--against", "stock", "--json"]));
    let both: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(both["against"]["name"], "stock");
    for explanation in [&both["explanation"], &both["against"]["explanation"]] {
        let decode = &explanation["phases"][1];
        let parts = decode["parts"].as_array().expect("parts").iter();
        let sum: f64 = parts.filter_map(|part| part["ms"].as_f64()).sum();
        assert!((sum / decode["ms"].as_f64().expect("a time") - 1.0).abs() < 0.02, "{explanation}");
    }
    fs::write(here.join("before.json"), &json).expect("written");
    let text = written(why(&["--against", "before.json"]));
    for pass in ["prefill", "decode"] {
        assert!(text.contains(&format!("{pass} beside llama-mini tuned-f32-cpu, before.json")), "{text}");
    }
    for (more, problem) in [
        (&["--against", "none.json"][..], "--against names neither an engine nor an explanation: none.json"),
        (&["--against", "tuned-x"], "--against names neither an engine nor an explanation: tuned-x"),
    ] {
        let output = why(more);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(problem) && error.lines().count() == 1, "{error}");
    }
    fs::write(here.join("broken.json"), "{\"variant\": 3}").expect("written");
    succeeds(here, &["sandbox"]);
    let output = candlepower(here, &["report", "broken.json"], &[]);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("broken.json: no file that `candlepower why --json` wrote")
    );
    assert!(!here.join("target-reports").exists(), "nothing is half-written");
    // A name of any length leaves a plot of a usual width.
    let long = json.replacen("llama-mini tuned", &"\\u001b<x>".repeat(20_000), 1);
    fs::write(here.join("long.json"), long).expect("written");
    succeeds(here, &["report", "before.json", "long.json"]);
    let report = inside(&here.join("target-reports").join("sandbox"));
    assert!(fs::metadata(report.join("why.svg")).expect("a plot").len() < 100_000);
    assert!(fs::read_to_string(report.join("why.svg")).expect("a plot").contains("decode"));
    assert!(report.join("why.png").is_file());
    for file in ["README.md", "index.html"] {
        let text = fs::read_to_string(report.join(file)).expect(file);
        assert!(text.contains("Where the time goes") && text.contains("llama-mini tuned-f32-cpu"), "{file}");
    }
}
