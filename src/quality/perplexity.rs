//! Perplexity of a file in sliding windows, for several models in one pass over the tokens.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context, Result, ensure};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    mean::Mean,
    row::Row,
    source::{Content, Source, Tokens},
    window::{Sliding, Window},
};
use crate::{
    error::caught,
    model::{CausalLm, LogitRows},
    record::Quality,
};

/// Standard errors within which 95 % of all estimates lie.
const WITHIN: f64 = 1.96;

/// A model that scores the tokens.
pub struct Entry {
    /// Name in the result: the id of the benchmark.
    pub id: String,
    /// The model.
    pub model: Box<dyn CausalLm>,
}

/// Marks an error or a panic of one model. The others can be scored without it.
#[derive(Debug)]
pub struct Unscored {
    /// Id of the benchmark.
    pub id: String,
}

impl fmt::Display for Unscored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the model fails")
    }
}

/// The perplexity of a file, for one or several subjects. The figures of the first subject are also at the top level.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Report {
    /// Path of the file.
    pub file: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Size of the file.
    pub bytes: u64,
    /// Words of a text, between white space; `null` for token ids.
    pub words: Option<u64>,
    /// Tokens of the file.
    pub file_tokens: usize,
    /// Tokens that count: all but those that no window predicts.
    pub tokens: u64,
    /// Tokens of a window.
    pub seq_len: usize,
    /// Tokens by which the window moves.
    pub stride: usize,
    /// Number of windows.
    pub windows: usize,
    /// The figures of the first subject.
    #[serde(flatten)]
    pub first: Figures,
    /// All subjects.
    pub subjects: Vec<Scored>,
    /// The reference of the divergences; `null` without one.
    pub reference: Option<Scored>,
    /// Each subject compared with the reference, or with the first subject if there is no reference.
    pub comparisons: Vec<Difference>,
    /// Why a figure is `null`, by figure.
    pub unmeasured: BTreeMap<String, String>,
}

/// The figures of one subject.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Scored {
    /// Id of the benchmark.
    pub id: String,
    /// Known reason why the model's logits differ from those of the reference implementation.
    pub deviates: Option<String>,
    /// Its figures.
    #[serde(flatten)]
    pub figures: Figures,
    /// For each window, the negative log-likelihood of its targets, scaled so that the mean over the windows is `nll`.
    pub window_nll: Vec<f64>,
}

/// How likely the tokens are under a model.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Figures {
    /// Mean negative log-likelihood per token, in nats.
    pub nll: f64,
    /// Standard error of `nll`, as if tokens were independent; `null` for one token.
    pub standard_error: Option<f64>,
    /// Exponential of `nll`; `null` if it is above the range of numbers.
    pub perplexity: Option<f64>,
    /// Standard error of the perplexity, by the delta method.
    pub perplexity_standard_error: Option<f64>,
    /// The value that the code in the documentation of transformers computes. It weighs each window by one token less than the
    /// window counts.
    pub transformers_nll: f64,
    /// Exponential of `transformers_nll`; `null` if it is above the range of numbers.
    pub transformers_perplexity: Option<f64>,
    /// Negative log-likelihood of all tokens that count, divided by the bytes of the text; `null` for token ids.
    pub nll_per_byte: Option<f64>,
    /// The same in bits.
    pub bits_per_byte: Option<f64>,
    /// Negative log-likelihood of all tokens that count, divided by the words of the text; `null` for token ids.
    pub nll_per_word: Option<f64>,
    /// Divergence from the reference; `null` without a reference.
    pub divergence: Option<Divergence>,
}

/// How the predictions of a subject differ from those of the reference.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Divergence {
    /// Mean over the tokens of the Kullback-Leibler divergence from the reference, in nats.
    pub kl_mean: f64,
    /// Standard error of the mean; `null` for one token.
    pub kl_standard_error: Option<f64>,
    /// Largest divergence.
    pub kl_max: f64,
    /// Share of the tokens for which both have the same most probable token.
    pub top1_agreement: f64,
}

