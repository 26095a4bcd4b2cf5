//! Scores whose process ends: the models, tasks and dtypes beside them keep theirs.
#![cfg(target_os = "linux")]

use std::{
    fs,
    path::Path,
    process::{Output, Stdio},
};

use candlepower_core::record::{self, Record, Status};
use serde_json::Value;

use crate::command::{aborted_once, candlepower, children_of, ended, send, stderr, wait_for};

/// A Llama with a tokenizer, a vocabulary of 320 tokens and 256 positions.
const MODEL: &str = concat!("path:", env!("CARGO_MANIFEST_DIR"), "/fixtures/generation/llama-gqa-tied");

const QUESTIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/quality");

/// Expects a failed record, then a measured one, one line about the failure and the exit code 1. Returns the records.
fn lost_one(folder: &Path, output: &Output) -> [Record; 2] {
    let error = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{error}");
    let file = folder.join("target/candlepower/r/records.jsonl");
    let [failed, measured]: [Record; 2] =
        record::read(&file).expect("records").records.try_into().unwrap_or_else(|all| panic!("{all:?}"));
    assert_eq!((failed.status, measured.status), (Status::Failed, Status::Measured));
    let reason = "the process that measured it was ended by SIGABRT";
    assert!(failed.reason.as_ref().is_some_and(|told| told.starts_with(reason)), "{:?}", failed.reason);
    let told = error.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>();
    assert!(told.len() == 1 && told[0].starts_with(&format!("error: {}: {reason}", failed.id)), "{error}");
    [failed, measured]
}

#[test]
fn a_model_that_ends_its_process_leaves_the_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let ids: String = (0..1200).map(|place| format!("{} ", place * 7 % 300)).collect();
    fs::write(folder.path().join("ids.txt"), ids).expect("written");
    #[rustfmt::skip]
    let arguments = [
        "perplexity", "ids.txt", "--model", "llama-mini", "--engine", "tuned", "--dtype", "f32,bf16", "--seq-len", "128",
        "--stride", "16",
    ];
    let output = aborted_once(folder.path(), &arguments);
    let [failed, measured] = lost_one(folder.path(), &output);
    assert_ne!(failed.subject.dtype, measured.subject.dtype);
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.starts_with("Perplexity") && table.contains(&measured.subject.variant().to_string()), "{table}");
}

#[test]
fn a_task_that_ends_its_process_leaves_the_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let questions = |task: &str| fs::read_to_string(format!("{QUESTIONS}/{task}.jsonl")).expect(task);
    // So many that the signal comes before their end.
    let many = questions("lambada_openai").repeat(2000);
    fs::write(folder.path().join("lambada_openai.jsonl"), many).expect("written");
    fs::write(folder.path().join("hellaswag.jsonl"), questions("hellaswag")).expect("written");
    let arguments = ["eval", "--model", MODEL, "--engine", "tuned", "--data", ".", "--limit", "100000", "--json"];
    let output = aborted_once(folder.path(), &arguments);
    let [failed, measured] = lost_one(folder.path(), &output);
    assert!(failed.scenario.starts_with("eval_lambada_openai-"), "{}", failed.scenario);
    assert!(measured.scenario.starts_with("eval_hellaswag-"), "{}", measured.scenario);
    let evaluation: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(evaluation["tasks"][0]["id"], measured.id);
}

/// No dtype but f32 is without divergence, so each is refused: the first because its process ends.
#[test]
fn a_dtype_that_ends_its_process_leaves_the_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = candlepower(folder.path());
    #[rustfmt::skip]
    command.args([
        "recommend", "--model", "llama-mini", "--engine", "tuned", "--threads", "1", "--min-quality", "kl=0", "--no-write",
        "--json",
    ]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let part = || {
        let is_part = |id: &u32| {
            fs::read_to_string(format!("/proc/{id}/cmdline")).is_ok_and(|line| line.contains("recommend-part"))
        };
        children_of(child.id()).into_iter().find(is_part)
    };
    wait_for("a process that measures a quality", || part().inspect(|id| send("-ABRT", *id)).is_some());
    let output = ended(child);
    assert!(output.status.success(), "{}", stderr(&output));
    let found: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let [first, others @ ..] = found["comparisons"].as_array().expect("comparisons").as_slice() else {
        panic!("{found}")
    };
    let reason = |comparison: &Value| comparison["reason"].as_str().expect("a reason").to_owned();
    assert!(reason(first).contains("ended (signal: 6 (SIGABRT)"), "{found}");
    assert!(others.len() > 2 && others.iter().all(|other| reason(other).contains("a divergence of")), "{found}");
}
