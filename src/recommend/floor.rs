//! The quality that a dtype must keep against f32.

use std::{fmt, str::FromStr};

use anyhow::{Context, Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    device::Precision,
    generate,
    model::{self, Engine, ModelSpec},
    quality::{self, Content, Entry, Sliding, Source, Tokens},
    settings::Settings,
};

/// Tokens that are scored, at most.
const TOKENS: usize = 513;

/// Tokens of a window, at most.
const WINDOW: usize = 256;

/// The least quality.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Floor {
    /// Any quality.
    None,
    /// The largest mean Kullback-Leibler divergence from f32, in nats per token.
    Kl(f64),
    /// The largest rise of the perplexity above that of f32, as a share.
    Perplexity(f64),
}

/// The quality of a dtype against f32 on the same engine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Quality {
    /// Mean Kullback-Leibler divergence from f32, in nats per token.
    pub kl_mean: f64,
    /// Perplexity divided by that in f32.
    pub perplexity_ratio: f64,
    /// Share of the tokens for which both have the same most probable token.
    pub top1_agreement: f64,
    /// Tokens that were scored.
    pub tokens: u64,
}

impl Floor {
    /// Why a quality is below the floor.
    pub fn refuses(self, quality: &Quality) -> Option<String> {
        let Quality { kl_mean, perplexity_ratio, tokens, .. } = quality;
        match self {
            Self::Kl(most) if *kl_mean > most => {
                Some(format!("a divergence of {kl_mean:.2e} nats from f32 on {tokens} tokens is above {most}"))
            }
            Self::Perplexity(most) if *perplexity_ratio > 1.0 + most => Some(format!(
                "the perplexity is {perplexity_ratio:.4} times that of f32 on {tokens} tokens, above {:.4}",
                1.0 + most
            )),
            _ => None,
        }
    }
}

impl fmt::Display for Floor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no quality"),
            Self::Kl(most) => write!(f, "a divergence from f32 of at most {most} nats per token"),
            Self::Perplexity(most) => write!(f, "a perplexity of at most {:.4} times that of f32", 1.0 + most),
        }
    }
}

impl FromStr for Floor {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |text: &str| text.parse::<f64>().ok().filter(|number| *number >= 0.0 && number.is_finite());
        let found = match text.split_once('=') {
            None if text == "none" => Some(Self::None),
            Some(("kl", most)) => number(most).map(Self::Kl),
            Some(("perplexity", most)) => {
                most.strip_suffix('%').and_then(number).map(|percent| Self::Perplexity(percent / 100.0))
            }
            _ => None,
        };
        match found {
            Some(floor) => Ok(floor),
            None => {
                bail!("'{text}': expected none, kl=NATS such as kl=0.01, or perplexity=SHARE such as perplexity=1%")
            }
        }
    }
}

/// Scores a model in a dtype and in f32 on a text, or on the embedded text; a model without a tokenizer on seeded ids.
///
/// # Errors
/// Returns an error if a model cannot be loaded, or the text is too short.
pub fn measure(
    spec: &ModelSpec,
    engine: Engine,
    precision: Precision,
    settings: &Settings,
    text: Option<&Source>,
) -> Result<Quality> {
    let load = |precision| model::load(spec, engine, precision, settings.device, settings.seed);
    let reference = load(Precision::F32)?;
    let mut tokens = match text {
        Some(source) => source.tokens(&reference)?,
        None => {
            let vocab_size = reference.model.vocab_size();
            let ids = generate::prompt_ids(reference.tokenizer.as_ref(), vocab_size, TOKENS, settings.seed)?;
            Tokens { ids, bos: None }
        }
    };
    tokens.ids.truncate(TOKENS);
    let longest = reference.model.max_position_embeddings();
    let length = WINDOW.min(tokens.ids.len()).min(longest);
    let source = match text {
        Some(source) => source.clone(),
        None => Source {
            name: "the embedded text".into(),
            sha256: String::new(),
            bytes: 0,
            content: Content::Ids(tokens.ids.clone()),
        },
    };
    let mut entries = [Entry { id: precision.to_string(), model: load(precision)?.model }];
    let mut reference = Entry { id: Precision::F32.to_string(), model: reference.model };
    let sliding = Sliding::new(length, length).with_context(|| source.name.clone())?;
    let report = quality::score(&source, &tokens, sliding, &mut entries, Some(&mut reference), |_| (), |_, _| {})?;
    let divergence = report.first.divergence.context("there is no divergence")?;
    let difference = report.comparisons.first().context("there is no comparison")?;
    Ok(Quality {
        kl_mean: divergence.kl_mean,
        perplexity_ratio: difference.perplexity_ratio.unwrap_or(f64::MAX),
        top1_agreement: divergence.top1_agreement,
        tokens: report.tokens,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_is_read_and_refuses() {
        let floor = |text: &str| text.parse::<Floor>().expect(text);
        let quality = Quality { kl_mean: 0.02, perplexity_ratio: 1.015, top1_agreement: 0.9, tokens: 512 };
        assert!(floor("kl=0.01").refuses(&quality).is_some_and(|reason| reason.contains("2.00e-2 nats")));
        assert!(floor("perplexity=1%").refuses(&quality).is_some_and(|reason| reason.contains("1.0150 times")));
        for text in ["kl=0.03", "perplexity=2%", "none"] {
            assert_eq!(floor(text).refuses(&quality), None, "{text}");
        }
        for text in ["", "kl", "kl=-1", "kl=nan", "perplexity=0.01", "top1=0.9"] {
            let error = text.parse::<Floor>().expect_err(text).to_string();
            assert!(error.contains("expected none, kl=NATS") && error.lines().count() == 1, "{error}");
        }
    }

    #[test]
    fn quantised_weights_diverge_and_f32_does_not() {
        let spec = ModelSpec::Mini("llama-mini");
        let settings = Settings::default();
        let of = |precision| measure(&spec, Engine::Tuned, precision, &settings, None).expect("a quality");
        let same = of(Precision::F32);
        assert_eq!((same.kl_mean, same.perplexity_ratio, same.top1_agreement), (0.0, 1.0, 1.0));
        let (q8, q4) = (of(Precision::Q8_0), of(Precision::Q4K));
        assert!(q8.kl_mean > 0.0 && q4.kl_mean > q8.kl_mean, "{q8:?} {q4:?}");
        assert!(Floor::Kl(q8.kl_mean / 2.0).refuses(&q8).is_some());
    }
}