/// Difference of the negative log-likelihoods of two subjects, token by token.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Difference {
    /// Id of the subject.
    pub id: String,
    /// Id of the subject or reference that it is compared with.
    pub to: String,
    /// Mean of the differences, in nats per token. Above 0, the text is less likely under `id`.
    pub nll_difference: f64,
    /// Standard error of the mean; `null` for one token.
    pub standard_error: Option<f64>,
    /// Perplexity of `id` divided by that of `to`; `null` if it is above the range of numbers.
    pub perplexity_ratio: Option<f64>,
    /// True if the difference is larger than 1.96 standard errors.
    pub exceeds_error: bool,
}

/// Scores the tokens of a file with each of `entries`, and with a reference. `begin` gets the id of each model before it
/// computes a window. `progress` gets the number of windows that are done, and of all.
///
/// # Errors
/// When the file is shorter than a window, a window is longer than a model takes, or vocabularies differ. When a model fails or
/// panics; such an error is marked as [`Unscored`].
pub fn score(
    source: &Source,
    tokens: &Tokens,
    sliding: Sliding,
    entries: &mut [Entry],
    mut reference: Option<&mut Entry>,
    mut begin: impl FnMut(&str),
    mut progress: impl FnMut(usize, usize),
) -> Result<Report> {
    let vocab_size = entries.first().context("there is no model")?.model.vocab_size();
    let ids = tokens.ids.as_slice();
    check(source, ids, sliding, entries.iter().chain(reference.as_deref()))?;
    let windows = sliding.over(ids.len());
    let mut tallies: Vec<Tally> = entries.iter().map(|_| Tally::default()).collect();
    let mut reference_tally = Tally::default();
    for (number, window) in windows.iter().enumerate() {
        if window.targets() > 0 {
            let inputs = tokens.inputs(window);
            let from = window.first - 1 - window.begin;
            let mut of = |entry| Rows::of(entry, &inputs, from, &mut begin);
            let mut rows = entries.iter_mut().map(&mut of).collect::<Result<Vec<_>>>()?;
            let mut expected = reference.as_deref_mut().map(of).transpose()?;
            for (place, target) in (window.first + 1..).zip(&ids[window.first..window.end]) {
                let at = || format!("token {place} of {}", source.name);
                let expected = expected.as_mut().map(|rows| rows.next(vocab_size, at)).transpose()?;
                if let Some(row) = &expected {
                    reference_tally.add(*target, row, None);
                }
                for (rows, tally) in rows.iter_mut().zip(&mut tallies) {
                    tally.add(*target, &rows.next(vocab_size, at)?, expected.as_ref());
                }
            }
        }
        progress(number + 1, windows.len());
    }

    let lengths: Vec<(usize, usize)> =
        windows.iter().map(|window| (window.first - window.begin, window.targets())).collect();
    let scored = |entry: &Entry, tally: &Tally| Scored {
        id: entry.id.clone(),
        deviates: lengths.iter().find_map(|(prompt, new)| entry.model.deviates(*prompt, *new)),
        figures: tally.figures(source, &windows),
        window_nll: tally.of_windows(&windows),
    };
    let subjects: Vec<Scored> = entries.iter().zip(&tallies).map(|(entry, tally)| scored(entry, tally)).collect();
    let reference = reference.map(|entry| scored(entry, &reference_tally));
    let (to, base, compared_from) = match &reference {
        Some(reference) => (reference, &reference_tally, 0),
        None => (&subjects[0], &tallies[0], 1),
    };
    let compared = subjects.iter().zip(&tallies).skip(compared_from);
    let comparisons = compared.map(|(subject, tally)| Difference::of((subject, tally), (to, base))).collect();
    let first = subjects[0].figures.clone();
    Ok(Report {
        file: source.name.clone(),
        sha256: source.sha256.clone(),
        bytes: source.bytes,
        words: source.words(),
        file_tokens: ids.len(),
        tokens: tallies[0].nll.len() as u64,
        seq_len: sliding.length(),
        stride: sliding.stride(),
        windows: windows.len(),
        unmeasured: first.unmeasured(),
        first,
        subjects,
        reference,
        comparisons,
    })
}

