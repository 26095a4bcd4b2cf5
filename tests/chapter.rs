//! Runs the commands of the guide's chapter for users of other suites, in small sizes, and checks what they write by key and by
//! column. The commands are those of the chapter itself: one that is missing from [`COMMANDS`] fails the test. With
//! `BENCH_TARGET` set, this program is the bench targets that the commands start.

// Without the test harness, lints do not know that this is a test.
#![allow(clippy::print_stderr, clippy::print_stdout)]

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use candlepower_core::{
    measure::CountingAllocator,
    scenario::{CHECKPOINT_MEMORY, GENERATION, MOE_TOP_K, PSANN_THROUGHPUT, TRAINING_SWEEP, Tier},
};
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;
use tempfile::TempDir;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Name of the bench target that this program is; empty for all of them.
const BENCH_TARGET: &str = "BENCH_TARGET";

const CHAPTER: &str = include_str!("../src/guide/coming_from.md");

/// How a command of the chapter is tested.
enum Test {
    /// A shell runs this line, in which `{}` stands for the command after these replacements. The function gets the standard
    /// output.
    Here(&'static str, &'static [(&'static str, &'static str)], fn(&World, &str)),
    /// This test of another file runs it.
    Elsewhere(&'static str, &'static str),
}
use Test::{Elsewhere, Here};

/// The model of the Hub that the chapter names, and the folder that takes its place.
const HUB: (&str, &str) = ("hub:owner/name", "path:checkpoint");
const FOLDER: (&str, &str) = ("path:./my-checkpoint", "path:checkpoint");

/// The commands of the chapter, in its order. A command may need what an earlier one wrote.
#[rustfmt::skip]
const COMMANDS: &[(&str, Test)] = &[
    ("candlepower run --model hub:owner/name --suite standard", Here("CANDLEPOWER_RUN=suite {}", &[HUB], suite)),
    ("candlepower run --model hub:owner/name --suite quick --no-save",
        Here("CANDLEPOWER_RUN=unsaved {}", &[HUB], without_a_file)),
    ("candlepower run --model hub:owner/name --prompt 'Why is the sky blue?' --temperature 0.8 --seed 7",
        Here("{} --max-new-tokens 8", &[HUB], prompt)),
    ("candlepower run --json", Here("{} --model path:checkpoint --max-new-tokens 8", &[], printed)),
    ("candlepower report", Here("{} --even-if-disturbed", &[], log)),
    ("cargo bench", Here(
        "CANDLEPOWER_RUN=short CANDLEPOWER_MODELS=path:checkpoint CANDLEPOWER_ENGINE=tuned {} -- '^short/'", &[], short)),
    ("candlepower bench --bases respsann,waveresnet --batch-tokens 65536,131072 '^psann_throughput'",
        Here("CANDLEPOWER_RUN=throughput {} --seq 16", &[("65536,131072", "16,32")], throughput)),
    ("candlepower report", Here("{} --even-if-disturbed", &[], throughput_files)),
    ("cargo bench --bench memory",
        Here("CANDLEPOWER_RUN=memory CANDLEPOWER_SEQ=16 CANDLEPOWER_BATCH=1 {}", &[], memory)),
    ("candlepower report", Here("{} --even-if-disturbed", &[], memory_file)),
    ("candlepower train --config tiny.yaml --out runs/tiny", Here("{}", &[], training)),
    ("candlepower train --config scripts/tiny_corpus.yaml --corpus corpus.txt --out runs/target", Here(
        "{} --d-model 16 --n-layers 1 --n-heads 2 --d-mlp 24 --vocab-size 300 --sequence-length 16 --batch-tokens 64 \
         --validation-share 0.1", &[], target)),
    ("candlepower shootout --set bases=respsann,sgrpsann --set seeds=1,2,3",
        Here("{} --config tiny.yaml --set steps=4 --out runs/shootout", &[], shootout)),
    ("candlepower report <run> runs/tiny runs/shootout",
        Here("{} --even-if-disturbed", &[("<run>", "throughput")], whole_plan)),
    ("candlepower bench --engine tuned,peer:torch '^psann_throughput'", Here("{} --seq 16 --batch 1 -- --list", &[], torch)),
    ("OUT_DIR=… BENCH_OUT=… TINY_CONFIG=… scripts/next_gpu_batch.sh", Here(
        "DEVICE=cpu FEATURES= BENCH_OPTIONS='--bases transformer --seq 8 --batch 1' {}",
        &[("OUT_DIR=…", "OUT_DIR=queue"), ("BENCH_OUT=…", "BENCH_OUT=queued"), ("TINY_CONFIG=…", "TINY_CONFIG=tiny.yaml")],
        queue)),
    ("candlepower bench training_sweep --seq 128,512,2048 --batch 8,32 --precision f32,bf16 --steps 200", Here(
        "CANDLEPOWER_RUN=grid {}",
        &[("--seq 128,512,2048", "--seq 8"), ("--batch 8,32", "--batch 2"), ("--steps 200", "--steps 10")], grid)),
    ("candlepower bench --batch 1,4,16 '^medium/'", Here(
        "CANDLEPOWER_RUN=batches CANDLEPOWER_MODELS=path:checkpoint CANDLEPOWER_ENGINE=tuned {}", &[], batches)),
    ("candlepower report --zip", Here("{} --even-if-disturbed", &[], data)),
    ("candlepower sandbox", Here("{}", &[], sandbox)),
    ("candlepower export --format registry", Here("{}", &[], registry)),
    ("candlepower watch", Elsewhere("src/report/watch.rs", "keys_turn_through_what_there_is_and_back_to_all")),
    ("candlepower sweep --config sweep.yaml --output results.parquet", Here("CANDLEPOWER_RUN=sweep {}", &[], sweep)),
    ("candlepower sweep summarise results.parquet", Here("{}", &[], summary)),
    ("candlepower bench --engine tuned,peer:torch --preset baseline-cpu '^architecture_sweep'",
        Here("{} -- --list", &[], backbones)),
    ("candlepower sweep --shard 1/4", Elsewhere("tests/suite/sweep.rs", "shards_together_run_every_combination_once")),
    ("candlepower recommend --model hub:owner/name --goal throughput",
        Here("{} --engine tuned --dtype f32 --threads 1 --budget 30s --json", &[HUB], recommendation)),
    ("candlepower bench moe_top_k --experts 64 --top-k 8 --hidden 512", Here("CANDLEPOWER_RUN=moe {}",
        &[("--experts 64", "--experts 4"), ("--top-k 8", "--top-k 2"), ("--hidden 512", "--hidden 64")], mixtures)),
    ("candlepower run --model path:./my-checkpoint --engine tuned --tensor-parallel 2",
        Here("{} --max-new-tokens 8 --json", &[FOLDER], sharded)),
    ("candlepower perplexity tokens.txt --model path:./my-checkpoint --seq-len 1024 --stride 256",
        Here("CANDLEPOWER_RUN=perplexity {} --json", &[FOLDER], perplexity)),
    ("candlepower memory --json memory.json -- python3 train.py", Here("{}", &[("python3 train.py", "true")], used_memory)),
    ("candlepower power --json power.json -- python3 train.py", Here("{}", &[("python3 train.py", "true")], used_power)),
    ("candlepower load --url http://127.0.0.1:8000 --model name --rate 4 --duration 120",
        Elsewhere("tests/load/command.rs", "a_load_is_a_record_that_other_commands_read")),
    ("candlepower nightly scripts/nightly/nightly.json",
        Here("CANDLEPOWER_MODELS=path:checkpoint CANDLEPOWER_ENGINE=tuned {} --shard 1/3", &[], nightly)),
    // The file has 256 positions.
    ("candlepower bench --models path:model.gguf --engine tuned,peer:llama.cpp '^medium/'",
        Here("{} -- --list", &[("^medium/", "^short/")], llama_cpp)),
    ("candlepower export --format openmetrics", Here("{} sandbox", &[], openmetrics)),
];

