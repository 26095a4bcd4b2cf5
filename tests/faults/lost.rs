//! Checks that runs, logs, reports and records are not lost, however the files beside them look.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use candlepower_core::record::{Measures, Record, Status};
use serde_json::{Value, json};
use tempfile::TempDir;

#[cfg(target_os = "linux")]
use crate::command::{aborted_once, child_of, send, wait_for_end_of};
use crate::{
    command::{candlepower, ended, is_refused, limited, names, output, refused, stderr, succeeds, wait_for},
    output::SMALL_SWEEP,
};

const SAMPLE: &str = include_str!("../../src/core/record/sample.json");

fn sample(edit: impl FnOnce(&mut Value)) -> String {
    let mut record: Value = serde_json::from_str(SAMPLE).expect("the sample");
    edit(&mut record);
    format!("{record}\n")
}

fn records_of(folder: &Path, run: &str) -> Vec<Record> {
    let text = fs::read_to_string(folder.join("target/candlepower").join(run).join("records.jsonl")).expect("records");
    text.lines().map(|line| serde_json::from_str(line).expect("a record a line")).collect()
}

/// A nightly in a folder, whose `cargo` is a script.
struct Nightly(TempDir);

impl Nightly {
    fn new(script: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let cargo = folder.path().join("cargo");
        fs::write(&cargo, format!("#!/bin/sh\nset -e\n{script}\n")).expect("written");
        fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).expect("made executable");
        let measured = sample(|record| record["sandbox"] = false.into());
        fs::write(folder.path().join("next.jsonl"), measured).expect("written");
        let config = r#"{"benchmarks": [{"bench": "generation"}], "keep": 1, "folder": "n"}"#;
        fs::write(folder.path().join("nightly.json"), config).expect("written");
        Self(folder)
    }

    /// One that finds the records of `next.jsonl`.
    fn measuring() -> Self {
        Self::new("cat next.jsonl >> \"$CANDLEPOWER_OUT/$CANDLEPOWER_RUN/records.jsonl\"")
    }

    fn command(&self) -> Command {
        let mut command = candlepower(self.0.path());
        command.args(["nightly", "nightly.json"]).env("CARGO", self.0.path().join("cargo"));
        command
    }

    fn run(&self) -> (Option<i32>, String) {
        let output = output(&mut self.command());
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned() + &stderr(&output))
    }

    fn runs(&self) -> Vec<String> {
        names(&self.0.path().join("n/runs"))
    }

    fn last_good(&self) -> std::path::PathBuf {
        self.0.path().join("n/last-good")
    }
}

