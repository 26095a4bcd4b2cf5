//! Tests `candlepower sweep`: bad input, rows that fail, an interrupted run, and the contents of the Parquet file.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::{Field, Row},
};

const TINY: &str = "architectures: [state_space, hybrid_transformer]\nmodel_dims: [16]\ndepths: [1]\nhorizons: [2]\n\
                    windows: [12]\nbatch: 2\nfeatures: 4\nsteps: 3\nwarmup_steps: 1\n";

fn sweep(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlepower"));
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("CANDLEPOWER_")) {
        command.env_remove(key);
    }
    command.env_remove("CARGO_TARGET_DIR").env("RUST_BACKTRACE", "1").env_remove("CARGO");
    command.current_dir(folder).arg("sweep").args(arguments).output().expect("the command starts")
}

fn rows(file: &Path) -> Vec<Row> {
    let reader = SerializedFileReader::new(fs::File::open(file).expect("a file")).expect("a Parquet file");
    reader.get_row_iter(None).expect("rows").map(|row| row.expect("a row")).collect()
}

fn field(row: &Row, name: &str) -> Field {
    let (_, field) = row.get_column_iter().find(|(column, _)| *column == name).expect(name);
    field.clone()
}

#[test]
fn bad_input_is_refused_in_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("typo.yaml"), "model_dim: [16]\n").expect("written");
    fs::write(folder.path().join("cuda.yaml"), "accelerator: cuda:99\n").expect("written");
    for (arguments, part) in [
        (&["--preset", "smoek"][..], "did you mean smoke?"),
        (&["--architectures", "state-space"], "did you mean state_space?"),
        (&["--horizons", "0"], "0 steps can't be forecast"),
        (&["--depths", "two"], "expected a whole number"),
        (&["--config", "typo.yaml"], "unknown setting model_dim in typo.yaml: did you mean model_dims?"),
        (&["--config", "absent.yaml"], "absent.yaml cannot be read"),
        (&["--config", "cuda.yaml"], "device cuda99 "),
    ] {
        let output = sweep(folder.path(), arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(error.starts_with("error: ") && error.lines().count() == 1 && error.contains(part), "{error}");
        assert!(!folder.path().join("target").exists(), "{arguments:?} left something behind");
    }
}

#[test]
fn a_combination_that_fails_is_a_row_that_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("tiny.yaml"), TINY).expect("written");
    let arguments = ["--config", "tiny.yaml", "--model-dims", "16,20", "--heads", "8", "--run", "mixed"];
    let output = sweep(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let rows = rows(&folder.path().join("target/candlepower/mixed/sweep.parquet"));
    assert_eq!(rows.len(), 8);
    for row in &rows {
        let (Field::Str(architecture), Field::Long(dim)) = (field(row, "architecture"), field(row, "dim")) else {
            panic!("{row}")
        };
        if architecture == "hybrid_transformer" && dim == 20 {
            assert_eq!(field(row, "status"), Field::Str("failed".into()));
            let Field::Str(reason) = field(row, "reason") else { panic!("{row}") };
            assert!(reason.contains("8 heads do not divide dim=20"), "{reason}");
            assert_eq!(field(row, "step_p50_ms"), Field::Null);
        } else {
            assert_eq!(field(row, "status"), Field::Str("measured".into()));
            assert!(matches!(field(row, "step_p50_ms"), Field::Double(ms) if ms > 0.0), "{row}");
            assert!(matches!(field(row, "peak_bytes"), Field::Long(bytes) if bytes > 0), "{row}");
            assert_eq!((field(row, "horizon"), field(row, "steps")), (Field::Long(2), Field::Long(3)));
        }
    }
    let trained = rows.iter().filter(|row| matches!(field(row, "last_loss"), Field::Double(_))).count();
    assert_eq!(trained, 3, "losses stand where something was trained");
}

#[test]
fn two_processes_that_write_to_one_run_lose_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("tiny.yaml"), TINY).expect("written");
    std::thread::scope(|scope| {
        let both = ["state_space", "hybrid_transformer"].map(|architecture| {
            let arguments =
                ["--config", "tiny.yaml", "--run", "shared", "--depths", "1,2,3", "--architectures", architecture];
            let folder = folder.path();
            scope.spawn(move || sweep(folder, &arguments).status.success())
        });
        assert!(both.into_iter().all(|process| process.join().expect("a process")));
    });
    let read =
        candlepower_core::record::read(&folder.path().join("target/candlepower/shared/records.jsonl")).expect("read");
    assert_eq!(read.problems, Vec::<String>::new());
    assert_eq!(read.records.len(), 12);
}

