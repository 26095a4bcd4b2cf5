//! Training of several bases with several seeds on the same tokens, and their leaderboard.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;
use tokenizers::Tokenizer;

use super::{
    Outcome, Progress, Text, TrainConfig, run,
    training::{self, WEIGHTS},
};
use crate::{
    device::DeviceChoice,
    error::caught,
    model::psann::{Base, PsannConfig},
    record::{Guarded, write_whole},
    report::text_table::markdown,
    text::markdown as markdown_text,
};

/// The result of a shoot-out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shootout {
    /// In the order of training.
    pub entries: Vec<Entry>,
}

/// One training, in `summary.json` and `summary.csv`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// Base of the model.
    pub base: String,
    /// Seed of the weights and of the order of the data.
    pub seed: u64,
    /// `finished`, `diverged` or `failed`.
    pub status: String,
    /// Why the training failed or diverged.
    pub reason: Option<String>,
    /// Cross-entropy of the validation part, in nats per token.
    pub val_loss: Option<f64>,
    /// Perplexity of the validation part.
    pub val_ppl: Option<f64>,
    /// Bits per byte of the validation part, which do not depend on the tokenizer.
    pub val_bits_per_byte: Option<f64>,
    /// Share of the validation tokens that have the largest logit.
    pub val_top1_acc: Option<f64>,
    /// Training throughput.
    pub train_tokens_per_s: Option<f64>,
    /// Peak memory in MB.
    pub peak_memory_mb: Option<f64>,
    /// Peak memory in GB if the training ran on a CUDA device.
    pub peak_cuda_mem_gb: Option<f64>,
    /// Trainable parameters.
    pub parameters: Option<usize>,
    /// Perplexity of the validation part under a bigram model of the same tokens.
    pub bigram_ppl: Option<f64>,
    /// Bits per byte of the validation part under the bigram model.
    pub bigram_bits_per_byte: Option<f64>,
    /// True if its loss is that of a causal language model.
    pub causal: Option<bool>,
    /// Norm of the gradient before clipping: the mean over the steps of `train_loss`.
    pub gradient_norm: Option<f64>,
    /// Norm of an update divided by that of the weights: the mean over the steps of `train_loss`.
    pub update_ratio: Option<f64>,
    /// The first step whose loss or gradient was not finite, counted from 1.
    pub first_non_finite_step: Option<usize>,
    /// Share of the questions of `lambada_openai` that greedy decoding answers. `null` for a task that was not asked.
    pub lambada_acc: Option<f64>,
    /// Perplexity of the last words of `lambada_openai`.
    pub lambada_ppl: Option<f64>,
    /// Share of the questions of `hellaswag` whose label is the most likely ending.
    pub hellaswag_acc: Option<f64>,
    /// The same by log-likelihood per character.
    pub hellaswag_acc_norm: Option<f64>,
}

/// Scores of a trained model in tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TaskScores {
    /// See [`Entry::lambada_acc`].
    pub lambada_acc: Option<f64>,
    /// See [`Entry::lambada_ppl`].
    pub lambada_ppl: Option<f64>,
    /// See [`Entry::hellaswag_acc`].
    pub hellaswag_acc: Option<f64>,
    /// See [`Entry::hellaswag_acc_norm`].
    pub hellaswag_acc_norm: Option<f64>,
}

/// A trained model that is scored.
pub struct Trained<'a> {
    /// The configuration of its training.
    pub config: &'a TrainConfig,
    /// The model.
    pub model: PsannConfig,
    /// Its weights.
    pub weights: PathBuf,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
}

