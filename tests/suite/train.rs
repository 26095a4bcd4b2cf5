//! Tests `candlepower train` and `candlepower shootout`: bad input, an interrupted training, a diverging training,
//! and their files.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

const TINY: &str = "d_model: 16\nn_layers: 1\nn_heads: 2\nd_mlp: 24\nvocab_size: 300\nsequence_length: 16\nbatch_tokens: 64\n\
                    steps: 40\nvalidate_every: 10\nsave_every: 3\nwarmup_steps: 4\nlearning_rate: 0.01\n\
                    validation_share: 0.1\ncorpus: corpus.txt\n";

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlepower"));
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("CANDLEPOWER_")) {
        command.env_remove(key);
    }
    command.env_remove("CARGO_TARGET_DIR").env("RUST_BACKTRACE", "1").env_remove("CARGO");
    command.current_dir(folder).args(arguments);
    command
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().expect("the command starts")
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let text: String = (0..300).map(|number| format!("The whale of number {number} swims by the ship.\n")).collect();
    fs::write(folder.path().join("corpus.txt"), text).expect("written");
    fs::write(folder.path().join("tiny.yaml"), TINY).expect("written");
    folder
}

fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).expect("a file")).expect("JSON")
}

#[test]
fn bad_input_is_refused_in_one_line() {
    let folder = folder();
    let path = folder.path();
    fs::write(path.join("typo.yaml"), "learning_rat: 0.1\n").expect("written");
    fs::write(path.join("empty.txt"), "").expect("written");
    fs::write(path.join("binary.txt"), b"good\xff\xfe").expect("written");
    fs::write(path.join("short.txt"), "short\n".repeat(3)).expect("written");
    for (arguments, part) in [
        (&["--config", "typo.yaml"][..], "unknown setting learning_rat in typo.yaml: did you mean learning_rate?"),
        (&["--config", "absent.yaml"], "absent.yaml cannot be read"),
        (&["--set", "base=respsan"], "did you mean respsann?"),
        (&["--set", "n_heads=3"], "n_heads=3 do not divide d_model=16"),
        (&["--set", "n_heads=16"], "RoPE needs d_model / n_heads to be even"),
        (&["--set", "batch_tokens=8"], "less than one sequence"),
        (&["--set", "corpus=nowhere.txt"], "corpus nowhere.txt can't be read"),
        (&["--set", "corpus=empty.txt"], "corpus empty.txt is empty"),
        (&["--set", "corpus=binary.txt"], "corpus binary.txt is not UTF-8: byte 4 is invalid"),
        (&["--set", "corpus=short.txt"], "a sequence needs 17"),
        (&["--learning-rate", "0"], "--learning-rate='0': expected a number above 0"),
        (&["--set", "device=cuda:99"], "device cuda99 "),
    ] {
        let given = if arguments[0] == "--config" {
            arguments.to_vec()
        } else {
            [&["--config", "tiny.yaml"], arguments].concat()
        };
        for subcommand in ["train", "shootout"] {
            let output = run(path, &[&[subcommand], given.as_slice()].concat());
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success(), "{given:?}");
            assert!(error.starts_with("error: ") && error.lines().count() == 1 && error.contains(part), "{error}");
            assert!(!path.join("target").exists(), "{given:?} left something behind");
        }
    }
}

#[test]
fn a_killed_training_goes_on_to_the_same_end() {
    let folder = folder();
    let path = folder.path();
    let train = |out: &'static str| vec!["train", "--config", "tiny.yaml", "--set", "steps=400", "--out", out];
    let unbroken = run(path, &train("unbroken"));
    assert!(unbroken.status.success(), "{}", String::from_utf8_lossy(&unbroken.stderr));
    let said = String::from_utf8_lossy(&unbroken.stdout);
    assert!(said.contains("a bigram model of the same tokens has"), "{said}");

    let mut killed = 0;
    for _ in 0..20 {
        let mut child =
            command(path, &train("killed")).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts");
        let before = fs::read(path.join("killed/loss.csv")).unwrap_or_default();
        let started = Instant::now();
        // Waits until the training has made progress since the last kill.
        while fs::read(path.join("killed/loss.csv")).unwrap_or_default() == before
            && started.elapsed() < Duration::from_secs(60)
            && child.try_wait().expect("a child").is_none()
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        if child.try_wait().expect("a child").is_some() {
            break;
        }
        child.kill().expect("killed");
        child.wait().expect("it ended");
        killed += 1;
        for entry in fs::read_dir(path.join("killed")).expect("files") {
            let file = entry.expect("a file").path();
            let name = file.file_name().expect("a name").to_string_lossy().into_owned();
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("json") => drop(json(&file)),
                Some("safetensors") => {
                    candle_core::safetensors::load(&file, &candle_core::Device::Cpu).expect("no torn file");
                }
                _ if name == "loss.csv" => {
                    assert!(fs::read_to_string(&file).expect("text").ends_with('\n'), "a torn table");
                }
                _ => {}
            }
        }
    }
    assert!(killed >= 2, "it was killed {killed} times");
    let ended = run(path, &train("killed"));
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let (a, b) = (json(&path.join("unbroken/metrics.json")), json(&path.join("killed/metrics.json")));
    for key in ["status", "steps", "train_loss", "val_loss", "perplexity", "val_top1_acc", "bigram_perplexity"] {
        assert_eq!(a[key], b[key], "{key}");
    }
    let losses = |name: &str| fs::read_to_string(path.join(name).join("loss.csv")).expect("losses");
    assert_eq!(losses("unbroken"), losses("killed"));
    let leftover = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(".candlepower-");
    let read = |name| fs::read_dir(path.join(name)).expect("files").map(|entry| entry.expect("a file"));
    assert_eq!(read("unbroken").chain(read("killed")).filter(leftover).count(), 0);
}

