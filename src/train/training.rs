//! One training on a text and its files: the state that it resumes from, losses as a table and a plot, and the final
//! metrics.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, TryLockError},
    io::{self, ErrorKind, Read},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Tensor};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Text, TrainConfig, corpus::hexadecimal};
use crate::{
    error::one_line,
    files::{SETTINGS_MAX_BYTES, is_temporary, read_limited, read_text_limited},
    measure::{
        gpu, machine,
        memory::{self, Peak},
    },
    model::psann::Decoder,
    record::{Machine, write_whole},
    report,
    step::language::{Language, Plan},
};

const STATE: &str = "state.safetensors";
const METRICS: &str = "metrics.json";
pub(super) const WEIGHTS: &str = "model.safetensors";

/// The result of a training, `metrics.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Base of the model.
    pub base: String,
    /// Seed of the weights and of the order of the data.
    pub seed: u64,
    /// `finished` or `diverged`.
    pub status: String,
    /// The first step whose loss or gradient was not finite, counted from 1.
    pub first_non_finite_step: Option<usize>,
    /// Mean over the last steps, as many as are between two validations, or all steps if they are fewer.
    pub train_loss: Option<f64>,
    /// Cross-entropy of the validation part, in nats per token.
    pub val_loss: Option<f64>,
    /// Of the validation part, per token.
    pub perplexity: Option<f64>,
    /// Of the validation part. It does not depend on the tokenizer. Missing in files from before this field.
    #[serde(default)]
    pub bits_per_byte: Option<f64>,
    /// Share of the validation tokens that have the largest logit.
    pub val_top1_acc: Option<f64>,
    /// Of the validation part under a bigram model of the same tokens.
    pub bigram_perplexity: f64,
    /// Of the validation part under the bigram model. Missing in files from before this field.
    #[serde(default)]
    pub bigram_bits_per_byte: Option<f64>,
    /// True if no logit changes when a later token changes. Otherwise the loss is not that of a causal language
    /// model.
    pub causal: bool,
    /// Norm of the gradient before clipping: the mean over the steps of `train_loss`. Missing in files from before this field.
    #[serde(default)]
    pub gradient_norm: Option<f64>,
    /// Norm of an update divided by that of the weights: the mean over the steps of `train_loss`, because the learning rate of
    /// the last step may be 0. Missing in files from before this field.
    #[serde(default)]
    pub update_ratio: Option<f64>,
    /// Number of completed steps.
    pub steps: usize,
    /// Passes over the training part.
    pub epochs: f64,
    /// Trainable parameters.
    pub parameters: usize,
    /// Size of the tokenizer's vocabulary.
    pub vocab_size: usize,
    /// Time of the steps alone, in the process that finished the training.
    pub train_tokens_per_s: Option<f64>,
    /// Peak memory of the process that finished the training.
    pub peak_bytes: Option<u64>,
    /// Path of the text.
    pub corpus_path: String,
    /// Machine of the process that finished the training. Missing in files from before this field.
    #[serde(default)]
    pub machine: Option<Machine>,
}

/// Progress of a training.
pub struct Progress {
    /// Number of the step, from 1.
    pub step: usize,
    /// Total number of steps.
    pub steps: usize,
    /// Loss of the step, in nats per token.
    pub loss: f64,
    /// Validation loss in nats per token, and bits per byte, if the step was followed by a validation.
    pub validation: Option<(f64, f64)>,
    /// Training throughput so far.
    pub tokens_per_s: f64,
}

/// A step in `loss.csv`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Point {
    step: usize,
    /// From 1. It is 0 in states from before this field.
    #[serde(default)]
    epoch: usize,
    tokens: usize,
    train_loss: f64,
    gradient_norm: f64,
    update_ratio: f64,
    learning_rate: f64,
    /// Validation loss after the step.
    val_loss: Option<f64>,
    val_top1_acc: Option<f64>,
}

