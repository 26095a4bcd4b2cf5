//! Sizes that no model has, in YAML, flags and lists of benchmarks: refused at once, by the name of their key.

use std::fs;

use crate::{
    command::{candlepower, output, refused, stderr},
    output::SMALL_SWEEP,
};

#[test]
fn sizes_of_trainings_and_sweeps_are_refused_by_their_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    fs::write(path.join("corpus.txt"), "The whale swims by the ship.\n".repeat(300)).expect("written");
    let (huge, most) = ("4611686018427387904", "18446744073709551615");
    let mut count = 0;
    for (command, key, values) in [
        ("train", "n_layers", &["0", "1000000000000", huge, most][..]),
        ("train", "d_model", &["0", "100000000000", huge, most]),
        ("train", "d_mlp", &["0", "100000000000", most]),
        ("train", "n_heads", &["0", huge]),
        ("train", "vocab_size", &["0", most]),
        ("train", "sequence_length", &["0", huge, most]),
        ("train", "batch_tokens", &["0", huge, most]),
        ("train", "epochs", &["0", most]),
        ("train", "steps", &["0", most]),
        ("train", "k_fft", &["0", most]),
        ("train", "wave_kernel_size", &["0", most]),
        ("train", "wave_dilation_growth", &["0", most]),
        ("shootout", "n_layers", &["1000000000000"]),
        ("shootout", "d_mlp", &["100000000000"]),
        ("sweep", "model_dims", &[huge, most]),
        ("sweep", "depths", &["1000000000000", huge, most]),
        ("sweep", "horizons", &["0", huge, most]),
        ("sweep", "windows", &[huge, most]),
        ("sweep", "batch", &[huge, most]),
        ("sweep", "features", &[huge, most]),
        ("sweep", "outputs", &[huge, most]),
        ("sweep", "heads", &[huge, most]),
        ("sweep", "ff_mult", &[huge, most]),
        ("sweep", "steps", &["0", most]),
        ("sweep", "accumulate", &[most]),
        ("sweep", "max_seq_len", &[most]),
    ] {
        for value in values {
            let file = format!("{key}: {value}\n");
            fs::write(path.join("file.yaml"), file).expect("written");
            let flag = format!("--{}", key.replace('_', "-"));
            for given in [[flag.as_str(), value], ["--config", "file.yaml"]] {
                let corpus: &[&str] = if command == "sweep" { &[] } else { &["--corpus", "corpus.txt"] };
                let arguments = [&[command], given.as_slice(), corpus].concat();
                let output = output(candlepower(path).args(&arguments));
                // Every bad value has a line.
                let error = stderr(&output);
                assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
                assert!(error.contains(key) && error.lines().count() <= 3, "{command} {key}={value}: {error}");
                count += 1;
            }
        }
    }
    assert!(count >= 100, "{count}");
}