impl Entry {
    fn new(base: String, seed: u64, device: DeviceChoice, ended: Result<(Outcome, TaskScores)>) -> Self {
        let (outcome, scores) = match ended {
            Ok((outcome, scores)) => (Ok(outcome), scores),
            Err(error) => (Err(error), TaskScores::default()),
        };
        let reason = outcome.as_ref().err().map(|error| crate::error::one_line(&format!("{error:#}")));
        let outcome = outcome.ok();
        let of = |get: fn(&Outcome) -> Option<f64>| outcome.as_ref().and_then(get);
        Self {
            base,
            seed,
            status: outcome.as_ref().map_or("failed".into(), |outcome| outcome.status.clone()),
            reason: reason.or_else(|| {
                let step = outcome.as_ref()?.first_non_finite_step?;
                Some(format!("the loss or a gradient was not finite at step {step}"))
            }),
            val_loss: of(|outcome| outcome.val_loss),
            val_ppl: of(|outcome| outcome.perplexity),
            val_bits_per_byte: of(|outcome| outcome.bits_per_byte),
            val_top1_acc: of(|outcome| outcome.val_top1_acc),
            train_tokens_per_s: of(|outcome| outcome.train_tokens_per_s),
            peak_memory_mb: of(|outcome| outcome.peak_bytes.map(|bytes| bytes as f64 / 1e6)),
            peak_cuda_mem_gb: of(|outcome| outcome.peak_bytes.map(|bytes| bytes as f64 / 1e9))
                .filter(|_| matches!(device, DeviceChoice::Cuda(_))),
            parameters: outcome.as_ref().map(|outcome| outcome.parameters),
            bigram_ppl: of(|outcome| Some(outcome.bigram_perplexity)),
            bigram_bits_per_byte: of(|outcome| outcome.bigram_bits_per_byte),
            causal: outcome.as_ref().map(|outcome| outcome.causal),
            lambada_acc: scores.lambada_acc,
            lambada_ppl: scores.lambada_ppl,
            hellaswag_acc: scores.hellaswag_acc,
            hellaswag_acc_norm: scores.hellaswag_acc_norm,
            gradient_norm: of(|outcome| outcome.gradient_norm),
            update_ratio: of(|outcome| outcome.update_ratio),
            first_non_finite_step: outcome.as_ref().and_then(|outcome| outcome.first_non_finite_step),
        }
    }
}

/// Trains every base with every seed, each in `runs/<base>_seed<seed>`, and writes `summary.json`, `summary.csv` and
/// `leaderboard.md`. A training that fails or diverges becomes an entry with the reason, and the others continue.
/// Finished trainings are not repeated. `score` scores each model that is finished and causal; an error of it fails the entry.
/// A training that ended an earlier process of the guard is an entry that failed.
///
/// # Errors
/// Returns an error if the folder contains another shoot-out, or a file cannot be written.
pub fn shootout(
    config: &TrainConfig,
    text: &Text,
    folder: &Path,
    guarded: Option<&Guarded>,
    mut progress: impl FnMut(&str, &Progress),
    mut score: impl FnMut(Trained) -> Result<TaskScores>,
) -> Result<Shootout> {
    let trainings = config.bases.iter().flat_map(|base| config.seeds.iter().map(move |seed| (*base, *seed)));
    let of = |(base, seed): (Base, u64)| {
        let name = format!("{base}_seed{seed}");
        (config.only(base, seed), folder.join("runs").join(&name), name)
    };
    // A folder of another shoot-out is refused before anything in it is overwritten.
    for training in trainings.clone() {
        let (config, folder, _) = of(training);
        training::is_same(&folder, &training::used(&config, text)?)?;
    }
    let _lock = training::begin(folder, &training::used(config, text)?)?;
    let mut entries = Vec::new();
    for training in trainings {
        let (config, folder, name) = of(training);
        let ended = caught(|| {
            guarded.map_or(Ok(()), |guarded| guarded.begin(&name))?;
            let outcome = run(&config, text, &folder, |step| progress(&name, step))?;
            let is_scored = outcome.causal && outcome.first_non_finite_step.is_none();
            let trained = || Trained {
                config: &config,
                model: config.model(training.0, text.vocab_size),
                weights: folder.join(WEIGHTS),
                tokenizer: &text.tokenizer,
            };
            let scores = if is_scored { score(trained())? } else { TaskScores::default() };
            Ok((outcome, scores))
        });
        if let Some(guarded) = guarded {
            guarded.clear();
        }
        entries.push(Entry::new(training.0.to_string(), training.1, config.device, ended));
    }
    let shootout = Shootout { entries };
    let mut text = serde_json::to_vec_pretty(&shootout.entries)?;
    text.push(b'\n');
    write_whole(&folder.join("summary.json"), &text)?;
    let mut table = csv::Writer::from_writer(Vec::new());
    for entry in &shootout.entries {
        table.serialize(entry)?;
    }
    write_whole(&folder.join("summary.csv"), &table.into_inner()?)?;
    write_whole(&folder.join("leaderboard.md"), shootout.leaderboard().as_bytes())?;
    Ok(shootout)
}