/// Trains the one base and seed of a configuration on a text, and writes the files to a folder. If the folder
/// contains the state of the same training, resumes from it. If it contains a finished training, returns its result.
///
/// # Errors
/// Returns an error if the folder contains another training, a file cannot be written, or the device fails. A
/// training that diverges is not an error.
pub fn run(config: &TrainConfig, text: &Text, folder: &Path, mut progress: impl FnMut(&Progress)) -> Result<Outcome> {
    let ([base], [seed]) = (config.bases.as_slice(), config.seeds.as_slice()) else {
        bail!("a training needs exactly one base and one seed");
    };
    let used = used(config, text)?;
    let _lock = begin(folder, &used)?;
    if let Some(outcome) = ended(folder)? {
        return Ok(outcome);
    }
    let model = config.model(*base, text.vocab_size);
    write_whole(&folder.join("config.json"), (serde_json::to_string_pretty(&model)? + "\n").as_bytes())?;
    write_whole(
        &folder.join("tokenizer.json"),
        text.tokenizer.to_string(false).map_err(anyhow::Error::msg)?.as_bytes(),
    )?;
    write_whole(&folder.join("validation_ids.txt"), text.validation_ids().as_bytes())?;

    let rows = config.rows();
    let steps = config.steps.unwrap_or(config.epochs * text.steps(rows));
    let plan = Plan {
        dtype: config.dtype,
        checkpointing: config.checkpointing,
        micro_rows: config.micro_batch_tokens / config.sequence_length,
    };
    let options = config.optimizer(steps);
    let device = config.device.open()?;
    let cost = Decoder::cost(&model, config.sequence_length)?;
    let tokens = plan.micro_rows.min(rows) * config.sequence_length;
    let keeps_scores = !(device.is_cpu() && config.dtype == DType::F32);
    let least_bytes = cost.least_bytes(tokens, true, config.checkpointing, keeps_scores);
    memory::ensure_fits(&format!("{tokens} tokens of {base} at a time"), least_bytes, &device)?;
    let bytes_beside = memory::current_bytes(&device);
    let mut language = Language::new(&model, options, plan, *seed, &device)?;
    if let Some(path) = &config.weights {
        let weights = candle_core::safetensors::load(path, &candle_core::Device::Cpu)
            .map_err(|error| anyhow::anyhow!("{} can't be read: {}", path.display(), one_line(&error)))?;
        language.load(&weights).with_context(|| path.display().to_string())?;
    }
    let mut points = resume(folder, &used, &mut language)?;
    let causal = language.model().leak(config.sequence_length.min(64))? == 0.0;
    let validation = text.validation()?;
    let (mut spent, mut predicted) = (Duration::ZERO, 0);
    let mut peak = Peak::new(&device, bytes_beside);
    peak.begin();
    let mut first_non_finite_step = None;
    while points.len() < steps {
        let number = points.len();
        let batch = text.batch(number, rows, *seed)?;
        let started = Instant::now();
        let step = language.step(&batch)?;
        spent += started.elapsed();
        predicted += batch.tokens();
        if !step.is_finite() {
            first_non_finite_step = Some(number + 1);
            break;
        }
        let is_last = number + 1 == steps;
        let mut point = Point {
            step: number + 1,
            epoch: number / text.steps(rows) + 1,
            tokens: points.last().map_or(0, |point: &Point| point.tokens) + batch.tokens(),
            train_loss: step.loss,
            gradient_norm: step.gradient_norm,
            update_ratio: step.update_ratio,
            learning_rate: options.rate(number),
            val_loss: None,
            val_top1_acc: None,
        };
        if is_last || (number + 1).is_multiple_of(config.validate_every) {
            let pass = language.evaluate(&validation)?;
            let tokens = validation.tokens() as f64;
            (point.val_loss, point.val_top1_acc) = (Some(pass.loss_sum / tokens), Some(pass.correct as f64 / tokens));
        }
        points.push(point);
        let tokens_per_s = predicted as f64 / spent.as_secs_f64();
        progress(&Progress {
            step: number + 1,
            steps,
            loss: step.loss,
            validation: point.val_loss.map(|loss| (loss, text.bits_per_byte(loss))),
            tokens_per_s,
        });
        if !is_last && (number + 1).is_multiple_of(config.save_every) {
            save(folder, &used, &language, &points)?;
            write_losses(folder, &points)?;
        }
    }
    peak.end();
    let last =
        |of: fn(&Point) -> Option<f64>| points.iter().rev().find_map(of).filter(|_| first_non_finite_step.is_none());
    let recent = &points[points.len().saturating_sub(config.validate_every)..];
    let mean = |of: fn(&Point) -> f64| {
        let mean = recent.iter().map(of).sum::<f64>() / recent.len() as f64;
        Some(mean).filter(|mean| mean.is_finite())
    };
    let bigram_perplexity = text.bigram_perplexity();
    let outcome = Outcome {
        base: base.to_string(),
        seed: *seed,
        status: if first_non_finite_step.is_some() { "diverged" } else { "finished" }.into(),
        first_non_finite_step,
        train_loss: mean(|point| point.train_loss).filter(|_| first_non_finite_step.is_none()),
        val_loss: last(|point| point.val_loss),
        perplexity: last(|point| point.val_loss).map(f64::exp).filter(|perplexity| perplexity.is_finite()),
        bits_per_byte: last(|point| point.val_loss).map(|loss| text.bits_per_byte(loss)),
        val_top1_acc: last(|point| point.val_top1_acc),
        gradient_norm: mean(|point| point.gradient_norm),
        update_ratio: mean(|point| point.update_ratio),
        bigram_perplexity,
        bigram_bits_per_byte: Some(text.bits_per_byte(bigram_perplexity.ln())),
        causal,
        steps: points.len(),
        epochs: points.len() as f64 / text.steps(rows) as f64,
        parameters: language.named().values().map(|variable| variable.elem_count()).sum(),
        vocab_size: text.vocab_size,
        train_tokens_per_s: (predicted > 0).then(|| predicted as f64 / spent.as_secs_f64()),
        peak_bytes: peak.most().ok(),
        corpus_path: config.corpus.display().to_string(),
        machine: Some(machine::machine(
            candle_core::utils::get_num_threads(),
            gpu::of(config.device).unwrap_or_default(),
        )),
    };
    write_losses(folder, &points)?;
    let weights: HashMap<String, Tensor> =
        language.named().into_iter().map(|(name, variable)| (name, variable.as_tensor().clone())).collect();
    let weights = safetensors::serialize(&weights, None).context("the weights could not be written")?;
    write_whole(&folder.join(WEIGHTS), &weights)?;
    // Written last, because its presence means that all other files are complete.
    let mut text = serde_json::to_vec_pretty(&outcome)?;
    text.push(b'\n');
    write_whole(&folder.join(METRICS), &text)?;
    let state = folder.join(STATE);
    if state.exists() {
        std::fs::remove_file(&state).with_context(|| format!("{} could not be removed", state.display()))?;
    }
    Ok(outcome)
}

