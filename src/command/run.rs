//! `candlepower run`: one model and a few trials, of one prompt or of all scenarios of a tier.

use std::{cell::RefCell, process::ExitCode, rc::Rc};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::flags::{Flags, OneModel};
use crate::{
    device::Precision,
    error::caught,
    generate::{self, Request},
    measure::memory::{self, HeldBytes},
    model::{self, Engine, ModelSpec},
    output,
    record::{BenchmarkId, Guarded, Record, Status, Subject},
    report::table,
    runner::{self, Candidate, Session},
    scenario::{GENERATION, Generation, Sampling, Tier},
    settings::{EngineChoice, Settings},
    workload::{GenerationWorkload, Outcome, SharedSubject},
};

/// A model that was loaded, and its description in records.
struct Loaded {
    subject: SharedSubject,
    /// Memory that the model holds.
    held: HeldBytes,
    about: Subject,
}

impl Loaded {
    fn workload(&self, scenario: &Generation, settings: &Settings) -> Result<GenerationWorkload> {
        let Settings { seed, device, .. } = *settings;
        GenerationWorkload::of_scenario(self.subject.clone(), self.held.clone(), (scenario, 1), seed, device)
    }
}

fn print_json(record: &Record, tokens: &[u32]) -> Result<()> {
    let mut json = serde_json::to_value(record)?;
    json["tokens"] = tokens.into();
    output::print_data(&json.to_string());
    Ok(())
}

/// The model, the engine and the dtype of a command that takes one of each.
pub fn only_model(settings: &Settings, typed: &str) -> Result<(ModelSpec, Engine, Precision)> {
    let [spec] = settings.models.as_slice() else { bail!("--model={typed}: name one model") };
    let [dtype] = settings.dtype[..] else { bail!("--dtype={}: name one dtype", settings.sources["dtype"].value) };
    let engine = &settings.sources["engine"];
    match settings.variants_for(spec)[..] {
        [(EngineChoice::Own(own), _)] => Ok((spec.clone(), own, dtype)),
        // By default, an embedded model has several.
        [(EngineChoice::Own(own), _), ..] if engine.from == "default" => Ok((spec.clone(), own, dtype)),
        [(EngineChoice::Peer(_), _)] => bail!("--engine={}: name an engine of this program", engine.value),
        _ => bail!("--engine={}: name one engine", engine.value),
    }
}

/// Returns whether the settings name several engines or dtypes, or a peer. By default, an embedded model has several engines, of
/// which the first runs alone.
fn is_side_by_side(settings: &Settings) -> bool {
    let engines = &settings.engine;
    let is_default = settings.sources["engine"].from == "default";
    let has_several = settings.dtype.len() > 1 || engines.len() > 1 || !settings.peer_names().is_empty();
    settings.models.len() == 1 && if is_default { settings.dtype.len() > 1 } else { has_several }
}

/// Largest difference of logits in f32 between a sharded model and the model in one part.
const TOLERANCE: f32 = 1e-4;

#[derive(Args)]
pub struct Run {
    /// A file.gguf, a folder, owner/name[@revision] or owner/name:Q4_K_M of the Hub, llama-mini or synthetic:<shape or config.json>
    #[arg(long, default_value = "llama-mini")]
    model: String,
    #[command(flatten)]
    settings: Flags<Settings, OneModel>,
    /// Run all scenarios of a tier: quick, standard or full
    #[arg(long, value_name = "TIER", conflicts_with_all = [
        "prompt", "prompt_ids", "prompt_tokens", "max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty",
        "stop_at_eos",
    ])]
    suite: Option<Tier>,
    /// Do not keep the records of --suite below the folder of records
    #[arg(long, requires = "suite")]
    no_save: bool,
    /// Prompt as text; the model must have a tokenizer
    #[arg(long, conflicts_with_all = ["prompt_ids", "prompt_tokens"])]
    prompt: Option<String>,
    /// Prompt as token ids, separated by commas
    #[arg(long, value_delimiter = ',', conflicts_with = "prompt_tokens")]
    prompt_ids: Option<Vec<u32>>,
    /// Length of a generated prompt: text if the model has a tokenizer, seeded ids otherwise
    #[arg(long, default_value_t = 256)]
    prompt_tokens: usize,
    /// Tokens to generate
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// Sampling temperature; 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Number of most probable tokens that sampling chooses from [default: all]
    #[arg(long)]
    top_k: Option<usize>,
    /// Least probability of the most probable tokens that sampling chooses from, above 0 and at most 1 [default: 1]
    #[arg(long)]
    top_p: Option<f32>,
    /// Factor against tokens that occurred before; 1 is none [default: 1]
    #[arg(long)]
    repetition_penalty: Option<f32>,
    /// Stop at the model's end-of-sequence token
    #[arg(long)]
    stop_at_eos: bool,
    /// Generations before the measured ones. Several engines or dtypes run in turns, with one at least
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    /// Measured generations; times are their medians
    #[arg(long, default_value_t = 3)]
    trials: usize,
    /// Print each record as one JSON object on a line, with the generated ids as `tokens`. A scenario of --suite that ends its
    /// process has none
    #[arg(long)]
    json: bool,
}