#[test]
fn a_run_that_was_stopped_goes_on_where_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("tiny.yaml"), TINY).expect("written");
    let arguments = ["--config", "tiny.yaml", "--run", "stopped"];
    assert!(sweep(folder.path(), &arguments).status.success());
    let run = folder.path().join("target/candlepower/stopped");
    // The file as a kill in the middle of the third record leaves it.
    let records = fs::read_to_string(run.join("records.jsonl")).expect("records");
    let lines: Vec<&str> = records.lines().collect();
    assert_eq!(lines.len(), 4);
    let torn = format!("{}\n{}\n{}", lines[0], lines[1], &lines[2][..100]);
    fs::write(run.join("records.jsonl"), torn).expect("written");
    fs::remove_file(run.join("sweep.parquet")).expect("removed");

    let output = sweep(folder.path(), &arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert_eq!(error.matches("done before").count(), 2, "{error}");
    assert!(error.contains("line 3: the line breaks off"), "{error}");
    let ids: std::collections::BTreeSet<String> =
        rows(&run.join("sweep.parquet")).iter().map(|row| field(row, "id").to_string()).collect();
    assert_eq!(ids.len(), 4);
    let records = fs::read_to_string(run.join("records.jsonl")).expect("records");
    assert!(records.starts_with(&format!("{}\n{}\n", lines[0], lines[1])), "what was there stays");
}

/// A file with the sections of the sweep's source, in a small size.
const NESTED: &str = "seed: 3\nnotes: small\ndata: {sqlite_path: x.db, window_size: 12, horizon: 2, stride: 2}\n\
    model: {feature_dim: 4, model_dim: 24, depth: 2, heads: 12, dropout: 0.1, conv_kernel_size: 3, conv_dilations: [1, 2],\
    output_dim: 1, architecture: omni_mixture, ssm_state_dim: 8, ssm_kernel_size: 4, max_seq_len: 16,\
    gradient_checkpointing: true}\noptimizer: {lr: 0.001, weight_decay: 0.01, betas: [0.9, 0.95]}\n\
    trainer: {batch_size: 2, accumulate_grad_batches: 2, gradient_clip_val: 1.0, accelerator: gpu, precision: bf16-mixed}\n";

#[test]
fn the_command_of_the_source_runs_with_its_configuration_and_outputs() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("omni.yaml"), NESTED).expect("written");
    let arguments = ["--config", "omni.yaml", "--architectures", "omni", "--model-dims", "24,16", "--depths", "2,3"];
    let outputs = ["--accelerator", "cpu", "--dtype", "f32", "--steps", "3", "--output", "results/omni.parquet"];
    let output = sweep(folder.path(), &[&arguments[..], &outputs].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert!(error.contains("skipped, not used by a sweep: data.sqlite_path, notes"), "{error}");
    let file = folder.path().join("results/omni.parquet");
    let rows = rows(&file);
    assert_eq!(rows.len(), 8);
    // The smallest combination first.
    assert_eq!(field(&rows[0], "label"), Field::Str("omni_mixture,16,2,2".into()));
    for row in &rows {
        let heads = if field(row, "model_dim") == Field::Long(16) { 8 } else { 12 };
        assert_eq!(field(row, "heads"), Field::Long(heads));
        assert_eq!(field(row, "conv_dilations"), Field::Str("1,2".into()));
        assert!(matches!(field(row, "duration_seconds"), Field::Double(seconds) if seconds > 0.0), "{row}");
    }
    let trained = rows.iter().filter(|row| matches!(field(row, "metric_val_loss"), Field::Double(_))).count();
    assert_eq!(trained, 4);
    let log = fs::read_to_string(folder.path().join("results/sweep.md")).expect("a log");
    assert!(log.contains("| Throughput (samples/s) |") && log.matches(" ok |").count() == 8, "{log}");

    let output = sweep(folder.path(), &["summarise", "results/omni.parquet"]);
    let summary = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && summary.contains("| omni_mixture "), "{summary}");
}

