//! A model whose logits are a hash of the whole history, so that a token from a wrong sequence, position or cache shows. It
//! holds several sequences, shares pages of four tokens, and checks that it is called as the trait promises.

use std::{
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use candlepower::{
    CausalLm, Footprint,
    anyhow::{Result, bail, ensure},
    candle_core::{DType, Device, Tensor},
};
use candlepower_core::model::{Part, Subject};

pub const VOCAB: usize = 300;
pub const LENGTH: usize = 4096;
/// Tokens of a page.
const PAGE: usize = 4;

/// Tokens with which the model misbehaves among the first three of a sequence. It never generates them.
pub const PANICS: u32 = 299;
pub const FAILS: u32 = 298;
pub const NOT_A_NUMBER: u32 = 297;

/// The steps that the model was asked for.
#[derive(Default, Debug)]
pub struct Log {
    /// Tokens of each step.
    pub steps: Vec<usize>,
    /// Most sequences of a step.
    pub widest: usize,
    pub shared_tokens: usize,
}

pub struct Toy {
    sequences: Vec<Vec<u32>>,
    /// Time of each step.
    step: Duration,
    log: Arc<Mutex<Log>>,
}

/// A model for as many sequences, and its log.
pub fn toy(sequences: usize, step: Duration) -> (impl FnOnce() -> Subject + Send, Arc<Mutex<Log>>) {
    let log = Arc::new(Mutex::new(Log::default()));
    let own = log.clone();
    let make = move || {
        let model = Toy { sequences: vec![Vec::new(); sequences], step, log: own };
        Subject {
            model: Box::new(model),
            source: "toy".into(),
            tokenizer: None,
            without_tokenizer: None,
            eos_token_ids: Vec::new(),
            formats: Default::default(),
        }
    };
    (make, log)
}

/// The logits that follow a history.
pub fn logits(history: &[u32]) -> Vec<f32> {
    let mix = |hash: u64, value: u64| {
        let mixed = (hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    };
    let hash = history.iter().fold(1, |hash, id| mix(hash, u64::from(*id)));
    let logit = |id: u64| match id as u32 {
        NOT_A_NUMBER.. => -100.0,
        _ => (mix(hash, id) >> 40) as f32 / (1u64 << 22) as f32,
    };
    (0..VOCAB as u64).map(logit).collect()
}

/// The likeliest tokens after a prompt.
pub fn greedy(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut history = prompt.to_vec();
    for _ in 0..count {
        let logits = logits(&history);
        let next = (0..VOCAB).max_by(|a, b| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a)));
        history.push(next.expect("a token") as u32);
    }
    history.split_off(prompt.len())
}

impl CausalLm for Toy {
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
        Ok(self.forward_batch(&[Part { sequence: 0, tokens, position }])?.remove(0))
    }

    fn reset(&mut self) -> Result<()> {
        self.release(0)
    }

    fn max_sequences(&self) -> usize {
        self.sequences.len()
    }

    fn forward_batch(&mut self, parts: &[Part]) -> Result<Vec<Tensor>> {
        thread::sleep(self.step);
        {
            let mut log = self.log.lock().expect("no panic");
            log.steps.push(parts.iter().map(|part| part.tokens.len()).sum());
            log.widest = log.widest.max(parts.len());
        }
        for (number, part) in parts.iter().enumerate() {
            assert!(!part.tokens.is_empty(), "a part without tokens");
            assert!(parts[..number].iter().all(|other| other.sequence != part.sequence), "a sequence twice");
            let planted = |id: u32| part.position + part.tokens.len() <= 3 && part.tokens.contains(&id);
            assert!(!planted(PANICS), "a planted panic");
            ensure!(part.position == self.sequences[part.sequence].len(), "the position is not the length");
            ensure!(part.position + part.tokens.len() <= LENGTH, "too long");
            if planted(FAILS) {
                bail!("a planted failure");
            }
        }
        let forward = |part: &Part| {
            let history = &mut self.sequences[part.sequence];
            history.extend_from_slice(part.tokens);
            let mut logits = logits(history);
            if history.len() <= 3 && history.contains(&NOT_A_NUMBER) {
                logits[7] = f32::NAN;
            }
            Ok(Tensor::from_vec(logits, VOCAB, &Device::Cpu)?)
        };
        parts.iter().map(forward).collect()
    }

    fn release(&mut self, sequence: usize) -> Result<()> {
        self.sequences[sequence].clear();
        Ok(())
    }

    fn share_prefix(&mut self, from: usize, to: usize, tokens: usize) -> Result<usize> {
        ensure!(self.sequences[to].is_empty() && tokens <= self.sequences[from].len(), "nothing to share");
        let shared = tokens / PAGE * PAGE;
        self.sequences[to] = self.sequences[from][..shared].to_vec();
        self.log.lock().expect("no panic").shared_tokens += shared;
        Ok(shared)
    }

    fn footprint(&self) -> Footprint {
        Footprint::dense(VOCAB, VOCAB, DType::F32, 4)
    }

    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn max_position_embeddings(&self) -> usize {
        LENGTH
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }
}