/// The commands in the tables of the chapter.
fn commands() -> Vec<&'static str> {
    let rows = CHAPTER.lines().filter(|line| line.starts_with('|'));
    // Every second part of a line is between backticks.
    let quoted = rows.flat_map(|line| line.split('`').skip(1).step_by(2));
    quoted
        .filter(|text| ["candlepower ", "cargo "].iter().any(|name| text.starts_with(name)) || text.ends_with(".sh"))
        .collect()
}

fn every_command_of_the_chapter_is_tested() {
    let tested: Vec<&str> = COMMANDS.iter().map(|(command, _)| *command).collect();
    assert_eq!(commands(), tested);
    for (_, test) in COMMANDS {
        if let Elsewhere(file, name) = test {
            assert_is_test(file, name);
        }
    }
}

/// Asserts that a file has a test of this name.
fn assert_is_test(file: &str, name: &str) {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect(file);
    assert!(text.contains(&format!("fn {name}()")), "{file} has no test {name}");
}

fn the_commands_of_the_chapter_write_what_it_says() {
    if !cfg!(unix) {
        return println!("skipped: the commands need a POSIX shell");
    }
    let world = World::new();
    for (command, test) in COMMANDS {
        let Here(line, replacements, check) = test else { continue };
        let mut command = (*command).to_owned();
        for (from, to) in *replacements {
            assert!(command.contains(from), "{from} is not in: {command}");
            command = command.replace(from, to);
        }
        check(&world, &world.run(&line.replace("{}", &command)));
    }
}

const CHECKPOINT: &str = "fixtures/generation/llama-gqa-tied";

/// Files of the commands: from the repository, and their place.
const FILES: [(&str, &str); 6] = [
    ("fixtures/generation/llama-gqa-tied/model.safetensors", "checkpoint/model.safetensors"),
    ("fixtures/generation/llama-gqa-tied/tokenizer.json", "checkpoint/tokenizer.json"),
    ("fixtures/gguf/llama-mqa-llama3.gguf", "model.gguf"),
    ("scripts/tiny_corpus.yaml", "scripts/tiny_corpus.yaml"),
    ("scripts/next_gpu_batch.sh", "scripts/next_gpu_batch.sh"),
    ("scripts/nightly/nightly.json", "scripts/nightly/nightly.json"),
];

const TINY: &str = "d_model: 16\nn_layers: 1\nn_heads: 2\nd_mlp: 24\nvocab_size: 300\nsequence_length: 16\nbatch_tokens: 64\n\
                    epochs: 2\nvalidate_every: 10\nwarmup_steps: 4\nlearning_rate: 0.01\nvalidation_share: 0.1\n\
                    corpus: corpus.txt\n";