#[test]
fn flags_of_the_source_mean_what_they_mean_there() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("tiny.yaml"), NESTED).expect("written");
    let arguments = [
        ["--config", "tiny.yaml", "--architectures", "SSM,Hybrid_Transformer", "--accelerator", "cpu"],
        ["--dtype", "f32", "--heads", "2", "--max-epochs", "2"],
        ["--limit-train-batches", "3", "--limit-val-batches", "2", "--log-every-n-steps", "2"],
        ["--devices", "1", "--batch-size", "4", "--label-template", "{architecture}@{model_dim}x{depth}:{horizon}"],
    ];
    let rest = ["--model-dims", "16, 8", "--depths", "1", "--print-metrics", "--output", "out.pq"];
    let output = sweep(folder.path(), &[&arguments.concat()[..], &rest].concat());
    let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{error}");
    let metrics: Vec<serde_json::Value> = text
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(metrics.len(), 8);
    // Two epochs of three batches, two batches for each step.
    assert!(metrics.iter().all(|line| line["measures"]["steps"] == 4), "{text}");
    assert!(error.contains(": step 2 of 4, loss ") && !error.contains("step 3 of 4"), "{error}");
    let labels: std::collections::BTreeSet<String> =
        rows(&folder.path().join("out.pq")).iter().map(|row| field(row, "label").to_string()).collect();
    assert!(labels.len() == 4 && labels.contains("\"state_space@8x1:2\""), "{labels:?}");

    let summary = ["summarise", "out.pq", "--metric", "metric_train_loss", "--higher-is-better", "--format", "json"];
    let output = sweep(folder.path(), &[&summary[..], &["--output", "a/summary.json", "--quiet"]].concat());
    assert!(output.status.success() && output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let summary = fs::read(folder.path().join("a/summary.json")).expect("a summary");
    let summary: Vec<serde_json::Value> = serde_json::from_slice(&summary).expect("JSON");
    assert_eq!(summary.iter().map(|row| row["scenario_count"].as_u64()).collect::<Vec<_>>(), [Some(2), Some(2)]);
    assert!(summary[0]["best_metric"].as_f64() >= summary[1]["best_metric"].as_f64());

    let output = sweep(folder.path(), &["--label-template", "{width}"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("only these names in braces"));
}

/// The types that readers of the file rely on.
#[test]
fn the_parquet_file_has_the_documented_columns_and_types() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("tiny.yaml"), TINY).expect("written");
    let arguments =
        ["--config", "tiny.yaml", "--architectures", "state_space", "--steps", "1", "--output", "a.parquet"];
    assert!(sweep(folder.path(), &arguments).status.success());
    let file = fs::File::open(folder.path().join("a.parquet")).expect("a file");
    let reader = SerializedFileReader::new(file).expect("a Parquet file");
    let schema = reader.metadata().file_metadata().schema_descr();
    let types: Vec<String> = schema
        .columns()
        .iter()
        .map(|column| {
            assert_eq!((column.max_def_level(), column.max_rep_level()), (1, 0), "every column is optional and flat");
            format!("{} {}", column.name(), column.physical_type())
        })
        .collect();
    let expected = [
        (
            "BYTE_ARRAY",
            "run id scenario architecture dtype device status reason conv_dilations label machine candle commit",
        ),
        ("INT64", "at dim depth heads horizon window batch features outputs parameters model_dim steps peak_bytes"),
        (
            "DOUBLE",
            "duration_seconds metric_train_loss metric_val_loss samples_per_s step_p50_ms step_p95_ms step_p99_ms",
        ),
        ("DOUBLE", "mfu first_loss last_loss held_out_loss"),
    ];
    let expected = expected.iter().flat_map(|(kind, names)| names.split(' ').map(move |name| format!("{name} {kind}")));
    let sorted = |types: Vec<String>| types.into_iter().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(sorted(types), sorted(expected.collect()));
    let text =
        |name: &str| schema.columns().iter().find(|column| column.name() == name).expect(name).logical_type_ref();
    assert_eq!(text("label"), Some(&parquet::basic::LogicalType::String));
}

