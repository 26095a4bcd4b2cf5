//! Trainings and shoot-outs whose folders were damaged, are in use, or belong to others.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use tempfile::TempDir;

#[cfg(target_os = "linux")]
use crate::command::{child_of, send, wait_for_end_of};
use crate::{
    command::{candlepower, ended, is_refused, limited, names, output, refused, stderr, succeeds, wait_for},
    output::closed,
};

const TINY: &str = "d_model: 16\nn_layers: 1\nn_heads: 2\nd_mlp: 24\nvocab_size: 300\nsequence_length: 16\nbatch_tokens: 64\n\
                    steps: 40\nvalidate_every: 10\nsave_every: 3\nwarmup_steps: 4\nlearning_rate: 0.01\n\
                    validation_share: 0.1\ncorpus: corpus.txt\n";

const TRAIN: &[&str] = &["train", "--config", "tiny.yaml", "--out", "out"];

const SHOOTOUT: &[&str] =
    &["shootout", "--config", "tiny.yaml", "--bases", "respsann,transformer", "--steps", "4", "--out", "out"];

fn corpus() -> String {
    (0..300).map(|number| format!("The whale of number {number} swims by the ship.\n")).collect()
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("corpus.txt"), corpus()).expect("written");
    fs::write(folder.path().join("tiny.yaml"), TINY).expect("written");
    folder
}

/// Limits the size of the files that a process writes, in blocks of 512 bytes. The write that exceeds it kills the process,
/// always at the same byte.
fn killed_at(folder: &Path, blocks: u64, arguments: &[&str]) -> bool {
    let output = output(&mut limited(folder, &format!("ulimit -f {blocks}"), arguments));
    assert!(output.status.success() || output.status.code().is_none(), "{}", stderr(&output));
    !output.status.success()
}

