//! `candlepower MODEL`: how fast a model is on its engines, in about a minute and one table.

use std::{collections::BTreeSet, process::ExitCode, time::Duration};

use anyhow::{Result, bail, ensure};
use clap::Args;

use super::{
    duel::duration,
    flags::{Flags, OneModel},
};
use crate::{
    output,
    record::{Record, Status},
    report::glance,
    runner::{self, Candidate, Session},
    scenario::{Generation, Sampling, Tier},
    settings::Settings,
    text,
};

/// Lengths of prompts and generations, shortest first. The longest is what llama-bench runs.
const LENGTHS: [(usize, usize); 6] = [(16, 8), (32, 16), (64, 16), (128, 32), (256, 64), (512, 128)];

/// Greedy generations of these lengths, for a time that is known only at run time.
pub fn lengths(key: &'static str) -> [Generation; LENGTHS.len()] {
    LENGTHS.map(|(prompt_tokens, new_tokens)| Generation {
        key,
        prompt_tokens,
        new_tokens,
        sampling: Sampling::GREEDY,
        tier: Tier::Quick,
        against: None,
        purpose: "as long as the time permits",
    })
}

/// Measured generations of each engine: the fewest whose paired ratio has an interval of 95 %.
pub const ROUNDS: usize = 6;

#[derive(Args)]
pub struct Glance {
    /// A file.gguf, a folder, owner/name[@revision] or owner/name:Q4_K_M of the Hub, llama-mini or synthetic:<shape or config.json>
    model: String,
    #[command(flatten)]
    settings: Flags<Settings, OneModel>,
    /// Time of all generations, such as 30s or 5m; loading the model is not counted
    #[arg(long, value_parser = duration, default_value = "50s")]
    budget: Duration,
    /// Print each record as one JSON object on a line
    #[arg(long)]
    json: bool,
}

impl Glance {
    pub fn run(self) -> Result<ExitCode> {
        let given = [self.settings.given(), &[("models", self.model.clone())]].concat();
        let mut settings = Settings::load(&given)?;
        ensure!(settings.models.len() == 1, "{}: name one model", self.model);
        if settings.has_default_engines() {
            settings = Settings::load(&[given, vec![("engine", "tuned,stock".into())]].concat())?;
        }
        let candidates = Candidate::from_settings(&settings);
        let command = runner::own_command(std::env::args_os(), &settings);
        let session = Session::new(settings)?.with_command(command);
        let records = runner::longest_within(&session, &lengths("glance"), (candidates, 1), ROUNDS, self.budget)?;
        let measured: Vec<&Record> = records.iter().filter(|record| record.measures.is_some()).collect();
        if self.json {
            for record in &records {
                output::print_data(&serde_json::to_string(record)?);
            }
        } else if !measured.is_empty() {
            output::print(glance::page(&measured));
            output::print_line(self.next_commands());
        }
        let reasons: BTreeSet<&str> = records.iter().filter_map(|record| record.reason.as_deref()).collect();
        // A file that is missing is missing on every engine.
        if let (true, Some(reason), 1) = (measured.is_empty(), reasons.first(), reasons.len()) {
            bail!("{reason}");
        }
        for record in records.iter().filter(|record| record.status != Status::Measured) {
            let reason = record.reason.as_deref().unwrap_or_default();
            output::report(format_args!("{}: {}: {reason}", record.id, record.status));
        }
        Ok(if measured.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// The commands that usually follow.
    fn next_commands(&self) -> String {
        let model = text::shell(&self.model);
        [
            format!("\nnext: candlepower run --model {model} --prompt '…'   generate text"),
            format!("      candlepower recommend --model {model}       find the fastest engine, dtype and threads"),
            format!("      candlepower bench --models {model}          measure all scenarios, in a checkout"),
        ]
        .join("\n")
    }
}
