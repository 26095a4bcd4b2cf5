//! Work on the files of a checkpoint: one load, or one pass of a tokenizer, per iteration.

use std::{
    collections::BTreeMap,
    fs,
    hint::black_box,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::Device;
use tokenizers::Tokenizer;

use super::{EMBEDDED, Iteration, Measured, NO_SAMPLE, Outcome, Workload, drop_warm_up};
use crate::{
    device::{DeviceChoice, Precision},
    error::one_line,
    generate,
    measure::{
        LimitsOverTime,
        memory::{self, Peak},
        page_cache, statistics,
    },
    model::{self, Engine, ModelSpec},
    record::{Loading, Measures, Tokenizing},
    scenario::{Pass, TOKENIZER_TEXT_BYTES},
};

/// Name of the embedded tokenizer in ids.
pub const EMBEDDED_TOKENIZER: &str = "bpe-mini";

/// Loads of one checkpoint by one engine.
pub struct LoadWorkload {
    spec: ModelSpec,
    engine: Engine,
    precision: Precision,
    choice: DeviceChoice,
    device: Device,
    is_cold: bool,
    files: Vec<PathBuf>,
    file_bytes: u64,
    peak: Peak,
    times: Vec<Duration>,
    storage_bytes: Vec<Result<u64, String>>,
}

impl LoadWorkload {
    /// Finds the files and loads them once, which downloads what is missing and fills the page cache.
    ///
    /// # Errors
    /// Returns an error if the checkpoint cannot be loaded.
    pub fn new(
        spec: &ModelSpec,
        engine: Engine,
        precision: Precision,
        choice: DeviceChoice,
        is_cold: bool,
    ) -> Result<Self> {
        let (spec, files) = model::files(spec)?;
        let mut file_bytes = 0;
        for file in &files {
            file_bytes += fs::metadata(file).with_context(|| file.display().to_string())?.len();
        }
        let device = choice.open()?;
        let peak = Peak::new(&device, memory::current_bytes(&device));
        let (times, storage_bytes) = (Vec::new(), Vec::new());
        let mut work =
            Self { spec, engine, precision, choice, device, is_cold, files, file_bytes, peak, times, storage_bytes };
        work.iterate()?;
        work.forget_last();
        Ok(work)
    }
}

impl Workload for LoadWorkload {
    /// Loads the model, timed from opening the files until the device has finished.
    fn iterate(&mut self) -> Result<Iteration> {
        if self.is_cold {
            for file in &self.files {
                let told = || format!("{} could not be dropped from the page cache", file.display());
                page_cache::forget(file).with_context(told)?;
            }
        }
        self.peak.begin();
        let before = page_cache::storage_bytes();
        let started = Instant::now();
        let subject = model::load(&self.spec, self.engine, self.precision, self.choice, 0)?;
        self.device.synchronize()?;
        let time = started.elapsed();
        let read = before.and_then(|before| Ok(page_cache::storage_bytes()?.saturating_sub(before)));
        let peak_bytes = self.peak.end();
        drop(subject);
        memory::release(&self.device);
        self.peak.settle();
        self.times.push(time);
        self.storage_bytes.push(read.map_err(|error| one_line(&format!("{error:#}"))));
        Ok(Iteration { time, peak_bytes })
    }

    fn forget_last(&mut self) {
        self.times.pop();
        self.storage_bytes.pop();
    }

    fn finish(mut self: Box<Self>, samples: &[usize], _: &LimitsOverTime) -> Outcome {
        drop_warm_up(&mut self.times, samples);
        drop_warm_up(&mut self.storage_bytes, samples);
        let Some(steps) = statistics::summarise(&self.times, samples) else {
            return Outcome::failed(anyhow!(NO_SAMPLE));
        };
        let mut unmeasured = BTreeMap::new();
        let storage: Result<Vec<u64>, String> = self.storage_bytes.into_iter().collect();
        let storage_bytes = match storage {
            Ok(bytes) => Some(statistics::median(bytes.into_iter().map(|bytes| bytes as f64).collect()) as u64),
            Err(reason) => {
                unmeasured.insert("storage_bytes".into(), reason);
                None
            }
        };
        if let Err(reason) = self.peak.most() {
            unmeasured.insert("peak_bytes".into(), reason.to_owned());
        }
        let measures = Loading {
            files: self.files.len(),
            file_bytes: self.file_bytes,
            samples: samples.len(),
            load_bytes_per_s: self.file_bytes as f64 / steps.p50_ms * 1e3,
            load_ms: steps.p50_ms,
            sample_ms: steps.sample_ms,
            storage_bytes,
            peak_bytes: self.peak.most().ok(),
        };
        Outcome { measured: Ok(Measured { measures: Measures::Loading(measures), unmeasured }), deviates: None }
    }
}

/// Passes of one tokenizer over one text.
pub struct TokenizerWorkload {
    tokenizer: Tokenizer,
    pass: Pass,
    text: String,
    ids: Vec<u32>,
    times: Vec<Duration>,
}

impl TokenizerWorkload {
    /// Reads the tokenizer of a checkpoint, or makes the embedded one, and encodes the text.
    ///
    /// # Errors
    /// Returns an error if there is no tokenizer, or it makes no tokens of the text.
    pub fn new(spec: Option<&ModelSpec>, pass: Pass) -> Result<Self> {
        let tokenizer = match spec {
            Some(spec) => model::tokenizer(spec)?.with_context(|| format!("{spec} has no tokenizer"))?,
            None => EMBEDDED
                .parse::<Tokenizer>()
                .map_err(|error| anyhow!("the embedded tokenizer: {}", one_line(&error)))?,
        };
        let text = generate::prompt_text(TOKENIZER_TEXT_BYTES);
        let ids = generate::encode(&tokenizer, &text)?;
        ensure!(!ids.is_empty(), "the tokenizer makes no tokens of the text");
        Ok(Self { tokenizer, pass, text, ids, times: Vec::new() })
    }

    fn decoded(&self) -> Result<String> {
        self.tokenizer.decode(&self.ids, true).map_err(|error| anyhow!("decoding failed: {}", one_line(&error)))
    }

    fn streamed(&self) -> Result<String> {
        let mut stream = self.tokenizer.decode_stream(true);
        let mut text = String::new();
        for id in &self.ids {
            let step = stream.step(*id).map_err(|error| anyhow!("streaming failed: {}", one_line(&error)))?;
            text.push_str(&step.unwrap_or_default());
        }
        Ok(text)
    }
}

impl Workload for TokenizerWorkload {
    fn iterate(&mut self) -> Result<Iteration> {
        let started = Instant::now();
        match self.pass {
            Pass::Encode => drop(black_box(generate::encode(&self.tokenizer, &self.text)?)),
            Pass::Decode => drop(black_box(self.decoded()?)),
            Pass::Stream => drop(black_box(self.streamed()?)),
        }
        let time = started.elapsed();
        self.times.push(time);
        Ok(Iteration { time, peak_bytes: 0 })
    }

    fn forget_last(&mut self) {
        self.times.pop();
    }

    fn output_digest(&self) -> Option<String> {
        Some(generate::digest(&self.ids))
    }

    fn finish(mut self: Box<Self>, samples: &[usize], _: &LimitsOverTime) -> Outcome {
        drop_warm_up(&mut self.times, samples);
        let Some(steps) = statistics::summarise(&self.times, samples) else {
            return Outcome::failed(anyhow!(NO_SAMPLE));
        };
        let measures = Tokenizing {
            text_bytes: self.text.len() as u64,
            text_tokens: self.ids.len(),
            samples: samples.len(),
            text_bytes_per_s: self.text.len() as f64 / steps.p50_ms * 1e3,
            token_us: steps.p50_ms * 1e3 / self.ids.len() as f64,
            pass_ms: steps.p50_ms,
            sample_ms: steps.sample_ms,
            token_digest: generate::digest(&self.ids),
        };
        let unmeasured = BTreeMap::new();
        Outcome { measured: Ok(Measured { measures: Measures::Tokenizing(measures), unmeasured }), deviates: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        [env!("CARGO_MANIFEST_DIR"), "fixtures", "generation", name].iter().collect()
    }

    fn limits() -> LimitsOverTime {
        let record: crate::record::Record =
            serde_json::from_str(include_str!("../core/record/sample.json")).expect("the sample");
        record.limits.expect("limits").into()
    }

    #[test]
    fn a_load_reads_every_shard_and_says_where_from() {
        let spec = ModelSpec::Path(fixture("qwen3-gqa3-sharded"));
        for is_cold in [false, true] {
            let work = LoadWorkload::new(&spec, Engine::Tuned, Precision::F32, DeviceChoice::Cpu, is_cold);
            let mut work = Box::new(work.expect("a load"));
            work.iterate().expect("loaded");
            work.iterate().expect("loaded");
            let measured = work.finish(&[1], &limits()).measured.expect("measures");
            let Measures::Loading(measures) = measured.measures else { panic!("another kind") };
            assert_eq!((measures.files, measures.samples, measures.sample_ms.len()), (6, 1, 1));
            assert!(measures.file_bytes > 100_000 && measures.load_bytes_per_s > 0.0, "{measures:?}");
            if cfg!(target_os = "linux") && !is_cold {
                // A cold load may read nothing from storage where files are always in memory, as in tmpfs.
                assert!(measures.storage_bytes.is_some_and(|bytes| bytes < measures.file_bytes), "{measures:?}");
            }
        }
        let mini = ModelSpec::Mini("llama-mini");
        let missing = LoadWorkload::new(&mini, Engine::Tuned, Precision::F32, DeviceChoice::Cpu, true);
        assert!(missing.err().expect("no files").to_string().contains("no files"));
    }

    #[test]
    fn tokens_give_the_text_again_at_once_and_streamed() {
        let folder = fixture("llama-gqa-tied");
        assert_eq!(fs::read_to_string(folder.join("tokenizer.json")).expect("the fixture's"), EMBEDDED);
        for spec in [None, Some(&ModelSpec::Path(folder))] {
            let work = TokenizerWorkload::new(spec, Pass::Stream).expect("a tokenizer");
            let decoded = work.decoded().expect("decoded");
            assert_eq!(decoded, work.text);
            assert_eq!(work.streamed().expect("streamed"), decoded);
        }
        for pass in [Pass::Encode, Pass::Decode, Pass::Stream] {
            let mut work = Box::new(TokenizerWorkload::new(None, pass).expect("a tokenizer"));
            work.iterate().expect("a pass");
            let measured = work.finish(&[1], &limits()).measured.expect("measures");
            let Measures::Tokenizing(measures) = measured.measures else { panic!("another kind") };
            assert!(measures.text_bytes >= TOKENIZER_TEXT_BYTES as u64 && measures.text_tokens > 1000, "{measures:?}");
            let ms = measures.token_us * measures.text_tokens as f64 / 1e3;
            assert!((ms / measures.pass_ms - 1.0).abs() < 1e-9, "{measures:?}");
        }
    }
}
