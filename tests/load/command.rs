//! The command `candlepower load`: exit codes, records, schedules, merges.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::mock::{answer, refuse, serve};

fn candlepower(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlepower"));
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("CANDLEPOWER_")) {
        command.env_remove(key);
    }
    command.current_dir(folder).env("CANDLEPOWER_OUT", "records");
    command
}

/// A short load whose verdict depends on neither the number of requests nor the load of the machine.
fn load(folder: &Path, run: &str, url: &str, more: &[&str]) -> Command {
    #[rustfmt::skip]
    const SHORT: [&str; 13] = [
        "--rate=50", "--duration=1", "--prompt-tokens=8", "--max-new-tokens=4", "--min-duration=0", "--percentile=50",
        "--confidence=50", "--max-lateness-ms=1000", "--seed=1", "--timeout=20", "--retries=0", "--turns=1",
        "--max-failed=100",
    ];
    let flag = |argument: &&&str| argument.split_once('=').map_or(**argument, |(flag, _)| flag).to_owned();
    let given: Vec<String> = more.iter().map(|argument| flag(&argument)).collect();
    let mut command = candlepower(folder);
    command.env("CANDLEPOWER_RUN", run).args(["load", "--url", url, "--model", "owner/mock"]);
    command.args(SHORT.iter().filter(|argument| !given.contains(&flag(argument)))).args(more);
    command
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}

fn instant() -> String {
    serve(|request, stream| answer(request, stream, 4, 1, Duration::from_millis(1)))
}

#[test]
fn a_load_is_a_record_that_other_commands_read() {
    let (folder, url) = (tempfile::tempdir().expect("a folder"), instant());
    let here = folder.path();
    for run in ["a", "b"] {
        let output = load(here, run, &url, &["--json", "--goodput", "ttft:5000"]).output().expect("it starts");
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let record = json(&output);
        assert_eq!(record["id"], "load_completions_poisson_50_p8_n4/mock/http-unknown-server");
        let measures = &record["measures"];
        assert_eq!((&measures["kind"], &measures["valid"]), (&"serving".into(), &true.into()));
        assert_eq!(measures["goodput_share"], 1.0);
        let requests = measures["requests"].as_u64().expect("a number");
        let tally = &record["load"]["tally"];
        assert_eq!(tally["tokens"]["output_lengths"]["4"], requests);
        assert_eq!(tally["tokens"]["prompt_lengths"]["8"], requests);
        assert_eq!(measures["prompt_digest"].as_str().map(str::len), Some(16));
        let (joules, why) = (&measures["joules_per_token"], &record["unmeasured"]["joules_per_token"]);
        assert!(joules.as_f64().map_or(why.is_string(), |joules| joules > 0.0 && why.is_null()), "{joules} {why}");
        let lines = std::fs::read_to_string(
            here.join("records").join(run).join("load_completions_poisson_50_p8_n4.requests.jsonl"),
        );
        let lines = lines.expect("requests");
        assert_eq!(lines.lines().count() as u64, requests);
        let line: Value = serde_json::from_str(lines.lines().next().expect("a line")).expect("JSON");
        assert_eq!(line["token_arrival_ms"].as_array().map(Vec::len), Some(4));
    }
    let output = |arguments: &[&str]| candlepower(here).args(arguments).output().expect("it starts");
    let compared = json(&output(&["compare", "a", "b", "--format", "json"]));
    assert_eq!(compared["rows"][0]["id"], "load_completions_poisson_50_p8_n4/mock/http-unknown-server", "{compared}");
    let exported = output(&["export", "a", "--format", "openmetrics"]);
    let text = String::from_utf8_lossy(&exported.stdout);
    assert!(text.contains("candlepower_ttft_p99_seconds") && text.contains("candlepower_goodput"), "{text}");
    let reported = output(&["report", "a", "--to", "report"]);
    assert!(reported.status.success(), "{}", String::from_utf8_lossy(&reported.stderr));
}