/// The configuration as YAML, with the hashes of the files that it names in comments. A training is the same training only
/// with the same files.
///
/// # Errors
/// When the file of the weights cannot be read.
pub(super) fn used(config: &TrainConfig, text: &Text) -> Result<String> {
    let mut used = format!("{}# SHA-256 of corpus: {}\n", config.to_yaml()?, text.digest);
    if let Some(path) = &config.weights {
        let digest = digest(path).with_context(|| format!("weights: {} can't be read", path.display()))?;
        used += &format!("# SHA-256 of weights: {digest}\n");
    }
    Ok(used)
}

/// SHA-256 of a regular file.
fn digest(path: &Path) -> io::Result<String> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut part = vec![0; 1 << 20];
    loop {
        match file.read(&mut part)? {
            0 => return Ok(hexadecimal(&hash.finalize())),
            length => hash.update(&part[..length]),
        }
    }
}

/// Creates the folder of a training or shoot-out, writes what it uses to it, and locks that file, so that no other process
/// trains there.
///
/// # Errors
/// When the folder belongs to another training or to another process, or cannot be written to.
pub(super) fn begin(folder: &Path, used: &str) -> Result<File> {
    let file = folder.join("config_used.yaml");
    if !is_same(folder, used)? {
        std::fs::create_dir_all(folder).with_context(|| format!("{} could not be made", folder.display()))?;
        write_whole(&file, used.as_bytes())?;
    }
    let lock = File::open(&file).with_context(|| format!("{} can't be opened", file.display()))?;
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => bail!("another process trains in {}: wait for it", folder.display()),
        // Some file systems have no locks.
        Err(TryLockError::Error(_)) | Ok(()) => {}
    }
    // Temporary files of an interrupted process.
    for entry in std::fs::read_dir(folder).with_context(|| format!("{} can't be read", folder.display()))? {
        let path = entry?.path();
        if is_temporary(&path) && path.is_file() {
            std::fs::remove_file(&path).with_context(|| format!("{} could not be removed", path.display()))?;
        }
    }
    Ok(lock)
}