const SWEEP: &str = "architectures: [state_space, hybrid_transformer]\nmodel_dims: [16]\ndepths: [1]\nhorizons: [2]\n\
                     windows: [12]\nbatch: 2\nfeatures: 4\nsteps: 3\nwarmup_steps: 1\n";

/// Stands for Cargo: starts this program as the bench target, with short samples, or the command. Tests succeed.
const CARGO: &str = r#"#!/bin/sh
command=$1
bench=
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    if [ "$1" = --bench ]; then bench=$2; fi
    shift
done
if [ $# -gt 0 ]; then shift; fi
case $command in
    run) exec candlepower "$@" ;;
    bench) exec env BENCH_TARGET="$bench" "$TARGET" --bench "$@" --measurement-time 0.1 --noplot ;;
    test) ;;
    *) exit 1 ;;
esac
"#;

/// A folder in which the commands run.
struct World(TempDir);

impl World {
    fn new() -> Self {
        let world = Self(tempfile::tempdir().expect("a folder"));
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for folder in ["bin", "checkpoint", "scripts/nightly"] {
            fs::create_dir_all(world.path(folder)).expect("a folder");
        }
        for (from, to) in FILES {
            fs::copy(root.join(from), world.path(to)).expect(from);
        }
        // The scenarios are longer than the 256 positions of the checkpoint.
        let mut config = json(&root.join(CHECKPOINT).join("config.json"));
        config["max_position_embeddings"] = 2048.into();
        let corpus: String =
            (0..100).map(|number| format!("The whale of number {number} swims by the ship.\n")).collect();
        // More than a window of 1024 tokens.
        let tokens: String = (0..1200).map(|number| format!("{} ", 3 + 7 * number % 300)).collect();
        for (file, text) in [
            ("checkpoint/config.json", config.to_string().as_str()),
            ("corpus.txt", &corpus),
            ("tokens.txt", &tokens),
            ("tiny.yaml", TINY),
            ("sweep.yaml", SWEEP),
            ("bin/cargo", CARGO),
        ] {
            fs::write(world.path(file), text).expect(file);
        }
        world.run("chmod +x bin/cargo");
        world
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a line of a shell, in which `candlepower` is the program and `cargo` the script above, and returns its standard
    /// output.
    fn run(&self, line: &str) -> String {
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).current_dir(self.0.path()).stdin(Stdio::null());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CANDLEPOWER_")) {
            shell.env_remove(name);
        }
        for name in ["CARGO", "CARGO_TARGET_DIR", "RUST_BACKTRACE"] {
            shell.env_remove(name);
        }
        let programs = Path::new(env!("CARGO_BIN_EXE_candlepower")).parent().expect("a folder");
        let rest = std::env::var("PATH").unwrap_or_default();
        shell.env("PATH", format!("{}:{}:{rest}", self.path("bin").display(), programs.display()));
        shell.env("TARGET", std::env::current_exe().expect("this program"));
        shell.env("CRITERION_HOME", self.path("target/criterion"));
        let output = shell.output().expect("a shell");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The records of a run.
    fn records(&self, run: &str) -> Vec<Value> {
        lines(&self.path("target/candlepower").join(run).join("records.jsonl"))
    }

    /// The folder of a report, which is the first line that the command prints.
    fn report(&self, output: &str) -> PathBuf {
        self.path(output.lines().next().expect("a folder"))
    }
}

fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap_or_else(|_| panic!("{}", file.display()))).expect("JSON")
}

/// The objects of a file of JSON lines.
fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_else(|_| panic!("{}", file.display()));
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The header and the rows of a CSV file.
fn table(file: &Path) -> (String, Vec<HashMap<String, String>>) {
    let mut reader = csv::Reader::from_path(file).unwrap_or_else(|_| panic!("{}", file.display()));
    let header = reader.headers().expect("a header").iter().collect::<Vec<_>>().join(",");
    (header, reader.deserialize().map(|row| row.expect("a row")).collect())
}

/// The only folder in a folder.
fn inside(folder: &Path) -> PathBuf {
    let entries = fs::read_dir(folder).unwrap_or_else(|_| panic!("{}", folder.display()));
    let mut folders = entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_dir());
    let only = folders.next().expect("a folder");
    assert!(folders.next().is_none(), "{} has several folders", folder.display());
    only
}

/// The names of the columns of a Parquet file, and its number of rows.
fn columns(file: &Path) -> (BTreeSet<String>, i64) {
    let reader = SerializedFileReader::new(fs::File::open(file).expect("a file")).expect("a Parquet file");
    let about = reader.metadata().file_metadata();
    let names = about.schema_descr().columns().iter().map(|column| column.name().to_owned()).collect();
    (names, about.num_rows())
}

/// The keys of an object.
fn keys(object: &Value) -> BTreeSet<&str> {
    object.as_object().unwrap_or_else(|| panic!("{object}")).keys().map(String::as_str).collect()
}

/// Names that spaces separate.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(' ').collect()
}