#[test]
#[cfg(unix)]
fn nightly_removes_only_its_own_runs_and_never_the_present_one() {
    let nightly = Nightly::measuring();
    let runs = nightly.0.path().join("n/runs");
    for foreign in ["shootout/runs/respsann_seed1", "20200101T000000Z", "a-folder"] {
        fs::create_dir_all(runs.join(foreign)).expect("a folder");
        fs::write(runs.join(foreign).join("model.safetensors"), "precious").expect("written");
    }
    fs::write(runs.join("notes.txt"), "precious").expect("written");
    fs::write(runs.join("20200101T000000Z/summary.json"), r#"{"run": "another", "problems": []}"#).expect("written");
    // A run of a version without marks.
    fs::create_dir(runs.join("20200102T000000Z")).expect("a folder");
    let summary = r#"{"run": "20200102T000000Z", "problems": []}"#;
    fs::write(runs.join("20200102T000000Z/summary.json"), summary).expect("written");
    let foreign = ["20200101T000000Z", "a-folder", "notes.txt", "shootout"];
    for _ in 0..3 {
        let (code, text) = nightly.run();
        assert_eq!(code, Some(0), "{text}");
        let now = fs::read_to_string(nightly.last_good()).expect("a good run");
        let own: Vec<_> = nightly.runs().into_iter().filter(|name| !foreign.contains(&name.as_str())).collect();
        assert_eq!(own, [now.as_str()], "the present run stays, and the ones before it go");
        assert!(runs.join(now).join("records.jsonl").is_file());
        assert_eq!(nightly.runs().len(), foreign.len() + 1);
    }
    // Bad runs are pruned too while there is no good one.
    fs::remove_file(nightly.last_good()).expect("removed");
    fs::write(nightly.0.path().join("next.jsonl"), sample(|record| record["status"] = "failed".into()))
        .expect("written");
    for _ in 0..3 {
        assert_eq!(nightly.run().0, Some(1));
        assert_eq!(nightly.runs().len(), foreign.len() + 1);
    }
}

#[test]
#[cfg(unix)]
fn an_unknown_last_good_run_fails_the_nightly() {
    let nightly = Nightly::measuring();
    assert_eq!(nightly.run().0, Some(0));
    let good = fs::read_to_string(nightly.last_good()).expect("a good run");
    for content in
        [b"\xff\xfe".to_vec(), b"".to_vec(), b"../../x".to_vec(), b"/".to_vec(), b"20200101T000000Z".to_vec()]
    {
        fs::write(nightly.last_good(), &content).expect("written");
        let (code, text) = nightly.run();
        assert!(code == Some(1) && text.contains("the last good run is unknown: correct the file"), "{text}");
        assert!(text.contains("It was not compared"), "{text}");
        assert_eq!(fs::read(nightly.last_good()).expect("still there"), content);
        assert!(nightly.runs().contains(&good), "nothing is removed while the last good run is unknown");
    }
    fs::remove_file(nightly.last_good()).expect("removed");
    fs::create_dir(nightly.last_good()).expect("a folder");
    assert!(nightly.run().1.contains("the last good run is unknown"));
    fs::remove_dir(nightly.last_good()).expect("removed");
    // An editor adds a line break.
    fs::write(nightly.last_good(), format!("{good}\n")).expect("written");
    let (code, text) = nightly.run();
    assert!(code == Some(0) && text.contains(&format!("A is {good}")), "{text}");
}

#[test]
#[cfg(unix)]
fn nightlies_in_one_second_have_runs_of_their_own() {
    let nightly = Nightly::new("sleep 1; cat next.jsonl >> \"$CANDLEPOWER_OUT/$CANDLEPOWER_RUN/records.jsonl\"");
    let start = || nightly.command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let children: Vec<_> = (0..4).map(|_| start()).collect();
    wait_for("four runs", || nightly.0.path().join("n/runs").is_dir() && nightly.runs().len() == 4);
    let mut said = String::new();
    for child in children {
        said += &String::from_utf8_lossy(&ended(child).stdout);
    }
    let headings = said.lines().filter(|line| line.starts_with("# Nightly"));
    let runs: std::collections::BTreeSet<_> = headings.map(|line| line.split([' ', ':']).nth(2)).collect();
    assert_eq!(runs.len(), 4, "{said}");
}

/// Nothing that `nightly` or `bench` started goes on after it.
#[test]
#[cfg(unix)]
fn signals_stop_what_was_started() {
    let signals = [("INT", 130), ("TERM", 143), ("HUP", 129)];
    let commands = [true, false];
    for ((signal, code), is_nightly) in signals.into_iter().flat_map(|signal| commands.map(|is| (signal, is))) {
        let nightly = Nightly::new("sleep 600 & echo $! > pid.part; mv pid.part pid; wait");
        let mut command = nightly.command();
        if !is_nightly {
            command = candlepower(nightly.0.path());
            command.arg("bench").env("CARGO", nightly.0.path().join("cargo"));
        }
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let file = nightly.0.path().join("pid");
        wait_for("the process", || file.is_file());
        let id = fs::read_to_string(&file).expect("an id").trim().to_owned();
        let kill = |what: &str, id: &str| Command::new("kill").args([what, id]).stderr(Stdio::null()).status();
        assert!(kill(&format!("-{signal}"), &child.id().to_string()).expect("kill").success());
        let output = ended(child);
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        let state = || fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        wait_for("its end", || !kill("-0", &id).expect("kill").success() || state().contains(") Z"));
        if is_nightly {
            assert!(stderr(&output).contains("generation: stopped by signal"), "{}", stderr(&output));
            assert_eq!(nightly.runs().len(), 1, "the run and its summary stay");
        }
    }
}

/// The live view restores the terminal when a signal ends it.
#[test]
#[cfg(target_os = "linux")]
fn a_signal_leaves_the_terminal_as_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    succeeds(path, &["sandbox"]);
    let view = format!("sh -c 'echo $$ > pid; exec {} watch sandbox'", env!("CARGO_BIN_EXE_candlepower"));
    let session = format!("stty rows 24 cols 80; stty -g > before; {view}; echo $? > code; stty -g > after");
    let mut command = Command::new("script");
    command.args(["-qfc", &session, "typescript"]).current_dir(path).env("TERM", "xterm").env("SHELL", "/bin/sh");
    command.env_remove("CARGO_TARGET_DIR");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else {
        println!("skipped: this system has no command `script`, which gives a terminal");
        return;
    };
    let read = |name: &str| fs::read_to_string(path.join(name)).unwrap_or_default();
    let shown = || String::from_utf8_lossy(&fs::read(path.join("typescript")).unwrap_or_default()).into_owned();
    wait_for("the view", || shown().contains("quit"));
    assert!(Command::new("kill").args(["-TERM", read("pid").trim()]).status().expect("kill").success());
    wait_for("its end", || path.join("after").is_file() && !read("after").is_empty());
    drop(child.stdin.take());
    child.wait().expect("it ended");
    assert_eq!(read("code").trim(), "143");
    assert_eq!(read("after"), read("before"));
}

