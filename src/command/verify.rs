//! `candlepower verify`: whether a model keeps the contract, and where it departs from a reference.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::{
    flags::{Flags, OneModel},
    perplexity::parts,
};
use crate::{
    device::DeviceChoice,
    kernels::inference::{Instructions, Machine},
    model::{self, Engine},
    output,
    runner::{Candidate, Session},
    settings::Settings,
    verify::{Bounds, Reference, Verified, against, tolerance, verify},
};

#[derive(Args)]
pub struct Verify {
    /// A file.gguf, a folder, owner/name[@revision] or owner/name:Q4_K_M of the Hub, llama-mini or synthetic:<shape or config.json>
    #[arg(long)]
    model: String,
    #[command(flatten)]
    settings: Flags<Settings, OneModel>,
    /// Also compare with this variant of the model, such as stock, tuned-f32 or f32
    #[arg(long)]
    against: Option<String>,
    /// The longest prompt, in tokens
    #[arg(long, default_value_t = Bounds::default().longest, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1 << 20))]
    longest: usize,
    /// Seconds for each check; more lengths are tried in more time
    #[arg(long, default_value_t = Bounds::default().check_s)]
    check_seconds: f64,
    /// Distance of logits that counts as equal [default: by the dtype, 0.001 for f32]
    #[arg(long)]
    tolerance: Option<f64>,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub fn run(self) -> Result<ExitCode> {
        for (flag, number) in [("--check-seconds", Some(self.check_seconds)), ("--tolerance", self.tolerance)] {
            ensure!(number.is_none_or(|number| number.is_finite() && number > 0.0), "{flag} must be above 0");
        }
        let given = [self.settings.given(), &[("models", self.model.clone())]].concat();
        let settings = Settings::load(&given)?;
        let of_reference = self.against.as_deref().map(|variant| {
            let loaded = Settings::load(&[given.as_slice(), &parts(variant)].concat());
            loaded.with_context(|| format!("--against={variant}"))
        });
        let of_reference = of_reference.transpose()?;
        Session::new(settings.clone())?;
        let mut all = Vec::new();
        for mut candidate in Candidate::scored(&settings) {
            let bounds = Bounds {
                longest: self.longest,
                check_s: self.check_seconds,
                seed: settings.seed,
                tolerance: self.tolerance.unwrap_or_else(|| tolerance(&candidate.about.dtype)),
            };
            let variant = format!("{} {}", candidate.about.model, candidate.about.variant());
            let mut subject = candidate.load_model()?;
            let contract = verify(&mut *subject.model, &bounds)?;
            let mut references = Vec::new();
            for other in self.others(&settings, of_reference.as_ref(), &candidate)? {
                let (name, mut loaded) = (other.name.clone(), other.load()?);
                references.push(against(&mut *subject.model, (&name, &mut *loaded.model), &bounds)?);
            }
            let verified = Verified { variant, contract, references };
            if !self.json {
                output::print(self.text(&verified));
            }
            all.push(verified);
        }
        if self.json {
            output::print_data(&serde_json::to_string(&all)?);
        }
        Ok(if all.iter().all(Verified::is_right) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// The variants that must give the same logits as a candidate: those with other instruction sets and with fewer threads, where
    /// engine `tuned` has them, and the named one.
    fn others(&self, settings: &Settings, named: Option<&Settings>, of: &Candidate) -> Result<Vec<Other>> {
        let mut others = Vec::new();
        if of.about.engine == Engine::Tuned.to_string() && settings.device == DeviceChoice::Cpu {
            let current = settings.instructions.unwrap_or_else(Instructions::best);
            for instructions in Instructions::ALL.into_iter().filter(|set| set.is_available() && *set != current) {
                let again =
                    Candidate::scored(settings).into_iter().find(|again| again.about.variant() == of.about.variant());
                let again = again.context("the model is not named any more")?;
                others.push(Other {
                    name: format!("{instructions}"),
                    selected: Some((instructions, current)),
                    candidate: again,
                });
            }
            let threads = Candidate::threads_scaling(settings).into_iter();
            let fewer = threads.filter(|scaled| scaled.precision() == of.precision());
            others.extend(fewer.map(|scaled| Other {
                name: format!("{} threads", scaled.about.sizes.get("threads").copied().unwrap_or_default()),
                selected: None,
                candidate: scaled,
            }));
        }
        if let Some(named) = named {
            let candidate = Candidate::scored(named).pop().context("--against names no variant")?;
            others.push(Other { name: candidate.about.variant().to_string(), selected: None, candidate });
        }
        Ok(others)
    }

    /// The result for a person, and the command that repeats the shortest counterexample.
    fn text(&self, verified: &Verified) -> String {
        let Verified { variant, contract, references } = verified;
        let verdict = if verified.is_right() { "keeps the contract" } else { "BREAKS the contract" };
        let mut text = format!("{variant} {verdict}\n\n{contract}");
        text.extend(references.iter().map(Reference::to_string));
        if let Some(longest) = verified.counterexamples().map(|found| found.tokens.len()).max() {
            let against = self.against.as_ref().map(|other| ("against", other.clone()));
            let given = self.settings.given().iter().cloned().chain(against);
            let flags: String = given.map(|(key, value)| format!(" --{} {value}", key.replace('_', "-"))).collect();
            text += &format!("\nAgain: candlepower verify --model {}{flags} --longest {longest}\n", self.model);
        }
        text
    }
}

/// A variant that must give the same logits.
struct Other {
    name: String,
    candidate: Candidate,
    /// Instructions that it is loaded with, and those of all others.
    selected: Option<(Instructions, Instructions)>,
}

impl Other {
    fn load(mut self) -> Result<model::Subject> {
        if let Some((instructions, _)) = self.selected {
            Machine::select(instructions);
        }
        let loaded = self.candidate.load_model();
        if let Some((_, current)) = self.selected {
            Machine::select(current);
        }
        loaded
    }
}