/// Returns whether a folder holds the training that uses the same. `false` if it holds none.
///
/// # Errors
/// When it holds another training, or that cannot be found out.
pub(super) fn is_same(folder: &Path, used: &str) -> Result<bool> {
    let file = folder.join("config_used.yaml");
    let before = match read_text_limited(&file, SETTINGS_MAX_BYTES) {
        Ok(before) => before,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("{} can't be read", file.display())),
    };
    let keys = |text: &str| text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
    let what = if keys(&before) == keys(used) {
        "with another content of its corpus or weights"
    } else {
        "with another configuration"
    };
    ensure!(
        before == used,
        "{} contains a training {what}: choose another folder with --out, or remove it",
        folder.display()
    );
    Ok(true)
}

/// Returns the result of the training if it has finished.
fn ended(folder: &Path) -> Result<Option<Outcome>> {
    let file = folder.join(METRICS);
    let told = || format!("{} can't be read; remove it to train again", file.display());
    match read_limited(&file, SETTINGS_MAX_BYTES) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text).with_context(told)?)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(told),
    }
}

/// Saves everything that the next steps depend on in one file, so that the saved state is always consistent.
fn save(folder: &Path, used: &str, language: &Language, points: &[Point]) -> Result<()> {
    let mut about = HashMap::from([
        ("points".to_owned(), serde_json::to_string(points)?),
        ("config".to_owned(), hexadecimal(&Sha256::digest(used))),
    ]);
    let state = language.state()?;
    let failed = "the state could not be written";
    let bytes = safetensors::serialize(&state, Some(about.clone())).context(failed)?;
    about.insert(CHECKSUM.to_owned(), checksum(&SafeTensors::deserialize(&bytes).context(failed)?, &about));
    drop(bytes);
    write_whole(&folder.join(STATE), &safetensors::serialize(&state, Some(about)).context(failed)?)
}

/// Name of the checksum in the metadata of a state.
const CHECKSUM: &str = "sha256";

/// SHA-256 of everything in a state: its tensors, and its metadata but the checksum.
fn checksum(state: &SafeTensors, about: &HashMap<String, String>) -> String {
    let mut hash = Sha256::new();
    // A length before each part keeps parts from being taken for one another.
    let mut add = |part: &[u8]| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    for (name, value) in about.iter().filter(|(name, _)| *name != CHECKSUM).collect::<BTreeMap<_, _>>() {
        add(name.as_bytes());
        add(value.as_bytes());
    }
    for (name, tensor) in state.iter().collect::<BTreeMap<_, _>>() {
        add(name.as_bytes());
        add(format!("{:?} {:?}", tensor.dtype(), tensor.shape()).as_bytes());
        add(tensor.data());
    }
    hexadecimal(&hash.finalize())
}