#[test]
fn a_learning_rate_that_diverges_is_said_and_recorded() {
    let folder = folder();
    let given = ["train", "--config", "tiny.yaml", "--out", "out"];
    let wild = ["--set", "learning_rate=1e30", "--set", "clip_norm=1e30", "--set", "warmup_steps=0"];
    let output = run(folder.path(), &[&given[..], &wild].concat());
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.lines().last().is_some_and(|line| line.starts_with("error: the training diverged")), "{error}");
    let metrics = json(&folder.path().join("out/metrics.json"));
    assert_eq!((&metrics["status"], &metrics["val_loss"]), (&Value::from("diverged"), &Value::Null));
    assert!(metrics["first_non_finite_step"].as_u64().is_some_and(|step| step > 1));
}

#[test]
fn questions_that_are_missing_are_found_before_the_training() {
    let folder = folder();
    for (more, part) in [
        (&["--eval", "--data", "absent"][..], "absent/lambada_openai.jsonl"),
        (&["--eval"], "--data"),
        (&["--data", "absent"], "--eval"),
    ] {
        let output = run(folder.path(), &[&["shootout", "--config", "tiny.yaml", "--out", "out"], more].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.lines().count() == 1 && error.contains(part), "{error}");
        assert!(!folder.path().join("out").exists());
    }
}