#[test]
fn shards_together_run_every_combination_once() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("tiny.yaml"), TINY).expect("written");
    let mut ids = Vec::new();
    for shard in ["1/2", "2/2"] {
        let run = format!("shard-{}", &shard[..1]);
        let arguments = ["--config", "tiny.yaml", "--model-dims", "16,32,48", "--shard", shard, "--run", &run];
        let output = sweep(folder.path(), &arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let file = folder.path().join("target/candlepower").join(run).join("sweep.parquet");
        ids.extend(rows(&file).iter().map(|row| field(row, "id").to_string()));
    }
    assert_eq!(ids.len(), 12);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 12);
    let output = sweep(folder.path(), &["--shard", "3/2"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("expected I/N"));
}

/// Runs two processes at once, one for each shard, and returns the number of rows of each.
#[cfg(unix)]
fn run_shards(folder: &Path, start: impl Fn(usize) -> Command) -> Vec<usize> {
    use std::process::Stdio;

    let started: Vec<_> = (1..=2)
        .map(|shard| {
            let mut command = start(shard);
            for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("CANDLEPOWER")) {
                command.env_remove(key);
            }
            command.env_remove("CARGO").stdout(Stdio::piped()).stderr(Stdio::piped());
            command.current_dir(folder).spawn().expect("the process starts")
        })
        .collect();
    for process in started {
        let output = process.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    (1..=2).map(|shard| rows(&folder.join(format!("results/shard-{shard}.parquet"))).len()).collect()
}

/// The summary of the shards' files, of their runs by folder, and the number of architectures in it.
#[cfg(unix)]
fn merged(folder: &Path, runs: [&str; 2]) -> usize {
    let of_files = sweep(folder, &["summarise", "results/shard-1.parquet", "results/shard-2.parquet"]);
    let runs = runs.map(|run| format!("results/runs/{run}"));
    let of_runs = sweep(folder, &["summarise", &runs[0], &runs[1]]);
    assert!(of_files.status.success(), "{}", String::from_utf8_lossy(&of_files.stderr));
    assert_eq!(String::from_utf8_lossy(&of_files.stdout), String::from_utf8_lossy(&of_runs.stdout));
    let text = String::from_utf8(of_files.stdout).expect("UTF-8");
    text.lines().take_while(|line| !line.is_empty()).count() - 2
}

#[cfg(unix)]
#[test]
fn the_cluster_scripts_run_as_local_processes_and_their_results_merge() {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/cluster");
    let program = Path::new(env!("CARGO_BIN_EXE_candlepower"));

    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("tiny.yaml"), TINY).expect("written");
    let counts = run_shards(folder.path(), |shard| {
        let mut command = Command::new("bash");
        command.arg(scripts.join("slurm.sh")).args(["--config", "tiny.yaml", "--depths", "1,2,3"]);
        command.env("SLURM_ARRAY_TASK_ID", shard.to_string()).env("SLURM_ARRAY_TASK_COUNT", "2");
        command.env("SLURM_ARRAY_JOB_ID", "job").env("PATH", path_with(program));
        command
    });
    assert_eq!(counts, [6, 6]);
    assert_eq!(merged(folder.path(), ["job-1", "job-2"]), 2);

    let job = fs::read_to_string(scripts.join("kubernetes.yaml")).expect("a file");
    let job: serde_json::Value = serde_saphyr::from_str(&job).expect("YAML");
    let container = &job["spec"]["template"]["spec"]["containers"][0];
    let words = |key: &str| -> Vec<String> { serde_json::from_value(container[key].clone()).expect(key) };
    let (command_line, arguments) = (words("command"), words("args"));
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("tiny.yaml"), TINY).expect("written");
    let counts = run_shards(folder.path(), |shard| {
        let mut command = Command::new(&command_line[0]);
        command.args(&command_line[1..]).args(&arguments).env("JOB_COMPLETION_INDEX", (shard - 1).to_string());
        command.env("SWEEP", "--config tiny.yaml --depths 1,2,3").env("SHARDS", "2").env("RESULTS", "results");
        command.env("JOB", "uid").env("PATH", path_with(program));
        command
    });
    assert_eq!(counts, [6, 6]);
    assert_eq!(merged(folder.path(), ["uid-1", "uid-2"]), 2);
}

/// The search path with the program's folder in front.
#[cfg(unix)]
fn path_with(program: &Path) -> String {
    format!("{}:{}", program.parent().expect("a folder").display(), std::env::var("PATH").unwrap_or_default())
}
