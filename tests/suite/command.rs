//! Tests the `candlepower` command, above all its errors.

use std::{
    collections::HashMap,
    fs, io,
    path::Path,
    process::{Command, Output, Stdio},
};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use tempfile::TempDir;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/generation/llama-gqa-tied");

fn candlepower(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlepower"));
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("CANDLEPOWER_")) {
        command.env_remove(key);
    }
    command.env_remove("CARGO_TARGET_DIR").env_remove("CRITERION_HOME");
    // With this variable set, Candle's messages have backtraces.
    command.env("RUST_BACKTRACE", "1").envs(environment.iter().copied());
    command.current_dir(folder).args(arguments).output().expect("the command starts")
}

/// Asserts that the command fails with exactly one line on standard error that contains `part`, and prints nothing
/// else.
fn assert_refused(output: &Output, part: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{part}: it should fail");
    assert_eq!(error.lines().count(), 1, "{part}: one line, not\n{error}");
    assert!(error.starts_with("error: ") && error.contains(part), "{part} is missing from: {error}");
    assert!(output.stdout.is_empty(), "{part}: {}", String::from_utf8_lossy(&output.stdout));
}

/// Returns a copy of a valid checkpoint, for tests to damage.
fn checkpoint() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(Path::new(FIXTURE).join(file), folder.path().join(file)).expect("copied");
    }
    folder
}

fn edit_config(folder: &TempDir, edit: impl Fn(&mut Value)) {
    let file = folder.path().join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&file).expect("read")).expect("JSON");
    edit(&mut config);
    fs::write(file, config.to_string()).expect("written");
}

fn edit_weights(folder: &TempDir, edit: impl Fn(&mut HashMap<String, Tensor>)) {
    let file = folder.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).expect("loaded");
    edit(&mut tensors);
    candle_core::safetensors::save(&tensors, file).expect("saved");
}

fn run(folder: &TempDir, more: &[&str]) -> Output {
    let arguments = ["run", "--model", "path:.", "--prompt-tokens", "8", "--max-new-tokens", "4"];
    candlepower(folder.path(), &[&arguments, more].concat(), &[])
}

/// Two key-value heads on four ranks are copied.
#[test]
fn a_sharded_model_generates_the_tokens_of_the_model_in_one_part() {
    let model = format!("path:{FIXTURE}");
    let arguments = ["run", "--model", &model, "--prompt-tokens", "9", "--max-new-tokens", "5", "--json"];
    let run = |more: &[&str]| candlepower(Path::new("."), &[&arguments, more].concat(), &[]);
    let record = |output: &Output| -> Value { serde_json::from_slice(&output.stdout).expect("one JSON object") };
    let whole = record(&run(&["--engine", "tuned"]));
    for ranks in ["2", "4"] {
        let output = run(&["--engine", "tuned", "--tensor-parallel", ranks]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(&format!("logits of {ranks} ranks: at most ")), "{error}");
        let record = record(&output);
        assert_eq!(record["tokens"], whole["tokens"], "{ranks} ranks");
        let id = record["id"].as_str().expect("an id");
        assert!(id.ends_with(&format!("/tuned-tp{ranks}-f32-cpu")), "{id}");
        assert!(record["measures"]["reduced_bytes"].as_u64() > Some(0), "{record}");
    }
    assert_eq!(whole["measures"]["reduced_bytes"], Value::Null);
    for (more, part) in [
        (&["--engine", "tuned", "--tensor-parallel", "3"][..], "num_attention_heads=4 cannot be divided among 3 ranks"),
        (&["--engine", "tuned", "--tensor-parallel", "1,2"], "--tensor-parallel=1,2: name one number of ranks"),
        (&["--engine", "stock", "--tensor-parallel", "2"], "engine stock is not sharded"),
        (&["--engine", "tuned", "--tensor-parallel", "0"], "expected a whole number from 1 to 64"),
    ] {
        assert_refused(&run(more), part);
    }
}