#[test]
fn a_log_in_another_encoding_is_continued() {
    let folder = tempfile::tempdir().expect("a folder");
    succeeds(folder.path(), &["sandbox"]);
    succeeds(folder.path(), &["report"]);
    let reports = folder.path().join("target-reports");
    let machine = reports.join(&names(&reports)[0]);
    let log = machine.join("GENERATION_LOG.md");
    let before = [b"# Gr\xfc\xdfe\n| row |\n".as_slice(), &[0xff, 0xfe], b"no end of line"].concat();
    fs::write(&log, &before).expect("written");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    succeeds(folder.path(), &["report"]);
    let after = fs::read(&log).expect("a log");
    assert!(
        after.starts_with(&[before.as_slice(), b"\n\nGenerated tokens per second"].concat()) && after.ends_with(b"|\n")
    );
    // A log that cannot be read is not replaced.
    fs::remove_file(&log).expect("removed");
    fs::create_dir(&log).expect("a folder");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert!(refused(folder.path(), &["report"]).contains("GENERATION_LOG.md could not be read"));
}

/// A report that is killed at any write leaves no report that counts, and none is torn.
#[test]
#[cfg(unix)]
fn a_killed_report_does_not_count() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = folder.path().join("target/candlepower/r");
    fs::create_dir_all(&run).expect("a folder");
    fs::write(run.join("records.jsonl"), sample(|record| record["sandbox"] = false.into())).expect("written");
    let mut killed = 0;
    for blocks in [0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64] {
        let output = output(&mut limited(folder.path(), &format!("ulimit -f {blocks}"), &["report"]));
        if output.status.success() {
            fs::remove_dir_all(folder.path().join("target-reports")).expect("removed");
            break;
        }
        killed += 1;
        let reports = folder.path().join("target-reports");
        let machines = if reports.is_dir() { names(&reports) } else { Vec::new() };
        let finished = machines.iter().flat_map(|machine| names(&reports.join(machine)));
        let finished: Vec<_> = finished.filter(|name| !name.starts_with(".candlepower-")).collect();
        assert_eq!(finished, Vec::<String>::new(), "at {blocks}");
        assert!(refused(folder.path(), &["history", "medium"]).contains("there is no report below"));
    }
    assert!(killed >= 4, "{killed} were killed");
    succeeds(folder.path(), &["report"]);
    let id = serde_json::from_str::<Value>(SAMPLE).expect("the sample")["id"].as_str().expect("an id").to_owned();
    let history: Value =
        serde_json::from_str(&succeeds(folder.path(), &["history", &id, "--format", "json"])).expect("JSON");
    assert_eq!(history[0]["points"].as_array().map(Vec::len), Some(1), "only the finished report counts");
}