/// Negative log-likelihood of each target of a window, in nats.
///
/// # Errors
/// When the model fails, or returns too few or other rows.
pub fn score_window(model: &mut dyn CausalLm, tokens: &Tokens, window: Window) -> Result<Vec<f64>> {
    if window.targets() == 0 {
        return Ok(Vec::new());
    }
    let vocab_size = model.vocab_size();
    let inputs = tokens.inputs(&window);
    let mut rows = model.logit_rows(&inputs, window.first - 1 - window.begin)?;
    let targets = tokens.ids[window.first..window.end].iter();
    targets.map(|target| Ok(-Row::next(&mut rows, vocab_size)?.log_probability(*target))).collect()
}

/// Refuses a file or a window that does not fit the models, and models that do not fit one another.
fn check<'a>(
    source: &Source,
    ids: &[u32],
    sliding: Sliding,
    mut entries: impl Iterator<Item = &'a Entry>,
) -> Result<()> {
    let length = sliding.length();
    ensure!(
        ids.len() >= length,
        "{} has {} tokens, fewer than a window of {length}: use a smaller --seq-len or a longer file",
        source.name,
        ids.len()
    );
    let mut first: Option<&Entry> = None;
    entries.try_for_each(|entry| {
        let longest = entry.model.max_position_embeddings();
        ensure!(
            length <= longest,
            "--seq-len={length}: {} takes at most {longest} tokens (max_position_embeddings)",
            entry.id
        );
        let first = first.get_or_insert(entry);
        ensure!(
            entry.model.vocab_size() == first.model.vocab_size(),
            "{} and {} have different vocabularies, so their figures per token do not compare",
            entry.id,
            first.id
        );
        Ok(())
    })
}

/// The rows of logits of a model in a window.
struct Rows<'a> {
    id: &'a str,
    rows: LogitRows<'a>,
}

impl<'a> Rows<'a> {
    fn of(entry: &'a mut Entry, inputs: &'a [u32], from: usize, begin: &mut impl FnMut(&str)) -> Result<Self> {
        let Entry { id, model } = entry;
        begin(id);
        let rows = caught(move || model.logit_rows(inputs, from)).with_context(|| Unscored { id: id.clone() })?;
        Ok(Self { id, rows })
    }

    /// The next row, which predicts the token that `at` names.
    fn next(&mut self, vocab_size: usize, at: impl FnOnce() -> String) -> Result<Row> {
        let row = caught(|| Row::next(&mut self.rows, vocab_size)).with_context(at);
        row.with_context(|| Unscored { id: self.id.to_owned() })
    }
}

/// The results of one subject.
#[derive(Default)]
struct Tally {
    /// Negative log-likelihood of each target.
    nll: Vec<f64>,
    /// Divergence from the reference at each target.
    kl: Mean,
    kl_max: f64,
    /// Targets for which the most probable token is that of the reference.
    agreed: Mean,
}

impl Tally {
    fn add(&mut self, target: u32, row: &Row, expected: Option<&Row>) {
        self.nll.push(-row.log_probability(target));
        if let Some(expected) = expected {
            let kl = expected.divergence(row);
            self.kl.add(kl);
            self.kl_max = self.kl_max.max(kl);
            self.agreed.add(f64::from(u8::from(expected.top() == row.top())));
        }
    }

