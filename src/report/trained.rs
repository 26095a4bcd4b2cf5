//! Folders of trainings and shoot-outs in a report: their results in a table, and copies of their files but the weights.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::table::number;
use crate::{
    files::{SETTINGS_MAX_BYTES, read_limited},
    names::PathName,
    record::Machine,
};

/// Name of the file with the result of a training. It exists once the training has ended.
const METRICS: &str = "metrics.json";

/// Name of the file with the ranking of a shoot-out.
const LEADERBOARD: &str = "leaderboard.md";

/// Folder of the trainings of a shoot-out, each in a folder of its own.
const RUNS: &str = "runs";

/// Files of a training or a shoot-out that a report keeps.
const KEPT: [&str; 10] = [
    "config_used.yaml",
    "loss.csv",
    "loss_curve.svg",
    "loss_curve.png",
    "loss_by_epoch.svg",
    "loss_by_epoch.png",
    METRICS,
    "summary.json",
    "summary.csv",
    LEADERBOARD,
];

/// Largest file that is kept.
const FILE_MAX_BYTES: u64 = 64 << 20;

/// A folder of a training or a shoot-out.
#[derive(Debug)]
pub struct Trained {
    /// Name of the folder.
    pub name: PathName,
    /// Machine of the first training that names one.
    pub machine: Option<Machine>,
    /// A header, and a row for each training.
    pub rows: Vec<Vec<String>>,
    /// Path below the folder, and content.
    pub files: Vec<(PathBuf, Vec<u8>)>,
}

/// The part of `metrics.json` that the table shows. Fields that came later are empty in older files.
#[derive(Deserialize)]
struct Metrics {
    base: String,
    seed: u64,
    status: String,
    steps: usize,
    epochs: f64,
    train_loss: Option<f64>,
    val_loss: Option<f64>,
    perplexity: Option<f64>,
    #[serde(default)]
    bits_per_byte: Option<f64>,
    bigram_perplexity: Option<f64>,
    #[serde(default)]
    bigram_bits_per_byte: Option<f64>,
    #[serde(default)]
    gradient_norm: Option<f64>,
    #[serde(default)]
    update_ratio: Option<f64>,
    first_non_finite_step: Option<usize>,
    causal: bool,
    vocab_size: usize,
    parameters: usize,
    train_tokens_per_s: Option<f64>,
    #[serde(default)]
    peak_bytes: Option<u64>,
    #[serde(default)]
    machine: Option<Machine>,
}

const HEADER: [&str; 20] = [
    "training",
    "base",
    "seed",
    "status",
    "steps",
    "epochs",
    "training loss",
    "validation loss",
    "perplexity",
    "bits/byte",
    "bigram perplexity",
    "bigram bits/byte",
    "gradient norm",
    "update ratio",
    "first non-finite step",
    "causal",
    "vocabulary",
    "parameters M",
    "training tok/s",
    "peak MB",
];

impl Metrics {
    fn row(&self, training: &str) -> Vec<String> {
        let small = |value: Option<f64>| value.map_or("n/a".to_owned(), |value| format!("{value:.2e}"));
        let exact = |value: Option<f64>| value.map_or("n/a".to_owned(), |value| format!("{value:.4}"));
        vec![
            training.to_owned(),
            self.base.clone(),
            self.seed.to_string(),
            self.status.clone(),
            self.steps.to_string(),
            number(Some(self.epochs)),
            exact(self.train_loss),
            exact(self.val_loss),
            number(self.perplexity),
            exact(self.bits_per_byte),
            number(self.bigram_perplexity),
            exact(self.bigram_bits_per_byte),
            small(self.gradient_norm),
            small(self.update_ratio),
            self.first_non_finite_step.map_or("none".into(), |step| step.to_string()),
            self.causal.to_string(),
            self.vocab_size.to_string(),
            number(Some(self.parameters as f64 / 1e6)),
            number(self.train_tokens_per_s),
            number(self.peak_bytes.map(|bytes| bytes as f64 / 1e6)),
        ]
    }
}

impl Trained {
    /// Reads a folder of a training or a shoot-out that has ended. `None` if it is neither.
    ///
    /// # Errors
    /// Returns an error if it is unfinished, or one of its files cannot be read.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>> {
        let is_shootout = folder.join(LEADERBOARD).is_file();
        if !is_shootout && !folder.join(METRICS).is_file() {
            if folder.join(KEPT[0]).is_file() {
                bail!("the training in {} has not ended: run its command again first", folder.display());
            }
            return Ok(None);
        }
        let whole = fs::canonicalize(folder).with_context(|| format!("{} can't be read", folder.display()))?;
        let name: PathName = whole.file_name().unwrap_or_default().to_string_lossy().parse()?;
        let mut trained =
            Self { machine: None, rows: vec![HEADER.map(str::to_owned).to_vec()], files: Vec::new(), name };
        trained.keep(&whole, Path::new(""))?;
        if is_shootout {
            for run in runs(&whole)? {
                trained.add(&whole, &Path::new(RUNS).join(&run), run.as_str())?;
            }
        } else {
            let name = trained.name.to_string();
            trained.add_row(&whole.join(METRICS), &name)?;
        }
        Ok(Some(trained))
    }

    /// Adds a training of a shoot-out. One that failed has no result, and its reason is in the leaderboard.
    fn add(&mut self, folder: &Path, below: &Path, name: &str) -> Result<()> {
        self.keep(folder, below)?;
        let metrics = folder.join(below).join(METRICS);
        if metrics.is_file() { self.add_row(&metrics, name) } else { Ok(()) }
    }

    fn add_row(&mut self, file: &Path, name: &str) -> Result<()> {
        let told = || format!("{} can't be read", file.display());
        let text = read_limited(file, SETTINGS_MAX_BYTES).with_context(told)?;
        let metrics: Metrics = serde_json::from_slice(&text).with_context(told)?;
        self.rows.push(metrics.row(name));
        self.machine = self.machine.take().or(metrics.machine);
        Ok(())
    }

    /// Reads the files of a folder that a report keeps.
    fn keep(&mut self, folder: &Path, below: &Path) -> Result<()> {
        for name in KEPT {
            let below = below.join(name);
            let file = folder.join(&below);
            if file.exists() {
                let content = read_limited(&file, FILE_MAX_BYTES);
                self.files.push((below, content.with_context(|| format!("{} can't be read", file.display()))?));
            }
        }
        Ok(())
    }

    /// The loss curves among the files.
    pub(crate) fn curves(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(file, _)| file.as_path()).filter(|file| file.ends_with("loss_curve.svg"))
    }
}

/// Names of the trainings of a shoot-out.
fn runs(folder: &Path) -> Result<Vec<PathName>> {
    let folder = folder.join(RUNS);
    let read = fs::read_dir(&folder).with_context(|| format!("{} can't be read", folder.display()))?;
    let mut names = Vec::new();
    for entry in read {
        names.push(entry?.file_name().to_string_lossy().parse()?);
    }
    names.sort();
    Ok(names)
}