/// Asserts that an object has these keys, which spaces separate, and perhaps others.
fn assert_keys(object: &Value, expected: &str) {
    let found = keys(object);
    let missing: Vec<&str> = expected.split(' ').filter(|key| !found.contains(key)).collect();
    assert!(missing.is_empty(), "{missing:?} are missing from {object}");
}

fn assert_positive(object: &Value, keys: &str) {
    for key in keys.split(' ') {
        assert!(object[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {object}");
    }
}

fn assert_files(folder: &Path, files: &[&str]) {
    for file in files {
        assert!(folder.join(file).is_file(), "{file} is missing from {}", folder.display());
    }
}

/// The ids of records, all of which were measured.
fn ids(records: &[Value]) -> BTreeSet<&str> {
    for record in records {
        assert_eq!(record["status"], "measured", "{record}");
    }
    records.iter().map(|record| record["id"].as_str().expect("an id")).collect()
}

/// Returns whether the list of benchmarks has one whose id has this start and this part.
fn is_listed(output: &str, start: &str, part: &str) -> bool {
    let mut ids = output.lines().filter_map(|line| line.strip_suffix(": benchmark"));
    ids.any(|id| id.starts_with(start) && id.contains(part))
}

fn suite(world: &World, _: &str) {
    let records = world.records("suite");
    let expected = GENERATION.iter().filter(|scenario| scenario.tier <= Tier::Standard).map(|scenario| scenario.key);
    let found: Vec<&str> = records.iter().map(|record| record["scenario"].as_str().expect("a scenario")).collect();
    assert_eq!(found, expected.collect::<Vec<_>>());
    assert_eq!(ids(&records).len(), found.len());
    for record in &records {
        assert_keys(record, "id run at subject limits conditions machine software settings command");
        assert_positive(&record["measures"], "tokens_per_s decode_tokens_per_s itl_p50_ms itl_p95_ms ttft_ms");
        assert_positive(&record["measures"], "cache_used_bytes peak_bytes");
        assert_eq!((&record["run"], &record["measures"]["samples"]), (&"suite".into(), &3.into()));
    }
}

fn without_a_file(world: &World, output: &str) {
    assert!(output.contains("medium") && !world.path("target/candlepower/unsaved").exists(), "{output}");
}

fn prompt(_: &World, output: &str) {
    assert!(output.contains("\nrepeat: ") && output.contains(" --temperature 0.8 --seed 7"), "{output}");
}

fn printed(_: &World, output: &str) {
    let record: Value = serde_json::from_str(output).expect("one JSON object");
    assert_keys(&record, "id at measures tokens machine settings");
    assert_eq!(record["tokens"].as_array().map(Vec::len), Some(8));
}

/// A second report of the run does not repeat its row.
fn log(world: &World, output: &str) {
    let file = world.report(output).with_file_name("GENERATION_LOG.md");
    let again = world.run("candlepower report suite --even-if-disturbed");
    let log = fs::read_to_string(&file).expect("a log");
    let scenarios: String = GENERATION.iter().map(|scenario| format!(" {} |", scenario.key)).collect();
    assert!(log.contains(&format!("\n| date | model | variant |{scenarios} candle | commit | report |\n")), "{log}");
    let rows: Vec<&str> = log.lines().filter(|line| line.contains("checkpoint-")).collect();
    let [row] = rows.as_slice() else { panic!("{log}") };
    let stamp = world.report(&again).file_name().expect("a name").to_string_lossy().into_owned();
    assert!(row.contains(&format!("({stamp}/README.md)")), "{log}");
    let cells: Vec<&str> = row.split('|').map(str::trim).collect();
    for (scenario, cell) in GENERATION.iter().zip(&cells[4..]) {
        assert_eq!(cell.parse::<f64>().is_ok(), scenario.tier <= Tier::Standard, "{}: {row}", scenario.key);
    }
}

fn short(world: &World, _: &str) {
    let records = world.records("short");
    let ids = ids(&records);
    let id = ids.first().expect("a record");
    assert!(ids.len() == 1 && id.starts_with("short/checkpoint-") && id.ends_with("/tuned-f32-cpu"), "{ids:?}");
    assert_files(&world.path("target/criterion").join(id), &["new/estimates.json", "new/sample.json"]);
}

const THROUGHPUT: &str = "timestamp,base,batch_tokens,tokens_per_s";

fn throughput(world: &World, _: &str) {
    let records = world.records("throughput");
    let mut expected = BTreeSet::new();
    for group in PSANN_THROUGHPUT {
        for base in ["respsann", "waveresnet"] {
            expected.extend([1, 2].map(|rows| format!("{}/{base}-d256-l4-s16-b{rows}/tuned-f32-cpu", group.key)));
        }
    }
    assert_eq!(ids(&records), expected.iter().map(String::as_str).collect::<BTreeSet<_>>());
    for record in &records {
        assert_positive(&record["measures"], "batch_tokens tokens_per_s step_p50_ms peak_bytes");
        let is_trained = record["measures"]["phase"] == "train";
        assert_eq!(record["measures"]["stability"].is_object(), is_trained, "{record}");
    }
}

fn throughput_files(world: &World, output: &str) {
    let folder = world.report(output);
    for file in ["throughput.csv", "throughput_forward.csv"] {
        let (header, rows) = table(&folder.join(file));
        assert_eq!(header, THROUGHPUT, "{file}");
        let found: BTreeSet<_> = rows.iter().map(|row| (row["base"].as_str(), row["batch_tokens"].as_str())).collect();
        let expected = [("respsann", "16"), ("respsann", "32"), ("waveresnet", "16"), ("waveresnet", "32")];
        assert_eq!((rows.len(), found), (4, BTreeSet::from(expected)), "{file}");
        for row in rows {
            assert!(chrono::DateTime::parse_from_rfc3339(&row["timestamp"]).is_ok(), "{row:?}");
            assert!(row["tokens_per_s"].parse::<f64>().is_ok_and(|rate| rate > 0.0), "{row:?}");
        }
    }
    let best = fs::read_to_string(folder.join("throughput.md")).expect("a table");
    let header: Vec<&str> = best.lines().next().expect("a header").split('|').map(str::trim).collect();
    assert_eq!(header[1..6], ["base", "phase", "variant", "batch_tokens", "tokens_per_s"]);
    let (_, rows) = table(&folder.join("results.csv"));
    for row in rows.iter().filter(|row| row["phase"] == "train") {
        for column in ["train_tokens_per_s", "last_loss", "gradient_norm", "update_ratio"] {
            assert!(row[column].parse::<f64>().is_ok_and(|value| value > 0.0), "{column}: {row:?}");
        }
    }
}

fn memory(world: &World, _: &str) {
    let records = world.records("memory");
    let mut expected = BTreeSet::new();
    for group in CHECKPOINT_MEMORY {
        expected.extend(
            ["", "-checkpointed"].map(|kept| format!("{}/waveresnet-d256-l8-s16-b1{kept}/tuned-f32-cpu", group.key)),
        );
    }
    assert_eq!(ids(&records), expected.iter().map(String::as_str).collect::<BTreeSet<_>>());
}

fn memory_file(world: &World, output: &str) {
    let entries = json(&world.report(output).join("memory.json"));
    let [plain, checkpointed] = entries.as_array().expect("a list").as_slice() else { panic!("{entries}") };
    for (entry, is_checkpointed) in [(plain, false), (checkpointed, true)] {
        let of_source = "base d_model n_layers grad_checkpoint amp max_memory_mb elapsed_s";
        let more = "batch_tokens gradient_norm update_ratio first_non_finite_step";
        assert_eq!(keys(entry), names(&format!("{of_source} {more}")));
        assert_positive(entry, "d_model n_layers max_memory_mb elapsed_s batch_tokens gradient_norm update_ratio");
        assert_eq!((&entry["base"], &entry["grad_checkpoint"]), (&"waveresnet".into(), &is_checkpointed.into()));
        assert_eq!(entry["first_non_finite_step"], Value::Null);
    }
}

/// Checks the files of a training, and returns its metrics and its steps.
fn trained(folder: &Path) -> (Value, Vec<HashMap<String, String>>) {
    let curves = ["loss_curve.png", "loss_curve.svg", "loss_by_epoch.png", "loss_by_epoch.svg"];
    assert_files(folder, &curves);
    assert_files(folder, &["config_used.yaml", "tokenizer.json", "model.safetensors"]);
    let metrics = json(&folder.join("metrics.json"));
    assert_keys(&metrics, "corpus_path first_non_finite_step causal machine val_top1_acc");
    assert_positive(&metrics, "train_loss val_loss perplexity bits_per_byte gradient_norm update_ratio peak_bytes");
    assert_positive(&metrics, "bigram_perplexity bigram_bits_per_byte");
    assert_eq!((&metrics["status"], &metrics["first_non_finite_step"]), (&"finished".into(), &Value::Null));
    let (header, steps) = table(&folder.join("loss.csv"));
    let columns = "step,epoch,tokens,train_loss,gradient_norm,update_ratio,learning_rate,val_loss,val_top1_acc";
    assert_eq!(header, columns);
    assert_eq!(metrics["steps"], steps.len());
    let last = steps.last().expect("a step");
    assert_eq!(last["val_loss"].parse::<f64>().ok(), metrics["val_loss"].as_f64(), "{last:?}");
    (metrics, steps)
}

fn training(world: &World, output: &str) {
    let (metrics, steps) = trained(&world.path("runs/tiny"));
    let epochs: BTreeSet<&str> = steps.iter().map(|step| step["epoch"].as_str()).collect();
    assert_eq!(epochs, names("1 2"));
    assert_eq!((&metrics["epochs"], &metrics["corpus_path"]), (&2.0.into(), &"corpus.txt".into()));
    assert_eq!(output.matches(" bits per byte").count(), output.matches(" perplexity ").count(), "{output}");
}

/// The sizes are those of the test, and the rest is that of the file.
fn target(world: &World, _: &str) {
    let (metrics, _) = trained(&world.path("runs/target"));
    assert_eq!((&metrics["base"], &metrics["epochs"]), (&"respsann".into(), &2.0.into()));
    let used = fs::read_to_string(world.path("runs/target/config_used.yaml")).expect("a configuration");
    let used: Value = serde_saphyr::from_str(&used).expect("YAML");
    assert_eq!((used["learning_rate"].as_f64(), used["warmup_steps"].as_u64()), (Some(1e-3), Some(200)));
}

fn shootout(world: &World, _: &str) {
    let folder = world.path("runs/shootout");
    let summary = json(&folder.join("summary.json"));
    let entries = summary.as_array().expect("a list");
    let mut expected = BTreeSet::new();
    for base in ["respsann", "sgrpsann"] {
        expected.extend([1, 2, 3].map(|seed| format!("{base}_seed{seed}")));
    }
    let name = |entry: &Value| format!("{}_seed{}", entry["base"].as_str().expect("a base"), entry["seed"]);
    assert_eq!(entries.iter().map(name).collect::<BTreeSet<_>>(), expected);
    for entry in entries {
        assert_keys(entry, "peak_cuda_mem_gb first_non_finite_step causal val_top1_acc");
        assert_positive(entry, "val_loss val_ppl val_bits_per_byte train_tokens_per_s peak_memory_mb");
        assert_positive(entry, "gradient_norm update_ratio");
        assert_eq!(entry["peak_cuda_mem_gb"], Value::Null, "it ran on a CPU");
        let metrics = json(&folder.join("runs").join(name(entry)).join("metrics.json"));
        assert_eq!((&metrics["val_loss"], &metrics["seed"]), (&entry["val_loss"], &entry["seed"]));
    }
    let (header, rows) = table(&folder.join("summary.csv"));
    assert_eq!(header.split(',').collect::<BTreeSet<_>>(), keys(&entries[0]));
    assert_eq!(rows.len(), entries.len());
    let board = fs::read_to_string(folder.join("leaderboard.md")).expect("a leaderboard");
    let header = board.lines().find(|line| line.starts_with('|')).expect("a header");
    let found: BTreeSet<&str> = header.split('|').map(str::trim).collect();
    assert!(
        found.is_superset(&names("place base val_loss val_ppl bits/byte val_top1_acc train_tokens_per_s")),
        "{board}"
    );
}

fn whole_plan(world: &World, output: &str) {
    let folder = world.report(output);
    assert_files(&folder, &["README.md", "index.html", "results.csv", "results.jsonl", "throughput.csv"]);
    let files = ["tiny/loss.csv", "tiny/metrics.json", "tiny/loss_curve.png", "shootout/summary.csv"];
    assert_files(&folder.join("trainings"), &files);
    assert_files(&folder.join("trainings/shootout"), &["leaderboard.md", "runs/respsann_seed3/metrics.json"]);
}

/// The peers of these groups are run by tests of their own, also without PyTorch.
fn torch(_: &World, output: &str) {
    for group in PSANN_THROUGHPUT {
        let start = format!("{}/respsann-d256-l4-s16-b1/", group.key);
        assert!(is_listed(output, &start, "/torch-f32-cpu") && is_listed(output, &start, "/tuned-f32-cpu"), "{output}");
    }
    assert_is_test("tests/peers/main.rs", "peers_train_beside_candlepower");
    assert_is_test("tests/peers/main.rs", "torch_runs_every_model_that_is_trained");
}

fn queue(world: &World, _: &str) {
    let folder = world.path("queue");
    assert_files(&folder, &["validation.log", "throughput.log", "memory.log", "corpus.log", "report.log"]);
    let records = lines(&world.path("queued/batch/records.jsonl"));
    let groups: BTreeSet<&str> = ids(&records).into_iter().filter_map(|id| id.split('/').next()).collect();
    assert_eq!(
        groups,
        PSANN_THROUGHPUT.iter().chain(CHECKPOINT_MEMORY).map(|group| group.key).collect::<BTreeSet<_>>()
    );
    trained(&folder.join("tiny_corpus"));
    let report = inside(&inside(&folder.join("report")));
    assert_files(&report, &["memory.json", "trainings/tiny_corpus/metrics.json"]);
    assert_eq!(table(&report.join("throughput.csv")).0, THROUGHPUT);
}

fn grid(world: &World, _: &str) {
    let records = world.records("grid");
    let mut expected = BTreeSet::new();
    for group in TRAINING_SWEEP {
        let id = |dtype| format!("{}/respsann-d128-l2-s8-b2/tuned-{dtype}-cpu", group.key);
        expected.extend(["f32", "bf16"].map(id));
    }
    assert_eq!(ids(&records), expected.iter().map(String::as_str).collect::<BTreeSet<_>>());
    for record in &records {
        let measures = &record["measures"];
        assert_positive(measures, "tokens_per_s step_p50_ms step_p95_ms peak_bytes allocated_bytes");
        assert_eq!(measures["steps"], 10);
        for signal in ["losses", "gradient_norms", "update_ratios"] {
            let count = measures["stability"][signal].as_array().map(Vec::len);
            assert_eq!(count, (measures["phase"] == "train").then_some(10), "{signal}: {record}");
        }
    }
}

fn batches(world: &World, output: &str) {
    let records = world.records("batches");
    assert_eq!(ids(&records).len(), 3);
    let batches: Vec<&Value> = records.iter().map(|record| &record["measures"]["batch"]).collect();
    assert_eq!(batches, [&Value::Null, &4.into(), &16.into()]);
    assert!(records[1]["id"].as_str().is_some_and(|id| id.ends_with("-b4/tuned-f32-cpu")), "{}", records[1]);
    assert!(output.contains("sequence"), "{output}");
}

/// Rates are those of all sequences, and of one where there are several.
fn data(world: &World, output: &str) {
    let folder = world.report(output);
    let (header, rows) = table(&folder.join("results.csv"));
    for row in &rows {
        let number = |column: &str| row[column].parse::<f64>().ok();
        let of_one = number("batch").and_then(|batch| Some(number("tokens_per_s")? / batch));
        assert_eq!(of_one.is_some(), number("sequence_tokens_per_s").is_some(), "{row:?}");
        let apart = of_one.unwrap_or_default() - number("sequence_tokens_per_s").unwrap_or_default();
        assert!(apart.abs() < 1e-6 * number("tokens_per_s").expect("a rate"), "{row:?}");
    }
    let (names, count) = columns(&folder.join("results.parquet"));
    assert_eq!(names, header.split(',').map(str::to_owned).collect::<BTreeSet<_>>());
    assert_eq!((rows.len(), count, lines(&folder.join("results.jsonl")).len()), (3, 3, 3));
    let environment = fs::read_to_string(folder.join("environment.yaml")).expect("an environment");
    let environment: Value = serde_saphyr::from_str(&environment).expect("YAML");
    assert_keys(&environment, "machine software settings limits conditions");
    let archive = fs::read(folder.with_extension("zip")).expect("an archive");
    assert!(archive.starts_with(b"PK"));
}

fn sandbox(world: &World, _: &str) {
    let records = world.records("sandbox");
    assert!(records.len() > 100 && records.iter().all(|record| record["sandbox"] == true));
    let kinds: BTreeSet<&str> = records.iter().filter_map(|record| record["measures"]["kind"].as_str()).collect();
    assert_eq!(kinds, names("generation sweep training serving quality evaluation loading tokenizing"));
}

fn registry(_: &World, output: &str) {
    let entries: Vec<Value> = serde_saphyr::from_str(output).expect("YAML");
    assert!(!entries.is_empty());
    for entry in &entries {
        assert_eq!(keys(entry), names("id name compare unit source tags"));
        assert!(entry["compare"] == "higher_is_better" || entry["compare"] == "lower_is_better", "{entry}");
    }
}

fn sweep(world: &World, _: &str) {
    let (found, rows) = columns(&world.path("results.parquet"));
    let of_source =
        "architecture model_dim depth horizon conv_dilations label duration_seconds metric_train_loss metric_val_loss";
    let ours = "samples_per_s peak_bytes step_p50_ms status reason";
    let missing: Vec<&str> =
        [of_source, ours].iter().flat_map(|names| names.split(' ')).filter(|name| !found.contains(*name)).collect();
    assert!(missing.is_empty() && rows == 4, "{missing:?} are missing from {rows} rows of {found:?}");
    let log = fs::read_to_string(world.path("sweep.md")).expect("a log");
    for column in ["Run", "Throughput (samples/s)", "VRAM (GB)", "Latency (ms/step)", "Status"] {
        assert!(log.contains(&format!("| {column} ")), "{column}: {log}");
    }
}

fn summary(_: &World, output: &str) {
    let header: BTreeSet<&str> = output.lines().next().expect("a header").split('|').map(str::trim).collect();
    for column in ["Architecture", "Best label", "Runs", "Best metric", "Median", "Mean duration (s)"] {
        assert!(header.contains(column), "{column}: {output}");
    }
    assert!(output.contains("| state_space ") && output.contains("| hybrid_transformer "), "{output}");
}

fn backbones(_: &World, output: &str) {
    for start in ["architecture_sweep_train/state_space-", "architecture_sweep_infer/state_space-"] {
        assert!(is_listed(output, start, "/torch-f32-cpu") && is_listed(output, start, "/tuned-f32-cpu"), "{output}");
    }
}

/// The settings file would hold for the commands after this one.
fn recommendation(world: &World, output: &str) {
    let found: Value = serde_json::from_str(output).expect("one JSON object");
    assert_keys(&found, "model goal scenario floor choices comparisons doubts seconds");
    assert_eq!(found["goal"], "throughput");
    let comparisons = found["comparisons"].as_array().expect("a list");
    assert!(!comparisons.is_empty(), "{found}");
    for comparison in comparisons {
        assert_keys(comparison, "setting value against verdict ratio quality reason");
    }
    let file = world.path("candlepower.toml");
    let written: toml::Table = fs::read_to_string(&file).expect("a file").parse().expect("TOML");
    assert_eq!((written["engine"].as_str(), written["dtype"].as_str()), (Some("tuned"), Some("f32")));
    fs::remove_file(file).expect("removed");
}

fn mixtures(world: &World, _: &str) {
    let records = world.records("moe");
    let mut expected = BTreeSet::new();
    for scenario in MOE_TOP_K {
        let id = |model| format!("{}/{model}-h64/tuned-f32-cpu", scenario.key);
        expected.extend(["moe-4x2", "dense-2", "dense-4"].map(id));
    }
    assert_eq!(ids(&records), expected.iter().map(String::as_str).collect::<BTreeSet<_>>());
    for record in records.iter().filter(|record| record["subject"]["model"] == "moe-4x2-h64") {
        assert_positive(&record["measures"], "tokens_per_s ttft_ms total_ms");
        assert_keys(&record["measures"]["routing"], "num_experts top_k load_balance_factor tokens_per_expert");
        assert_eq!(record["ratios"].as_array().map(Vec::len), Some(2), "it has two twins: {record}");
    }
}

fn sharded(_: &World, output: &str) {
    let record: Value = serde_json::from_str(output).expect("one JSON object");
    assert!(record["id"].as_str().is_some_and(|id| id.ends_with("/tuned-tp2-f32-cpu")), "{record}");
    assert_positive(&record["measures"], "tokens_per_s reduced_bytes");
    assert_is_test("tests/suite/command.rs", "a_sharded_model_generates_the_tokens_of_the_model_in_one_part");
}

fn perplexity(world: &World, output: &str) {
    let report: Value = serde_json::from_str(output).expect("one JSON object");
    assert_keys(&report, "bits_per_byte unmeasured subjects");
    assert_positive(&report, "nll perplexity seq_len stride tokens");
    assert_eq!((&report["seq_len"], &report["stride"]), (&1024.into(), &256.into()));
    let records = world.records("perplexity");
    assert_eq!((records.len(), &records[0]["measures"]["nll"]), (1, &report["nll"]));
}

fn used_memory(world: &World, _: &str) {
    let report = json(&world.path("memory.json"));
    assert_keys(&report, "command exit_code duration_s interval_ms tree_peak_bytes process_peak_bytes gpus unmeasured");
    assert_eq!(report["command"], serde_json::json!(["true"]));
}

fn used_power(world: &World, _: &str) {
    let report = json(&world.path("power.json"));
    assert_keys(&report, "command exit_code duration_s interval_ms joules mean_watts sources unmeasured");
}

/// The first benchmarks of the list.
fn nightly(world: &World, _: &str) {
    let folder = inside(&world.path("target/nightly/shard-1-of-3/runs"));
    assert_files(&folder, &["summary.md", "records.jsonl"]);
    let summary = json(&folder.join("summary.json"));
    assert_eq!(
        keys(&summary),
        names("run at machine commit good disturbed compared_with problems bisections benchmarks")
    );
    let benchmarks = summary["benchmarks"].as_array().expect("a list");
    for (benchmark, start) in benchmarks.iter().zip(["short/checkpoint-", "medium/checkpoint-"]) {
        assert!(benchmark["id"].as_str().is_some_and(|id| id.starts_with(start)), "{benchmark}");
        for metric in benchmark["metrics"].as_array().expect("a list") {
            assert_eq!(keys(metric), names("name unit better value"));
        }
    }
    assert_eq!((benchmarks.len(), &summary["good"]), (2, &true.into()), "{summary}");
}

fn llama_cpp(_: &World, output: &str) {
    for engine in ["/tuned-", "/llama.cpp-"] {
        assert!(is_listed(output, "short/model.gguf-", engine), "{engine}: {output}");
    }
    assert_is_test("tests/peers/main.rs", "llama_cpp_chooses_the_tokens_of_tuned");
}

/// The rules of `promtool check metrics` for gauges, on every metric there is.
fn openmetrics(_: &World, output: &str) {
    const ABBREVIATED: &str = "s ms us ns sec b kb mb gb tb pb m h d";
    const OTHER_UNITS: &str = "bits minutes hours days weeks milliseconds microseconds kilobytes megabytes percent";
    let refused: BTreeSet<&str> = names(ABBREVIATED).union(&names(OTHER_UNITS)).copied().collect();
    let of = |start: &str| output.lines().filter_map(|line| line.strip_prefix(start)).collect::<Vec<_>>();
    let first = |line: &&str| line.split(' ').next().expect("a name").to_owned();
    let families: BTreeSet<String> = of("# TYPE ").iter().map(first).collect();
    assert_eq!(of("# HELP ").iter().map(first).collect::<BTreeSet<_>>(), families);
    for family in &families {
        assert!(family.split('_').all(|part| !refused.contains(part)), "{family}");
        assert!(!["_total", "_count", "_sum", "_bucket"].iter().any(|end| family.ends_with(end)), "{family}");
        assert!(
            of("# HELP ").iter().any(|line| line.strip_prefix(family.as_str()).is_some_and(|help| help.len() > 10))
        );
    }
    for line in of("# UNIT ") {
        let (family, unit) = line.split_once(' ').expect("a unit");
        assert!(family.ends_with(&format!("_{unit}")), "{line}");
    }
    let mut samples = output.lines().filter(|line| !line.starts_with('#'));
    assert!(samples.all(|line| line.split('{').next().is_some_and(|name| families.contains(name))));
    assert!(families.len() > 10 && output.ends_with("# EOF\n"), "{families:?}");
}

fn bench_target(name: &str) -> ExitCode {
    match name {
        "generation" | "memory" => candlepower::target(name),
        _ => candlepower::main(|suite| {
            ["generation", "moe", "training", "memory", "sweep"].into_iter().for_each(|name| suite.target(name));
        }),
    }
}

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(BENCH_TARGET) {
        return bench_target(&name);
    }
    let tests: [(&str, fn()); 2] = [
        ("every_command_of_the_chapter_is_tested", every_command_of_the_chapter_is_tested),
        ("the_commands_of_the_chapter_write_what_it_says", the_commands_of_the_chapter_write_what_it_says),
    ];
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    for (name, test) in tests.iter().filter(|(name, _)| name.contains(&wanted)) {
        test();
        println!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}
