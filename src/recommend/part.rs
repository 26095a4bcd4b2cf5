//! Parts of a search that run in a process of their own. A failed allocation ends that process, and not the search.
//!
//! The process finds the settings in its environment and reads the part from standard input. It answers with one line.

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    batch,
    contest::{Values, variables},
    floor,
};
use crate::{
    dialogue::{self, Dialogue},
    error::caught,
    output,
    quality::Source,
    runner::{Session, end_with_guard},
    settings::Settings,
};

/// Name of the hidden subcommand of `candlepower` that calls [`answer`].
const SUBCOMMAND: &str = "recommend-part";

/// Longest line of an answer.
const LINE_MAX_BYTES: u64 = 1 << 20;

/// Longest time of a part: it loads a model, perhaps from a server.
const LONGEST: Duration = Duration::from_secs(30 * 60);

/// The part of a search.
#[derive(Debug, Serialize, Deserialize)]
pub enum Part {
    /// The [`super::Quality`] of the dtype of the settings, on a file or on the embedded text.
    Quality(Option<PathBuf>),
    /// The ratios of numbers of sequences in a step, measured in so much time.
    Sequences(Duration),
}

impl Part {
    /// Measures the part in a process of its own, with settings.
    ///
    /// # Errors
    /// Returns an error if the part fails, or its process ends without an answer.
    pub fn measure<T: DeserializeOwned>(&self, program: &Path, values: &Values) -> Result<T> {
        let mut command = Command::new(program);
        command.arg(SUBCOMMAND).envs(variables(values));
        let mut dialogue = Dialogue::start("the process that measured it", command, LINE_MAX_BYTES, None)?;
        dialogue.send(self)?;
        let answer: Result<T, String> = dialogue.receive(LONGEST)?;
        answer.map_err(|reason| anyhow!(reason))
    }

    fn run(&self, settings: &Settings) -> Result<Value> {
        let spec = settings.models.first().context("there is no model")?;
        let (engine, dtype) = settings.variants_for(spec).into_iter().next().context("there is no engine")?;
        let engine = engine.own().context("a peer")?;
        Ok(match self {
            Self::Quality(file) => {
                let text = file.as_deref().map(Source::read).transpose()?;
                serde_json::to_value(floor::measure(spec, engine, dtype, settings, text.as_ref())?)?
            }
            Self::Sequences(time) => serde_json::to_value(batch::measure(spec, engine, settings, *time)?)?,
        })
    }
}

/// Measures the part that standard input names, and prints the result.
///
/// # Errors
/// Returns an error if standard input has no part.
pub fn answer() -> Result<()> {
    let line = dialogue::read_line(&mut io::stdin().lock(), LINE_MAX_BYTES)?.context("standard input has no part")?;
    let part: Part = dialogue::parse(&line)?;
    let answer = caught(|| {
        let settings = Settings::load(&[])?;
        // Sets the threads and the instructions.
        drop(Session::new(settings.clone())?);
        end_with_guard().context("a thread could not be started")?;
        part.run(&settings)
    });
    output::print_data(&serde_json::to_string(&answer.map_err(|error| format!("{error:#}")))?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recommend::{Quality, Ratio};

    /// The values of a part keep every digit on their way between the processes.
    #[test]
    fn parts_and_answers_are_read_as_they_were_written() {
        for part in
            [Part::Quality(None), Part::Quality(Some("a text.txt".into())), Part::Sequences(Duration::new(3, 5))]
        {
            let line = dialogue::line_of(&part).expect("a line");
            let read: Part = dialogue::parse(&line).expect("a part");
            assert_eq!(format!("{read:?}"), format!("{part:?}"));
        }
        let quality = Quality { kl_mean: 0.1 + 0.2, perplexity_ratio: 1.0 / 3.0, top1_agreement: 0.9, tokens: 512 };
        let ratio = Ratio { ratio: 1.0 / 3.0, low: 0.1, high: 0.7, level: 0.95, pairs: 20 };
        let sequences = vec![(2, vec![ratio])];
        fn sent<T: Serialize + DeserializeOwned>(answer: T) -> T {
            let line = dialogue::line_of(&Ok::<_, String>(answer)).expect("a line");
            dialogue::parse::<Result<T, String>>(&line).expect("an answer").expect("a value")
        }
        assert_eq!((sent(quality), sent(sequences.clone())), (quality, sequences));
    }
}