    /// The part of each window that has targets.
    fn parts<'a>(&'a self, windows: &'a [Window]) -> impl Iterator<Item = (&'a Window, &'a [f64])> {
        let mut rest = self.nll.as_slice();
        windows.iter().filter(|window| window.targets() > 0).map(move |window| {
            let (own, after) = rest.split_at(window.targets());
            rest = after;
            (window, own)
        })
    }

    fn of_windows(&self, windows: &[Window]) -> Vec<f64> {
        let sums: Vec<f64> = self.parts(windows).map(|(_, nll)| nll.iter().sum()).collect();
        let scale = sums.len() as f64 / self.nll.len() as f64;
        sums.into_iter().map(|sum| sum * scale).collect()
    }

    fn figures(&self, source: &Source, windows: &[Window]) -> Figures {
        let mean: Mean = self.nll.iter().copied().collect();
        let (nll, standard_error) = (mean.mean(), mean.standard_error());
        let (mut sum, mut weights) = (0.0, 0.0);
        for (window, nll) in self.parts(windows) {
            let weight = (window.fresh - 1) as f64;
            sum += weight * nll.iter().sum::<f64>() / nll.len() as f64;
            weights += weight;
        }
        let transformers_nll = sum / weights;
        let total = nll * self.nll.len() as f64;
        let bytes = matches!(source.content, Content::Text(_)).then_some(source.bytes as f64);
        Figures {
            nll,
            standard_error,
            perplexity: exponential(nll),
            perplexity_standard_error: standard_error.map(|error| error * nll.exp()).filter(|error| error.is_finite()),
            transformers_nll,
            transformers_perplexity: exponential(transformers_nll),
            nll_per_byte: bytes.map(|bytes| total / bytes),
            bits_per_byte: bytes.map(|bytes| total / bytes / std::f64::consts::LN_2),
            nll_per_word: source.words().map(|words| total / words as f64),
            divergence: (self.kl.count() > 0).then(|| Divergence {
                kl_mean: self.kl.mean(),
                kl_standard_error: self.kl.standard_error(),
                kl_max: self.kl_max,
                top1_agreement: self.agreed.mean(),
            }),
        }
    }
}

impl Figures {
    /// Why figures are missing, by figure.
    fn unmeasured(&self) -> BTreeMap<String, String> {
        let too_large = "it is above the range of numbers; its logarithm is the nll";
        let reasons: [(bool, &[&str], &str); 6] = [
            (self.perplexity.is_none(), &["perplexity"], too_large),
            (self.perplexity_standard_error.is_none(), &["perplexity_standard_error"], too_large),
            (self.transformers_perplexity.is_none(), &["transformers_perplexity"], too_large),
            (self.standard_error.is_none(), &["standard_error", "perplexity_standard_error"], "one token counts"),
            (
                self.nll_per_byte.is_none(),
                &["nll_per_byte", "bits_per_byte", "nll_per_word"],
                "the file has token ids instead of a text",
            ),
            (self.divergence.is_none(), &["divergence"], "there is no reference"),
        ];
        let missing = reasons.into_iter().filter(|(is_missing, ..)| *is_missing);
        missing
            .flat_map(|(_, figures, why)| figures.iter().map(move |figure| ((*figure).to_owned(), why.to_owned())))
            .collect()
    }
}

/// The exponential, if it is a finite number.
fn exponential(nll: f64) -> Option<f64> {
    Some(nll.exp()).filter(|exponential| exponential.is_finite())
}

impl Difference {
    fn of((subject, own): (&Scored, &Tally), (to, base): (&Scored, &Tally)) -> Self {
        let differences: Mean = own.nll.iter().zip(&base.nll).map(|(own, base)| own - base).collect();
        let (mean, standard_error) = (differences.mean(), differences.standard_error());
        Self {
            id: subject.id.clone(),
            to: to.id.clone(),
            nll_difference: mean,
            standard_error,
            perplexity_ratio: exponential(mean),
            exceeds_error: standard_error.is_some_and(|error| mean.abs() > WITHIN * error),
        }
    }

    /// The difference in words.
    pub(crate) fn text(&self) -> String {
        let error = self.standard_error.map_or_else(|| "unknown".into(), |error| format!("{error:.6}"));
        let ratio = self.perplexity_ratio.map_or_else(|| "beyond measure".into(), |ratio| format!("{ratio:.6}"));
        // Both are of the same scenario.
        let subject = |id: &str| id.split_once('/').map_or(id, |(_, subject)| subject).to_owned();
        let verdict = match (self.exceeds_error, self.nll_difference > 0.0) {
            (false, _) => "The difference does not exceed its error.",
            (true, true) => "The text is less likely under it, by more than the error.",
            (true, false) => "The text is more likely under it, by more than the error.",
        };
        format!(
            "{} against {}: NLL {:+.6} nats per token, standard error {error} (paired), perplexity {ratio} times. {verdict}",
            subject(&self.id),
            subject(&self.to),
            self.nll_difference
        )
    }
}