impl Shootout {
    /// Means over the seeds, lowest validation loss first. Bases with the same loss share a place. Non-causal bases follow the
    /// causal ones, and failed bases are last.
    pub fn leaderboard(&self) -> String {
        let mut bases: Vec<&str> = Vec::new();
        for entry in &self.entries {
            if !bases.contains(&entry.base.as_str()) {
                bases.push(&entry.base);
            }
        }
        let mut lines: Vec<Line> = bases.into_iter().map(|base| self.line(base)).collect();
        lines.sort_by(|a, b| {
            let key = |line: &Line| (line.loss.is_none(), !line.causal);
            key(a).cmp(&key(b)).then(a.loss.unwrap_or(f64::MAX).total_cmp(&b.loss.unwrap_or(f64::MAX)))
        });
        let head = [
            "place",
            "base",
            "val_loss",
            "val_ppl",
            "bits/byte",
            "val_top1_acc",
            "train_tokens_per_s",
            "peak MB",
            "parameters M",
            "seeds",
        ];
        let asked = TASKS.iter().filter(|(_, get, _)| self.entries.iter().any(|entry| get(entry).is_some()));
        let asked: Vec<_> = asked.collect();
        let head = head.iter().copied().chain(asked.iter().map(|(name, ..)| *name));
        let mut rows = vec![head.map(str::to_owned).collect::<Vec<_>>()];
        let number =
            |value: Option<f64>, digits: usize| value.map_or("n/a".to_owned(), |value| format!("{value:.digits$}"));
        let counts = |line: &Line| line.causal && line.loss.is_some();
        for line in &lines {
            let better = lines.iter().filter(|other| counts(other) && other.loss < line.loss).count();
            let mut cells = vec![
                if counts(line) { (better + 1).to_string() } else { "-".into() },
                format!("{}{}", line.base, if line.causal { "" } else { " (not causal)" }),
                number(line.loss, 4),
                number(line.perplexity, 1),
                number(line.bits_per_byte, 3),
                number(line.accuracy, 4),
                number(line.rate, 0),
                number(line.peak_mb, 0),
                number(line.parameters.map(|count| count as f64 / 1e6), 2),
                line.seeds.clone(),
            ];
            cells.extend(asked.iter().map(|(_, get, digits)| number(self.mean(&line.base, *get), *digits)));
            rows.push(cells);
        }
        let mut text = format!("# Leaderboard\n\n{}", markdown(&rows, 2));
        if let Some(bigram) = self.entries.iter().find_map(|entry| entry.bigram_ppl) {
            let bits = self.entries.iter().find_map(|entry| entry.bigram_bits_per_byte);
            let bits = bits.map_or(String::new(), |bits| format!(", {bits:.3} bits per byte"));
            text += &format!("\nA bigram model of the same tokens has a perplexity of {bigram:.1}{bits}.\n");
        }
        if lines.iter().any(|line| !line.causal) {
            text += "\n(not causal): a logit changed when a later token was changed. Such a base sees tokens that it has to \
                predict. Its loss cannot be compared with that of a causal language model, so it is not ranked.\n";
        }
        for (one, other) in self.equals() {
            text += &format!(
                "\n{one} and {other} tie: they have equal losses with every seed, so with these settings they are the same \
                 model.\n"
            );
        }
        for entry in self.entries.iter().filter(|entry| entry.reason.is_some()) {
            let reason = entry.reason.as_deref().unwrap_or_default();
            text += &format!("\n{}, seed {}: {}: {}\n", entry.base, entry.seed, entry.status, markdown_text(reason));
        }
        text
    }

