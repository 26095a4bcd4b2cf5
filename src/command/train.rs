//! `candlepower train` and `candlepower shootout`: train language models on a text.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::flags::Flags;
use crate::{
    config::Layers,
    model::{Subject, psann::PsannLm},
    output, progress,
    quality::{self, Questions, Task},
    record::Guarded,
    runner::{end_with_guard, guarded, set_threads, set_up_training},
    train::{self, Progress, TaskScores, Text, TrainConfig, Trained},
};

#[derive(Args)]
struct Configuration {
    /// YAML file; its keys are the flags below, with underscores
    #[arg(long)]
    config: Option<PathBuf>,
    /// Key of the file and its value; overrides the file and can be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    keys: Flags<TrainConfig>,
    /// Number of CPU threads
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

impl Configuration {
    fn read(&self, defaults: TrainConfig, guarded: Option<&Guarded>) -> Result<(TrainConfig, Text)> {
        set_up_training();
        set_threads(self.threads.map(usize::from))?;
        if guarded.is_some() {
            end_with_guard().context("a thread could not be started")?;
        }
        let mut layers = Layers::new(&defaults);
        if let Some(file) = &self.config {
            layers = layers.yaml_file(file);
        }
        let config = layers.set(&self.set).flags(self.keys.given()).resolve()?;
        config.check()?;
        config.device.open()?;
        let TrainConfig { vocab_size, sequence_length, validation_share, .. } = config;
        let seed = config.seeds.first().copied().unwrap_or_default();
        let text =
            Text::read(&config.corpus, vocab_size, sequence_length, validation_share, seed).context("--corpus")?;
        Ok((config, text))
    }
}

#[derive(Args)]
pub struct Train {
    #[command(flatten)]
    configuration: Configuration,
    /// Folder of the training; if training was interrupted, the same command resumes it
    #[arg(long, default_value = "target/candlepower/train")]
    out: PathBuf,
}

impl Train {
    pub fn run(self) -> Result<ExitCode> {
        let (config, text) = self.configuration.read(TrainConfig::default(), None)?;
        let bar = bar();
        let ended = train::run(&config, &text, &self.out, |step| show(&bar, "", step));
        bar.finish_and_clear();
        let outcome = ended?;
        let folder = self.out.display();
        if let Some(step) = outcome.first_non_finite_step {
            output::report(format_args!(
                "error: the training diverged: the loss or a gradient was not finite at step {step}; lower learning_rate or clip_norm ({folder}/loss.csv has the earlier steps)"
            ));
            return Ok(ExitCode::FAILURE);
        }
        let number = |value: Option<f64>| value.map_or("n/a".into(), |value| format!("{value:.3}"));
        let (steps, epochs, parameters) = (outcome.steps, outcome.epochs, outcome.parameters);
        output::print_line(format_args!("{steps} steps, {epochs:.2} epochs, {parameters} parameters"));
        let (training, validation) = (number(outcome.train_loss), number(outcome.val_loss));
        output::print_line(format_args!("training loss {training}, validation loss {validation}"));
        let (perplexity, bigram) = (number(outcome.perplexity), outcome.bigram_perplexity);
        output::print_line(format_args!(
            "validation perplexity {perplexity} per token, {} bits per byte; a bigram model of the same tokens has a \
             perplexity of {bigram:.3}, {} bits per byte",
            number(outcome.bits_per_byte),
            number(outcome.bigram_bits_per_byte)
        ));
        if !outcome.causal {
            output::print_line(
                "This model is not causal: it sees later tokens, so its loss cannot be compared with that of a language model.",
            );
        }
        output::print_line(format_args!("Files: {folder}"));
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Args)]
pub struct Shootout {
    #[command(flatten)]
    configuration: Configuration,
    /// Folder of the shoot-out; if it was interrupted, the same command resumes it
    #[arg(long, default_value = "target/candlepower/shootout")]
    out: PathBuf,
    /// Score each trained model in the tasks lambada_openai and hellaswag
    #[arg(long, requires = "data")]
    eval: bool,
    /// Folder with a file <task>.jsonl for each task
    #[arg(long, requires = "eval")]
    data: Option<PathBuf>,
    /// Most questions of each task
    #[arg(long, default_value_t = 256, requires = "eval")]
    limit: usize,
}

impl Shootout {
    pub fn run(self) -> Result<ExitCode> {
        guarded(|guarded| self.train(guarded.as_ref()))
    }

    fn train(&self, guarded: Option<&Guarded>) -> Result<ExitCode> {
        // A file of questions that cannot be read is found before hours of training.
        let read = |folder: &PathBuf| {
            let questions = |task: Task| Ok((task, task.read(folder, self.limit)?));
            ["lambada_openai", "hellaswag"].iter().map(|name| questions(name.parse()?)).collect::<Result<Vec<_>>>()
        };
        let tasks = self.data.as_ref().map(read).transpose()?.unwrap_or_default();
        let (config, text) = self.configuration.read(TrainConfig::shootout(), guarded)?;
        let bar = bar();
        let progress = |name: &str, step: &Progress| show(&bar, name, step);
        let ended = train::shootout(&config, &text, &self.out, guarded, progress, |trained| scores(trained, &tasks));
        bar.finish_and_clear();
        let shootout = ended?;
        output::print_line(shootout.leaderboard());
        output::print_line(format_args!("Files: {}", self.out.display()));
        let failed = shootout.entries.iter().filter(|entry| entry.reason.is_some()).count();
        if failed > 0 {
            let all = shootout.entries.len();
            output::report(format_args!(
                "error: {failed} of {all} trainings failed; see the leaderboard for the reasons"
            ));
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The scores of a trained model in the tasks.
fn scores(trained: Trained, tasks: &[(Task, Questions)]) -> Result<TaskScores> {
    let mut scores = TaskScores::default();
    if tasks.is_empty() {
        return Ok(scores);
    }
    let Trained { config, model, weights, tokenizer } = trained;
    let loaded = PsannLm::load(&model, config.dtype, &weights, &config.device.open()?)?;
    let source = weights.display().to_string();
    let (model, tokenizer) = (Box::new(loaded), Some(tokenizer.clone()));
    let mut subject = Subject {
        model,
        source,
        tokenizer,
        without_tokenizer: None,
        eos_token_ids: Vec::new(),
        formats: BTreeMap::new(),
    };
    for (task, questions) in tasks {
        let result = quality::evaluate(task.name(), *task, questions, &mut subject, |_| {})?;
        match result.acc_norm {
            Some(acc_norm) => (scores.hellaswag_acc, scores.hellaswag_acc_norm) = (Some(result.acc), Some(acc_norm)),
            None => (scores.lambada_acc, scores.lambada_ppl) = (Some(result.acc), result.perplexity),
        }
    }
    Ok(scores)
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg} {eta}");
    let bar = progress::shown(ProgressBar::new(0));
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn show(bar: &ProgressBar, name: &str, step: &Progress) {
    bar.set_length(step.steps as u64);
    bar.set_position(step.step as u64);
    bar.set_prefix(name.to_owned());
    bar.set_message(format!("loss {:.3}, {:.0} tok/s", step.loss, step.tokens_per_s));
    if let Some((loss, bits_per_byte)) = step.validation {
        let name = if name.is_empty() { String::new() } else { format!("{name}: ") };
        let line = format!(
            "{name}step {}: validation loss {loss:.4}, perplexity {:.2}, {bits_per_byte:.3} bits per byte",
            step.step,
            loss.exp()
        );
        output::report(line);
    }
}