impl Report {
    /// The measures of a subject or of the reference for its record, and why some are missing.
    pub(crate) fn measures(&self, scored: &Scored) -> (Quality, BTreeMap<String, String>) {
        let Figures { divergence, .. } = &scored.figures;
        let reference = self.reference.as_ref().filter(|_| divergence.is_some());
        let quality = Quality {
            perplexity: scored.figures.perplexity,
            perplexity_standard_error: scored.figures.perplexity_standard_error,
            nll: scored.figures.nll,
            nll_standard_error: scored.figures.standard_error,
            transformers_nll: scored.figures.transformers_nll,
            nll_per_byte: scored.figures.nll_per_byte,
            bits_per_byte: scored.figures.bits_per_byte,
            nll_per_word: scored.figures.nll_per_word,
            scored_tokens: self.tokens,
            window_tokens: self.seq_len,
            stride_tokens: self.stride,
            file_sha256: self.sha256.clone(),
            reference: reference.map(|reference| reference.id.clone()),
            kl_mean: divergence.as_ref().map(|divergence| divergence.kl_mean),
            kl_standard_error: divergence.as_ref().and_then(|divergence| divergence.kl_standard_error),
            kl_max: divergence.as_ref().map(|divergence| divergence.kl_max),
            top1_agreement: divergence.as_ref().map(|divergence| divergence.top1_agreement),
            window_nll: scored.window_nll.clone(),
            ..Quality::default()
        };
        let unmeasured = scored.figures.unmeasured().into_iter().flat_map(|(figure, why)| {
            let fields: &[&str] = match figure.as_str() {
                "standard_error" => &["nll_standard_error"],
                "transformers_perplexity" => &[],
                "divergence" => &["reference", "kl_mean", "kl_standard_error", "kl_max", "top1_agreement"],
                other => return vec![(other.to_owned(), why)],
            };
            fields.iter().map(|field| ((*field).to_owned(), why.clone())).collect()
        });
        (quality, unmeasured.collect())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::model::{Footprint, LogitRows};

    /// Predicts the token after the last, `sure` times as probable as each other one.
    struct Counter {
        sure: f32,
        vocab_size: usize,
        max_position_embeddings: usize,
    }

    impl CausalLm for Counter {
        fn forward(&mut self, tokens: &[u32], _: usize) -> Result<Tensor> {
            let mut logits = vec![0.0; self.vocab_size];
            logits[(tokens[tokens.len() - 1] as usize + 1) % self.vocab_size] = self.sure.ln();
            Ok(Tensor::from_vec(logits, self.vocab_size, &Device::Cpu)?)
        }
        fn reset(&mut self) -> Result<()> {
            Ok(())
        }
        fn footprint(&self) -> Footprint {
            Footprint::dense(1, 1, DType::F32, 0)
        }
        fn vocab_size(&self) -> usize {
            self.vocab_size
        }
        fn max_position_embeddings(&self) -> usize {
            self.max_position_embeddings
        }
        fn device(&self) -> &Device {
            &Device::Cpu
        }
    }

    fn entry(id: &str, sure: f32) -> Entry {
        Entry { id: id.into(), model: Box::new(Counter { sure, vocab_size: 10, max_position_embeddings: 8 }) }
    }

    fn source(ids: &[u32]) -> Source {
        Source { name: "ids".into(), sha256: "0".repeat(64), bytes: 1, content: Content::Ids(ids.to_vec()) }
    }

    fn tokens(ids: &[u32]) -> Tokens {
        Tokens { ids: ids.to_vec(), bos: None }
    }

    fn scored(ids: &[u32], length: usize, stride: usize, entries: &mut [Entry]) -> Result<Report> {
        score(&source(ids), &tokens(ids), Sliding::new(length, stride)?, entries, None, |_| (), |_, _| {})
    }

    /// The tokens 1 2 3 … have probability 11/20 each, where the others have 1/20.
    #[test]
    fn figures_follow_from_known_probabilities() {
        let ids = [1, 2, 3, 4, 5, 6, 7, 9, 1, 2];
        let report = scored(&ids, 4, 2, &mut [entry("a", 11.0)]).expect("a report");
        // 7 → 9 and 9 → 1 are not what the model predicts.
        let nll = (7.0 * -(0.55f64.ln()) + 2.0 * -(0.05f64.ln())) / 9.0;
        assert!((report.first.nll - nll).abs() < 1e-6, "{report:?}");
        let perplexity = report.first.perplexity.expect("a number");
        assert!((perplexity - nll.exp()).abs() < 1e-6);
        assert_eq!((report.tokens, report.file_tokens, report.windows), (9, 10, 4));
        // Seven values of one kind and two of another.
        let (low, high) = (-(0.55f64.ln()), -(0.05f64.ln()));
        let squares = 7.0 * (low - nll).powi(2) + 2.0 * (high - nll).powi(2);
        let error = report.first.standard_error.expect("nine tokens");
        assert!((error - (squares / 8.0 / 9.0).sqrt()).abs() < 1e-6, "{error}");
        let of_perplexity = report.first.perplexity_standard_error.expect("nine tokens");
        assert!((of_perplexity - error * nll.exp()).abs() < 1e-6);
        assert!(!report.unmeasured.contains_key("perplexity"), "{report:?}");
        let windows = &report.subjects[0].window_nll;
        assert!((windows.iter().sum::<f64>() / windows.len() as f64 - nll).abs() < 1e-6, "{windows:?}");
        assert!(report.unmeasured.contains_key("bits_per_byte") && report.unmeasured.contains_key("divergence"));
    }

    /// A record that has an infinite number could not be read again.
    #[test]
    fn a_perplexity_above_the_range_of_numbers_is_missing_with_a_reason() {
        struct Sure(Counter);
        impl CausalLm for Sure {
            fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
                Ok((self.0.forward(tokens, position)? * 2000.0)?)
            }
            fn reset(&mut self) -> Result<()> {
                Ok(())
            }
            fn footprint(&self) -> Footprint {
                self.0.footprint()
            }
            fn vocab_size(&self) -> usize {
                self.0.vocab_size
            }
            fn max_position_embeddings(&self) -> usize {
                self.0.max_position_embeddings
            }
            fn device(&self) -> &Device {
                &Device::Cpu
            }
        }
        let sure = Counter { sure: 11.0, vocab_size: 10, max_position_embeddings: 8 };
        let mut entries = [entry("a", 11.0), Entry { id: "b".into(), model: Box::new(Sure(sure)) }];
        let report = scored(&[1; 20], 4, 2, &mut entries).expect("a report");
        let sure = &report.subjects[1];
        assert!(sure.figures.nll > 710.0 && sure.figures.perplexity.is_none(), "{sure:?}");
        assert_eq!(report.comparisons[0].perplexity_ratio, None);
        assert!(report.comparisons[0].text().contains("perplexity beyond measure times"));
        let (measures, unmeasured) = report.measures(sure);
        assert!(unmeasured["perplexity"].contains("nll") && !unmeasured.contains_key("transformers_perplexity"));
        let text = serde_json::to_string(&measures).expect("JSON");
        assert_eq!(serde_json::from_str::<Quality>(&text).expect("it is read again").perplexity, None);
    }