#[test]
fn damaged_files_of_criterion_do_not_stop_a_report() {
    let folder = tempfile::tempdir().expect("a folder");
    succeeds(folder.path(), &["sandbox"]);
    let saved = folder.path().join("target/criterion/other/model/own-f32-cpu/new");
    fs::create_dir_all(&saved).expect("a folder");
    fs::write(saved.join("benchmark.json"), r#"{"full_id": "a/b/c-d-e"}"#).expect("written");
    for damaged in ["", "{", "[1, 2]", "\u{0}", r#"{"iters": [1, 2], "times": [1]}"#] {
        fs::write(saved.join("sample.json"), damaged).expect("written");
        let to = tempfile::tempdir().expect("a folder");
        let output = output(candlepower(folder.path()).args(["report", "--to"]).arg(to.path()));
        assert!(output.status.success(), "{damaged}: {}", stderr(&output));
        assert!(stderr(&output).contains("own-f32-cpu"), "it is named: {}", stderr(&output));
    }
}

/// Figures that contradict each other, as a record from elsewhere may hold.
#[test]
fn a_peak_below_what_was_allocated_is_not_subtracted() {
    let folder = tempfile::tempdir().expect("a folder");
    succeeds(folder.path(), &["sandbox"]);
    let file = folder.path().join("target/candlepower/sandbox/records.jsonl");
    let lines = fs::read_to_string(&file).expect("records");
    let mut changed = 0;
    let edited: String = lines
        .lines()
        .map(|line| {
            let mut record: Record = serde_json::from_str(line).expect("a record");
            if let Some(Measures::Training(measures)) = &mut record.measures {
                (measures.peak_bytes, measures.allocated_bytes) = (Some(1), Some(1 << 40));
                changed += 1;
            }
            serde_json::to_string(&record).expect("a line") + "\n"
        })
        .collect();
    assert!(changed > 0);
    fs::write(&file, edited).expect("written");
    let report = succeeds(folder.path(), &["report"]);
    let readme = fs::read_to_string(folder.path().join(report.trim()).join("README.md")).expect("a report");
    assert!(!readme.contains("184467"), "{readme}");
}

#[test]
fn a_run_of_another_grid_is_not_continued() {
    let folder = tempfile::tempdir().expect("a folder");
    succeeds(folder.path(), SMALL_SWEEP);
    let before = records_of(folder.path(), "r").len();
    let file = folder.path().join("target/candlepower/r/records.jsonl");
    for (key, value) in [
        ("--features", "9"),
        ("--steps", "3"),
        ("--seed", "7"),
        ("--learning-rate", "0.5"),
        ("--outputs", "2"),
        ("--stride", "3"),
    ] {
        let mut arguments = SMALL_SWEEP.to_vec();
        match arguments.iter().position(|argument| *argument == key) {
            Some(place) => arguments[place + 1] = value,
            None => arguments.extend([key, value]),
        }
        let output = output(candlepower(folder.path()).args(&arguments));
        assert_eq!(output.status.code(), Some(2), "{key}");
        let error = stderr(&output);
        let name = key.trim_start_matches("--").replace('-', "_");
        let expected = format!("the run was begun with another grid: {name} is {value} and was ");
        assert!(error.contains(&expected) && error.contains("choose another --run"), "{error}");
    }
    assert_eq!(records_of(folder.path(), "r").len(), before);
    // Other combinations of the same grid join the run.
    let more: Vec<&str> = SMALL_SWEEP.iter().map(|text| if *text == "8" { "8,16" } else { text }).collect();
    succeeds(folder.path(), &more);
    assert_eq!(records_of(folder.path(), "r").len(), before + 2);
    // The grid of older runs is unknown.
    fs::remove_file(file.with_file_name("sweep.json")).expect("removed");
    let output = output(candlepower(folder.path()).args(SMALL_SWEEP));
    assert!(output.status.code() == Some(2) && stderr(&output).contains("the grid of the run is unknown"));
}

/// A record is lost only while it is written.
#[test]
#[cfg(unix)]
fn a_sweep_killed_at_a_record_loses_that_record_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments: Vec<&str> = SMALL_SWEEP.iter().map(|text| if *text == "8" { "8,12" } else { text }).collect();
    // A record is longer than 3 blocks and shorter than 6 of them.
    let output = output(&mut limited(folder.path(), "ulimit -f 10", &arguments));
    const SIGXFSZ: i32 = 25;
    assert_eq!(output.status.code(), Some(128 + SIGXFSZ), "{}", stderr(&output));
    let file = folder.path().join("target/candlepower/r/records.jsonl");
    let torn = fs::read(&file).expect("records");
    let whole = torn.split(|byte| *byte == b'\n').filter(|line| serde_json::from_slice::<Record>(line).is_ok()).count();
    assert!(whole >= 1 && !torn.ends_with(b"\n"), "{whole} whole records in {} bytes", torn.len());
    let output = crate::command::output(candlepower(folder.path()).args(&arguments));
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output).matches("done before").count(), whole);
    let read = candlepower_core::record::read(&file).expect("records");
    assert_eq!((read.records.len(), read.problems.len()), (4, 1), "{:?}", read.problems);
}