    /// Pairs of bases that are the same model with these settings, such as `respsann` and a `waveresnet` without its temporal
    /// block: equal parameters, and losses that are equal to the last bit with every seed.
    fn equals(&self) -> Vec<(&str, &str)> {
        let mut of: Vec<(&str, Vec<_>)> = Vec::new();
        for entry in &self.entries {
            let result = (entry.seed, entry.parameters, entry.val_loss.map(f64::to_bits));
            match of.iter_mut().find(|(base, _)| *base == entry.base) {
                Some((_, results)) => results.push(result),
                None => of.push((&entry.base, vec![result])),
            }
        }
        let mut found = Vec::new();
        for (number, (one, results)) in of.iter().enumerate() {
            let same = of[number + 1..].iter().filter(|(_, others)| others == results);
            let is_known = results.iter().all(|(_, _, loss)| loss.is_some());
            found.extend(same.filter(|_| is_known).map(|(other, _)| (*one, *other)));
        }
        found
    }

    /// The mean over the finished trainings of a base.
    fn mean(&self, base: &str, get: fn(&Entry) -> Option<f64>) -> Option<f64> {
        let finished = self.entries.iter().filter(|entry| entry.base == base && entry.val_loss.is_some());
        let values: Vec<f64> = finished.filter_map(get).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }

    fn line(&self, base: &str) -> Line {
        let of: Vec<&Entry> = self.entries.iter().filter(|entry| entry.base == base).collect();
        let finished: Vec<&Entry> = of.iter().copied().filter(|entry| entry.val_loss.is_some()).collect();
        let mean = |get| self.mean(base, get);
        Line {
            base: base.to_owned(),
            causal: of.iter().all(|entry| entry.causal != Some(false)),
            loss: mean(|entry| entry.val_loss),
            perplexity: mean(|entry| entry.val_loss).map(f64::exp),
            bits_per_byte: mean(|entry| entry.val_bits_per_byte),
            accuracy: mean(|entry| entry.val_top1_acc),
            rate: mean(|entry| entry.train_tokens_per_s),
            peak_mb: mean(|entry| entry.peak_memory_mb),
            parameters: of.iter().find_map(|entry| entry.parameters),
            seeds: format!("{} of {}", finished.len(), of.len()),
        }
    }
}