    /// The code in the documentation multiplies the mean of a window by one less than the tokens that it counts.
    #[test]
    fn the_documented_weights_are_reported_too() {
        let ids = [1, 2, 3, 4, 5, 6, 7, 9, 1, 2];
        let report = scored(&ids, 4, 2, &mut [entry("a", 11.0)]).expect("a report");
        let (low, high) = (-(0.55f64.ln()), -(0.05f64.ln()));
        // Targets of the windows: 2 3 4 | 5 6 | 7 9 | 1 2.
        let expected = (3.0 * low + low + (low + high) / 2.0 + (high + low) / 2.0) / 6.0;
        assert!((report.first.transformers_nll - expected).abs() < 1e-6, "{report:?}");
        // Without overlap, both are the same.
        let report = scored(&ids, 4, 4, &mut [entry("a", 11.0)]).expect("a report");
        assert!((report.first.transformers_nll - report.first.nll).abs() < 1e-12, "{report:?}");
        assert_eq!(report.tokens, 7);
    }

    #[test]
    fn a_window_alone_has_the_score_that_it_has_in_the_text() {
        let ids = [1, 2, 3, 4, 5, 6, 7, 9, 1, 2];
        let sliding = Sliding::new(4, 2).expect("a stride");
        let mut entries = [entry("a", 11.0)];
        let report = scored(&ids, 4, 2, &mut entries).expect("a report");
        let windows = sliding.over(ids.len());
        let alone = windows.iter().map(|window| score_window(entries[0].model.as_mut(), &tokens(&ids), *window));
        let nll: Vec<f64> = alone.flat_map(|nll| nll.expect("a score")).collect();
        assert_eq!(nll.len() as u64, report.tokens);
        assert!((nll.iter().sum::<f64>() / nll.len() as f64 - report.first.nll).abs() < 1e-12);
    }

