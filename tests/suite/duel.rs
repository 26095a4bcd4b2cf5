//! Tests `candlepower duel`: builds, sides that misbehave, and duels that are killed.
//!
//! A small crate that is also named candlepower takes the place of this one, so that its commits build within a second. Its
//! program speaks the duel's protocol and makes up the times of its samples.

#![cfg(unix)]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use candlepower::{
    anyhow::Result,
    duel::{Folders, Program, Rules, Until, measure},
    report::duel::{Duel, Verdict},
};
use candlepower_core::record::{self, Measures, RECORDS, Status};
use serde_json::{Value, json};
use tempfile::TempDir;

const CANDLEPOWER: &str = env!("CARGO_BIN_EXE_candlepower");
const SAMPLE: &str = include_str!("../../src/core/record/sample.json");
pub const ID: &str = "short/llama-mini/stock-f32-cpu";

/// The program of the small crate: a side whose samples take about as many nanoseconds as the file `ns` says.
const MAIN: &str = r##"
use std::{env, fs, io::{self, BufRead, Write}, process, thread, time::Duration};

fn main() {
    assert_eq!(env::args().nth(1).as_deref(), Some("duel-side"));
    let mut ns: u64 = include_str!("../ns").trim().parse().unwrap();
    if env::var("CANDLEPOWER_THREADS").as_deref() == Ok("2") {
        ns /= 2;
    }
    let mut random = u64::from(process::id());
    let mut say = |line: &str| {
        println!("{line}");
        io::stdout().flush().unwrap();
    };
    say(r#"{"hello":{"protocol":2,"candlepower":"0.1.0"}}"#);
    for line in io::stdin().lock().lines() {
        let line = line.unwrap();
        if line.contains("list") {
            let id = include_str!("../id").trim();
            say(&format!(r#"{{"benchmarks":[{{"id":"{id}","target":"generation"}}]}}"#));
        } else if line.contains("prepare") {
            if let Ok(file) = env::var("PID_FILE") {
                fs::write(file, process::id().to_string()).unwrap();
            }
            say(r#"{"prepared":{}}"#);
        } else if line.contains("sample") {
            if env::var_os("SLOW").is_some() {
                thread::sleep(Duration::from_secs(2));
            }
            say(r#"{"turn":{}}"#);
        } else if line.contains("turn") {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let time = ns + ns / 100 * (random >> 33) / (1 << 31);
            say(&format!(r#"{{"sample":{{"ns":[{time}],"peak_bytes":[1000],"output_digest":"d"}}}}"#));
        } else {
            say(&format!(r#"{{"record":{}}}"#, include_str!("../record.json")));
        }
    }
}
"##;

/// A checkout of the small crate, with a commit whose samples take 300 ms and one whose samples take 330 ms.
pub struct Checkout(TempDir);

impl Checkout {
    pub fn new() -> Self {
        let checkout = Self(tempfile::tempdir().expect("a folder"));
        checkout.git(&["init", "--quiet"]);
        let manifest = "[package]\nname = \"candlepower\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[workspace]\n";
        checkout.write("Cargo.toml", manifest);
        checkout.write(".gitignore", "/target\n");
        checkout.write("src/main.rs", MAIN);
        checkout.write("record.json", &SAMPLE.replace('\n', ""));
        checkout.write("id", ID);
        checkout.write("ns", "300000000");
        checkout.commit();
        checkout.write("ns", "330000000");
        checkout.commit();
        checkout
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, file: &str, text: &str) {
        let path = self.path().join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    pub fn git(&self, arguments: &[&str]) -> String {
        let output = Command::new("git").current_dir(self.path()).args(arguments).output().expect("git");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    pub fn commit(&self) {
        self.git(&["add", "--all"]);
        self.git(&["-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "--quiet", "-m", "a commit"]);
    }

    pub fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(CANDLEPOWER);
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("CANDLEPOWER_")) {
            command.env_remove(key);
        }
        // The cargo that runs this test may add flags of its own.
        command.env_remove("CARGO").env_remove("CARGO_TARGET_DIR").current_dir(self.path());
        command.arg(name).args(arguments).stdin(Stdio::null());
        command
    }

    fn duel(&self, arguments: &[&str]) -> Output {
        self.command("duel", arguments).output().expect("the command starts")
    }

    /// Starts a duel in the background.
    pub fn start(&self, command: &mut Command) -> Child {
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the command starts")
    }

    /// Asserts that a duel left nothing that the next one could notice.
    pub fn assert_clean(&self) {
        assert_eq!(self.git(&["worktree", "list"]).lines().count(), 1);
        let left = fs::read_dir(self.path().join("target/duel")).into_iter().flatten().flatten();
        let folders: Vec<_> =
            left.map(|entry| entry.path()).filter(|path| path.is_dir() && !path.ends_with("build")).collect();
        assert!(folders.is_empty(), "{folders:?}");
        assert_eq!(self.git(&["status", "--porcelain", "--untracked-files=no"]), "");
    }
}

/// Asserts that a command fails with one error in one line, after lines of progress.
fn assert_error(output: &Output, part: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    let (errors, progress): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("error: "));
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(errors.len() == 1 && errors[0].contains(part), "{part} is missing from:\n{text}");
    assert!(
        progress.iter().all(|line| {
            let starts = ["building side ", "waiting until ", "side "];
            starts.iter().any(|start| line.starts_with(start))
        }),
        "{text}"
    );
    assert!(output.stdout.is_empty());
}

fn assert_success(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn json(output: &Output) -> Value {
    assert_success(output);
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn two_commits_are_built_measured_and_recorded() {
    let checkout = Checkout::new();
    let duel = json(&checkout.duel(&["HEAD~1", "HEAD", "--format", "json", "--", "^short/"]));
    let row = &duel["rows"][0];
    assert_eq!((&row["id"], &row["verdict"], &row["same_work"]), (&ID.into(), &"slower".into(), &true.into()));
    let ratio = row["ratio"].as_f64().expect("a ratio");
    assert!((ratio - 1.1).abs() < 0.01, "{ratio}");
    assert!(row["low"].as_f64() <= Some(ratio) && Some(ratio) <= row["high"].as_f64());

    let commits: Vec<String> = ["HEAD~1", "HEAD"].map(|name| checkout.git(&["rev-parse", name])).to_vec();
    for ((side, letter), commit) in [("a", "HEAD~1"), ("b", "HEAD")].into_iter().zip(&commits) {
        let run = duel[side]["run"].as_str().expect("a run");
        let read = record::read(&checkout.path().join("target/candlepower").join(run).join(RECORDS)).expect("records");
        assert_eq!((read.records.len(), read.problems.len()), (1, 0));
        let record = &read.records[0];
        let part = record.duel.as_ref().expect("a duel");
        assert_eq!((part.id.as_str(), part.side.as_str()), (duel["id"].as_str().expect("an id"), side));
        assert_eq!((record.run.as_str(), part.given.as_str()), (run, letter));
        assert_eq!(record.software.commit.as_deref(), Some(commit.trim()));
    }
    checkout.assert_clean();
}

#[test]
fn exit_codes_and_comments_are_those_of_a_comparison() {
    let checkout = Checkout::new();
    let output = checkout.duel(&["HEAD~1", ".", "--fail-above", "5%", "--format", "github"]);
    let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(text.starts_with("### candlepower duel: 1 slower, 0 faster, 0 unchanged, 0 not resolved\n"), "{text}");
    assert!(error.contains(&format!("regression: {ID} is ")), "{error}");
    let again = checkout.duel(&["HEAD~1", ".", "--fail-above", "20%"]);
    assert_success(&again);
    let text = String::from_utf8_lossy(&again.stderr);
    assert!(
        text.contains("side A (HEAD~1) was built for an earlier duel") && !text.contains("building side"),
        "{text}"
    );
}

/// The sides differ in settings only, so one program is built. The working tree has a change that is not committed.
#[test]
fn the_working_tree_and_settings_are_sides() {
    let checkout = Checkout::new();
    checkout.write("ns", "400000000");
    let output = checkout.duel(&["threads=1", "CANDLEPOWER_THREADS=2", "--format", "json"]);
    assert_eq!(String::from_utf8_lossy(&output.stderr).matches("building side").count(), 1);
    let duel = json(&output);
    assert_eq!(duel["rows"][0]["verdict"], "faster");
    let ms = duel["rows"][0]["a"].as_f64().expect("a median");
    assert!((400.0..405.0).contains(&ms), "the change is measured: {ms} ms");
    assert!(duel["a"]["commit"].as_str().is_some_and(|commit| commit.ends_with("-dirty")), "{duel}");
    checkout.write("ns", "330000000");
    checkout.assert_clean();
}

#[test]
fn each_mistake_is_one_line() {
    let checkout = Checkout::new();
    for (arguments, part) in [
        (&["HEAD", "no-such-branch"][..], "side B (no-such-branch): there is no commit 'no-such-branch'"),
        (&["HEAD", "thread=1"], "did you mean threads?"),
        (&["HEAD", ".", "--resolve", "0"], "--resolve must be above 0 %"),
        (&["HEAD", ".", "--budget", "soon"], "expected a time"),
        (&["HEAD", ".", "--", "short.*"], "only ^, $ and | are special"),
        (&["HEAD", ".", "--", "^long/"], "no benchmark matches '^long/': the groups are short"),
        (&["HEAD", "HEAD+features=warp"], "side B (HEAD+features=warp) does not build: error: "),
        (&["HEAD", "HEAD+candle=no/such/folder"], "no/such/folder could not be opened"),
    ] {
        assert_error(&checkout.duel(arguments), part);
        checkout.assert_clean();
    }
    let elsewhere = tempfile::tempdir().expect("a folder");
    let mut command = checkout.command("duel", &[".", "."]);
    assert_error(&command.current_dir(elsewhere.path()).output().expect("an output"), "run it in one");
}

#[test]
fn a_commit_that_does_not_fit_is_one_line() {
    let checkout = Checkout::new();
    checkout.write("src/main.rs", "fn main() { nonsense }");
    checkout.commit();
    assert_error(&checkout.duel(&["HEAD~1", "HEAD"]), "side B (HEAD) does not build: error[E0425]");
    let log = fs::read_to_string(checkout.path().join("target/duel/0.build-b.log")).expect("the messages of cargo");
    assert!(log.contains("nonsense"));

    // As clap answers a subcommand that it does not know.
    let old = "fn main() { eprintln!(\"error: unrecognized subcommand 'duel-side'\"); std::process::exit(2) }";
    checkout.write("src/main.rs", old);
    checkout.commit();
    let output = checkout.duel(&["HEAD", "HEAD~2"]);
    assert_error(&output, "side A (HEAD) has no `candlepower duel`: its commit is older than the command");

    checkout.write("src/main.rs", MAIN);
    checkout.write("id", "medium/llama-mini/stock-f32-cpu");
    checkout.commit();
    assert_error(&checkout.duel(&["HEAD~3", "HEAD"]), "side B has other benchmarks than side A: only A has short/");
    checkout.assert_clean();
}

#[test]
fn two_duels_at_once_do_not_disturb_each_other() {
    let checkout = Checkout::new();
    thread::scope(|scope| {
        let duels = [["HEAD~1", "HEAD"], ["HEAD", "HEAD~1"]].map(|[a, b]| {
            let checkout = &checkout;
            scope.spawn(move || json(&checkout.duel(&[a, b, "--format", "json"])))
        });
        let verdicts = duels.map(|duel| duel.join().expect("a duel")["rows"][0]["verdict"].clone());
        assert_eq!(verdicts, ["slower", "faster"]);
    });
    checkout.assert_clean();
}

/// Waits until a file has content.
fn content(file: &Path) -> String {
    let started = Instant::now();
    loop {
        let text = fs::read_to_string(file).unwrap_or_default();
        if !text.is_empty() {
            return text;
        }
        assert!(started.elapsed() < Duration::from_secs(120), "{} stays empty", file.display());
        thread::sleep(Duration::from_millis(20));
    }
}

/// Returns whether a process runs. One that has ended but was not waited for does not.
fn is_running(process: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
}

fn assert_ends(process: &str) {
    let started = Instant::now();
    while is_running(process) {
        assert!(started.elapsed() < Duration::from_secs(20), "process {process} survives");
        thread::sleep(Duration::from_millis(20));
    }
}

pub fn kill(child: &mut Child) {
    child.kill().expect("killed");
    child.wait().expect("ended");
}

#[test]
#[cfg(target_os = "linux")]
fn a_duel_that_is_killed_while_it_builds_leaves_nothing_that_matters() {
    let checkout = Checkout::new();
    let pid = checkout.path().join("target/pid");
    fs::create_dir_all(checkout.path().join("target")).expect("made");
    let build = "fn main() {\n    std::fs::write(std::env::var(\"PID_FILE\").unwrap(), std::process::id().to_string()).unwrap();\n    \
                 std::thread::sleep(std::time::Duration::from_secs(600));\n}";
    checkout.write("build.rs", build);
    checkout.commit();
    let mut duel = checkout.start(checkout.command("duel", &["HEAD", "HEAD~1"]).env("PID_FILE", &pid));
    let builder = content(&pid);
    assert!(is_running(&builder));
    kill(&mut duel);
    assert_ends(&builder);
    assert_eq!(checkout.git(&["worktree", "list"]).lines().count(), 2, "the test is in vain");
    assert_success(&checkout.duel(&["HEAD~2", "HEAD~1"]));
    checkout.assert_clean();
}

#[test]
#[cfg(target_os = "linux")]
fn a_duel_that_is_killed_while_it_measures_leaves_nothing_that_matters() {
    let checkout = Checkout::new();
    let pid = checkout.path().join("target/pid");
    fs::create_dir_all(checkout.path().join("target")).expect("made");
    let mut command = checkout.command("duel", &["HEAD", "HEAD~1"]);
    let mut duel = checkout.start(command.env("PID_FILE", &pid).env("SLOW", "yes"));
    let side = content(&pid);
    assert!(is_running(&side));
    kill(&mut duel);
    assert_ends(&side);
    assert_success(&checkout.duel(&["HEAD~1", "HEAD"]));
    checkout.assert_clean();
}

/// A side that is a shell script. Another process copies it into place: a test that forks while this one writes the file would
/// keep it open, and a file that is open for writing cannot be run.
fn script(folder: &Path, name: &str, text: &str) -> Program {
    let (written, path) = (folder.join(format!("{name}.sh")), folder.join(name));
    fs::write(&written, format!("#!/bin/sh\n{text}\n")).expect("written");
    fs::set_permissions(&written, fs::Permissions::from_mode(0o755)).expect("executable");
    let copied = Command::new("cp").arg(&written).arg(&path).status().expect("cp");
    assert!(copied.success());
    Program { given: name.into(), commit: "c".into(), path, settings: BTreeMap::new() }
}

/// A script that answers as a side does, except for `cases`, which come first.
fn answers(folder: &Path, cases: &str) -> String {
    let record = folder.join("record");
    fs::write(&record, format!("{{\"record\":{}}}\n", SAMPLE.replace('\n', ""))).expect("written");
    format!(
        r#"echo '{{"hello":{{"protocol":2,"candlepower":"0.1.0"}}}}'
while read -r line; do case $line in
{cases}
*list*) echo '{{"benchmarks":[{{"id":"{ID}","target":"generation"}}]}}';;
*prepare*) echo '{{"prepared":{{}}}}';;
*sample*) echo '{{"turn":{{}}}}';;
*turn*) echo '{{"sample":{{"ns":[300000000],"peak_bytes":[1000]}}}}';;
*finish*) cat {};;
esac; done"#,
        record.display()
    )
}

fn fight(folder: &Path, a: &Program, b: &Program) -> Result<Duel> {
    let rules =
        Rules { filter: None, resolve: 0.02, until: Until::Resolved, level: 0.05, budget: Duration::from_secs(20) };
    measure([a, b], &rules, Folders { out: &folder.join("out"), logs: folder }, |_| ())
}

#[test]
fn sides_that_misbehave_are_named_in_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let good = script(folder, "good", &answers(folder, ""));
    let same = fight(folder, &good, &good).expect("a duel");
    assert_eq!((same.rows[0].verdict, same.rows[0].ratio), (Verdict::Same, 1.0));
    assert!(same.rows[0].pairs >= 16, "{} pairs are fewer than those of eight starts", same.rows[0].pairs);
    assert_eq!(same.rows[0].same_work, None, "the scripts give no digests");

    let hello = |text: &str| format!("echo '{text}'; cat >/dev/null");
    for (name, text, part) in [
        ("silent", "exit 0".to_owned(), "side B (silent) ended (exit status: 0)"),
        ("dead", "echo some >&2; echo 'error: no memory' >&2; exit 3".into(), "ended (exit status: 3): no memory"),
        ("killed", "kill -9 $$".into(), "ended (signal: 9"),
        ("old", "echo \"error: unrecognized subcommand 'duel-side'\" >&2; exit 2".into(), "older than the command"),
        ("chatty", "echo Loading the model; cat".into(), "side B (chatty): 'Loading the model' is not a message"),
        ("torn", "printf '{\"hello\":'".into(), "side B (torn): its last line breaks off"),
        ("newer", hello(r#"{"hello":{"protocol":3,"candlepower":"9.0.0"}}"#), "version 3 of the duel's protocol"),
        ("impolite", hello(r#"{"prepared":{}}"#), "did not greet"),
        ("mixed", answers(folder, "*list*) echo '{\"prepared\":{}}';;"), "does not belong to its request"),
        (
            "unable",
            answers(folder, "*prepare*) printf '%s\\n' '{\"error\":\"no such\\nthing\"}';;"),
            "side B (unable): no such\\nthing",
        ),
        ("dying", answers(folder, "*sample*) echo oh >&2; exit 7;;"), "side B (dying) ended (exit status: 7): oh"),
        (
            "hasty",
            answers(folder, "*turn*) echo '{\"sample\":{\"ns\":[],\"peak_bytes\":[]}}';;"),
            "measured 0 iterations instead of 1",
        ),
        (
            "greedy",
            answers(folder, "*sample*) echo '{\"sample\":{\"ns\":[5],\"peak_bytes\":[5]}}';;"),
            "does not belong",
        ),
        ("false", answers(folder, "*finish*) echo '{\"record\":{\"schema\":1}}';;"), "is not a message"),
        (
            "other",
            answers(folder, "*list*) echo '{\"benchmarks\":[{\"id\":\"long/a/b\",\"target\":\"x\"}]}';;"),
            "only A has short/",
        ),
        ("empty", answers(folder, "*list*) echo '{\"benchmarks\":[]}';;"), "only A has short/"),
    ] {
        let error = format!("{:#}", fight(folder, &good, &script(folder, name, &text)).expect_err(name));
        assert!(error.contains(part) && error.lines().count() == 1, "{name}: {part} is missing from: {error}");
    }
}

#[test]
fn a_benchmark_that_fails_on_a_side_is_in_the_result() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let mut record: Value = serde_json::from_str(SAMPLE).expect("the sample");
    record["status"] = "failed".into();
    record["reason"] = "it does not fit".into();
    record["measures"] = Value::Null;
    fs::write(folder.join("failed"), json!({ "record": record }).to_string() + "\n").expect("written");
    let good = script(folder, "good", &answers(folder, ""));
    for request in ["prepare", "sample", "turn", "finish"] {
        let case = format!("*{request}*) cat {};;", folder.join("failed").display());
        let duel = fight(folder, &good, &script(folder, request, &answers(folder, &case))).expect("a duel");
        assert!(duel.rows.is_empty());
        assert_eq!(duel.failed, [format!("{ID}: B: it does not fit")]);
        let kept = record::read(&folder.join("out").join(&duel.b.run).join(RECORDS)).expect("records").records;
        assert_eq!(kept.last().map(|record| record.status), Some(Status::Failed));
        fs::remove_dir_all(folder.join("out")).expect("removed");
    }
}

/// This program, with settings.
fn own(settings: &[(&str, &str)]) -> Program {
    let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Program { given: ".".into(), commit: "c".into(), path: CANDLEPOWER.into(), settings }
}

#[test]
fn the_program_measures_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let filter = Some(format!("^{ID}$").parse().expect("a filter"));
    let rules = Rules { filter, resolve: 0.1, until: Until::Resolved, level: 0.05, budget: Duration::from_secs(4) };
    let (a, b) = (own(&[("models", "llama-mini")]), own(&[("models", "llama-mini")]));
    let folders = Folders { out: &folder.path().join("out"), logs: folder.path() };
    let mut lines = Vec::new();
    let duel = measure([&a, &b], &rules, folders, |line| lines.push(line.to_owned())).expect("a duel");
    let row = &duel.rows[0];
    assert_eq!((row.id.as_str(), row.same_work), (ID, Some(true)));
    let memory = row.memory_ratio.expect("memory is counted");
    assert!((0.99..1.01).contains(&memory), "{memory}");
    assert!(lines.len() == 1 && lines[0].starts_with(&format!("1/1 {ID}: ")), "{lines:?}");
    for contestant in [&duel.a, &duel.b] {
        let read = record::read(&folders.out.join(&contestant.run).join(RECORDS)).expect("records");
        let [record] = read.records.as_slice() else { panic!("one record") };
        let Some(Measures::Generation(measures)) = &record.measures else { panic!("{:?}", record.reason) };
        assert_eq!(measures.sample_total_ms.len(), row.pairs, "each pair has one sample of this side");
        assert_eq!(record.duel.as_ref().map(|duel| duel.id.as_str()), Some(duel.id.as_str()));
    }
}

#[test]
fn a_training_step_and_a_forecast_can_be_sides() {
    let folder = tempfile::tempdir().expect("a folder");
    for filter in ["^training_sweep_forward/respsann-d128-l2-s128-b8/", "^architecture_sweep_train/state_space-d48-l2-"]
    {
        let filter = Some(filter.parse().expect("a filter"));
        let rules =
            Rules { filter, resolve: 0.5, until: Until::Resolved, level: 0.5, budget: Duration::from_millis(1) };
        let folders = Folders { out: &folder.path().join("out"), logs: folder.path() };
        let duel = measure([&own(&[]), &own(&[])], &rules, folders, |_| ()).expect("a duel");
        assert!(duel.failed.is_empty() && !duel.rows.is_empty(), "{:?}", duel.failed);
        for row in &duel.rows {
            assert_eq!((row.pairs, row.same_work, row.low), (2, None, None), "{}", row.id);
            assert_eq!(row.verdict, Verdict::Unresolved);
        }
        fs::remove_dir_all(folders.out).expect("removed");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_side_ends_with_its_duel_in_the_middle_of_a_sample() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(CANDLEPOWER);
    command.args(["duel-side", "generation"]).current_dir(folder.path());
    let mut side = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the command starts");
    let mut requests = side.stdin.take().expect("an input");
    let mut replies = BufReader::new(side.stdout.take().expect("an output")).lines();
    let mut reply = || replies.next().expect("a line").expect("text");
    assert!(reply().starts_with("{\"hello\":{\"protocol\":2,"));
    for (request, expected) in [
        (json!({ "prepare": { "id": "short/none/x" } }), "{\"error\":\"there is no benchmark 'short/none/x'\"}"),
        (json!({ "sample": { "warm_up": 0, "iterations": 1 } }), "{\"error\":\"no benchmark is prepared\"}"),
        (json!({ "finish": {} }), "{\"error\":\"no benchmark is prepared\"}"),
        (json!({ "turn": {} }), "{\"error\":\"no sample has begun\"}"),
        (json!({ "dance": {} }), "{\"error\":\"'{"),
        (json!({ "prepare": { "id": ID } }), "{\"prepared\":{}}"),
        (json!({ "sample": { "warm_up": 0, "iterations": 1_000_000 } }), "{\"turn\":{}}"),
    ] {
        writeln!(requests, "{request}").expect("written");
        let reply = reply();
        assert!(reply.starts_with(expected), "{request}: {reply}");
    }
    // More turns than it takes until the end.
    (0..1000).for_each(|_| writeln!(requests, "{}", json!({ "turn": {} })).expect("written"));
    thread::sleep(Duration::from_millis(500));
    assert!(is_running(&side.id().to_string()), "it computes");
    drop(requests);
    let started = Instant::now();
    assert!(side.wait().expect("an end").success());
    assert!(started.elapsed() < Duration::from_secs(10));
}

/// The threads that compute stay on their CPUs from the warm-up until another benchmark is prepared.
#[test]
#[cfg(target_os = "linux")]
fn a_side_keeps_its_threads_on_cpus() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(CANDLEPOWER);
    command.args(["duel-side", "generation"]).current_dir(folder.path());
    let mut side = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the command starts");
    let mut requests = side.stdin.take().expect("an input");
    let mut replies = BufReader::new(side.stdout.take().expect("an output")).lines();
    let mut reply = || replies.next().expect("a line").expect("text");
    let mut ask = |request: Value| writeln!(requests, "{request}").expect("written");
    let main_thread = format!("/proc/{}/status", side.id());
    let cpus = || -> String {
        let status = content(Path::new(&main_thread));
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("a list").trim().to_owned()
    };
    assert!(reply().starts_with("{\"hello\""));
    let all = cpus();
    let is_one = |cpus: &str| cpus.parse::<usize>().is_ok();
    for _ in 0..2 {
        ask(json!({ "prepare": { "id": ID } }));
        assert_eq!((reply().as_str(), cpus()), ("{\"prepared\":{}}", all.clone()));
        ask(json!({ "sample": { "warm_up": 1, "iterations": 0 } }));
        while reply() == "{\"turn\":{}}" {
            ask(json!({ "turn": {} }));
        }
        assert!(is_one(&cpus()), "{} of {all}", cpus());
    }
    drop(requests);
    assert!(side.wait().expect("an end").success());
}
