//! `candlepower verify`: whether a model keeps the contract, and where it departs from a reference.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    flags::{Flags, OneModel},
    perplexity::parts,
};
use crate::{
    output,
    runner::{Candidate, Session},
    settings::Settings,
    verify::{Bounds, Reference, Verification, against, tolerance, verify},
};

#[derive(Args)]
pub struct Verify {
    /// A file.gguf, a folder, owner/name[@revision] or owner/name:Q4_K_M of the Hub, llama-mini or synthetic:<shape>
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

/// The verified variants of a model.
#[derive(Serialize, JsonSchema)]
struct Verified {
    /// Model, engine, dtype and device.
    variant: String,
    /// The checks of the contract.
    contract: Verification,
    /// The comparison with a reference; `null` if none was named.
    reference: Option<Reference>,
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
        for mut candidate in Candidate::scored(&settings)? {
            let bounds = Bounds {
                longest: self.longest,
                check_s: self.check_seconds,
                seed: settings.seed,
                tolerance: self.tolerance.unwrap_or(tolerance(candidate.precision())),
            };
            let variant = format!("{} {}", candidate.about.model, candidate.about.variant());
            let mut subject = candidate.load_model()?;
            let contract = verify(&mut *subject.model, &bounds)?;
            let reference = of_reference.as_ref().map(|settings| {
                let mut other = Candidate::scored(settings)?.pop().context("--against names no variant")?;
                let mut loaded = other.load_model()?;
                against(&mut *subject.model, (&other.about.variant().to_string(), &mut *loaded.model), &bounds)
            });
            let verified = Verified { variant, contract, reference: reference.transpose()? };
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

    /// The result for a person, and the command that repeats the shortest counterexample.
    fn text(&self, verified: &Verified) -> String {
        let Verified { variant: name, contract, reference } = verified;
        let verdict = if verified.is_right() { "keeps the contract" } else { "BREAKS the contract" };
        let mut text = format!("{name} {verdict}\n\n{contract}");
        text.extend(reference.as_ref().map(Reference::to_string));
        let of_checks = contract.checks.iter().filter_map(|check| check.counterexample.as_ref());
        let of_reference = reference.iter().filter_map(|reference| reference.parts_at.as_ref());
        if let Some(longest) = of_checks.chain(of_reference).map(|found| found.tokens.len()).max() {
            let against = self.against.as_ref().map(|other| ("against", other.clone()));
            let given = self.settings.given().iter().cloned().chain(against);
            let flags: String = given.map(|(key, value)| format!(" --{} {value}", key.replace('_', "-"))).collect();
            text += &format!("\nAgain: candlepower verify --model {}{flags} --longest {longest}\n", self.model);
        }
        text
    }
}

impl Verified {
    fn is_right(&self) -> bool {
        let parts = self.reference.as_ref().is_some_and(|reference| reference.parts_at.is_some());
        self.contract.is_right() && !parts
    }
}