impl Run {
    pub fn run(self) -> Result<ExitCode> {
        // A scenario that ends its process leaves the others. Their records tell the next process where to go on.
        if self.suite.is_some() && !self.no_save {
            return runner::guarded(|guarded| self.measure(guarded));
        }
        self.measure(None)
    }

    fn measure(&self, guarded: Option<Guarded>) -> Result<ExitCode> {
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
        let command = runner::own_command(std::env::args_os(), &settings);
        if is_side_by_side(&settings) {
            return self.run_side_by_side(settings, sampling, command);
        }
        let (spec, engine, dtype) = only_model(&settings, &self.model)?;
        let mut session = Session::new(settings.clone())?.with_command(command.clone()).with_guard(guarded)?;
        // The buffers that measure the limits must not count as the model's memory.
        session.prepare()?;
        let bytes_beside = memory::current_bytes(session.device());
        let parallel = settings.parallel(engine);
        let ranks = &settings.sources["tensor_parallel"];
        ensure!(settings.tensor_parallel.len() < 2, "--tensor-parallel={}: name one number of ranks", ranks.value);
        ensure!(
            engine == Engine::Tuned || settings.tensor_parallel.is_empty(),
            "--tensor-parallel={}: engine {engine} is not sharded, engine tuned on a CPU is",
            ranks.value
        );
        // An engine that is not given is the first of the candidates.
        let mut candidate = Candidate::from_settings(&settings).remove(0);
        let mut loaded = candidate.load_model()?;
        if parallel.ranks > 1 {
            self.check_ranks(&mut loaded, (&spec, dtype), &settings)?;
        }
        let held = HeldBytes::except(session.device(), bytes_beside);
        let about = candidate.about;
        if let Some(tier) = self.suite {
            let loaded = Loaded { subject: Rc::new(RefCell::new(loaded)), held, about };
            return self.run_suite(&mut session, &loaded, tier);
        }
        let prompt = self.prompt_ids(&loaded, settings.seed)?;
        let stop = if self.stop_at_eos { loaded.eos_token_ids.clone() } else { Vec::new() };
        let request = Request { new_tokens: self.max_new_tokens, sampling, seed: settings.seed, stop };

        let loaded = Rc::new(RefCell::new(loaded));
        let workload = GenerationWorkload::new(loaded.clone(), held, vec![prompt], request, settings.device)?;
        let (outcome, around, tokens) = runner::generate(&session, workload, &about.dtype, self.warmup, self.trials)?;
        let record = session.record("run", about, outcome, Some(around));
        if self.json {
            print_json(&record, &tokens)?;
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

    /// Runs one generated prompt on every engine in every dtype that the settings name, in turns.
    fn run_side_by_side(&self, settings: Settings, sampling: Sampling, command: String) -> Result<ExitCode> {
        let others = [
            ("--suite", self.suite.is_some()),
            ("--prompt", self.prompt.is_some()),
            ("--prompt-ids", self.prompt_ids.is_some()),
            ("--stop-at-eos", self.stop_at_eos),
            ("--tensor-parallel", !settings.tensor_parallel.is_empty()),
        ];
        if let Some((flag, _)) = others.into_iter().find(|(_, is_given)| *is_given) {
            bail!("{flag}: name one engine of this program and one dtype, or leave it out");
        }
        let scenario = Generation {
            key: "run",
            prompt_tokens: self.prompt_tokens,
            new_tokens: self.max_new_tokens,
            sampling,
            tier: Tier::Quick,
            against: None,
            purpose: "a prompt on several engines",
        };
        let candidates = Candidate::from_settings(&settings);
        let session = Session::new(settings)?.with_command(command.clone());
        let records = runner::side_by_side(&session, &scenario, candidates, self.warmup, self.trials)?;
        if self.json {
            for record in &records {
                output::print_data(&serde_json::to_string(record)?);
            }
        } else {
            for table in table::tables(records.iter()) {
                output::print(table.terminal());
            }
            output::print_line(format_args!("\nrepeat: {command}"));
        }
        let mut code = ExitCode::SUCCESS;
        for record in records.iter().filter(|record| record.status != Status::Measured) {
            output::report(format_args!("error: {}: {}", record.id, record.reason.as_deref().unwrap_or_default()));
            code = ExitCode::FAILURE;
        }
        Ok(code)
    }

    /// Compares the logits of a sharded model with those of the model in one part.
    fn check_ranks(
        &self,
        loaded: &mut model::Subject,
        (spec, dtype): (&ModelSpec, Precision),
        settings: &Settings,
    ) -> Result<()> {
        let prompt = self.prompt_ids(loaded, settings.seed)?;
        let mut whole = model::load(spec, Engine::Tuned, dtype, settings.device, settings.seed)?;
        let apart = model::apart(loaded.model.as_mut(), whole.model.as_mut(), &prompt)?;
        let ranks = &settings.sources["tensor_parallel"].value;
        output::report(format_args!(
            "logits of {ranks} ranks: at most {apart:.1e} from those of the model in one part"
        ));
        // Other dtypes round the addends of the ranks.
        ensure!(
            dtype != Precision::F32 || apart <= TOLERANCE,
            "--tensor-parallel={ranks}: the logits are up to {apart:.1e} from those of the model in one part, more than \
             {TOLERANCE:.0e}"
        );
        Ok(())
    }

    /// Runs every scenario of a tier. One that fails or panics becomes a record with the reason, and the others run. So does one
    /// that ended an earlier process of the guard.
    fn run_suite(&self, session: &mut Session, loaded: &Loaded, tier: Tier) -> Result<ExitCode> {
        let mut records = Vec::new();
        for scenario in GENERATION.iter().filter(|scenario| scenario.tier <= tier) {
            let id = BenchmarkId::new(scenario.key, &loaded.about).to_string();
            if let Some(record) = session.done_before(&id) {
                records.push(record.clone());
                continue;
            }
            session.note(scenario.key, &loaded.about);
            let ran = caught(|| {
                let workload = loaded.workload(scenario, session.settings())?;
                runner::generate(session, workload, &loaded.about.dtype, self.warmup, self.trials)
            });
            let (outcome, around, tokens) = match ran {
                Ok((outcome, around, tokens)) => (outcome, Some(around), tokens),
                Err(error) => (Outcome::failed(error), None, Vec::new()),
            };
            let mut record = session.record(scenario.key, loaded.about.clone(), outcome, around);
            if !self.no_save {
                session.append(&mut record)?;
            }
            if self.json {
                print_json(&record, &tokens)?;
            }
            match (&record.reason, record.status) {
                (Some(reason), Status::Excluded) => {
                    output::report(format_args!("{}: excluded: {reason}", record.id));
                }
                (Some(reason), _) => output::report(format_args!("error: {}: {reason}", record.id)),
                (None, _) => {}
            }
            records.push(record);
        }
        if !self.json {
            for table in table::tables(records.iter()) {
                output::print(table.terminal());
            }
            if let Some(path) = session.records_path() {
                output::print_line(format_args!("Records: {}", path.display()));
            }
        }
        let has_failed = records.iter().any(|record| record.status == Status::Failed);
        Ok(if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn prompt_ids(&self, loaded: &model::Subject, seed: u64) -> Result<Vec<u32>> {
        if let Some(ids) = &self.prompt_ids {
            return Ok(ids.clone());
        }
        match &self.prompt {
            Some(text) => {
                let tokenizer = loaded.tokenizer_for("--prompt");
                generate::encode(tokenizer.context("use --prompt-ids or --prompt-tokens")?, text)
            }
            None => {
                generate::check_lengths(loaded.model.as_ref(), self.prompt_tokens, self.max_new_tokens)?;
                generate::prompt_ids(loaded.tokenizer.as_ref(), loaded.model.vocab_size(), self.prompt_tokens, seed)
            }
        }
    }
}