/// With the model's tokenizer, prompts have the planned length, and answers are counted twice.
#[test]
fn a_tokenizer_makes_prompts_exact_and_counts_answers() {
    const TOKENIZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/generation/llama-gqa-tied/tokenizer.json");
    let folder = tempfile::tempdir().expect("a folder");
    let prompts = Arc::new(Mutex::new(Vec::new()));
    let seen = prompts.clone();
    let url = serve(move |request, stream| {
        seen.lock().expect("no panic").push(request.body["prompt"].as_str().expect("a text").to_owned());
        answer(request, stream, 4, 2, Duration::from_millis(1))
    });
    let more = ["--json", "--prompt-tokens=uniform:20..200", "--tokenizer", TOKENIZER];
    let output = load(folder.path(), "a", &url, &more).output().expect("it starts");
    let record = json(&output);
    let tokenizer = tokenizers::Tokenizer::from_file(TOKENIZER).expect("a tokenizer");
    let count = |text: &String| tokenizer.encode(text.as_str(), false).expect("tokens").len() as u64;
    let prompts = prompts.lock().expect("no panic");
    assert_eq!(record["load"]["tally"]["tokens"]["planned_prompt"], prompts.iter().map(count).sum::<u64>());
    let own = record["measures"]["output_tokens_by_tokenizer"].as_u64().expect("counted");
    assert_eq!(own, count(&" word word word word".to_owned()) * prompts.len() as u64);
    assert_eq!(record["measures"]["output_tokens_by_usage"], 4 * prompts.len());
    assert!(record["load"]["settings"]["tokenizer"].as_str().is_some_and(|name| name.starts_with("sha256:")));
}

#[test]
fn failures_of_all_requests_fail_the_command() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = serve(|_, stream| refuse(stream, "500 Internal Server Error", ""));
    let output = load(folder.path(), "a", &url, &["--json"]).output().expect("it starts");
    assert_eq!(output.status.code(), Some(1));
    let record = json(&output);
    assert_eq!((&record["status"], &record["measures"]), (&"failed".into(), &Value::Null));
    assert!(record["reason"].as_str().expect("a reason").contains("requests failed"), "{}", record["reason"]);
}