/// A sweep of two benchmarks that take seconds, and the id of the process that measures them.
#[cfg(target_os = "linux")]
fn long_sweep(folder: &Path) -> (Vec<&'static str>, std::process::Child, u32) {
    let mut arguments = SMALL_SWEEP.to_vec();
    let steps = arguments.iter().position(|argument| *argument == "--steps").expect("a number of steps");
    arguments[steps + 1] = "4000";
    arguments.extend(["--log-every-n-steps", "10"]);
    let log = folder.join("log");
    let mut command = candlepower(folder);
    command.args(&arguments).stdout(Stdio::null()).stderr(fs::File::create(&log).expect("a file"));
    let child = command.spawn().expect("it starts");
    wait_for("a step", || fs::read_to_string(&log).is_ok_and(|log| log.contains(": step ")));
    let measuring = child_of(child.id());
    (arguments, child, measuring)
}

/// A signal stands for a failed allocation, which aborts the process, and for a system without memory, which kills it.
#[test]
#[cfg(target_os = "linux")]
fn a_combination_that_ends_its_process_leaves_the_others() {
    for (signal, name) in [("-ABRT", "SIGABRT"), ("-KILL", "SIGKILL")] {
        let folder = tempfile::tempdir().expect("a folder");
        let (arguments, mut child, measuring) = long_sweep(folder.path());
        send(signal, measuring);
        assert_eq!(child.wait().expect("it ends").code(), Some(1));
        let records = records_of(folder.path(), "r");
        let [failed, measured] = records.as_slice() else { panic!("{records:?}") };
        assert_eq!((failed.status, measured.status), (Status::Failed, Status::Measured));
        let expected = format!("the process that measured it was ended by {name}");
        assert!(failed.reason.as_ref().is_some_and(|reason| reason.starts_with(&expected)), "{:?}", failed.reason);
        succeeds(folder.path(), &arguments);
        let file = folder.path().join("target/candlepower/r/records.jsonl");
        let read = candlepower_core::record::latest(&file).expect("records");
        assert!(read.records.len() == 2 && read.records.iter().all(|record| record.status == Status::Measured));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_scenario_that_ends_its_process_leaves_the_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = ["run", "--model", "llama-mini", "--engine", "stock", "--suite", "quick", "--warmup", "0"];
    let output = aborted_once(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let reason = "the process that measured it was ended by SIGABRT";
    assert!(stderr(&output).contains(reason), "{}", stderr(&output));
    let records = records_of(folder.path(), "r");
    let [short, medium] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!((short.scenario.as_str(), short.status), ("short", Status::Failed));
    assert!(short.reason.as_ref().is_some_and(|told| told.starts_with(reason)), "{:?}", short.reason);
    assert_eq!((medium.scenario.as_str(), medium.status), ("medium", Status::Measured));
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("medium"), "the table of the last process has both: {table}");
}

#[test]
#[cfg(target_os = "linux")]
fn the_process_that_measures_ends_with_the_one_that_guards_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, mut child, measuring) = long_sweep(folder.path());
    child.kill().expect("killed");
    child.wait().expect("it ended");
    wait_for_end_of(measuring);
    assert_eq!(records_of(folder.path(), "r").len(), 0);
}

