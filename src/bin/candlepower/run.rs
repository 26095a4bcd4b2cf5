//! `candlepower run`: one model, one prompt, a few trials.

use std::{cell::RefCell, process::ExitCode, rc::Rc};

use anyhow::{Context, Result, bail, ensure};
use candlepower::{
    generate::{self, Request},
    measure::memory,
    model, output,
    report::table,
    runner::{self, Candidate, Session},
    scenario::Sampling,
    settings::Settings,
    workload::GenerationWorkload,
};
use clap::Args;

use crate::flags::{Flags, Select};

/// The settings of one generation with one model.
pub struct OneModel;

impl Select for OneModel {
    fn takes(key: &str) -> bool {
        !["models", "tier", "skew", "out", "pairing"].contains(&key)
    }
}

#[derive(Args)]
pub struct Run {
    /// llama-mini, synthetic:<shape>, hub:<owner>/<name>[@revision] or path:<folder>
    #[arg(long, default_value = "llama-mini")]
    model: String,
    #[command(flatten)]
    settings: Flags<Settings, OneModel>,
    /// Prompt as text; the model must have a tokenizer
    #[arg(long, conflicts_with_all = ["prompt_ids", "prompt_tokens"])]
    prompt: Option<String>,
    /// Prompt as token ids, separated by commas
    #[arg(long, value_delimiter = ',', conflicts_with = "prompt_tokens")]
    prompt_ids: Option<Vec<u32>>,
    /// Length of a generated prompt: text if the model has a tokenizer, seeded ids otherwise
    #[arg(long, default_value_t = 256)]
    prompt_tokens: usize,
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// Sampling temperature; 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    #[arg(long)]
    top_k: Option<usize>,
    #[arg(long)]
    top_p: Option<f32>,
    #[arg(long)]
    repetition_penalty: Option<f32>,
    /// Stop at the model's end-of-sequence token
    #[arg(long)]
    stop_at_eos: bool,
    /// Generations before the measured ones
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    /// Measured generations; times are their medians
    #[arg(long, default_value_t = 3)]
    trials: usize,
    /// Print the record as one JSON object, with the generated ids as `tokens`
    #[arg(long)]
    json: bool,
}

impl Run {
    pub fn run(self) -> Result<ExitCode> {
        let settings = Settings::load(&[self.settings.given(), &[("models", self.model.clone())]].concat())?;
        let sampling = Sampling {
            repetition_penalty: self.repetition_penalty,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
        };
        sampling.validate()?;
        ensure!(self.trials > 0, "--trials=0: it must be at least 1");
        ensure!(
            self.warmup.checked_add(self.trials).is_some(),
            "--warmup and --trials: their sum is too large to count"
        );
        let [spec] = settings.models.as_slice() else { bail!("--model={}: name one model", self.model) };
        let engine = match settings.engines_for(spec)[..] {
            [engine] => engine,
            // By default, an embedded model has several.
            [engine, ..] if settings.sources["engine"].from == "default" => engine,
            _ => bail!("--engine={}: name one engine", settings.sources["engine"].value),
        };
        let command = runner::own_command(std::env::args_os(), &settings);
        let session = Session::new(settings.clone())?.with_command(command.clone());
        // The buffers that measure the limits must not count as the model's memory.
        session.prepare()?;
        let bytes_beside = memory::current_bytes(session.device());
        let loaded = model::load(spec, engine, settings.dtype, settings.device, settings.seed)?;
        let prompt = self.prompt_ids(&loaded, settings.seed)?;
        let stop = if self.stop_at_eos { loaded.eos_token_ids.clone() } else { Vec::new() };
        let request = Request { new_tokens: self.max_new_tokens, sampling, seed: settings.seed, stop };
        // An engine that is not given is the first of the candidates.
        let mut candidate = Candidate::from_settings(&settings).remove(0);
        candidate.learn(&loaded);

        let loaded = Rc::new(RefCell::new(loaded));
        let workload = GenerationWorkload::new(loaded.clone(), bytes_beside, prompt, request, settings.device)?;
        let (outcome, around, tokens) = runner::generate(&session, workload, self.warmup, self.trials)?;
        let record = session.record("run", candidate.about, outcome, Some(around));
        if self.json {
            let mut json = serde_json::to_value(&record)?;
            json["tokens"] = tokens.into();
            output::print_data(&json.to_string());
            return Ok(ExitCode::SUCCESS);
        }
        for table in table::tables([&record].into_iter()) {
            output::print(table.terminal());
        }
        if let Some(tokenizer) = &loaded.borrow().tokenizer {
            let text = tokenizer.decode(&tokens, true);
            let text = text.map_err(|error| anyhow::anyhow!("the tokens cannot be decoded: {error}"))?;
            output::print_line(format_args!("\n{text}"));
        }
        output::print_line(format_args!("\nrepeat: {command}"));
        Ok(ExitCode::SUCCESS)
    }

    fn prompt_ids(&self, loaded: &model::Subject, seed: u64) -> Result<Vec<u32>> {
        if let Some(ids) = &self.prompt_ids {
            return Ok(ids.clone());
        }
        let tokenizer = loaded.tokenizer.as_ref();
        match &self.prompt {
            Some(text) => {
                let tokenizer = tokenizer.with_context(|| {
                    format!("{} has no tokenizer: use --prompt-ids or --prompt-tokens", loaded.source)
                })?;
                generate::encode(tokenizer, text)
            }
            None => {
                generate::check_lengths(loaded.model.as_ref(), self.prompt_tokens, self.max_new_tokens)?;
                generate::prompt_ids(tokenizer, loaded.model.vocab_size(), self.prompt_tokens, seed)
            }
        }
    }
}