/// The generator is stopped for half a second while it waits for answers: its clock went on, and it read nothing.
#[test]
fn a_stopped_generator_is_invalid() {
    let (folder, url) = (tempfile::tempdir().expect("a folder"), instant());
    let stood_still = |signals: bool| {
        let mut command = load(folder.path(), "a", &url, &["--json", "--duration=3", "--rate=5"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        if signals {
            thread::sleep(Duration::from_millis(1500));
            let signal = |name: &str| {
                let status = Command::new("kill").args([name, &child.id().to_string()]).status();
                assert!(status.expect("kill").success());
            };
            signal("-STOP");
            thread::sleep(Duration::from_millis(500));
            signal("-CONT");
        }
        let output = child.wait_with_output().expect("it ends");
        let report = json(&output)["load"].clone();
        let reasons = report["verdict"]["reasons"].to_string();
        (output.status.code(), reasons.contains("stood still"), reasons)
    };
    let (code, is_found, reasons) = stood_still(true);
    assert!(code == Some(1) && is_found, "{code:?} {reasons}");
    let (code, is_found, reasons) = stood_still(false);
    assert!(code == Some(0) && !is_found, "{code:?} {reasons}");
}

/// The energy of another machine, and that of a part of the answers, cannot be known.
#[test]
fn energy_that_cannot_be_known_has_a_reason() {
    let (folder, url) = (tempfile::tempdir().expect("a folder"), instant());
    let port = url.rsplit(':').next().expect("a port");
    // Another loopback address by a name that does not say so.
    let elsewhere = format!("http://0.0.0.0:{port}");
    for (url, more, part) in [
        (&elsewhere, ["--json", "--requests=1"], "the server's machine"),
        (&url, ["--json", "--shard=1/2"], "other shards"),
    ] {
        let record = json(&load(folder.path(), "a", url, &more).output().expect("it starts"));
        assert_eq!(record["measures"]["joules_per_token"], Value::Null, "{record}");
        let why = record["unmeasured"]["joules_per_token"].as_str().expect("a reason");
        assert!(why.contains(part), "{why}");
    }
}

/// A load that is killed leaves the records before it as they were, and no line of its own that is not whole.
#[test]
fn a_killed_load_leaves_whole_records() {
    let (folder, url) = (tempfile::tempdir().expect("a folder"), instant());
    load(folder.path(), "a", &url, &["--requests=2"]).output().expect("it starts");
    let mut killed = load(folder.path(), "a", &url, &["--duration=20", "--name=killed"]);
    let mut killed = killed.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    thread::sleep(Duration::from_millis(1500));
    killed.kill().expect("killed");
    killed.wait().expect("an end");
    let lines = || -> usize {
        let files = std::fs::read_dir(folder.path().join("records/a")).expect("a run");
        let paths = files.map(|file| file.expect("a file").path());
        let of_lines = paths.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
        let whole = |path: std::path::PathBuf| {
            let text = std::fs::read_to_string(&path).expect("text");
            assert!(text.ends_with('\n'), "{}: {text}", path.display());
            let values: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
            values.unwrap_or_else(|error| panic!("{}: {error}: {text}", path.display())).len()
        };
        of_lines.map(whole).sum()
    };
    assert_eq!(lines(), 3, "one record and two requests");
    // The next load adds its record and replaces the requests of the first.
    load(folder.path(), "a", &url, &["--requests=2"]).output().expect("it starts");
    assert_eq!(lines(), 4);
}

#[test]
fn schedules_are_the_same_bytes_for_the_same_seed() {
    let folder = tempfile::tempdir().expect("a folder");
    let schedule = |more: &[&str]| {
        let mut command = load(folder.path(), "a", "http://127.0.0.1:9", more);
        let output = command.arg("--schedule").output().expect("it starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    for arrivals in ["constant", "poisson", "gamma", "ramp", "closed"] {
        let of = |seed: &str| schedule(&["--arrivals", arrivals, &format!("--seed={seed}"), "--turns=2"]);
        assert!(!of("1").is_empty() && of("1") == of("1"), "{arrivals}");
    }
    assert_ne!(schedule(&["--seed=1"]), schedule(&["--seed=2"]));
    assert!(!folder.path().join("records").exists(), "nothing is recorded");
}

#[test]
fn shards_are_merged_by_the_command() {
    let (folder, url) = (tempfile::tempdir().expect("a folder"), instant());
    for shard in ["1/2", "2/2"] {
        let output = load(folder.path(), "a", &url, &["--shard", shard]).output().expect("it starts");
        assert!(output.status.code().is_some());
    }
    let report = |shard: u32| format!("records/a/load_completions_poisson_50_p8_n4_shard_{shard}-2.json");
    let merged = candlepower(folder.path())
        .args(["load", "merge", &report(1), &report(2), "--json", "--to", "merged.json"])
        .output()
        .expect("it starts");
    let report = json(&merged);
    assert_eq!(report["prompt_digests"].as_object().map(serde_json::Map::len), Some(2));
    let schedule = load(folder.path(), "a", &url, &["--schedule"]).output().expect("it starts").stdout;
    assert_eq!(report["summary"]["all"]["requests"], String::from_utf8_lossy(&schedule).lines().count());
    assert!(folder.path().join("merged.json").exists());
    let refused = candlepower(folder.path()).args(["load", "merge", "absent.json"]).output().expect("it starts");
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && error.lines().count() == 1 && error.contains("absent.json"), "{error}");
}

/// Each flag with a number is refused in one line, or accepted: no panic, no hang. Only the schedule is made.
#[test]
fn every_number_of_every_flag_has_a_range() {
    let folder = tempfile::tempdir().expect("a folder");
    let help = candlepower(folder.path()).args(["load", "--help"]).output().expect("it starts");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let flags = [
        "rate",
        "duration",
        "requests",
        "burstiness",
        "ramp-from",
        "ramp",
        "clients",
        "shared-prefix-tokens",
        "turns",
        "think-ms",
        "seed",
        "steady-from",
        "timeout",
        "retries",
        "precision",
        "min-duration",
        "percentile",
        "confidence",
        "max-lateness-ms",
        "max-failed",
        "prompt-tokens",
        "max-new-tokens",
        "goodput",
    ];
    for flag in flags {
        assert!(help.contains(&format!("--{flag} <")), "--{flag}");
        for value in ["NaN", "1e300", "0", "-1", "18446744073709551616"] {
            let given = match flag {
                "goodput" => format!("--goodput=ttft:{value}"),
                "prompt-tokens" => format!("--prompt-tokens=normal:{value},{value}"),
                "max-new-tokens" => format!("--max-new-tokens=lognormal:{value},{value}"),
                _ => format!("--{flag}={value}"),
            };
            let mut command = candlepower(folder.path());
            command.args(["load", "--schedule", "--url=http://127.0.0.1:9", "--model=m", &given]);
            command.args(
                [("requests", "--requests=1"), ("rate", "--rate=1")]
                    .iter()
                    .filter(|own| own.0 != flag)
                    .map(|own| own.1),
            );
            if flag == "clients" {
                command.arg("--arrivals=closed");
            }
            let start = Instant::now();
            let output = command.output().expect("it starts");
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(!error.contains("panicked") && error.lines().count() <= 1, "{given}: {error}");
            assert_eq!(output.status.success(), error.is_empty(), "{given}: {:?} {error}", output.status);
            assert!(start.elapsed() < Duration::from_secs(5), "{given} took {:?}", start.elapsed());
        }
    }
}

#[test]
fn two_servers_answer_each_request_in_turns() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("key"), "secret").expect("written");
    let order = Arc::new(Mutex::new(String::new()));
    let server = |name: char, gap_ms: u64| {
        let order = order.clone();
        serve(move |request, stream| {
            assert_eq!(request.headers.contains_key("authorization"), name == 'a', "the key is that of one server");
            order.lock().expect("the order").push(name);
            answer(request, stream, 4, 1, Duration::from_millis(gap_ms))
        })
    };
    let (own, other) = (server('a', 10), server('b', 30));
    let more =
        ["--against", &other, "--arrivals=closed", "--duration=60", "--requests=12", "--api-key-file=key", "--json"];
    let output = load(folder.path(), "a", &own, &more).output().expect("it starts");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(*order.lock().expect("the order"), "abba".repeat(6));
    let compared = json(&output);
    for server in ["a", "b"] {
        assert_eq!(compared[server]["summary"]["all"]["requests"], 12);
    }
    let ratio = |timed: &str| {
        let all = compared["ratios"].as_array().expect("ratios");
        all.iter().find(|ratio| ratio["timed"] == timed).expect("a ratio").clone()
    };
    let tpot = ratio("tpot");
    assert_eq!((&tpot["pairs"], ratio("e2e")["pairs"].as_u64()), (&12.into(), Some(12)));
    let (low, high) = (tpot["low"].as_f64().expect("a number"), tpot["high"].as_f64().expect("a number"));
    assert!((1.5..3.0).contains(&low) && (2.5..4.5).contains(&high), "{tpot}");
    let records = std::fs::read_to_string(folder.path().join("records/a/records.jsonl")).expect("records");
    let ids: Vec<Value> = records.lines().map(|line| serde_json::from_str(line).expect("a record")).collect();
    assert_eq!(ids.len(), 2);
    assert_ne!(ids[0]["id"], ids[1]["id"]);
    // The requests of a shard have every second number.
    order.lock().expect("the order").clear();
    let more = [&more[..], &["--shard=1/2"]].concat();
    load(folder.path(), "shard", &own, &more).output().expect("it starts");
    assert_eq!(*order.lock().expect("the order"), "abba".repeat(3));
    let output = load(folder.path(), "none", "http://127.0.0.1:1", &more[..5]).output().expect("it starts");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(1) && shown.contains("No request was answered by both"), "{shown}");
    // The answers of a session would differ.
    let output = load(folder.path(), "b", &own, &["--against", &other, "--turns=2"]).output().expect("it starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.lines().count() == 1 && error.contains("use one turn"), "{error}");
}