#[test]
#[cfg(target_os = "linux")]
fn combinations_that_failed_are_tried_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments: Vec<&str> = SMALL_SWEEP.iter().map(|text| if *text == "8" { "8,2048" } else { text }).collect();
    // Enough for the small combination, and too little for the training of the large one. glibc reserves up to half of this
    // address space for the arenas of threads, and the amount varies.
    let output = output(&mut limited(folder.path(), "ulimit -v 800000", &arguments));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let records = records_of(folder.path(), "r");
    let failed: Vec<_> = records.iter().filter(|record| record.status == Status::Failed).collect();
    assert!(records.len() == 4 && !failed.is_empty() && failed.len() < 4, "{}", stderr(&output));
    // Either the check before or the allocation itself finds that there is too little memory.
    let is_short = |reason: &String| reason.contains("it does not fit") || reason.contains("was ended by SIGABRT");
    for record in failed {
        assert!(record.reason.as_ref().is_some_and(is_short), "{:?}", record.reason);
    }
    let output = crate::command::output(candlepower(folder.path()).args(&arguments));
    assert!(output.status.success(), "{}", stderr(&output));
    let after =
        candlepower_core::record::latest(&folder.path().join("target/candlepower/r/records.jsonl")).expect("records");
    assert!(after.records.len() == 4 && after.records.iter().all(|record| record.status == Status::Measured));
}

#[test]
#[cfg(unix)]
fn names_that_are_not_utf8_name_nothing_else() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().expect("a folder");
    let broken = std::ffi::OsStr::from_bytes(b"out\xff");
    for key in ["CANDLEPOWER_OUT", "CANDLEPOWER_RUN", "CANDLEPOWER_MODELS", "CANDLEPOWER_NO_SUCH"] {
        let output = output(candlepower(folder.path()).arg("sandbox").env(key, broken));
        let error = is_refused(&output, key);
        assert!(error.contains(key) && error.contains("it is not UTF-8"), "{error}");
    }
    for flag in ["--run", "--seed", "--no-such-flag"] {
        let output = output(candlepower(folder.path()).arg("sandbox").arg(flag).arg(broken));
        let error = is_refused(&output, flag);
        assert!(error.contains(flag), "{error}");
    }
    assert!(names(folder.path()).is_empty());
}

/// A settings file may come from elsewhere.
#[test]
fn names_in_settings_reach_no_terminal() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = "out\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}";
    fs::write(folder.path().join("candlepower.toml"), format!("out = {}", json!(out))).expect("written");
    for arguments in [&["doctor"][..], &["doctor", "--json"], &["list", "settings"]] {
        let output = output(candlepower(folder.path()).args(arguments));
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &stderr(&output);
        assert!(text.contains("owned"), "{arguments:?} shows the folder: {text}");
        assert!(!text.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'), "{arguments:?}: {text:?}");
    }
    assert_eq!(names(folder.path()), ["candlepower.toml"]);
}

/// No name in a record leads out of the folder of reports.
#[test]
fn a_machine_is_named_by_a_name() {
    let place = tempfile::tempdir().expect("a folder");
    let inside = place.path().join("inside");
    let absolute = place.path().join("elsewhere");
    for machine in ["../../x", "..", "/x", "a/b", "", "a\u{1b}[31mb", absolute.to_str().expect("UTF-8")] {
        let run = inside.join("target/candlepower/r");
        fs::create_dir_all(&run).expect("a folder");
        let record = sample(|record| record["machine"]["name"] = machine.into());
        fs::write(run.join("records.jsonl"), record).expect("written");
        for arguments in [&["report"][..], &["report", "r"], &["report", "r", "--to", "reports"]] {
            let error = refused(&inside, arguments);
            assert!(error.contains("the machine's name") && error.contains("can't be the name of a file"), "{error}");
        }
        assert_eq!(names(place.path()), ["inside"]);
        assert_eq!(names(&inside), ["target"], "a report that is refused leaves no folder");
    }
}

