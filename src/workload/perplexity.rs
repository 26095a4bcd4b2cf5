//! Scores of text windows: one window per iteration. The quality of the whole text is computed once, before.

use std::{
    cell::Cell,
    collections::BTreeMap,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use candle_core::{Device, Tensor};
use tokenizers::Tokenizer;

use super::{EMBEDDED, Iteration, Measured, NO_SAMPLE, Outcome, Workload, drop_warm_up};
use crate::{
    error::one_line,
    measure::{LimitsOverTime, statistics},
    model::{CausalLm, Footprint, LogitRows, Subject},
    quality::{self, Entry, Sliding, Source, Tokens, Window},
    record::{Measures, Quality},
    scenario::PerplexityScenario,
};

/// The text: that of the fixtures.
pub const PERPLEXITY_TEXT: &str = include_str!("perplexity.txt");

/// Scores of the windows of the embedded text.
pub struct PerplexityWorkload {
    model: Box<dyn CausalLm>,
    tokens: Tokens,
    window: Window,
    measures: Quality,
    unmeasured: BTreeMap<String, String>,
    deviates: Option<String>,
    times: Vec<Duration>,
}

impl PerplexityWorkload {
    /// Scores the text with the subject `id`, and with the reference of its divergences. Only the subject is kept.
    ///
    /// # Errors
    /// Returns an error if a checkpoint has no tokenizer, the text is shorter than a window, a window is longer than the model takes,
    /// or a model fails.
    pub fn new(
        scenario: &PerplexityScenario,
        id: String,
        mut subject: Subject,
        mut reference: Option<Entry>,
        is_synthetic: bool,
    ) -> Result<Self> {
        if subject.tokenizer.is_none() && is_synthetic {
            let embedded = EMBEDDED.parse::<Tokenizer>();
            subject.tokenizer =
                Some(embedded.map_err(|error| anyhow!("the embedded tokenizer: {}", one_line(&error)))?);
        }
        let source = Source::of_text("the embedded text", PERPLEXITY_TEXT);
        let tokens = source.tokens(&subject)?;
        let sliding = Sliding::new(scenario.window_tokens, scenario.stride_tokens)?;
        let mut entries = [Entry { id, model: subject.model }];
        let report = quality::score(&source, &tokens, sliding, &mut entries, reference.as_mut(), |_| (), |_, _| {})?;
        let scored = report.subjects.first().context("the text has no score")?;
        let (measures, unmeasured) = report.measures(scored);
        let deviates = scored.deviates.clone();
        let window = *sliding.over(tokens.ids.len()).first().context("the text has no window")?;
        let [Entry { model, .. }] = entries;
        Ok(Self { model, tokens, window, measures, unmeasured, deviates, times: Vec::new() })
    }
}

impl Workload for PerplexityWorkload {
    /// Scores the first window.
    fn iterate(&mut self) -> Result<Iteration> {
        let started = Instant::now();
        std::hint::black_box(quality::score_window(self.model.as_mut(), &self.tokens, self.window)?);
        let time = started.elapsed();
        self.model.reset()?;
        self.times.push(time);
        Ok(Iteration { time, peak_bytes: 0 })
    }

    fn forget_last(&mut self) {
        self.times.pop();
    }

    fn finish(mut self: Box<Self>, samples: &[usize], _: &LimitsOverTime) -> Outcome {
        drop_warm_up(&mut self.times, samples);
        let Some(steps) = statistics::summarise(&self.times, samples) else {
            return Outcome::failed(anyhow!(NO_SAMPLE));
        };
        let measures = Quality {
            scored_tokens_per_s: Some(self.window.inputs() as f64 / steps.p50_ms * 1e3),
            sample_ms: steps.sample_ms,
            ..self.measures
        };
        let measured = Measured { measures: Measures::Quality(measures), unmeasured: self.unmeasured };
        Outcome { measured: Ok(measured), deviates: self.deviates }
    }
}

/// A model that counts the time of its rows of logits.
pub struct Timed {
    model: Box<dyn CausalLm>,
    spent: Rc<Cell<Duration>>,
}

impl Timed {
    /// A model, and the time that its rows of logits have taken so far.
    pub fn new(model: Box<dyn CausalLm>) -> (Self, Rc<Cell<Duration>>) {
        let spent = Rc::new(Cell::new(Duration::ZERO));
        (Self { model, spent: spent.clone() }, spent)
    }
}

/// Runs a part of the work and adds its time.
fn timed<T>(spent: &Cell<Duration>, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = work();
    spent.set(spent.get() + started.elapsed());
    result
}

impl CausalLm for Timed {
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
        self.model.forward(tokens, position)
    }

    fn reset(&mut self) -> Result<()> {
        self.model.reset()
    }

    fn logit_rows<'a>(&'a mut self, tokens: &'a [u32], from: usize) -> Result<LogitRows<'a>> {
        let Self { model, spent } = self;
        let mut rows = timed(spent, move || model.logit_rows(tokens, from))?;
        let spent = spent.clone();
        Ok(Box::new(std::iter::from_fn(move || timed(&spent, || rows.next()))))
    }

    fn footprint(&self) -> Footprint {
        self.model.footprint()
    }

    fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }

    fn max_position_embeddings(&self) -> usize {
        self.model.max_position_embeddings()
    }

    fn device(&self) -> &Device {
        self.model.device()
    }

    fn deviates(&self, prompt_tokens: usize, new_tokens: usize) -> Option<String> {
        self.model.deviates(prompt_tokens, new_tokens)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;
    use crate::{
        device::{DeviceChoice, Precision},
        model::{self, Engine, ModelSpec},
        scenario::PERPLEXITY,
    };

    fn fixture(parts: &[&str]) -> PathBuf {
        [env!("CARGO_MANIFEST_DIR"), "fixtures"].iter().chain(parts).collect()
    }

    fn subject(name: &str, precision: Precision) -> Subject {
        let spec = ModelSpec::Path(fixture(&["generation", name]));
        model::load(&spec, Engine::Tuned, precision, DeviceChoice::Cpu, 0).expect(name)
    }

    #[test]
    fn a_window_is_timed_and_the_text_is_scored() {
        let text = fs::read_to_string(fixture(&["quality", "text.txt"])).expect("the fixture");
        assert_eq!(text, PERPLEXITY_TEXT);
        let reference = Entry { id: "f32".into(), model: subject("llama-gqa-tied", Precision::F32).model };
        let quantised = subject("llama-gqa-tied", Precision::Q4K);
        let work = PerplexityWorkload::new(&PERPLEXITY[0], "q4k".into(), quantised, Some(reference), false);
        let mut work = Box::new(work.expect("a score"));
        for _ in 0..3 {
            work.iterate().expect("a window");
        }
        let record: crate::record::Record =
            serde_json::from_str(include_str!("../core/record/sample.json")).expect("the sample");
        let outcome = work.finish(&[1, 1], &record.limits.expect("limits").into());
        let Measures::Quality(measures) = outcome.measured.expect("measures").measures else { panic!("another kind") };
        assert_eq!((measures.sample_ms.len(), measures.window_tokens), (2, 128));
        assert!(measures.scored_tokens_per_s.is_some_and(|rate| rate > 0.0), "{measures:?}");
        assert!(measures.kl_mean.is_some_and(|kl| kl > 1e-4) && measures.bits_per_byte.is_some(), "{measures:?}");
        assert_eq!(measures.reference.as_deref(), Some("f32"));
    }

    /// The quality cost of a cache in FP8 is a divergence from the same weights.
    #[test]
    fn the_cost_of_a_cache_is_scored() {
        let reference = Entry { id: "f32".into(), model: subject("llama-gqa-tied", Precision::F32).model };
        let fp8 = subject("llama-gqa-tied", Precision::F32.with_fp8_cache());
        let work = PerplexityWorkload::new(&PERPLEXITY[0], "f32_kv8".into(), fp8, Some(reference), false);
        let measures = work.expect("a score").measures;
        assert!(measures.kl_mean.is_some_and(|kl| kl > 1e-7 && kl < 0.5), "{measures:?}");
    }

    #[test]
    fn a_checkpoint_without_a_tokenizer_is_refused_in_one_line() {
        let without = || subject("qwen3-gqa-tied", Precision::F32);
        let work = PerplexityWorkload::new(&PERPLEXITY[0], "a".into(), without(), None, false);
        let error = format!("{:#}", work.err().expect("a refusal"));
        assert!(error.contains("has no tokenizer") && error.lines().count() == 1, "{error}");
        // A model with seeded weights has no language, so any tokens will do.
        assert!(PerplexityWorkload::new(&PERPLEXITY[0], "a".into(), without(), None, true).is_ok());
    }

    #[test]
    fn the_time_of_rows_is_counted() {
        let tokens: Vec<u32> = (3..100).collect();
        let (mut model, spent) = Timed::new(subject("llama-gqa-tied", Precision::F32).model);
        let rows: Vec<_> = model.logit_rows(&tokens, 5).expect("rows").map(|row| row.expect("a row")).collect();
        assert!(rows.len() == 92 && spent.get() > Duration::ZERO);
    }
}
