//! The commands `candlepower perplexity` and `candlepower eval`: output, records and errors.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use tempfile::TempDir;

/// A Llama with a tokenizer, a vocabulary of 320 tokens and 256 positions.
const MODEL: &str = concat!("path:", env!("CARGO_MANIFEST_DIR"), "/fixtures/generation/llama-gqa-tied");
/// A model without a tokenizer.
const WITHOUT_TOKENIZER: &str = concat!("path:", env!("CARGO_MANIFEST_DIR"), "/fixtures/generation/qwen3-gqa-tied");
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/quality");

fn candlepower(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlepower"));
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("CANDLEPOWER_")) {
        command.env_remove(key);
    }
    command.current_dir(folder).env("CANDLEPOWER_OUT", "records").env("CANDLEPOWER_RUN", "a");
    command.args(arguments).output().expect("it starts")
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}

fn data(file: &str) -> String {
    format!("{DATA}/{file}")
}

fn records(folder: &TempDir) -> Vec<Value> {
    let text = fs::read_to_string(folder.path().join("records/a/records.jsonl")).expect("records");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn assert_refused(folder: &Path, arguments: &[&str], part: &str) {
    let output = candlepower(folder, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{arguments:?} should fail");
    assert_eq!(error.lines().count(), 1, "{arguments:?}: {error}");
    assert!(error.starts_with("error: ") && error.contains(part), "{arguments:?}: '{part}' is missing from: {error}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    assert!(!folder.join("records/a").exists(), "{arguments:?}: nothing is recorded");
}

#[test]
fn a_text_has_a_report_and_a_record_of_each_subject() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = data("text.txt");
    #[rustfmt::skip]
    let arguments = [
        "perplexity", &text, "--model", MODEL, "--engine", "tuned,stock", "--seq-len", "128", "--stride", "50",
        "--reference", "tuned-f32", "--json",
    ];
    let output = candlepower(folder.path(), &arguments);
    let report = json(&output);
    for key in ["nll", "perplexity", "standard_error", "perplexity_standard_error", "bits_per_byte", "nll_per_word"] {
        assert!(report[key].is_f64(), "{key}: {report}");
        assert_eq!(report[key], report["subjects"][0][key], "{key}");
    }
    assert_eq!((&report["seq_len"], &report["stride"]), (&128.into(), &50.into()));
    assert_eq!(report["tokens"].as_u64(), report["file_tokens"].as_u64().map(|tokens| tokens - 1));
    assert_eq!(report["bytes"], fs::metadata(&text).expect("a file").len());
    assert_eq!(report["sha256"].as_str().map(str::len), Some(64));
    let divergence = |place: usize| report["subjects"][place]["divergence"].clone();
    assert_eq!((&divergence(0)["kl_mean"], &divergence(0)["kl_max"]), (&0.0.into(), &0.0.into()));
    assert!(divergence(1)["kl_mean"].as_f64().is_some_and(|kl| kl > 0.0 && kl < 1e-6), "{}", divergence(1));
    assert_eq!(report["comparisons"].as_array().map(Vec::len), Some(2));
    assert_eq!(report["comparisons"][0]["exceeds_error"], false);
    assert_eq!(report["unmeasured"], serde_json::json!({}));

    let records = records(&folder);
    assert_eq!(records.len(), 2, "the reference is one of the subjects");
    for (record, subject) in records.iter().zip(report["subjects"].as_array().expect("subjects")) {
        assert_eq!((&record["id"], &record["status"]), (&subject["id"], &"measured".into()));
        let measures = &record["measures"];
        assert_eq!((&measures["kind"], &measures["nll"]), (&"quality".into(), &subject["nll"]));
        assert_eq!((&measures["file_sha256"], &measures["window_tokens"]), (&report["sha256"], &128.into()));
        assert_eq!(measures["reference"], report["reference"]["id"]);
        assert!(record["unmeasured"]["limits"].is_string());
    }
    let id = records[0]["id"].as_str().expect("an id");
    assert!(id.starts_with("perplexity_text-") && id.contains("_w128_s50/") && id.ends_with("/tuned-f32-cpu"), "{id}");
}

/// Token ids have no bytes and no words, and the reasons are given. Nothing is compared with one subject.
#[test]
fn token_ids_need_no_tokenizer() {
    let folder = tempfile::tempdir().expect("a folder");
    let ids = data("ids.txt");
    let arguments = ["perplexity", &ids, "--model", WITHOUT_TOKENIZER, "--seq-len", "64", "--stride", "64", "--json"];
    let report = json(&candlepower(folder.path(), &arguments));
    assert!(report["nll"].is_f64() && report["bits_per_byte"].is_null() && report["divergence"].is_null(), "{report}");
    for figure in ["nll_per_byte", "bits_per_byte", "nll_per_word", "divergence"] {
        assert!(report["unmeasured"][figure].is_string(), "{figure}: {report}");
    }
    assert_eq!(report["comparisons"], serde_json::json!([]));
    let [record] = records(&folder).try_into().expect("one record");
    assert!(record["unmeasured"]["kl_mean"].is_string() && record["unmeasured"]["bits_per_byte"].is_string());
}

/// Lower precision shows in the text for people, with its error.
#[test]
fn the_text_says_whether_a_difference_exceeds_its_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = data("text.txt");
    #[rustfmt::skip]
    let arguments = [
        "perplexity", &text, "--model", MODEL, "--engine", "tuned", "--dtype", "bf16", "--seq-len", "128",
        "--stride", "64", "--reference", "f32",
    ];
    let output = candlepower(folder.path(), &arguments);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("Perplexity") && text.contains("top-1"), "{text}{output:?}");
    assert!(text.contains("tuned-bf16-cpu against") && text.contains("error"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
    let records = records(&folder);
    assert_eq!(records.len(), 2, "the subject and the reference");
    assert!(records[0]["measures"]["kl_mean"].as_f64().is_some_and(|kl| kl > 1e-6), "{}", records[0]["measures"]);
}

#[test]
fn other_commands_read_the_records() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let (text, ids) = (data("text.txt"), data("ids.txt"));
    for file in [&text, &ids] {
        let output = candlepower(here, &["perplexity", file, "--model", MODEL, "--seq-len", "64", "--stride", "32"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let output = candlepower(here, &["eval", "--model", MODEL, "--data", DATA, "--limit", "3"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let compared = json(&candlepower(here, &["compare", "a", "a", "--format", "json"]));
    let rows = compared["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 4, "{compared}");
    assert!(rows.iter().all(|row| row["unit"] == "nats" && row["verdict"] == "same"), "{compared}");
    let exported = candlepower(here, &["export", "a", "--format", "openmetrics"]);
    let exported = String::from_utf8_lossy(&exported.stdout);
    for metric in ["candlepower_perplexity", "candlepower_nll", "candlepower_accuracy"] {
        assert!(exported.contains(metric), "{metric}: {exported}");
    }
    let output = candlepower(here, &["report", "a", "--to", "report"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found = fs::read_dir(here.join("report")).expect("a report").flatten().find_map(|machine| {
        fs::read_dir(machine.path())
            .ok()?
            .flatten()
            .find_map(|report| fs::read_to_string(report.path().join("README.md")).ok())
    });
    let readme = found.expect("README.md");
    assert!(readme.contains("Perplexity") && readme.contains("Tasks") && readme.contains("eval_hellaswag"), "{readme}");
}

/// Trains a waveresnet whose rows are whole blocks of every format, in the folder `trained`.
fn train(folder: &Path) {
    let text: String = (0..300).map(|number| format!("The whale of number {number} swims by the ship.\n")).collect();
    fs::write(folder.join("corpus.txt"), text).expect("written");
    #[rustfmt::skip]
    let arguments = [
        "train", "--corpus", "corpus.txt", "--out", "trained", "--d-model", "256", "--n-layers", "1", "--n-heads", "4",
        "--d-mlp", "256", "--vocab-size", "300", "--sequence-length", "16", "--batch-tokens", "64", "--steps", "30",
        "--warmup-steps", "4", "--learning-rate", "0.003", "--validation-share", "0.2",
    ];
    let output = candlepower(folder, &arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Windows of a sequence and the token after it, moved by a sequence, predict the tokens that the validation predicts.
#[test]
fn a_trained_model_is_scored_in_every_dtype() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    train(here);
    let dtypes = ["f32", "bf16", "q8_0", "f8e4m3", "q4k"];
    let list = dtypes.join(",");
    #[rustfmt::skip]
    let arguments = [
        "perplexity", "trained/validation_ids.txt", "--model", "path:trained", "--engine", "tuned",
        "--dtype", &list, "--reference", "f32", "--seq-len", "17", "--stride", "16", "--json",
    ];
    let report = json(&candlepower(here, &arguments));
    let metrics: Value =
        serde_json::from_slice(&fs::read(here.join("trained/metrics.json")).expect("metrics")).expect("JSON");
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value} in {report}"));
    let nll = |place: usize| number(&report["subjects"][place]["nll"]);
    let kl = |place: usize| number(&report["subjects"][place]["divergence"]["kl_mean"]);
    let of_validation = number(&metrics["val_loss"]);
    assert!((nll(0) / of_validation - 1.0).abs() < 1e-5, "{} is not {of_validation}", nll(0));
    assert_eq!(kl(0), 0.0);
    assert!((1..dtypes.len()).all(|place| kl(place) > 0.0), "{report}");
    assert!(kl(2) < 0.01 && (nll(2) - nll(0)).abs() < 0.01, "q8_0: {report}");
    assert!(kl(2) < kl(4), "{report}");

    let records = records(&folder);
    let sizes: Vec<u64> =
        records.iter().map(|record| record["subject"]["weight_bytes"].as_u64().expect("bytes")).collect();
    assert_eq!(sizes.len(), dtypes.len());
    assert!(sizes.is_sorted_by(|larger, smaller| larger > smaller), "{sizes:?} of {dtypes:?}");
    for record in &records {
        assert!(record["measures"]["scored_tokens_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{record}");
    }
    // A text has the tokens of the training's tokenizer.
    let text = ["perplexity", "corpus.txt", "--model", "path:trained", "--dtype", "q8_0", "--seq-len=64", "--json"];
    let report = json(&candlepower(here, &[&text[..], &["--stride=64"]].concat()));
    assert!(report["bits_per_byte"].is_f64(), "{report}");
}

#[test]
fn folders_without_a_trained_language_model_are_refused_in_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    train(here);
    let refused = |engine: &str, part: &str| {
        let model = ["--model", "path:copy", "--engine", engine, "--seq-len=17", "--stride=16"];
        assert_refused(here, &[&["perplexity", "trained/validation_ids.txt"], &model[..]].concat(), part);
    };
    let copy = here.join("copy");
    fs::create_dir(&copy).expect("a folder");
    refused("tuned", "config.json could not be read");
    fs::copy(here.join("trained/config.json"), copy.join("config.json")).expect("copied");
    refused("tuned", "are both missing");
    let weights = fs::read(here.join("trained/model.safetensors")).expect("weights");
    fs::write(copy.join("model.safetensors"), &weights[..weights.len() / 2]).expect("written");
    refused("tuned", "model.safetensors is truncated or corrupt");
    fs::write(copy.join("model.safetensors"), &weights).expect("written");
    refused("stock", "engine stock runs no PSANN models; engine tuned runs them");
    let config = fs::read_to_string(copy.join("config.json")).expect("a configuration");
    for (from, to, part) in [
        ("\"d_mlp\": 256", "\"d_mlp\": 128", "where config.json makes it [128]"),
        ("\"n_layers\": 1", "\"n_layers\": 2", "missing blocks.1."),
        ("\"n_heads\": 4", "\"n_heads\": 0", "n_heads is 0"),
        ("\"waveresnet\"", "\"sgrpsann\"", "this sgrpsann sees later tokens"),
        ("\"wave_interleave\": false", "\"wave_interleave\": true", "this waveresnet sees later tokens"),
        ("\"k_fft\"", "\"k_fftt\"", "unknown field `k_fftt`"),
    ] {
        assert!(config.contains(from), "{from} is missing from {config}");
        fs::write(copy.join("config.json"), config.replace(from, to)).expect("written");
        refused("tuned", part);
    }
}

#[test]
fn tasks_have_the_scores_of_every_question() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = ["eval", "--model", MODEL, "--data", DATA, "--limit", "4", "--engine", "tuned", "--json"];
    let evaluation = json(&candlepower(folder.path(), &arguments));
    let tasks = evaluation["tasks"].as_array().expect("tasks");
    assert_eq!(tasks.iter().map(|task| &task["task"]).collect::<Vec<_>>(), ["lambada_openai", "hellaswag"]);
    for (task, (choices, has_norm)) in tasks.iter().zip([(1, false), (4, true)]) {
        assert_eq!(task["questions"], 4);
        assert_eq!((task["acc_norm"].is_f64(), task["perplexity"].is_f64()), (has_norm, !has_norm), "{task}");
        let scores = task["scores"].as_array().expect("scores");
        assert!(
            scores.iter().all(|score| score["log_likelihoods"].as_array().map(Vec::len) == Some(choices)),
            "{task}"
        );
    }
    let records = records(&folder);
    assert_eq!(records.len(), 2);
    assert_eq!(records[1]["measures"]["kind"], "evaluation");
    assert!(records[1]["id"].as_str().is_some_and(|id| id.starts_with("eval_hellaswag-") && id.contains("_n4/")));
}

#[test]
fn files_that_cannot_be_scored_are_refused_in_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let write = |name: &str, content: &[u8]| fs::write(here.join(name), content).expect("written");
    write("empty", b"");
    write("latin1", b"caf\xe9");
    write("unknown", format!("{} 320", "1 ".repeat(300)).as_bytes());
    write("huge_id", b"1 2 99999999999");
    write("short", b"1 2 3");
    fs::File::create(here.join("huge")).and_then(|file| file.set_len(65 << 20)).expect("a sparse file");
    let (text, ids) = (data("text.txt"), data("ids.txt"));
    for (arguments, part) in [
        (&[text.as_str(), "--seq-len=64", "--stride=0"][..], "--stride=0"),
        (&[&text, "--seq-len=64", "--stride=65"], "--stride=65: use 1 to 64"),
        (&[&text, "--seq-len=1", "--stride=1"], "--seq-len=1"),
        (&[&text, "--seq-len=257", "--stride=64"], "at most 256 tokens (max_position_embeddings)"),
        (&[&text, "--seq-len=64", "--stride=8", "--reference=tund"], "--reference=tund"),
        (&[&text, "--seq-len=64", "--stride=8", "--reference=tuned-f8"], "unknown dtype 'f8'"),
        (&["short", "--seq-len=4", "--stride=2"], "short has 3 tokens, fewer than a window of 4"),
        (&["unknown", "--seq-len=64", "--stride=8"], "token 301 is 320, which is not below vocab_size=320"),
        (&["huge_id", "--seq-len=2", "--stride=1"], "token 3 is 99999999999"),
        (&["empty"], "empty is empty"),
        (&["latin1"], "latin1 is not UTF-8: byte 3"),
        (&["huge"], "huge: it is larger than 67108864 bytes"),
        (&["absent"], "absent"),
        (&["."], "not a regular file"),
    ] {
        assert_refused(here, &[&["perplexity", "--model", MODEL], arguments].concat(), part);
    }
    let windows = ["--seq-len=64", "--stride=8"];
    let of = |model: &'static str, file: &'static str| [&["perplexity", file, "--model", model], &windows[..]].concat();
    fs::copy(&text, here.join("text.txt")).expect("copied");
    assert_refused(here, &of(WITHOUT_TOKENIZER, "text.txt"), "has no tokenizer for the text text.txt");
    fs::copy(&ids, here.join("ids.txt")).expect("copied");
    assert_refused(here, &of("nonsense", "ids.txt"), "nonsense");
    fs::write(here.join("cut.gguf"), b"GGUF\x03\0\0\0").expect("written");
    assert_refused(here, &of("path:cut.gguf", "ids.txt"), "cut short");
    // Version 3 without tensors, and one key with a text.
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let key = [text("general.architecture"), 8u32.to_le_bytes().to_vec(), text("mamba")].concat();
    let header = [&b"GGUF\x03\0\0\0"[..], &0u64.to_le_bytes(), &1u64.to_le_bytes(), &key].concat();
    fs::write(here.join("mamba.gguf"), header).expect("written");
    assert_refused(here, &of("path:mamba.gguf", "ids.txt"), "architecture mamba is not supported");
    let both: &'static str = concat!(
        "path:",
        env!("CARGO_MANIFEST_DIR"),
        "/fixtures/generation/llama-gqa-tied,path:",
        env!("CARGO_MANIFEST_DIR"),
        "/fixtures/generation/llama-mqa-llama3"
    );
    assert_refused(here, &of(both, "ids.txt"), "different vocabularies");
}

#[test]
fn questions_that_cannot_be_scored_are_refused_in_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let eval = |more: &[&'static str]| [&["eval", "--model", MODEL], more].concat();
    assert_refused(here, &eval(&["--data", "absent"]), "absent/lambada_openai.jsonl");
    assert_refused(here, &eval(&["--data", DATA, "--tasks", "hellaswagg"]), "did you mean hellaswag?");
    assert_refused(here, &eval(&["--data", DATA, "--limit", "0"]), "--limit=0");
    assert_refused(here, &["eval", "--model", WITHOUT_TOKENIZER, "--data", DATA], "has no tokenizer");
    assert_refused(here, &eval(&["--data", DATA, "--engine", "stock,tuned"]), "name one of each");
    fs::write(here.join("hellaswag.jsonl"), "{\"activity_label\": \"a\", \"ctx_a\": \"b\"}\n").expect("written");
    assert_refused(here, &eval(&["--data", ".", "--tasks", "hellaswag"]), "hellaswag.jsonl line 1: ctx_b is missing");
    let long = format!("{{\"text\": \"a {}\"}}\n", "word".repeat(300));
    fs::write(here.join("lambada_openai.jsonl"), long).expect("written");
    assert_refused(here, &eval(&["--data", ".", "--tasks", "lambada_openai"]), "the model takes 256");
}

fn statuses(folder: &TempDir) -> Vec<Value> {
    records(folder).iter().map(|record| record["status"].clone()).collect()
}

/// A run with a failure and a score: exit code 1 and one line.
fn assert_partial(output: &Output, id: &str, reason: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.lines().count() == 1 && error.starts_with(&format!("error: {id}")), "{error}");
    assert!(error.contains(reason), "{error}");
}

#[test]
fn a_model_that_fails_leaves_the_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    fs::create_dir(here.join("empty")).expect("a folder");
    let (ids, models) = (data("ids.txt"), format!("path:empty,{MODEL}"));
    let arguments = ["perplexity", &ids, "--model", &models, "--engine=tuned", "--seq-len=64", "--stride=64", "--json"];
    let output = candlepower(here, &arguments);
    assert_partial(&output, "perplexity_ids-", "config.json could not be read");
    let report = json(&output);
    let [subject] = report["subjects"].as_array().expect("subjects").as_slice() else { panic!("{report}") };
    assert!(subject["nll"].is_f64() && report["nll"] == subject["nll"], "{report}");
    assert_eq!(statuses(&folder), ["failed", "measured"]);
    assert_eq!(records(&folder)[1]["id"], subject["id"]);
    // The only model fails as the command does.
    let alone = tempfile::tempdir().expect("a folder");
    fs::create_dir(alone.path().join("empty")).expect("a folder");
    let arguments = ["perplexity", &ids, "--model=path:empty", "--engine=tuned", "--reference=f32"];
    assert_refused(alone.path(), &arguments, "config.json could not be read");
}

#[test]
fn a_task_that_fails_leaves_the_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let long = format!("{{\"text\": \"a {}\"}}\n", "word".repeat(300));
    fs::write(here.join("lambada_openai.jsonl"), long).expect("written");
    fs::copy(data("hellaswag.jsonl"), here.join("hellaswag.jsonl")).expect("copied");
    let output = candlepower(here, &["eval", "--model", MODEL, "--data", ".", "--limit", "3", "--json"]);
    assert_partial(&output, "eval_lambada_openai-", "the model takes 256");
    let evaluation = json(&output);
    let [task] = evaluation["tasks"].as_array().expect("tasks").as_slice() else { panic!("{evaluation}") };
    assert_eq!(task["task"], "hellaswag");
    assert_eq!(statuses(&folder), ["measured", "failed"]);
}

/// The earlier run is edited, as if the model had been better then.
#[test]
fn a_loss_of_quality_fails_the_night() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let list = |score: &str| format!("{{\"benchmarks\": [{{\"score\": [{score}]}}]}}");
    let text = data("text.txt");
    let score = format!("\"perplexity\", \"{text}\", \"--model\", \"{MODEL}\", \"--seq-len=64\", \"--stride=32\"");
    let nightly = |list: &str| {
        fs::write(here.join("nightly.json"), list).expect("written");
        let output = candlepower(here, &["nightly", "nightly.json"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text)
    };
    let (code, text) = nightly(&list(&score));
    assert_eq!(code, Some(0), "{text}");
    let good = fs::read_to_string(here.join("target/nightly/last-good")).expect("a good run");
    let file = here.join("target/nightly/runs").join(good.trim()).join("records.jsonl");
    let mut record: Value = serde_json::from_slice(&fs::read(&file).expect("records")).expect("one record");
    for nll in record["measures"]["window_nll"].as_array_mut().expect("windows") {
        *nll = (nll.as_f64().expect("a number") * 0.98).into();
    }
    fs::write(&file, record.to_string()).expect("written");
    let (code, text) = nightly(&list(&score));
    assert!(code == Some(1) && text.contains("2.04 % higher NLL"), "{text}");
    for (list, part) in [
        (list("\"run\""), "begin with perplexity or eval"),
        ("{\"benchmarks\": [{\"budget_minutes\": 1}]}".into(), "either bench or score"),
        ("{\"benchmarks\": [{\"score\": [\"eval\"], \"filter\": \"a\"}]}".into(), "filter and features need bench"),
    ] {
        let (code, text) = nightly(&list);
        assert!(code == Some(2) && text.contains(part) && text.lines().count() == 1, "{text}");
    }
}

/// Settings with the peer of the tests, under the name of each fault. It loads models with as many parameters as `llama-mini`.
fn peers(names: &[&str]) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/peer.py");
    let entry = |name: &&str| {
        format!("[peers.{name}]\ncommand = ['python3', '{script}', '{name}', '31201792']\ntimeout_s = 20\n")
    };
    names.iter().map(entry).collect()
}

/// The logits of the peer are 8 for the token after the last, and 0 for the 16383 others.
#[test]
fn a_peer_is_scored_by_its_logits() {
    let folder = tempfile::tempdir().expect("a folder");
    let faults = [
        ("short-logits", "it wrote 196608 bytes of logits instead of 262144"),
        ("nan-logits", "the logits are not finite"),
        ("dies", "out of luck"),
        ("only-generates", "it does not score, it does generate"),
    ];
    let names: Vec<&str> = ["plain"].into_iter().chain(faults.iter().map(|(name, _)| *name)).collect();
    fs::write(folder.path().join("candlepower.toml"), peers(&names)).expect("written");
    fs::write(folder.path().join("ids.txt"), "1 2 3 4 5 6 7 8 9 10 11 12 13").expect("written");
    let engines = format!("--engine={}", names.iter().map(|name| format!("peer:{name}")).collect::<Vec<_>>().join(","));
    #[rustfmt::skip]
    let arguments = [
        "perplexity", "ids.txt", "--model=llama-mini", &engines, "--seq-len=5", "--stride=5", "--json",
    ];
    let output = candlepower(folder.path(), &arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    if error.contains("could not be started") {
        return eprintln!("skipped: there is no python3");
    }
    let report = json(&output);
    let expected = (8f64.exp() + 16383.0).ln() - 8.0;
    let nll = report["subjects"][0]["nll"].as_f64().expect("a number");
    assert!((nll - expected).abs() < 1e-6, "{nll} is not {expected}");
    assert_eq!(report["subjects"].as_array().map(Vec::len), Some(1));
    for (name, reason) in faults {
        let line = error.lines().find(|line| line.contains(&format!("/{name}-f32-cpu: "))).unwrap_or_default();
        assert!(line.contains(reason), "{name}: '{reason}' is missing from: {error}");
    }
}

#[test]
fn engines_have_ranks_and_a_peer_that_fails_a_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("candlepower.toml"), peers(&["refuses"])).expect("written");
    let models = format!("--models={MODEL}");
    let standings = |more: &[&str]| {
        let arguments = ["standings", &models, "--engine=tuned,stock,peer:refuses", "--budget=1s", "--seq-len=64"];
        candlepower(folder.path(), &[&arguments, more].concat())
    };
    let output = standings(&["--reference=tuned-f32"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let page = fs::read_to_string(folder.path().join("records/a/standings.md")).expect("a document");
    for part in ["| 1 ", "| tuned", "| stock", "perplexity", "KL", "refuses failed: ", "candlepower standings "] {
        assert!(page.contains(part), "{part} is missing from: {page}");
    }
    assert_eq!(records(&folder).len(), 5, "three engines, and the scores of two");
    assert!(standings(&["--reference=tuned-f32", "--resume=a"]).status.success());
    assert_eq!(records(&folder).len(), 5, "what the run has is not measured again");
}
