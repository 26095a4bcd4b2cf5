//! `candlepower why`: where the time of a generation or of a training goes, and what would make it faster.

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::Value;

use super::{
    duel::duration,
    flags::{Flags, OneModel},
    run::only_model,
};
use crate::{
    device::{DeviceChoice, Precision},
    model::{CausalLm, Engine, ModelSpec},
    output, progress,
    recommend::{self, Contest, Ended, Goal, Ratio},
    record::{self, GLIBC_TUNABLES},
    runner::{Candidate, Catalogue, Session, Target},
    settings::Settings,
    text,
    why::{Advice, Advised, Beside, Explanation, Lengths, Trace},
};

/// Makes glibc keep freed memory, so that the kernel need not map it again. See the guide's methodology.
const KEEP_FREED: &str = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736:glibc.malloc.hugetlb=1";

#[derive(Args)]
pub struct Why {
    /// A training or a combination of the sweep whose step is explained in place of a generation: the beginning of its id
    #[arg(conflicts_with_all = ["model", "prompt_tokens", "new_tokens", "advice"])]
    benchmark: Option<String>,
    /// A file.gguf, a folder, owner/name[@revision] or owner/name:Q4_K_M of the Hub, llama-mini or synthetic:<shape or config.json>
    #[arg(long, default_value = "llama-mini")]
    model: String,
    #[command(flatten)]
    settings: Flags<Settings, OneModel>,
    /// Length of the prompt
    #[arg(long, default_value_t = Lengths::default().prompt_tokens)]
    prompt_tokens: usize,
    /// Tokens that are generated after it
    #[arg(long, default_value_t = Lengths::default().new_tokens)]
    new_tokens: usize,
    /// Generations that are traced; each has one beside it that is not
    #[arg(long, default_value_t = Lengths::default().rounds, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1000))]
    rounds: usize,
    /// Time for measuring what other settings would change, such as 30s or 5m; 0s measures nothing
    #[arg(long, value_parser = duration_or_none, default_value = "60s")]
    advice: Duration,
    /// An engine whose parts stand beside these, measured in turns, or a file that --json wrote before a change
    #[arg(long, value_name = "ENGINE|FILE")]
    against: Option<String>,
    /// File for the spans, in the format of Chrome's trace viewer and Perfetto
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

/// As [`duration`], or no time.
fn duration_or_none(text: &str) -> Result<Duration, String> {
    if text == "0s" { Ok(Duration::ZERO) } else { duration(text) }
}

impl Why {
    pub fn run(self) -> Result<ExitCode> {
        let found = match &self.benchmark {
            Some(id) => self.steps(id)?,
            None => self.generation()?,
        };
        match self.json {
            true => output::print_data(&serde_json::to_string(&found)?),
            false => output::print(&found),
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Explains the steps of the one benchmark whose id begins so.
    fn steps(&self, id: &str) -> Result<Advised> {
        let target = Target::of_scenario(record::group(id))
            .with_context(|| format!("'{}' names no benchmark: `cargo bench -- --list` shows all", text::line(id)))?;
        target.set_up();
        let session = Session::new(Settings::load(self.settings.given())?)?;
        let benchmark = Catalogue::new(&session).only(id)?;
        let trace = Trace::start()?;
        let mut work = benchmark.prepare()?;
        let dtype = benchmark.subject().dtype;
        let against = self.earlier()?;
        let (explanation, spans) = trace.explain_steps(&mut *work, self.rounds, (session.device(), &dtype))?;
        self.keep(&spans)?;
        Ok(Advised { variant: benchmark.id().to_string(), explanation, advice: Vec::new(), against })
    }

    /// Writes the spans to the file that the user named, if any.
    fn keep(&self, spans: &Value) -> Result<()> {
        match &self.trace {
            Some(file) => record::write_whole(file, spans.to_string().as_bytes()),
            None => Ok(()),
        }
    }

    fn generation(&self) -> Result<Advised> {
        let given = [self.settings.given(), &[("models", self.model.clone())]].concat();
        let settings = Settings::load(&given)?;
        let (spec, engine, dtype) = only_model(&settings, &self.model)?;
        ensure!(
            settings.tensor_parallel.is_empty(),
            "--tensor-parallel: the parts of a sharded model run beside each other"
        );
        let other = self.against.as_ref().filter(|name| Engine::ALL.iter().any(|engine| engine.to_string() == **name));
        let earlier = if other.is_none() { self.earlier()? } else { None };
        // Sets the number of threads.
        Session::new(settings.clone())?;
        let trace = Trace::start()?;
        let lengths = Lengths { prompt_tokens: self.prompt_tokens, new_tokens: self.new_tokens, rounds: self.rounds };
        let (mut explanations, spans, variant) = {
            let mut candidates = vec![Candidate::from_settings(&settings).remove(0)];
            if let Some(name) = other {
                let settings = Settings::load(&[given.as_slice(), &[("engine", name.clone())]].concat())?;
                only_model(&settings, &self.model)?;
                candidates.push(Candidate::from_settings(&settings).remove(0));
            }
            let mut loaded = candidates.iter_mut().map(Candidate::load_model).collect::<Result<Vec<_>>>()?;
            let models = loaded.iter_mut().zip(&candidates);
            let mut models: Vec<(&mut dyn CausalLm, &str)> = models
                .map(|(loaded, candidate)| (loaded.model.as_mut() as _, candidate.about.dtype.as_str()))
                .collect();
            let (explanations, spans) = trace.explain_in(&mut models, &lengths)?;
            let about = &candidates[0].about;
            (explanations.into_iter(), spans, format!("{} {}", about.model, about.variant()))
        };
        self.keep(&spans)?;
        let explanation = explanations.next().context("no model was explained")?;
        let of_other = other.zip(explanations.next());
        let against = of_other.map(|(name, explanation)| Beside { name: name.clone(), explanation }).or(earlier);
        let advice = self.tried(&settings, &spec, (engine, dtype), &explanation)?;
        Ok(Advised { variant, explanation, advice, against })
    }

    /// Reads the file that --against names, if any.
    fn earlier(&self) -> Result<Option<Beside>> {
        let Some(file) = &self.against else { return Ok(None) };
        let Beside { name, explanation } =
            Beside::read(Path::new(file)).context("--against names neither an engine nor an explanation")?;
        Ok(Some(Beside { name: format!("{name}, {file}"), explanation }))
    }

    /// Other settings, each measured in turns with those in force.
    fn tried(
        &self,
        settings: &Settings,
        spec: &ModelSpec,
        current: (Engine, Precision),
        explanation: &Explanation,
    ) -> Result<Vec<Advice>> {
        if self.advice.is_zero() {
            return Ok(Vec::new());
        }
        let program = env::current_exe().context("the path of this program is unknown")?;
        let logs = tempfile::tempdir().context("a folder for messages could not be made")?;
        let holder = recommend::values(settings, self.settings.given(), spec, current);
        let changes = changes(settings, spec, current, explanation);
        let (end, mut advice, mut doubts) = (Instant::now() + self.advice, Vec::new(), Vec::new());
        for (place, change) in changes.iter().enumerate() {
            let _line = progress::live(format_args!("trying {}", change.name()));
            let mut challenger = holder.clone();
            let variables: Vec<(&str, &str)> = match change {
                Change::Setting(key, value) => {
                    challenger.insert(key, value.clone());
                    Vec::new()
                }
                Change::Variable(name, value) => vec![(name, value)],
            };
            let contest = Contest { goal: Goal::Latency, program: &program, logs: logs.path(), variables: &variables };
            // Those that come first are the likeliest to help.
            let left = end.saturating_duration_since(Instant::now());
            let time = if place + 1 == changes.len() { left } else { left / 2 };
            let (ratio, reason) = match contest.measure([&holder, &challenger], time, &mut doubts)? {
                Ended::Measured(ratio) => (Some(ratio), None),
                Ended::HolderFailed(reason) | Ended::ChallengerFailed(reason) | Ended::OutOfTime(reason) => {
                    (None, Some(reason))
                }
            };
            advice.push(Advice { change: change.name(), ratio, reason });
        }
        advice.sort_by(|a, b| {
            let ratio = |advice: &Advice| advice.ratio.map_or(f64::INFINITY, |ratio: Ratio| ratio.ratio);
            ratio(a).total_cmp(&ratio(b))
        });
        Ok(advice)
    }
}

/// Another way to run the model.
enum Change {
    Setting(&'static str, String),
    Variable(&'static str, &'static str),
}

impl Change {
    fn name(&self) -> String {
        match self {
            Self::Setting(key, value) => format!("--{} {value}", key.replace('_', "-")),
            Self::Variable(name, value) => format!("{name}={}", text::shell(value)),
        }
    }
}

/// The changes that are worth a measurement: the other engines, the dtypes that read less, fewer threads where reading bounds, and the allocator's
/// settings where the kernel maps many pages.
fn changes(
    settings: &Settings,
    spec: &ModelSpec,
    (engine, dtype): (Engine, Precision),
    explanation: &Explanation,
) -> Vec<Change> {
    let on_cpu = settings.device == DeviceChoice::Cpu;
    let engines = match engine {
        Engine::Tuned => vec![],
        Engine::Stock if on_cpu => vec![Engine::Tuned, Engine::StockContext],
        Engine::Stock | Engine::StockContext => vec![Engine::Tuned],
    };
    let mut changes = Vec::new();
    if explanation.maps_many_pages() && env::var_os(GLIBC_TUNABLES).is_none() {
        changes.push(Change::Variable(GLIBC_TUNABLES, KEEP_FREED));
    }
    changes.extend(engines.into_iter().map(|engine| Change::Setting("engine", engine.to_string())));
    let is_narrower = |other: &Precision| match other.is_quantised() {
        true => !dtype.is_quantised(),
        false => other.dtype().size_in_bytes() < dtype.dtype().size_in_bytes(),
    };
    let narrower = recommend::dtypes(settings, spec, engine).into_iter().filter(is_narrower);
    changes.extend(narrower.map(|dtype| Change::Setting("dtype", dtype.to_string())));
    let threads = settings.threads_in_force();
    if on_cpu && threads > 1 {
        changes.push(Change::Setting("threads", (threads / 2).to_string()));
    }
    changes
}