/// Every file below a folder.
fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let inside = |name: String| {
        let path = folder.join(name);
        if path.is_dir() { files_below(&path) } else { vec![path] }
    };
    names(folder).into_iter().flat_map(inside).collect()
}

/// Checks that the names in the files of reports are text, and not markup of the file or sequences for a terminal.
fn hold_no_markup(reports: &Path) {
    let mut kinds = std::collections::BTreeSet::new();
    for file in files_below(reports) {
        let about = file.display();
        let kind = file.extension().and_then(|kind| kind.to_str()).unwrap_or_default().to_owned();
        let is_escape = |c: char| (c.is_control() && !['\n', '\t'].contains(&c)) || c == '\u{202e}';
        match kind.as_str() {
            "md" | "html" | "svg" => {
                let text = fs::read_to_string(&file).expect("text");
                assert!(text.contains("owned") || kind == "svg", "{about}: {text}");
                assert!(!text.contains(is_escape) && !text.contains("<b>"), "{about}: {text:?}");
                assert!(kind != "md" || !text.lines().any(|line| line.starts_with("# x")), "{about}: {text}");
            }
            "csv" => {
                let mut table = csv::ReaderBuilder::new().has_headers(false).from_path(&file).expect("a table");
                let is_formula = |cell: &str| cell.starts_with(['=', '+', '-', '@']) && cell.parse::<f64>().is_err();
                for row in table.records() {
                    let row = row.expect("a row");
                    let wrong = row.iter().find(|cell| cell.contains(char::is_control) || is_formula(cell));
                    assert_eq!(wrong, None, "{about}");
                }
            }
            _ => {}
        }
        kinds.insert(kind);
    }
    assert!(["csv", "html", "md", "svg"].iter().all(|kind| kinds.contains(*kind)), "{kinds:?}");
}

/// Escape sequences, line breaks and markup in every name that a record may hold.
#[test]
fn names_in_records_reach_no_terminal() {
    let folder = tempfile::tempdir().expect("a folder");
    let evil = "\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}|<b>\n# x";
    let edit = |record: &mut Value| {
        record["sandbox"] = false.into();
        record["id"] = json!(format!("medium/{evil}/a-b-c"));
        for key in ["model", "engine", "dtype", "device"] {
            record["subject"][key] = json!(evil);
        }
        for key in ["cpu", "os"] {
            record["machine"][key] = json!(evil);
        }
        record["software"]["commit"] = json!(evil);
        record["software"]["candle"] = json!(evil);
        record["deviates"] = json!(evil);
        record["run"] = json!(evil);
        record["software"]["environment"] = json!({ "CANDLE_CPU_MASK": evil });
        record["subject"]["source"] = json!(format!("=HYPERLINK(\"x\"){evil}"));
    };
    for run in ["a", "b"] {
        let to = folder.path().join("target/candlepower").join(run);
        fs::create_dir_all(&to).expect("a folder");
        fs::write(to.join("records.jsonl"), sample(edit)).expect("written");
    }
    let report = succeeds(folder.path(), &["report", "a"]);
    let environment = folder.path().join(report.lines().next().expect("a folder")).join("environment.yaml");
    let environment = fs::read_to_string(environment).expect("read");
    assert!(!environment.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'), "{environment:?}");
    let read: Value = serde_saphyr::from_str(&environment).expect("YAML");
    assert!(read["machine"]["cpu"].as_str().expect("a name").contains("owned"), "{environment}");
    for arguments in [
        &["compare", "a", "b"][..],
        &["compare", "a", "b", "--format", "github"],
        &["compare", "a", "b", "--format", "json"],
        &["history", "medium"],
        &["history", "medium", "--format", "json"],
        &["export", "a", "--format", "openmetrics"],
        &["report", "b"],
    ] {
        let output = output(candlepower(folder.path()).args(arguments));
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        for text in [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)] {
            let unsafe_character = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
            assert!(!text.contains(unsafe_character), "{arguments:?}: {text:?}");
            assert!(!text.lines().any(|line| line.starts_with("# x")), "{arguments:?}: {text}");
        }
    }
    hold_no_markup(&folder.path().join("target-reports"));
}