#[test]
fn several_engines_generate_in_turns() {
    let model = format!("path:{FIXTURE}");
    let arguments = ["run", "--model", &model, "--prompt-tokens", "9", "--max-new-tokens", "5", "--json"];
    let run = |more: &[&str]| candlepower(Path::new("."), &[&arguments, more].concat(), &[]);
    let records = |more: &[&str]| -> Vec<Value> {
        let output = run(more);
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect()
    };
    let engines = records(&["--engine", "stock,tuned", "--trials", "4"]);
    let [stock, tuned] = engines.as_slice() else { panic!("{engines:?}") };
    assert_eq!(stock["measures"]["token_digest"], tuned["measures"]["token_digest"], "equal tokens in f32");
    assert_eq!((&stock["ratios"], &tuned["ratios"][0]["to"]), (&Value::Null, &stock["id"]));
    assert_eq!((&tuned["ratios"][0]["pairs"], &tuned["measures"]["samples"]), (&4.into(), &4.into()));
    let dtypes = records(&["--engine", "tuned", "--dtype", "f32,bf16"]);
    let ids: Vec<&str> = dtypes.iter().filter_map(|record| record["id"].as_str()).collect();
    assert!(ids[0].ends_with("/tuned-f32-cpu") && ids[1].ends_with("/tuned-bf16-cpu"), "{ids:?}");
    for (more, flag) in [
        (&["--prompt-ids", "1"][..], "--prompt-ids"),
        (&["--stop-at-eos"], "--stop-at-eos"),
        (&["--suite", "quick"], "--suite"),
        (&["--tensor-parallel", "2"], "--tensor-parallel"),
    ] {
        let output =
            candlepower(Path::new("."), &[&["run", "--model", &model, "--engine", "stock,tuned"], more].concat(), &[]);
        assert_refused(&output, &format!("{flag}: name one engine of this program and one dtype"));
    }
}

#[test]
fn generated_ids_are_the_references() {
    let golden = fs::read(Path::new(FIXTURE).join("golden.json")).expect("golden.json");
    let golden: Value = serde_json::from_slice(&golden).expect("JSON");
    for prompt in golden["prompts"].as_array().expect("prompts") {
        let ids: Vec<_> = prompt["ids"].as_array().expect("ids").iter().map(Value::to_string).collect();
        let model = format!("path:{FIXTURE}");
        let arguments = ["run", "--model", &model, "--prompt-ids", &ids.join(","), "--max-new-tokens", "32", "--json"];
        let output = candlepower(Path::new("."), &arguments, &[]);
        let record: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        assert_eq!(record["tokens"], prompt["greedy"], "{}", prompt["name"]);
        assert_eq!(record["measures"]["samples"], 3);
        assert_eq!(record["measures"]["prompt_tokens"], ids.len());
        assert_eq!(record["machine"]["threads"].as_u64(), Some(candle_core::utils::get_num_threads() as u64));
    }
}

/// The printed line runs in a shell, in which `candlepower` is this program.
#[cfg(unix)]
#[test]
fn a_run_prints_the_command_that_repeats_it() {
    let folder = checkpoint();
    let program = Path::new(env!("CARGO_BIN_EXE_candlepower"));
    let path =
        format!("{}:{}", program.parent().expect("a folder").display(), std::env::var("PATH").unwrap_or_default());
    fs::write(folder.path().join("candlepower.toml"), "threads = 1").expect("written");
    let arguments = ["run", "--model", "path:.", "--prompt", "How fast\ndoesn't it $burn?", "--max-new-tokens", "6"];
    let more = ["--temperature", "1.5", "--seed", "9", "--warmup", "0", "--trials", "1"];
    let all = [&arguments[..], &more].concat();
    let output = candlepower(folder.path(), &all, &[("CANDLEPOWER_DTYPE", "bf16")]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let line = text[text.rfind("\nrepeat: ").expect("a line")..].trim().trim_start_matches("repeat: ").to_owned();
    assert!(line.starts_with("CANDLEPOWER_DTYPE=bf16 CANDLEPOWER_THREADS=1 candlepower run --model path:. "), "{line}");
    let record = |output: Output| -> Value {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("one JSON object")
    };
    let shell = |line: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).env("PATH", &path).current_dir(folder.path());
        shell.output().expect("a shell")
    };
    fs::remove_file(folder.path().join("candlepower.toml")).expect("removed");
    let again = record(shell(&format!("{line} --json")));
    let first = record(candlepower(
        folder.path(),
        &[&all[..], &["--json"]].concat(),
        &[("CANDLEPOWER_DTYPE", "bf16"), ("CANDLEPOWER_THREADS", "1")],
    ));
    for field in ["id", "command"] {
        assert_eq!(again[field], first[field], "{field}");
    }
    assert_eq!(again["measures"]["token_digest"], first["measures"]["token_digest"]);
    assert_eq!(again["settings"]["threads"]["value"], "1");

    // A record in a file gives the same line.
    fs::write(folder.path().join("records.jsonl"), first.to_string() + "\n").expect("written");
    let report = |id: &str| candlepower(folder.path(), &["report", "records.jsonl", "--reproduce", id], &[]);
    let id = first["id"].as_str().expect("an id");
    let printed = String::from_utf8_lossy(&report(id).stdout).into_owned();
    assert_eq!(printed.trim_end(), first["command"].as_str().expect("a command"));
    assert_refused(&report(&format!("{id}s")), &format!("did you mean {id}?"));
    assert!(!folder.path().join("target-reports").exists(), "no report is written");
}