/// Restores the saved state, if there is one, and returns its number of steps.
///
/// # Errors
/// When there is a state that cannot be read, or that was changed. It is not overwritten.
fn resume(folder: &Path, used: &str, language: &mut Language) -> Result<Vec<Point>> {
    let file = folder.join(STATE);
    let told = || format!("{} cannot be resumed; remove the folder to start over", file.display());
    let bytes = match std::fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(told),
    };
    let read = || -> Result<(HashMap<String, Tensor>, Vec<Point>)> {
        let (_, metadata) = SafeTensors::read_metadata(&bytes)?;
        let about = metadata.metadata().as_ref().context("its metadata is missing")?;
        let found = checksum(&SafeTensors::deserialize(&bytes)?, about);
        ensure!(about.get(CHECKSUM) == Some(&found), "its content does not match its checksum");
        let config = hexadecimal(&Sha256::digest(used));
        ensure!(about.get("config") == Some(&config), "it belongs to another configuration");
        let points = serde_json::from_str(about.get("points").context("its steps are missing")?)?;
        Ok((candle_core::safetensors::load_buffer(&bytes, language.model().embedding().device())?, points))
    };
    let (state, points) = read().with_context(told)?;
    language.resume(state, points.len()).with_context(|| file.display().to_string())?;
    Ok(points)
}

