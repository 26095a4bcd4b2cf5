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
    let read = candlepower::record::read(&folder.path().join("target/candlepower/shared/records.jsonl")).expect("read");
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