/// A column of the leaderboard: its header, its value, and the digits after the point.
type Column = (&'static str, fn(&Entry) -> Option<f64>, usize);

/// The columns of tasks, which are left out if no model has a score.
const TASKS: [Column; 4] = [
    ("lambada acc", |entry| entry.lambada_acc, 4),
    ("lambada ppl", |entry| entry.lambada_ppl, 1),
    ("hellaswag acc", |entry| entry.hellaswag_acc, 4),
    ("hellaswag acc_norm", |entry| entry.hellaswag_acc_norm, 4),
];

struct Line {
    base: String,
    causal: bool,
    loss: Option<f64>,
    /// Of the mean loss.
    perplexity: Option<f64>,
    bits_per_byte: Option<f64>,
    accuracy: Option<f64>,
    rate: Option<f64>,
    peak_mb: Option<f64>,
    parameters: Option<usize>,
    seeds: String,
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs};

    use super::*;
    use crate::config::Layers;

    #[test]
    fn a_training_that_panics_or_ended_a_process_leaves_the_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let corpus = folder.path().join("corpus.txt");
        let lines: String = (0..120).map(|number| format!("A whale of number {number} swims by.\n")).collect();
        fs::write(&corpus, lines).expect("written");
        let given = [
            format!("corpus={}", corpus.display()).as_str(),
            "bases=respsann,transformer,sgrpsann",
            "seeds=1",
            "d_model=16",
            "n_layers=1",
            "n_heads=2",
            "d_mlp=24",
            "vocab_size=280",
            "sequence_length=16",
            "batch_tokens=64",
            "steps=2",
            "warmup_steps=1",
            "validation_share=0.1",
        ]
        .map(str::to_owned);
        let config = Layers::new(&TrainConfig::shootout()).set(&given).resolve().expect("a configuration");
        let text = Text::read(&config.corpus, config.vocab_size, config.sequence_length, config.validation_share, 7)
            .expect("a text");
        let guarded = Guarded {
            started_by: None,
            note: folder.path().join("note.json"),
            since: None,
            ended: BTreeMap::from([("transformer_seed1".to_owned(), "it was ended | by SIGABRT".to_owned())]),
        };
        let progress = |name: &str, _: &Progress| {
            assert!(guarded.note.is_file(), "a training is noted while it runs");
            assert!(name != "respsann_seed1", "this training panics");
        };
        let out = folder.path().join("out");
        let ended = shootout(&config, &text, &out, Some(&guarded), progress, |_| Ok(TaskScores::default()));
        let ended = ended.expect("a summary");
        let reasons = ended.entries.iter().map(|entry| (entry.status.as_str(), entry.reason.as_deref()));
        let expected = [
            ("failed", Some("this training panics")),
            ("failed", Some("it was ended | by SIGABRT")),
            ("finished", None),
        ];
        assert_eq!(reasons.collect::<Vec<_>>(), expected);
        assert!(!out.join("runs/transformer_seed1").exists(), "it is not started");
        assert!(!guarded.note.exists(), "what follows the trainings is not one of them");
        let board = fs::read_to_string(out.join("leaderboard.md")).expect("a leaderboard");
        assert!(board.contains("transformer, seed 1: failed: it was ended \\| by SIGABRT"), "{board}");
    }

    #[test]
    fn bases_that_see_later_tokens_have_no_place_and_failures_come_last() {
        let entry = |base: &str, seed, val_loss: Option<f64>, causal| Entry {
            base: base.into(),
            seed,
            status: if val_loss.is_some() { "finished" } else { "diverged" }.into(),
            reason: val_loss.is_none().then(|| "not finite at step 3".into()),
            val_loss,
            val_ppl: val_loss.map(f64::exp),
            val_bits_per_byte: val_loss.map(|loss| loss / 2.0),
            val_top1_acc: val_loss.map(|_| 0.25),
            train_tokens_per_s: Some(1000.0),
            peak_memory_mb: None,
            peak_cuda_mem_gb: None,
            parameters: Some(1_000_000),
            bigram_ppl: Some(200.0),
            bigram_bits_per_byte: Some(2.5),
            causal,
            lambada_acc: None,
            lambada_ppl: None,
            hellaswag_acc: None,
            hellaswag_acc_norm: None,
            gradient_norm: Some(1.0),
            update_ratio: Some(1e-3),
            first_non_finite_step: None,
        };
        let shootout = Shootout {
            entries: vec![
                entry("sgrpsann", 1, Some(1.0), Some(false)),
                entry("waveresnet", 1, None, Some(true)),
                entry("respsann", 1, Some(4.0), Some(true)),
                entry("respsann", 2, Some(5.0), Some(true)),
                entry("transformer", 1, Some(4.2), Some(true)),
            ],
        };
        let board = shootout.leaderboard();
        let lines: Vec<&str> = board.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
        assert!(
            lines[0].starts_with("| 1") && lines[0].contains("transformer") && lines[0].contains("4.2000"),
            "{board}"
        );
        assert!(lines[1].starts_with("| 2") && lines[1].contains("respsann") && lines[1].contains("4.5000"), "{board}");
        assert!(lines[2].starts_with("| -") && lines[2].contains("sgrpsann (not causal)"), "{board}");
        assert!(
            lines[3].starts_with("| -") && lines[3].contains("waveresnet") && lines[3].contains("0 of 1"),
            "{board}"
        );
        assert!(board.contains("waveresnet, seed 1: diverged: not finite at step 3"), "{board}");
        assert!(board.contains("a perplexity of 200.0, 2.500 bits per byte.\n"), "{board}");
        assert!(!board.contains(" tie") && !board.contains("hellaswag"), "{board}");
        let with_scores =
            |seed, acc| Entry { hellaswag_acc: Some(acc), ..entry("respsann", seed, Some(4.0), Some(true)) };
        let board = Shootout { entries: vec![with_scores(1, 0.25), with_scores(2, 0.5)] }.leaderboard();
        assert!(board.contains("hellaswag acc |") && board.contains("0.3750") && !board.contains("lambada"), "{board}");
        let equal = ["respsann", "waveresnet"].map(|base| entry(base, 1, Some(4.0), Some(true)));
        let board = Shootout { entries: equal.to_vec() }.leaderboard();
        assert_eq!(board.lines().filter(|line| line.starts_with("| 1 ")).count(), 2, "{board}");
        assert!(board.contains("respsann and waveresnet tie"), "{board}");
    }
}