#[test]
fn a_shootout_ranks_bases_and_marks_those_that_see_later_tokens() {
    let folder = folder();
    let given =
        ["shootout", "--config", "tiny.yaml", "--set", "bases=sgrpsann,respsann,transformer", "--set", "seeds=1,2"];
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/quality");
    let more = ["--set", "steps=12", "--out", "out", "--eval", "--data", data, "--limit", "3"];
    let output = run(folder.path(), &[&given[..], &more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let out = folder.path().join("out");
    let board = fs::read_to_string(out.join("leaderboard.md")).expect("a leaderboard");
    assert!(String::from_utf8_lossy(&output.stdout).contains(board.trim()));
    let row = |base: &str| board.lines().find(|line| line.contains(base)).expect(base).to_owned();
    assert!(row("sgrpsann").contains("(not causal)") && row("sgrpsann").starts_with("| - "), "{board}");
    assert!(row("respsann").starts_with("| 1") || row("transformer").starts_with("| 1"), "{board}");
    let summary = json(&out.join("summary.json"));
    assert_eq!(summary.as_array().map(Vec::len), Some(6));
    for entry in summary.as_array().expect("entries") {
        let name = format!("runs/{}_seed{}/metrics.json", entry["base"].as_str().expect("a base"), entry["seed"]);
        let metrics = json(&out.join(name));
        assert_eq!(metrics["val_loss"], entry["val_loss"]);
        let is_causal = entry["base"] != "sgrpsann";
        assert_eq!(entry["causal"], Value::from(is_causal));
        for score in ["lambada_acc", "lambada_ppl", "hellaswag_acc", "hellaswag_acc_norm"] {
            assert_eq!(entry[score].is_f64(), is_causal, "a model that sees later tokens has no {score}: {entry}");
        }
    }
    assert!(board.contains("hellaswag acc_norm"), "{board}");
    assert_eq!(fs::read_to_string(out.join("summary.csv")).expect("a table").lines().count(), 7);
}

/// Without its temporal block, `waveresnet` is `respsann`.
#[test]
fn bases_that_are_the_same_model_tie() {
    let folder = folder();
    let given = ["shootout", "--config", "tiny.yaml", "--set", "bases=respsann,transformer,waveresnet"];
    let output =
        run(folder.path(), &[&given[..], &["--set", "seeds=1,2", "--set", "steps=3", "--out", "out"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let board = fs::read_to_string(folder.path().join("out/leaderboard.md")).expect("a leaderboard");
    assert!(board.contains("\nrespsann and waveresnet tie: ") && board.matches(" tie: ").count() == 1, "{board}");
    let place = |base: &str| {
        let row = board.lines().find(|line| line.contains(&format!("| {base} "))).expect(base);
        row.split('|').nth(1).map(|cell| cell.trim().to_owned())
    };
    assert_eq!(place("respsann"), place("waveresnet"));
}

/// A spectral branch of strength 0 is trained too.
#[test]
fn psannlms_keys_of_a_model_are_read() {
    let folder = folder();
    let keys = "base: sgrpsann\ngate_strength: 0\nsine:\n  amp_bounds: [0.5, 2.0]\n  freq_range: [0.5, 1.5]\n  \
                damp_init_std: 0.001\n  learnable: [amplitude]\n";
    fs::write(folder.path().join("psann.yaml"), TINY.to_owned() + keys).expect("written");
    let output = run(folder.path(), &["train", "--config", "psann.yaml", "--set", "steps=4", "--out", "out"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(json(&folder.path().join("out/metrics.json"))["status"], "finished");
    let used = fs::read_to_string(folder.path().join("out/config_used.yaml")).expect("a configuration");
    let used: Value = serde_saphyr::from_str(&used).expect("YAML");
    assert_eq!((used["gate_strength"].as_f64(), used["sine"]["amp_bounds"][0].as_f64()), (Some(0.0), Some(0.5)));
    assert_eq!(used["sine"]["learnable"], serde_json::json!(["amplitude"]));
}

/// One folder holds the records of a run, a training and a shoot-out.
#[test]
fn trainings_and_shootouts_are_reported() {
    let folder = folder();
    let path = folder.path();
    let succeeds = |arguments: &[&str]| {
        let output = run(path, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    succeeds(&["train", "--config", "tiny.yaml", "--out", "runs/a training"]);
    let shootout = ["shootout", "--config", "tiny.yaml", "--set", "bases=respsann,transformer", "--set", "seeds=1"];
    succeeds(&[&shootout[..], &["--set", "steps=4", "--out", "runs/shootout"]].concat());

    let alone = path.join(succeeds(&["report", "runs/a training"]).trim());
    let readme = fs::read_to_string(alone.join("README.md")).expect("a README");
    assert!(readme.contains("## Training a training") && readme.contains("| waveresnet"), "{readme}");
    assert!(readme.contains("](trainings/a%20training/loss_curve.svg)"), "{readme}");
    let machine = json(&path.join("runs/a training/metrics.json"))["machine"]["name"].clone();
    assert_eq!(alone.parent().and_then(Path::file_name).and_then(|name| name.to_str()), machine.as_str());
    for file in ["config_used.yaml", "loss.csv", "loss_curve.png", "metrics.json"] {
        let (kept, made) = (alone.join("trainings/a training").join(file), path.join("runs/a training").join(file));
        assert_eq!(fs::read(kept).expect(file), fs::read(made).expect(file));
    }
    assert!(!alone.join("trainings/a training/model.safetensors").exists() && !alone.join("results.csv").exists());

    succeeds(&["sandbox"]);
    let plan = ["report", "sandbox", "runs/a training", "runs/shootout", "--zip"];
    let written = succeeds(&plan);
    let whole = path.join(written.lines().next().expect("a folder"));
    let page = fs::read_to_string(whole.join("index.html")).expect("a page");
    for part in ["Training a training", "Training shootout", "href=\"trainings/shootout\"", "href=\"results.csv\""] {
        assert!(page.contains(part), "{part}");
    }
    let board = fs::read(whole.join("trainings/shootout/leaderboard.md")).expect("a leaderboard");
    assert_eq!(board, fs::read(path.join("runs/shootout/leaderboard.md")).expect("a leaderboard"));
    assert!(whole.join("trainings/shootout/runs/transformer_seed1/loss.csv").is_file());
    let archive = fs::read(whole.with_extension("zip")).expect("an archive");
    let name = b"trainings/shootout/runs/transformer_seed1/loss.csv";
    assert!(archive.windows(name.len()).any(|part| part == name));

    let refused = |arguments: &[&str], part: &str| {
        let output = run(path, arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && error.lines().count() == 1 && error.contains(part), "{error}");
    };
    fs::remove_file(path.join("runs/a training/metrics.json")).expect("removed");
    refused(&["report", "runs/a training"], "has not ended");
    fs::create_dir_all(path.join("other")).expect("a folder");
    succeeds(&["train", "--config", "tiny.yaml", "--out", "other/shootout"]);
    refused(&["report", "runs/shootout", "other/shootout"], "two folders of trainings are named shootout");
}

/// Threads divide the work into the same parts in any number, so the sums have the same order.
#[test]
fn the_number_of_threads_does_not_change_a_training() {
    let folder = folder();
    let train = |threads: &str, out: &str| {
        let sizes =
            ["--d-model", "64", "--d-mlp", "160", "--batch-tokens", "512", "--steps", "12", "--bases", "sgrpsann"];
        let given = ["train", "--config", "tiny.yaml", "--threads", threads, "--out", out];
        let output = run(folder.path(), &[&given[..], &sizes].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        ["loss.csv", "model.safetensors"].map(|file| fs::read(folder.path().join(out).join(file)).expect(file))
    };
    let one = train("1", "one");
    for (threads, out) in [("2", "two"), ("2", "again"), ("3", "three")] {
        assert!(train(threads, out) == one, "{threads} threads");
    }
}