/// Writes `loss.csv`, and its curves as SVG and PNG: `loss_curve` over steps, and `loss_by_epoch` with the mean training loss
/// and the last validation loss of each epoch.
fn write_losses(folder: &Path, points: &[Point]) -> Result<()> {
    let mut table = csv::Writer::from_writer(Vec::new());
    for point in points {
        table.serialize(point)?;
    }
    write_whole(&folder.join("loss.csv"), &table.into_inner()?)?;
    let training: Vec<(f64, f64)> = points.iter().map(|point| (point.step as f64, point.train_loss)).collect();
    let validation: Vec<(f64, f64)> =
        points.iter().filter_map(|point| Some((point.step as f64, point.val_loss?))).collect();
    let (mut epoch_training, mut epoch_validation) = (Vec::new(), Vec::new());
    for epoch in points.chunk_by(|a, b| a.epoch == b.epoch) {
        let number = epoch[0].epoch as f64;
        let mean = epoch.iter().map(|point| point.train_loss).sum::<f64>() / epoch.len() as f64;
        epoch_training.push((number, mean));
        epoch_validation.extend(epoch.iter().rev().find_map(|point| Some((number, point.val_loss?))));
    }
    let curves =
        [(report::Over::Steps, training, validation), (report::Over::Epochs, epoch_training, epoch_validation)];
    for (over, training, validation) in curves {
        let plot = report::loss_curve(over, &training, &validation);
        let svg = folder.join(plot.file);
        write_whole(&svg, plot.file_svg().as_bytes())?;
        write_whole(&svg.with_extension("png"), &plot.png()?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layers;

    fn config(corpus: &Path, more: &[&str]) -> TrainConfig {
        let mut given = vec![
            format!("corpus={}", corpus.display()),
            "d_model=16".into(),
            "n_layers=1".into(),
            "n_heads=2".into(),
            "d_mlp=24".into(),
            "vocab_size=280".into(),
            "sequence_length=16".into(),
            "batch_tokens=64".into(),
            "steps=12".into(),
            "validate_every=5".into(),
            "save_every=4".into(),
            "warmup_steps=2".into(),
            "learning_rate=0.01".into(),
            "validation_share=0.1".into(),
        ];
        given.extend(more.iter().map(|more| (*more).to_owned()));
        Layers::new(&TrainConfig::default()).set(&given).resolve().expect("a configuration")
    }

    fn corpus(folder: &Path) -> std::path::PathBuf {
        let file = folder.join("corpus.txt");
        let text: String = (0..120).map(|number| format!("A whale of number {number} swims by.\n")).collect();
        std::fs::write(&file, text).expect("written");
        file
    }

    fn read(config: &TrainConfig) -> Text {
        Text::read(&config.corpus, config.vocab_size, config.sequence_length, config.validation_share, 7)
            .expect("a text")
    }

    /// Interrupted after any step, even while it writes a file, a training resumes from the last saved state.
    #[test]
    fn a_stopped_training_ends_as_an_unbroken_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = config(&corpus(folder.path()), &[]);
        let text = read(&config);
        let unbroken = run(&config, &text, &folder.path().join("unbroken"), |_| ()).expect("an outcome");
        assert_eq!((unbroken.status.as_str(), unbroken.steps), ("finished", 12));
        let losses = |name: &str| std::fs::read_to_string(folder.path().join(name).join("loss.csv")).expect("losses");
        for stop in [1, 4, 6, 11] {
            let name = format!("stopped-{stop}");
            let out = folder.path().join(&name);
            let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                run(&config, &text, &out, |progress| assert!(progress.step < stop, "stopped"))
            }));
            assert!(stopped.is_err() && !out.join(METRICS).exists());
            let ended = run(&config, &text, &out, |_| ()).expect("an outcome");
            let comparable =
                |outcome: &Outcome| Outcome { train_tokens_per_s: None, peak_bytes: None, ..outcome.clone() };
            assert_eq!(comparable(&ended), comparable(&unbroken), "stopped at {stop}");
            assert_eq!(losses(&name), losses("unbroken"));
            assert!(!out.join(STATE).exists());
        }
        let again = run(&config, &text, &folder.path().join("unbroken"), |_| panic!("it is done")).expect("an outcome");
        assert_eq!(again, unbroken);
        let files: std::collections::BTreeSet<String> = std::fs::read_dir(folder.path().join("unbroken"))
            .expect("files")
            .map(|file| file.expect("a file").file_name().to_string_lossy().into_owned())
            .collect();
        let expected = [
            "config.json",
            "config_used.yaml",
            "loss.csv",
            "loss_by_epoch.png",
            "loss_by_epoch.svg",
            "loss_curve.png",
            "loss_curve.svg",
            "metrics.json",
            "model.safetensors",
            "tokenizer.json",
            "validation_ids.txt",
        ];
        assert_eq!(files.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn weights_that_were_trained_can_be_begun_with() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = corpus(folder.path());
        let first = config(&file, &[]);
        let text = read(&first);
        run(&first, &text, &folder.path().join("first"), |_| ()).expect("an outcome");
        let weights = format!("weights={}", folder.path().join("first/model.safetensors").display());
        let mut losses = Vec::new();
        run(&config(&file, &[&weights]), &text, &folder.path().join("second"), |step| losses.push(step.loss))
            .expect("an outcome");
        run(&first, &text, &folder.path().join("third"), |step| losses.push(step.loss)).expect("an outcome");
        assert!(losses[0] < 0.9 * losses[12], "{losses:?}");
        let other = config(&file, &[&weights, "d_mlp=32"]);
        let error = run(&other, &text, &folder.path().join("fourth"), |_| ()).expect_err("another shape");
        assert!(format!("{error:#}").contains("blocks.0.mlp.act._A has shape [24], the model needs [32]"), "{error:#}");
    }

    #[test]
    fn other_configurations_and_torn_states_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = corpus(folder.path());
        let config_of = |more: &[&str]| config(&file, more);
        let text = read(&config_of(&[]));
        let out = folder.path().join("out");
        let stop =
            std::panic::AssertUnwindSafe(|| run(&config_of(&[]), &text, &out, |progress| assert!(progress.step < 6)));
        assert!(std::panic::catch_unwind(stop).is_err());
        let error = run(&config_of(&["learning_rate=0.1"]), &text, &out, |_| ()).expect_err("another").to_string();
        assert!(error.contains("another configuration"), "{error}");
        let state = std::fs::read(out.join(STATE)).expect("a state");
        std::fs::write(out.join(STATE), &state[..state.len() / 2]).expect("torn");
        let error = format!("{:#}", run(&config_of(&[]), &text, &out, |_| ()).expect_err("torn"));
        assert!(error.contains("cannot be resumed; remove the folder"), "{error}");
    }

    #[test]
    fn a_diverged_training_says_so_and_has_no_loss() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = config(&corpus(folder.path()), &["learning_rate=1e30", "warmup_steps=0", "clip_norm=1e30"]);
        let outcome = run(&config, &read(&config), &folder.path().join("out"), |_| ()).expect("an outcome");
        assert_eq!((outcome.status.as_str(), outcome.val_loss, outcome.perplexity), ("diverged", None, None));
        assert!(outcome.first_non_finite_step.is_some_and(|step| step > 1));
    }
}