/// Sizes that are refused where they are used: each combination says which.
#[test]
fn a_sweep_of_nothing_names_the_size() {
    for (flag, part) in [
        ("--batch", "batch is 0"),
        ("--model-dims", "dim is 0"),
        ("--depths", "depth is 0"),
        ("--windows", "window is 0"),
        ("--features", "features is 0"),
        ("--outputs", "outputs is 0"),
        ("--heads", "heads is 0"),
        ("--ff-mult", "ff_mult is 0"),
        ("--state-dim", "state_dim is 0"),
        ("--state-kernel", "state_kernel is 0"),
        ("--conv-kernel", "conv_kernel is 0"),
        ("--dilations", "dilations is 0"),
        ("--coarse-factor", "coarse_factor is 0"),
        ("--cross-every", "cross_every is 0"),
        ("--max-seq-len", "max_seq_len is 0"),
        ("--accumulate", "accumulate is 0"),
        ("--stride", "stride is 0"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut arguments = SMALL_SWEEP.to_vec();
        match arguments.iter().position(|argument| *argument == flag) {
            Some(place) => arguments[place + 1] = "0",
            None => arguments.extend([flag, "0"]),
        }
        let output = output(candlepower(folder.path()).args(&arguments));
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
        assert_eq!(error.matches(part).count(), 2, "{arguments:?}: {error}");
    }
}

#[test]
fn products_of_sizes_are_refused_too() {
    let folder = tempfile::tempdir().expect("a folder");
    for (arguments, part) in [
        (&["train", "--d-model", "1048576", "--n-layers", "16384"][..], "n_layers * d_model * d_model"),
        (&["train", "--d-mlp", "16777216", "--d-model", "1048576", "--n-layers", "100"], "n_layers * d_model * d_mlp"),
        (&["train", "--d-model", "65536", "--batch-tokens", "4294967296", "--n-layers", "100"], "batch_tokens"),
        (&["sweep", "--model-dims", "1048576", "--depths", "4096"], "depths * model_dims * model_dims"),
        (&["sweep", "--batch", "16777216", "--windows", "16777216"], "windows"),
    ] {
        let mut arguments = arguments.to_vec();
        if arguments[0] == "sweep" {
            arguments.extend(["--ff-mult", "4"]);
        }
        let error = refused(folder.path(), &arguments);
        assert!(error.contains(part) && error.contains("at most"), "{error}");
    }
}

/// Sizes that a machine of the future has: they pass the limits and do not fit in memory.
#[test]
fn what_does_not_fit_in_memory_is_said_before_it_is_allocated() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    fs::write(path.join("corpus.txt"), "The whale swims by the ship.\n".repeat(300)).expect("written");
    let large = ["--d-model", "65536", "--d-mlp", "262144", "--n-layers", "100", "--sequence-length", "16"];
    let train = [&["train", "--corpus", "corpus.txt", "--vocab-size", "300"], large.as_slice()].concat();
    let error = refused(path, &train);
    assert!(error.contains("it does not fit") && error.contains("1024 tokens of waveresnet at a time"), "{error}");
}

#[test]
fn budgets_and_counts_are_refused_by_their_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let nightly = |key: &str, value: &str| format!(r#"{{"benchmarks": [{{"bench": "a"}}], "{key}": {value}}}"#);
    for (key, value) in [
        ("budget_minutes", "1e300"),
        ("budget_minutes", "0"),
        ("budget_minutes", "-1"),
        ("budget_minutes", "1e18"),
        ("keep", "0"),
        ("fail_above", "\"x\""),
        ("fail_memory_above", "\"-1%\""),
    ] {
        fs::write(folder.path().join("nightly.json"), nightly(key, value)).expect("written");
        let error = refused(folder.path(), &["nightly", "nightly.json"]);
        assert!(error.contains(key), "{key}={value}: {error}");
    }
    for budget in ["1e300", "1e999", "-5"] {
        let text = format!(r#"{{"benchmarks": [{{"bench": "a", "budget_minutes": {budget}}}]}}"#);
        fs::write(folder.path().join("nightly.json"), text).expect("written");
        let error = refused(folder.path(), &["nightly", "nightly.json"]);
        assert!(error.contains("nightly.json"), "{error}");
    }
    for (arguments, part) in [
        (&["sandbox", "--times", "4611686018427387904"][..], "--times=4611686018427387904"),
        (&["sandbox", "--times=-1"], "--times"),
        (&["list", "--threads", "4096000"], "--threads='4096000': expected a whole number from 1 to "),
        (&["list", "--threads", "0"], "--threads='0'"),
        (&["list", "--batch", "0"], "--batch='0': expected whole numbers from 1 to "),
        (&["list", "--batch", "18446744073709551615"], "--batch='18446744073709551615': expected whole numbers from 1"),
        (&["list", "--hidden", "4611686018427387904"], "expected whole numbers from 1 to "),
        (&["list", "--experts", "0"], "--experts='0': expected whole numbers from 1 to "),
        (&["list", "--seq", "0"], "--seq='0': expected whole numbers from 1 to "),
        (&["list", "--batch-tokens", "0"], "--batch-tokens='0': expected whole numbers from 1 to "),
        (&["list", "--steps", "0"], "--steps='0': expected a whole number from 1 to "),
        (&["run", "--trials", "0"], "--trials=0"),
        (&["run", "--prompt-tokens", "18446744073709551615"], "more than the model's"),
        (&["run", "--max-new-tokens", "9223372036854775807"], "more than the model's"),
        (&["compare", "a", "b", "--level", "1e300"], "--level"),
    ] {
        let error = refused(folder.path(), arguments);
        assert!(error.contains(part), "{error}");
    }
}