/// A pipe whose reader is closed, as `head` leaves it.
fn closed_pipe() -> Stdio {
    io::pipe().expect("a pipe").1.into()
}

#[test]
fn a_closed_standard_output_is_not_an_error() {
    for arguments in [&["list"][..], &["--help"], &["run", "--help"], &["--version"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_candlepower"));
        command.args(arguments).env("RUST_BACKTRACE", "1").stdout(closed_pipe());
        let output = command.output().expect("the command starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && error.is_empty(), "{arguments:?}: {error}");
    }
}

#[test]
fn a_closed_standard_error_does_not_change_the_exit_code() {
    for arguments in [&[][..], &["--no-such-flag"], &["run", "--model", "no-such-model"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_candlepower"));
        let status = command.args(arguments).stderr(closed_pipe()).status().expect("the command starts");
        assert_eq!(status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_misspelt_name_gets_the_nearest_one() {
    let refused = |arguments: &[&str], part: &str| assert_refused(&candlepower(Path::new("."), arguments, &[]), part);
    refused(&["reprot"], "did you mean report?");
    refused(&["run", "--modle", "llama-mini"], "did you mean --model?");
    refused(&["--no-such-flag"], "see --help");
}

#[test]
fn a_prompt_may_be_text_and_sampling_is_seeded() {
    let folder = checkpoint();
    let sampled = |seed: &str| {
        let arguments = [
            "run",
            "--model",
            "path:.",
            "--prompt",
            "How fast does it burn?",
            "--max-new-tokens",
            "20",
            "--seed",
            seed,
            "--temperature",
            "1.5",
            "--top-k",
            "50",
            "--top-p",
            "0.9",
            "--repetition-penalty",
            "1.1",
            "--json",
        ];
        let output = candlepower(folder.path(), &arguments, &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let record: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        record["tokens"].clone()
    };
    assert_eq!(sampled("1"), sampled("1"));
    assert_ne!(sampled("1"), sampled("2"));
}

#[test]
fn a_tokenizer_that_was_saved_to_cut_or_fill_texts_does_neither() {
    let folder = checkpoint();
    let generated = || {
        let output = run(&folder, &["--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let record: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        assert_eq!(record["measures"]["prompt_tokens"], 8);
        record["tokens"].clone()
    };
    let as_saved = generated();
    let file = folder.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&file).expect("read")).expect("JSON");
    tokenizer["truncation"] = json!({ "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0 });
    tokenizer["padding"] = json!({ "strategy": { "Fixed": 6 }, "direction": "Left", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>" });
    fs::write(&file, tokenizer.to_string()).expect("written");
    assert_eq!(generated(), as_saved);
}

#[test]
fn a_deviation_stands_in_the_table_and_the_json() {
    let model = format!("path:{}", FIXTURE.replace("llama-gqa-tied", "gemma3-short-window"));
    let run = |more: &[&str]| {
        let arguments = ["run", "--model", &model, "--max-new-tokens", "2", "--prompt-tokens"];
        candlepower(Path::new("."), &[&arguments, more].concat(), &[]).stdout
    };
    let record: Value = serde_json::from_slice(&run(&["17", "--json"])).expect("JSON");
    assert!(record["deviates"].as_str().is_some_and(|why| why.contains("window of 16")), "{}", record["deviates"]);
    assert!(String::from_utf8_lossy(&run(&["17"])).contains("[1] deviates: "));
    let record: Value = serde_json::from_slice(&run(&["16", "--json"])).expect("JSON");
    assert!(record["deviates"].is_null());
}

#[test]
fn values_that_mean_nothing_are_refused() {
    let here = Path::new(".");
    for (arguments, part) in [
        (&["run", "--model", "nonsense"] as &[&str], "unknown model 'nonsense'"),
        (&["run", "--model", "synthetic:gpt"], "unknown shape 'gpt'"),
        (&["run", "--model", "path:no/such/folder"], "no/such/folder is not a folder"),
        (&["run", "--dtype", "f8"], "unknown dtype 'f8'"),
        (&["run", "--device", "tpu"], "unknown device 'tpu'"),
        (&["run", "--engine", "fast"], "--engine='fast'"),
        (&["run", "--seed", "-5"], "--seed"),
        (&["run", "--temperature=-1"], "temperature=-1"),
        (&["run", "--temperature", "1e-40", "--prompt-tokens", "1"], "takes logits out of the range of f32"),
        (&["run", "--top-k", "0", "--temperature", "1"], "top-k=0"),
        (&["run", "--top-p", "1.5"], "top-p=1.5"),
        (&["run", "--repetition-penalty", "0"], "repetition-penalty=0"),
        (&["run", "--trials", "0"], "--trials=0"),
        (&["run", "--max-new-tokens", "0"], "the number of new tokens is 0"),
        (&["run", "--prompt-tokens", "0"], "the prompt is empty"),
        (&["run", "--prompt-tokens", "9000"], "9000 prompt and 256 new tokens are more than the model's 8192"),
        (&["run", "--prompt-tokens", "1000000000000"], "1000000000000 prompt and 256 new tokens are more than"),
        (&["run", "--max-new-tokens", "18446744073709551615"], "18446744073709551615 new tokens are more than"),
        (&["run", "--prompt", "text"], "no tokenizer"),
        (&["run", "--prompt-ids", "1,99999999"], "token 99999999, but the vocabulary of the model has"),
        (&["run", "--frequency"], "--frequency"),
        (&["bench", "--tier", "everything"], "--tier='everything'"),
        (&["sing"], "sing"),
    ] {
        assert_refused(&candlepower(here, arguments, &[]), part);
    }
}

#[test]
fn a_device_that_is_not_there_says_why() {
    let output = candlepower(Path::new("."), &["run", "--device", "cuda:99"], &[]);
    assert_refused(
        &output,
        match cfg!(feature = "cuda") {
            true => "device cuda99 could not be opened",
            false => "device cuda99 is not compiled in: build with --features cuda",
        },
    );
}

#[test]
fn every_wrong_setting_is_named_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("candlepower.toml"), "dtype = 'f8'\nspeed = 3").expect("written");
    let output = candlepower(folder.path(), &["list"], &[("CANDLEPOWER_TIER", "all"), ("CANDLEPOWER_SED", "4")]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    for part in ["dtype in candlepower.toml='f8'", "speed", "CANDLEPOWER_TIER='all'", "did you mean CANDLEPOWER_SEED?"]
    {
        assert!(error.contains(part), "{part} is missing from:\n{error}");
    }
    assert_eq!(error.lines().count(), 4, "{error}");
}

#[test]
fn spoilt_checkpoints_are_refused() {
    let folder = checkpoint();
    let file = folder.path().join("model.safetensors");
    let whole = fs::read(&file).expect("read");
    fs::write(&file, &whole[..whole.len() / 2]).expect("written");
    assert_refused(&run(&folder, &[]), "model.safetensors is truncated or corrupt");
    fs::write(&file, [0xff; 100]).expect("written");
    assert_refused(&run(&folder, &[]), "model.safetensors is truncated or corrupt");
    fs::remove_file(&file).expect("removed");
    assert_refused(&run(&folder, &[]), "weights must be safetensors");

    let folder = checkpoint();
    edit_weights(&folder, |tensors| {
        tensors.remove("model.layers.1.mlp.up_proj.weight");
    });
    assert_refused(&run(&folder, &[]), "missing model.layers.1.mlp.up_proj.weight");

    let folder = checkpoint();
    edit_weights(&folder, |tensors| {
        let tensor = tensors["model.norm.weight"].narrow(0, 0, 10).expect("a part");
        tensors.insert("model.norm.weight".into(), tensor);
    });
    assert_refused(&run(&folder, &[]), "model.norm.weight is [10] where config.json makes it [64]");

    let folder = checkpoint();
    edit_weights(&folder, |tensors| {
        let nan = Tensor::full(f32::NAN, 64, &Device::Cpu).and_then(|nan| nan.to_dtype(DType::F32)).expect("NaN");
        tensors.insert("model.norm.weight".into(), nan);
    });
    assert_refused(&run(&folder, &[]), "logits are not finite");
}

#[test]
fn configurations_that_can_not_run_are_refused() {
    for (key, value, part) in [
        ("architectures", json!(["MambaForCausalLM"]), "MambaForCausalLM is not supported"),
        ("hidden_size", json!(null), "hidden_size is missing"),
        ("attention_bias", json!(true), "engine stock refuses this model"),
        ("vocab_size", json!(100), "do not belong together"),
        ("max_position_embeddings", json!(10), "8 prompt and 4 new tokens are more than the model's 10"),
        ("intermediate_size", json!(1u64 << 40), "intermediate_size is 1099511627776; at most"),
        ("intermediate_size", json!(1u64 << 24), "it does not fit"),
    ] {
        let folder = checkpoint();
        edit_config(&folder, |config| config[key] = value.clone());
        if key == "vocab_size" {
            edit_weights(&folder, |tensors| {
                let embedding = tensors["model.embed_tokens.weight"].narrow(0, 0, 100).expect("a part");
                tensors.insert("model.embed_tokens.weight".into(), embedding);
            });
        }
        assert_refused(&run(&folder, &[]), part);
    }
    let folder = checkpoint();
    fs::write(folder.path().join("config.json"), "{").expect("written");
    assert_refused(&run(&folder, &[]), "config.json is not JSON");
    fs::remove_file(folder.path().join("config.json")).expect("removed");
    assert_refused(&run(&folder, &[]), "config.json could not be read");
    let folder = checkpoint();
    fs::write(folder.path().join("tokenizer.json"), "{}").expect("written");
    assert_refused(&run(&folder, &[]), "tokenizer.json: not a tokenizer");
}

#[test]
fn what_there_is_and_what_is_set_is_listed() {
    let list = |what: &[&str]| {
        let arguments = [&["list", "--seed", "7"], what].concat();
        let output = candlepower(Path::new("."), &arguments, &[("CANDLEPOWER_TIER", "quick")]);
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let line = |text: &str, start: &str| {
        let found = text.lines().find(|line| line.starts_with(&format!("{start} ")));
        found.unwrap_or_else(|| panic!("no line of {start} in\n{text}")).to_owned()
    };
    let (all, scenarios) = (list(&[]), list(&["scenarios"]));
    assert!(all.lines().count() <= 40, "it fits a screen:\n{all}");
    for scenario in candlepower_core::scenario::GENERATION {
        assert!(line(&scenarios, scenario.key).contains(scenario.purpose));
        assert!(line(&all, "--bench generation").contains(scenario.key));
    }
    assert!(list(&["models"]).contains("synthetic:qwen3-1.7b") && list(&["backbones"]).contains("state_space"));
    let settings = list(&["settings"]);
    assert!(line(&settings, "seed").contains(" 7 ") && line(&settings, "seed").contains("command line"));
    assert!(line(&settings, "tier").contains("quick") && line(&settings, "tier").contains("environment"));
    assert!(line(&settings, "device").contains("default"));
}

#[test]
fn the_doctor_names_what_makes_figures_doubtful() {
    let output = candlepower(
        Path::new("."),
        &["doctor", "--json", "--models", "meta-llama/some-model"],
        &[("HF_TOKEN", ""), ("HF_HOME", "no/such/folder")],
    );
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let level = |topic: &str| {
        let finding = findings.iter().find(|finding| finding["topic"] == topic);
        finding.unwrap_or_else(|| panic!("nothing on {topic}"))["level"].as_str().expect("a level").to_owned()
    };
    // Tests are debug builds.
    assert_eq!(level("build"), if cfg!(debug_assertions) { "warning" } else { "ok" });
    assert_eq!(level("token"), "warning");
    assert_eq!(level("limits"), "ok");
    assert_eq!(level("device"), "ok");
}

/// Writes a run of one benchmark that takes `total_ms` to a folder below `out`.
fn write_run(out: &Path, run: &str, total_ms: f64) {
    let mut record: Value =
        serde_json::from_str(include_str!("../../src/core/record/sample.json")).expect("the sample");
    let samples: Vec<f64> = (0..10).map(|sample| total_ms * (1.0 + 0.001 * f64::from(sample))).collect();
    record["measures"]["sample_total_ms"] = samples.into();
    fs::create_dir_all(out.join(run)).expect("made");
    fs::write(out.join(run).join("records.jsonl"), format!("{record}\n")).expect("written");
}

#[test]
fn a_comparison_fails_on_a_regression_and_only_then() {
    let folder = tempfile::tempdir().expect("a folder");
    for (run, total_ms) in [("before", 100.0), ("same", 101.0), ("slower", 140.0)] {
        write_run(&folder.path().join("target/candlepower"), run, total_ms);
    }
    let compare = |arguments: &[&str]| candlepower(folder.path(), &[&["compare"], arguments].concat(), &[]);
    assert!(compare(&["before", "same", "--fail-above", "5%"]).status.success());
    assert!(compare(&["before", "slower"]).status.success(), "only on demand");
    assert!(compare(&["before", "slower", "--fail-above", "50%"]).status.success());
    let output = compare(&["before", "slower", "--fail-above", "5%"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is 40.0 % slower"));
    assert!(String::from_utf8_lossy(&output.stdout).contains("  +40.0  "));
    let json = compare(&["before", "target/candlepower/slower/records.jsonl", "--format", "json"]).stdout;
    let json: Value = serde_json::from_slice(&json).expect("JSON");
    assert_eq!(json["rows"][0]["verdict"], "slower");
    assert_refused(
        &compare(&["before", "never"]),
        "there is no file of records, no run below target/candlepower and no Criterion baseline named never",
    );
    assert_refused(&compare(&["before", "same", "--fail-above", "much"]), "expected a share");
}

/// Writes the files that Criterion would have written for a run with another median.
fn write_estimates(home: &Path, id: &str, total_ms: f64, median_ns: f64) {
    let folder = home.join(id).join("new");
    fs::create_dir_all(&folder).expect("made");
    let times: Vec<f64> = (0..10).map(|sample| 1e6 * total_ms * (1.0 + 0.001 * f64::from(sample))).collect();
    let sample = json!({"sampling_mode": "Flat", "iters": vec![1.0; 10], "times": times});
    let interval = json!({"confidence_level": 0.95, "lower_bound": median_ns - 1.0, "upper_bound": median_ns + 1.0});
    let estimates =
        json!({"median": {"confidence_interval": interval, "point_estimate": median_ns, "standard_error": 1}});
    for (file, content) in [("sample", sample), ("estimates", estimates), ("benchmark", json!({"full_id": id}))] {
        fs::write(folder.join(format!("{file}.json")), content.to_string()).expect("written");
    }
}

#[test]
fn a_report_holds_what_was_measured_and_names_what_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("target/candlepower");
    let id = "short/llama-mini/stock-f32-cpu";
    write_run(&out, "mine", 100.0);
    let median_ns = 100_450_000.123_456_7;
    write_estimates(&folder.path().join("target/criterion"), id, 100.0, median_ns);
    let records = out.join("mine/records.jsonl");
    let torn = fs::read_to_string(&records).expect("read") + "{\"schema\": 1, \"run\": \"mi";
    fs::write(&records, torn).expect("written");

    let report = |arguments: &[&str]| candlepower(folder.path(), &[&["report"], arguments].concat(), &[]);
    let output = report(&["mine"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && errors.contains("line 2: the line breaks off"), "{errors}");
    let made = folder.path().join(String::from_utf8_lossy(&output.stdout).trim());
    let read = |file: &str| fs::read_to_string(made.join(file)).unwrap_or_else(|_| panic!("{file} is there"));

    let mut table = csv::Reader::from_path(made.join("results.csv")).expect("a table");
    let rows: Vec<HashMap<String, String>> = table.deserialize().map(|row| row.expect("a row")).collect();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["id"], id);
    assert_eq!(rows[0]["criterion_median_ns"].parse(), Ok(median_ns), "Criterion's median to the last digit");
    assert_eq!(rows[0]["joules_per_token"], "", "what was not measured is empty");
    assert_eq!(read("results.jsonl").lines().count(), 1);
    let environment: Value = serde_saphyr::from_str(&read("environment.yaml")).expect("YAML");
    assert_eq!(environment["settings"]["seed"]["value"], "42");
    assert!(read("README.md").contains("the line breaks off"), "nothing is dropped in silence");
    assert!(read("README.md").contains("100.450"));
    let page = read("index.html");
    assert!(page.contains("llama-mini") && page.contains("<svg"));
    for elsewhere in ["src=\"http", "href=\"http", "url(http", "@import", "file://"] {
        assert!(!page.contains(elsewhere), "{elsewhere}: the page loads something");
    }
    for plot in ["tokens_per_s", "ttft", "mbu", "memory"] {
        assert!(read("README.md").contains(&format!("]({plot}.svg)")), "{plot}");
    }
    assert!(
        page.contains("href=\"results.csv\"") && !page.contains("target/criterion"),
        "every link stays in the folder"
    );
    assert!(page.contains("<th scope=\"col\" class=\"word\"><button type=\"button\">scenario</button></th>"));
    let again = report(&[made.to_str().expect("UTF-8"), "--to", "again"]);
    let again = folder.path().join(String::from_utf8_lossy(&again.stdout).trim());
    let intervals = fs::read_to_string(again.join("README.md")).expect("README.md");
    assert!(intervals.contains("100.450"), "a report of a report keeps the intervals");
    let log = fs::read_to_string(made.parent().expect("the machine's").join("GENERATION_LOG.md"));
    assert!(log.expect("a log").starts_with("# Generation log"));

    let other = "short/other/stock-f32-cpu";
    let line = read("results.jsonl");
    fs::write(&records, line.clone() + &line.replace(id, other)).expect("written");
    for id in [id, other] {
        write_estimates(&folder.path().join("target/criterion"), id, 101.0, median_ns);
    }
    let later = report(&["mine", "--to", "elsewhere"]);
    let problems = String::from_utf8_lossy(&later.stderr);
    let of_criterion: Vec<&str> = problems.lines().filter(|line| line.contains("Criterion")).collect();
    assert!(
        of_criterion.len() == 1 && of_criterion[0].contains("no confidence interval of 2 benchmarks"),
        "{problems}"
    );
    assert_refused(&report(&["never"]), "never is neither a file of records");
    fs::write(&records, "nonsense\n").expect("written");
    assert_refused(&report(&["mine"]), "holds no record that can be read");
}

/// The checkpoint has 256 positions, and some scenarios need more.
#[test]
fn scenarios_that_are_too_long_are_excluded_without_an_error() {
    let folder = checkpoint();
    let arguments = ["run", "--model", "path:.", "--suite", "quick", "--warmup", "0", "--trials", "1"];
    let output = candlepower(folder.path(), &arguments, &[]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !errors.contains("error"), "{errors}");
    assert!(errors.contains(": excluded: 256 prompt and 256 new tokens are more than the model's 256"), "{errors}");
    let runs = fs::read_dir(folder.path().join("target/candlepower")).expect("a run");
    let records = runs.map(|run| run.expect("a run").path().join("records.jsonl")).next().expect("a run");
    let records = fs::read_to_string(records).expect("records");
    let statuses: Vec<Value> =
        records.lines().map(|line| serde_json::from_str::<Value>(line).expect("a record")["status"].clone()).collect();
    assert!(statuses.contains(&json!("measured")) && statuses.contains(&json!("excluded")), "{statuses:?}");
    assert!(!statuses.contains(&json!("failed")), "{statuses:?}");
}