    /// The model predicts the token after the last, so a target whose place is the first of a window shows what was put before it.
    #[test]
    fn every_window_begins_with_bos() {
        let ids = [0, 5, 6, 7, 8, 9, 1, 2];
        let sliding = Sliding::new(4, 4).expect("a stride");
        let of = |bos| {
            let tokens = Tokens { ids: ids.to_vec(), bos };
            let entries = &mut [entry("a", 11.0)];
            score(&source(&ids), &tokens, sliding, entries, None, |_| (), |_, _| {}).expect("a report")
        };
        // Targets: 5 6 7 | 9 1 2. The second window begins with 8, after which 9 is probable, or with 0.
        let (low, high) = (-(0.55f64.ln()), -(0.05f64.ln()));
        assert!((of(None).first.nll - (2.0 * high + 4.0 * low) / 6.0).abs() < 1e-6);
        assert!((of(Some(0)).first.nll - (3.0 * high + 3.0 * low) / 6.0).abs() < 1e-6);
    }

    #[test]
    fn bytes_and_words_are_those_of_the_text() {
        let ids = [1, 2, 3, 4, 5];
        let text = Source { bytes: 22, content: Content::Text("five words of a text !".into()), ..source(&ids) };
        let sliding = Sliding::new(4, 2).expect("a stride");
        let report =
            score(&text, &tokens(&ids), sliding, &mut [entry("a", 11.0)], None, |_| (), |_, _| {}).expect("a report");
        let total = 4.0 * -(0.55f64.ln());
        assert!((report.first.nll_per_byte.expect("bytes") - total / 22.0).abs() < 1e-6);
        assert!((report.first.bits_per_byte.expect("bytes") - total / 22.0 / 2f64.ln()).abs() < 1e-6);
        assert!((report.first.nll_per_word.expect("words") - total / 6.0).abs() < 1e-6);
        assert_eq!(report.unmeasured.keys().collect::<Vec<_>>(), ["divergence"]);
    }

    #[test]
    fn subjects_are_compared_token_by_token() {
        let ids = [1, 2, 3, 4, 5, 6, 7, 9, 1, 2];
        let report = scored(&ids, 4, 2, &mut [entry("a", 11.0), entry("b", 11.0), entry("c", 30.0)]).expect("a report");
        let [same, other] = report.comparisons.as_slice() else { panic!("{report:?}") };
        assert_eq!((same.nll_difference, same.standard_error, same.exceeds_error), (0.0, Some(0.0), false));
        assert_eq!((other.id.as_str(), other.to.as_str()), ("c", "a"));
        let difference = report.subjects[2].figures.nll - report.subjects[0].figures.nll;
        assert!((other.nll_difference - difference).abs() < 1e-12);
        // Two of nine tokens decide against it, so the sign is not certain.
        assert!(!other.exceeds_error && other.text().contains("does not exceed"), "{other:?}");
        let ids: Vec<u32> = (0..60).map(|id| id % 10).collect();
        let report = scored(&ids, 8, 3, &mut [entry("a", 11.0), entry("c", 30.0)]).expect("a report");
        let [other] = report.comparisons.as_slice() else { panic!("{report:?}") };
        assert!(other.exceeds_error && other.nll_difference < 0.0, "{other:?}");
        assert!((other.perplexity_ratio.expect("a number") - (0.55f64 / (30.0 / 39.0))).abs() < 1e-6);
    }