/// Trains until the first state is written, and kills the training when it writes a larger file.
fn interrupted() -> TempDir {
    let folder = folder();
    let path = folder.path();
    let mut command = candlepower(path);
    command.args(TRAIN).args(["--steps", "100000"]).stderr(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().expect("it starts");
    wait_for("a state", || path.join("out/state.safetensors").is_file());
    child.kill().expect("killed");
    child.wait().expect("it ended");
    folder
}

fn resumed(path: &Path) -> std::process::Output {
    output(candlepower(path).args(TRAIN).args(["--steps", "100000"]))
}

#[test]
fn files_of_others_in_the_folder_stay() {
    let folder = folder();
    let out = folder.path().join("out");
    fs::create_dir(&out).expect("a folder");
    fs::write(out.join(".tmp-notes"), "precious").expect("written");
    fs::write(out.join(".tmpfile"), "precious").expect("written");
    fs::write(out.join(".candlepower-abc.tmp"), "left by a killed process").expect("written");
    succeeds(folder.path(), TRAIN);
    for name in [".tmp-notes", ".tmpfile"] {
        assert_eq!(fs::read_to_string(out.join(name)).expect("still there"), "precious");
    }
    assert!(!out.join(".candlepower-abc.tmp").exists());
}

#[test]
fn a_state_that_is_damaged_is_refused_and_kept() {
    let folder = interrupted();
    let (path, state) = (folder.path(), folder.path().join("out/state.safetensors"));
    let whole = fs::read(&state).expect("a state");
    let mut flipped_data = whole.clone();
    let last = flipped_data.len() - 5;
    flipped_data[last] ^= 1;
    let losses = whole.windows(10).position(|part| part == b"train_loss").expect("losses in the header");
    let digit = (losses..).find(|place| whole[*place].is_ascii_digit()).expect("a digit");
    let mut flipped_loss = whole.clone();
    flipped_loss[digit] = if whole[digit] == b'9' { b'8' } else { whole[digit] + 1 };
    for damaged in [whole[..whole.len() / 2].to_vec(), flipped_data, flipped_loss, Vec::new(), vec![0xff; 100]] {
        fs::write(&state, &damaged).expect("written");
        let error = is_refused(&resumed(path), "a damaged state");
        assert!(error.contains("state.safetensors cannot be resumed; remove the folder to start over"), "{error}");
        assert_eq!(fs::read(&state).expect("still there"), damaged);
    }
    // A state that cannot be read.
    fs::remove_file(&state).expect("removed");
    fs::create_dir(&state).expect("a folder");
    let error = is_refused(&resumed(path), "no file");
    assert!(error.contains("state.safetensors cannot be resumed"), "{error}");
}

#[test]
fn another_content_of_the_corpus_is_another_training() {
    let folder = interrupted();
    let path = folder.path();
    let before = names(&path.join("out"));
    fs::write(path.join("corpus.txt"), corpus().replace("whale", "shark")).expect("written");
    let error = is_refused(&resumed(path), "another corpus");
    assert!(error.contains("another content of its corpus or weights"), "{error}");
    assert_eq!(names(&path.join("out")), before);
    fs::write(path.join("out/config_used.yaml"), [0xff]).expect("written");
    let error = is_refused(&resumed(path), "not UTF-8");
    assert!(error.contains("config_used.yaml can't be read: it is not UTF-8"), "{error}");
}

#[test]
fn another_content_of_the_weights_is_another_training() {
    let folder = folder();
    let path = folder.path();
    succeeds(path, TRAIN);
    let weights = path.join("out/model.safetensors");
    let begin = [TRAIN, &["--weights", "out/model.safetensors"]].concat();
    let begin: Vec<&str> = begin.into_iter().map(|text| if text == "out" { "other" } else { text }).collect();
    succeeds(path, &begin);
    let mut changed = fs::read(&weights).expect("weights");
    let last = changed.len() - 1;
    changed[last] ^= 1;
    fs::write(&weights, changed).expect("written");
    assert!(refused(path, &begin).contains("another content of its corpus or weights"));
    fs::remove_file(&weights).expect("removed");
    assert!(refused(path, &begin).contains("out/model.safetensors can't be read"));
}

#[test]
fn a_finished_training_whose_figures_are_damaged_is_not_repeated() {
    let folder = folder();
    succeeds(folder.path(), TRAIN);
    let metrics = folder.path().join("out/metrics.json");
    for damaged in ["", "{", "[]", "null", "\u{0}"] {
        fs::write(&metrics, damaged).expect("written");
        let error = refused(folder.path(), TRAIN);
        assert!(error.contains("metrics.json can't be read"), "{error}");
        assert_eq!(fs::read_to_string(&metrics).expect("still there"), damaged);
    }
}

#[test]
fn another_shootout_leaves_a_finished_one_as_it_is() {
    let folder = folder();
    succeeds(folder.path(), SHOOTOUT);
    let out = folder.path().join("out");
    let files = || ["summary.json", "summary.csv", "leaderboard.md"].map(|name| fs::read(out.join(name)).expect(name));
    let before = files();
    for (key, value) in
        [("--learning-rate", "0.5"), ("--steps", "5"), ("--bases", "respsann"), ("--seeds", "3"), ("--d-mlp", "32")]
    {
        let mut arguments = SHOOTOUT.to_vec();
        match arguments.iter().position(|argument| *argument == key) {
            Some(place) => arguments[place + 1] = value,
            None => arguments.extend([key, value]),
        }
        let error = refused(folder.path(), &arguments);
        assert!(error.contains("another configuration: choose another folder with --out"), "{error}");
        assert_eq!(files(), before);
    }
    succeeds(folder.path(), SHOOTOUT);
    assert_eq!(files(), before);
}

/// A shoot-out of two trainings that take seconds, and the id of the process that trains the first.
#[cfg(target_os = "linux")]
fn long_shootout(folder: &Path) -> (Vec<&'static str>, std::process::Child, u32) {
    let mut arguments = SHOOTOUT.to_vec();
    let steps = arguments.iter().position(|argument| *argument == "--steps").expect("a number of steps");
    arguments[steps + 1] = "800";
    arguments.extend(["--seeds", "1", "--validate-every", "40", "--save-every", "800"]);
    let log = folder.join("log");
    let mut command = candlepower(folder);
    command.args(&arguments).stdout(Stdio::null()).stderr(fs::File::create(&log).expect("a file"));
    let child = command.spawn().expect("it starts");
    wait_for("a validation", || fs::read_to_string(&log).is_ok_and(|log| log.contains("respsann_seed1: step ")));
    let training = child_of(child.id());
    (arguments, child, training)
}

/// A signal stands for a failed allocation, which aborts the process, and for a system without memory, which kills it.
#[test]
#[cfg(target_os = "linux")]
fn a_training_that_ends_its_process_leaves_the_others() {
    for (signal, name) in [("-ABRT", "SIGABRT"), ("-KILL", "SIGKILL")] {
        let folder = folder();
        let path = folder.path();
        let (arguments, mut child, training) = long_shootout(path);
        send(signal, training);
        assert_eq!(child.wait().expect("it ends").code(), Some(1));
        let log = fs::read_to_string(path.join("log")).expect("what it said");
        let reason = format!("the process that trained it was ended by {name}");
        assert!(log.contains(&format!("error: respsann_seed1: {reason}")), "{log}");
        assert!(log.contains("error: 1 of 2 trainings failed") && !log.contains("panic"), "{log}");
        let entries = || -> Vec<serde_json::Value> {
            serde_json::from_slice(&fs::read(path.join("out/summary.json")).expect("a summary")).expect("JSON")
        };
        let statuses = || entries().iter().map(|entry| entry["status"].clone()).collect::<Vec<_>>();
        assert_eq!(statuses(), ["failed", "finished"]);
        assert!(entries()[0]["reason"].as_str().is_some_and(|told| told.starts_with(&reason)), "{:?}", entries());
        let board = fs::read_to_string(path.join("out/leaderboard.md")).expect("a leaderboard");
        assert!(board.contains(&format!("respsann, seed 1: failed: {reason}")), "{board}");
        // The same command tries it again.
        succeeds(path, &arguments);
        assert_eq!(statuses(), ["finished", "finished"]);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_shootout_ends_with_the_process_that_guards_it() {
    let folder = folder();
    let (_, mut child, training) = long_shootout(folder.path());
    child.kill().expect("killed");
    child.wait().expect("it ended");
    wait_for_end_of(training);
    assert!(!folder.path().join("out/summary.json").exists());
}

#[test]
fn trainings_go_on_when_nobody_reads_their_progress() {
    for (arguments, file) in [(TRAIN, "out/metrics.json"), (SHOOTOUT, "out/summary.json")] {
        let folder = folder();
        let child = candlepower(folder.path()).args(arguments).stdout(closed()).stderr(closed()).spawn();
        let output = ended(child.expect("it starts"));
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(folder.path().join(file).is_file(), "{arguments:?}");
    }
}

#[test]
fn two_processes_do_not_train_in_one_folder() {
    let folder = folder();
    let path = folder.path();
    let mut first = candlepower(path);
    first.args(TRAIN).args(["--steps", "100000"]).stderr(Stdio::null()).stdout(Stdio::null());
    let mut first = first.spawn().expect("it starts");
    wait_for("a state", || path.join("out/state.safetensors").is_file());
    let error = is_refused(&resumed(path), "a second process");
    first.kill().expect("killed");
    first.wait().expect("it ended");
    assert!(error.contains("another process trains in out"), "{error}");
}

/// A training that is killed while it writes a file leaves no torn file, and resumes to the same result.
#[test]
#[cfg(unix)]
fn a_training_killed_at_any_write_goes_on_to_the_same_end() {
    let unbroken = folder();
    succeeds(unbroken.path(), TRAIN);
    let file = |folder: &TempDir, name: &str| fs::read(folder.path().join("out").join(name)).expect("a file");
    let mut killed = 0;
    // From a limit below every file to one above most.
    for blocks in [0, 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128] {
        let broken = folder();
        let was_killed = killed_at(broken.path(), blocks, TRAIN);
        killed += usize::from(was_killed);
        let out = broken.path().join("out");
        if out.is_dir() {
            for name in names(&out).iter().filter(|name| !name.starts_with('.')) {
                let content = fs::read(out.join(name)).expect("a file");
                match name.rsplit_once('.').map(|(_, kind)| kind) {
                    Some("safetensors") => drop(safetensors::SafeTensors::deserialize(&content).expect("a whole file")),
                    Some("json") => drop(serde_json::from_slice::<serde_json::Value>(&content).expect("a whole file")),
                    Some("yaml") => assert_eq!(content, file(&unbroken, name)),
                    Some("png") => assert!(content.ends_with(b"IEND\xaeB`\x82"), "a whole file"),
                    _ => assert!(content.ends_with(b"\n"), "{name} at {blocks}"),
                }
            }
        }
        succeeds(broken.path(), TRAIN);
        for name in ["loss.csv", "model.safetensors", "tokenizer.json", "config_used.yaml"] {
            assert_eq!(file(&broken, name), file(&unbroken, name), "{name} at {blocks}");
        }
        assert!(names(&out).iter().all(|name| !name.starts_with('.')), "{:?}", names(&out));
    }
    assert!(killed >= 6, "{killed} were killed");
    // The shell has the limit, not this process.
    assert!(Command::new("true").status().expect("true").success());
}

#[test]
fn a_corpus_of_one_long_line_is_refused_at_once() {
    let folder = folder();
    fs::write(folder.path().join("corpus.txt"), "word ".repeat(1_200_000)).expect("written");
    let error = refused(folder.path(), TRAIN);
    assert!(error.contains("--corpus: corpus corpus.txt: a line has 5999999 bytes; at most 1048576"), "{error}");
    #[cfg(unix)]
    for device in ["/dev/zero", "/dev/stdin", "."] {
        let error = refused(folder.path(), &[TRAIN, &["--corpus", device]].concat());
        assert!(error.contains("it is not a regular file"), "{error}");
    }
}
