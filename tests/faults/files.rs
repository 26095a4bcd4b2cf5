//! Files and names that a user may be handed: not regular, huge, or leading out of their folder.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command::{candlepower, is_refused, output};

/// Runs the command in a folder and expects it to fail. Returns what it wrote to standard error.
fn refused(folder: &Path, args: &[&str], variables: &[(&str, &str)]) -> String {
    let output = output(candlepower(folder).args(args).envs(variables.iter().copied()));
    is_refused(&output, &format!("{args:?}"))
}

/// A way to put something at a path that is not a file to read.
type Put = fn(&Path);

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo").success());
}

fn endless(path: &Path) {
    std::os::unix::fs::symlink("/dev/zero", path).expect("a link");
}

fn folder(path: &Path) {
    fs::create_dir(path).expect("a folder");
}

/// Larger than any limit, without taking room on the disk.
fn huge(path: &Path) {
    File::create(path).and_then(|file| file.set_len(1 << 40)).expect("a sparse file");
}

/// All of them, and a part of the error.
pub const PUTS: [(Put, &str); 4] = [
    (fifo, "not a regular file"),
    (endless, "not a regular file"),
    (folder, "not a regular file"),
    (huge, "larger than"),
];

const RUN: &[&str] = &["run", "--model", "path:.", "--prompt-tokens", "4"];

/// Files, and commands that read them.
pub const READ: [(&str, &[&str]); 7] = [
    ("config.json", RUN),
    ("tokenizer.json", RUN),
    ("candlepower.toml", &["list"]),
    ("sweep.yaml", &["sweep", "--config", "sweep.yaml"]),
    ("train.yaml", &["train", "--config", "train.yaml"]),
    ("nightly.json", &["nightly", "nightly.json"]),
    ("corpus.txt", &["train", "--corpus", "corpus.txt"]),
];

fn checkpoint() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(format!("fixtures/generation/llama-gqa-tied/{file}"), folder.path().join(file)).expect("copied");
    }
    folder
}

#[test]
#[cfg(unix)]
fn what_is_not_a_file_of_a_size_is_not_read() {
    for (put, part) in PUTS {
        for (file, args) in READ {
            let at = checkpoint();
            let path = at.path().join(file);
            let _ = fs::remove_file(&path);
            put(&path);
            let error = refused(at.path(), args, &[]);
            assert!(error.contains(part) && error.contains(file), "{file}: {error}");
        }
    }
}

/// Results without an end: zeros, which take no room on the disk.
#[test]
fn results_without_a_line_break_are_not_read_into_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["records.jsonl", "rows.csv", "rows.json"] {
        huge(&folder.path().join(file));
    }
    for (arguments, part) in [
        (&["report", "records.jsonl"][..], "records.jsonl could not be read: a line is longer than"),
        (&["compare", "records.jsonl", "records.jsonl"], "records.jsonl could not be read: a line is longer than"),
        (&["export", "records.jsonl", "--format", "openmetrics"], "records.jsonl could not be read: a line is longer"),
        (&["sweep", "summarise", "records.jsonl"], "records.jsonl could not be read: a line is longer than"),
        (&["sweep", "summarise", "rows.csv"], "rows.csv cannot be read: it is larger than"),
        (&["sweep", "summarise", "rows.json"], "rows.json cannot be read: it is larger than"),
    ] {
        let error = refused(folder.path(), arguments, &[]);
        assert!(error.contains(part), "{error}");
    }
}

/// Before anything is measured, and without a folder outside.
#[test]
fn a_run_is_named_by_a_name() {
    for name in ["../x", "/tmp/x", "..", "", "a/b", "a\u{1b}[31mb"] {
        let place = tempfile::tempdir().expect("a folder");
        let inside = place.path().join("inside");
        fs::create_dir(&inside).expect("a folder");
        for (args, variables) in [
            (vec!["sandbox", "--run", name], vec![]),
            (vec!["sweep", "--preset", "smoke", "--run", name], vec![]),
            (vec!["run", "--prompt-tokens", "4"], vec![("CANDLEPOWER_RUN", name)]),
        ] {
            let error = refused(&inside, &args, &variables);
            // An empty value is refused by the parser of arguments, in its own words.
            assert!(error.contains("can't be the name of a file or folder") || name.is_empty(), "{error}");
        }
        let beside: Vec<_> = fs::read_dir(place.path()).expect("a folder").flatten().collect();
        assert_eq!(beside.len(), 1, "{beside:?}");
    }
}

#[test]
fn sizes_that_no_model_has_are_refused_at_once() {
    for (key, value) in [
        ("num_hidden_layers", json!(1_000_000_000_000_u64)),
        ("num_hidden_layers", json!(1_u64 << 62)),
        ("vocab_size", json!(u64::MAX)),
        ("hidden_size", json!(1_u64 << 62)),
        ("intermediate_size", json!(100_000_000_000_u64)),
        ("num_attention_heads", json!(1_u64 << 62)),
        ("num_key_value_heads", json!(1_u64 << 62)),
        ("head_dim", json!(1_u64 << 62)),
        ("max_position_embeddings", json!(1_u64 << 62)),
    ] {
        let at = checkpoint();
        let file = at.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file).expect("read")).expect("JSON");
        config[key] = value;
        fs::write(&file, config.to_string()).expect("written");
        let error = refused(at.path(), &["run", "--model", "path:."], &[]);
        assert!(error.contains(key), "{error}");
    }
}