#[test]
fn mistakes_are_refused_in_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    for (arguments, part) in [
        (&["load"][..], "--url"),
        (&["load", "--url", "http://h", "--model", "m"], "--rate"),
        (&["load", "--url", "h:1", "--model", "m", "--rate", "1"], "http"),
        (&["load", "--url", "http://u:hunter2@h", "--model", "m", "--rate", "1"], "the URL has a user or password"),
        (&["load", "--url", "ftp://u:hunter2@h", "--model", "m", "--rate", "1"], "must begin with http:// or https://"),
        (
            &["load", "--url", "http://u:hunter2@[", "--model", "m", "--rate", "1"],
            "the address of the server is not a URL",
        ),
        (&["load", "--url", "http://h", "--model", "m", "--rate", "-1"], "above 0"),
        (&["load", "--url", "http://h", "--model", "m", "--rate", "1", "--prompt-tokens", "no"], "--prompt-tokens"),
        (&["load", "--url", "http://h", "--model", "m", "--rate", "1", "--goodput", "itl:5"], "objective"),
        (&["load", "--url", "http://h", "--model", "m", "--search", "1..8"], "--goodput"),
        (&["load", "--url", "http://h", "--model", "m", "--rate", "1", "--extra", r#"{"n": 2}"#], "one choice"),
        (&["load", "--url", "http://h", "--model", "m", "--trace", "absent.jsonl"], "absent.jsonl"),
    ] {
        let output = candlepower(folder.path()).args(arguments).output().expect("it starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert_eq!(error.lines().count(), 1, "{arguments:?}: {error}");
        assert!(error.starts_with("error: ") && error.contains(part), "{arguments:?}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