    #[test]
    fn the_reference_gives_divergence_and_agreement() {
        let ids = [1, 2, 3, 4, 5, 6];
        let sliding = Sliding::new(4, 3).expect("a stride");
        let mut entries = [entry("same", 11.0), entry("unsure", 1.0 / 11.0)];
        let mut reference = entry("reference", 11.0);
        let report =
            score(&source(&ids), &tokens(&ids), sliding, &mut entries, Some(&mut reference), |_| (), |_, _| {});
        let report = report.expect("a report");
        let of = |place: usize| report.subjects[place].figures.divergence.clone().expect("a reference");
        let (same, unsure) = (of(0), of(1));
        assert_eq!((same.kl_mean, same.kl_max, same.kl_standard_error), (0.0, 0.0, Some(0.0)));
        assert_eq!((same.top1_agreement, unsure.top1_agreement), (1.0, 0.0));
        // 0.55 and nine times 0.05 against 1/100 and nine times 11/100.
        let kl = 0.55 * (0.55f64 / 0.01).ln() + 0.45 * (0.05f64 / 0.11).ln();
        assert!((unsure.kl_mean - kl).abs() < 1e-6 && (unsure.kl_max - kl).abs() < 1e-6, "{unsure:?}");
        assert_eq!(report.comparisons.len(), 2);
        assert!(report.comparisons.iter().all(|difference| difference.to == "reference"));
        let (measures, unmeasured) = report.measures(&report.subjects[1]);
        assert_eq!((measures.reference.as_deref(), measures.kl_max), (Some("reference"), Some(unsure.kl_max)));
        assert!(!unmeasured.contains_key("kl_mean"));
        let (measures, unmeasured) = report.measures(report.reference.as_ref().expect("a reference"));
        assert_eq!(measures.kl_mean, None);
        assert!(unmeasured.contains_key("kl_mean") && unmeasured.contains_key("reference"), "{unmeasured:?}");
    }

    #[test]
    fn files_and_models_that_do_not_fit_are_refused() {
        let refused = |ids: &[u32], length, entries: &mut [Entry], part: &str| {
            let error = scored(ids, length, 1, entries).expect_err(part);
            let error = format!("{error:#}");
            assert!(error.contains(part) && error.lines().count() == 1, "{error}");
        };
        refused(&[1, 2, 3], 4, &mut [entry("a", 2.0)], "3 tokens, fewer than a window of 4");
        refused(&[1; 20], 9, &mut [entry("a", 2.0)], "at most 8 tokens");
        let model = Box::new(Counter { sure: 2.0, vocab_size: 11, max_position_embeddings: 8 });
        refused(&[1; 20], 4, &mut [entry("a", 2.0), Entry { id: "b".into(), model }], "different vocabularies");
        refused(&[1; 20], 4, &mut [entry("a", f32::INFINITY)], "not finite");
    }

    /// Returns fewer rows than it should.
    struct Short(Counter);

    impl CausalLm for Short {
        fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
            self.0.forward(tokens, position)
        }
        fn reset(&mut self) -> Result<()> {
            Ok(())
        }
        fn logit_rows<'a>(&'a mut self, tokens: &'a [u32], from: usize) -> Result<LogitRows<'a>> {
            self.0.logit_rows(&tokens[..tokens.len() - 1], from)
        }
        fn footprint(&self) -> Footprint {
            self.0.footprint()
        }
        fn vocab_size(&self) -> usize {
            self.0.vocab_size
        }
        fn max_position_embeddings(&self) -> usize {
            self.0.max_position_embeddings
        }
        fn device(&self) -> &Device {
            &Device::Cpu
        }
    }

    #[test]
    fn a_model_that_returns_too_few_rows_is_an_error() {
        let model = Box::new(Short(Counter { sure: 2.0, vocab_size: 10, max_position_embeddings: 8 }));
        let mut entries = [entry("a", 2.0), Entry { id: "b".into(), model }, entry("c", 2.0)];
        let error = scored(&[1; 20], 4, 1, &mut entries).expect_err("rows are missing");
        assert!(format!("{error:#}").contains("too few rows"), "{error:#}");
        assert_eq!(error.downcast_ref::<Unscored>().map(|unscored| unscored.id.as_str()), Some("b"));
    }
}
