//! Planted faults, each found with the shortest input that shows it.

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::{
    anyhow::Result,
    model::{Footprint, LogitRows, Part},
};

const VOCAB_SIZE: usize = 24;
const WINDOW: usize = 16;

/// A fault of [`Windowed`].
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// From the third part of a batch on, the last token but one is not seen.
    MaskOfRowTwo,
    /// A reset leaves a token.
    RowAfterReset,
    /// Prompts see one token more than the window.
    WindowOfPrompts,
    /// Logits are not finite for prompts of 37 tokens.
    NanAt37,
    /// The positions of a part of a prompt begin at 0.
    PositionsOfChunks,
    /// A shared prefix has another last token.
    SharedPrefix,
    /// Rows of logits lag by one.
    LateRows,
    /// Prompts of more than eight tokens fail.
    Panics,
    /// Every logit is twice what it should be, in every way in which it can be asked for.
    Everywhere,
}

/// A model whose logits depend on the tokens of a window and on their positions.
struct Windowed {
    fault: Fault,
    device: Device,
    sequences: Vec<Vec<(u32, usize)>>,
}

impl Windowed {
    fn new(fault: Fault) -> Self {
        Self { fault, device: Device::Cpu, sequences: vec![Vec::new(); 6] }
    }

    fn append(&mut self, Part { sequence, tokens, position }: Part, row: usize) -> Result<Tensor> {
        let fault = self.fault;
        assert!(fault != Fault::Panics || tokens.len() <= 8, "planted");
        let starts_again = fault == Fault::PositionsOfChunks && tokens.len() > 1;
        let cache = &mut self.sequences[sequence];
        let first = if starts_again { 0 } else { position };
        cache.extend(tokens.iter().enumerate().map(|(place, token)| (*token, first + place)));
        let window = WINDOW + usize::from(fault == Fault::WindowOfPrompts && tokens.len() > 1);
        let seen = &cache[cache.len().saturating_sub(window)..];
        let is_hidden = |place: usize| fault == Fault::MaskOfRowTwo && row >= 2 && place + 2 == seen.len();
        let logit = |word: usize| {
            let of = |(place, (token, position)): (usize, &(u32, usize))| {
                if is_hidden(place) { 0.0 } else { ((*token as usize * 7 + word * 3 + position) as f32).sin() }
            };
            let sum: f32 = seen.iter().enumerate().map(of).sum();
            if fault == Fault::Everywhere { 2.0 * sum } else { sum }
        };
        let mut logits: Vec<f32> = (0..VOCAB_SIZE).map(logit).collect();
        if fault == Fault::NanAt37 && tokens.len() == 37 {
            logits[5] = f32::NAN;
        }
        Ok(Tensor::new(logits, &self.device)?)
    }
}

impl CausalLm for Windowed {
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
        self.append(Part { sequence: 0, tokens, position }, 0)
    }

    fn reset(&mut self) -> Result<()> {
        let kept = usize::from(self.fault == Fault::RowAfterReset);
        self.sequences.iter_mut().for_each(|sequence| sequence.truncate(kept));
        Ok(())
    }

    fn logit_rows<'a>(&'a mut self, tokens: &'a [u32], from: usize) -> Result<LogitRows<'a>> {
        self.reset()?;
        let mut rows = Vec::new();
        for (position, token) in tokens.iter().enumerate() {
            rows.push(self.forward(&[*token], position)?.to_vec1()?);
        }
        let late = usize::from(self.fault == Fault::LateRows && from > 0);
        Ok(Box::new((from - late..tokens.len() - late).map(move |row| Ok(rows[row].clone()))))
    }

    fn max_sequences(&self) -> usize {
        self.sequences.len()
    }

    fn forward_batch(&mut self, parts: &[Part]) -> Result<Vec<Tensor>> {
        parts.iter().enumerate().map(|(row, part)| self.append(*part, row)).collect()
    }

    fn share_prefix(&mut self, from: usize, to: usize, tokens: usize) -> Result<usize> {
        self.sequences[to] = self.sequences[from][..tokens].to_vec();
        if let (Fault::SharedPrefix, Some((last, _))) = (self.fault, self.sequences[to].last_mut()) {
            *last = (*last + 1) % VOCAB_SIZE as u32;
        }
        Ok(tokens)
    }

    fn footprint(&self) -> Footprint {
        Footprint::dense(1, 1, DType::F32, 0)
    }

    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }

    fn max_position_embeddings(&self) -> usize {
        400
    }

    fn device(&self) -> &Device {
        &self.device
    }
}

fn verified(fault: Fault) -> Verification {
    verify(&mut Windowed::new(fault), &Bounds::default()).expect("it can be reset")
}

#[test]
fn a_right_model_keeps_every_rule() {
    let found = verified(Fault::None);
    assert!(found.is_right(), "{found}");
    assert!(found.checks.iter().all(|check| check.tried > 0 && check.left == 0 && check.skipped.is_none()), "{found}");
    assert_eq!(found.checks[0].tried, 300, "every length");
}

/// The check that finds each fault, and the number of tokens of its shortest counterexample.
#[test]
fn planted_faults_are_found_with_the_shortest_input() {
    for (fault, check, tokens) in [
        (Fault::MaskOfRowTwo, "batch", 15),
        (Fault::RowAfterReset, "prompt", 1),
        (Fault::WindowOfPrompts, "prompt", WINDOW + 1),
        (Fault::NanAt37, "prompt", 37),
        (Fault::PositionsOfChunks, "chunks", 3),
        (Fault::SharedPrefix, "prefix", 2),
        (Fault::LateRows, "rows", 2),
        (Fault::Panics, "prompt", 9),
    ] {
        let found = verified(fault);
        let wrong: Vec<_> = found.checks.iter().filter(|check| check.counterexample.is_some()).collect();
        let by_check = wrong.iter().find(|wrong| wrong.name == check);
        let shortest = by_check.and_then(|wrong| wrong.counterexample.as_ref()).map(|found| found.tokens.len());
        assert_eq!(shortest, Some(tokens), "{fault:?}:\n{found}");
        assert!(found.to_string().contains("WRONG"), "{found}");
    }
}

#[test]
fn a_fault_that_is_everywhere_needs_a_reference() {
    assert!(verified(Fault::Everywhere).is_right());
    let (mut model, mut reference) = (Windowed::new(Fault::Everywhere), Windowed::new(Fault::None));
    let found = against(&mut model, ("another", &mut reference), &Bounds::default()).expect("both work");
    assert!(found.kl_mean > 0.1 && found.top1_agreement == 1.0, "{found}");
    assert_eq!(found.parts_at.as_ref().map(|found| found.tokens.len()), Some(1));
    let same =
        against(&mut reference, ("itself", &mut Windowed::new(Fault::None)), &Bounds::default()).expect("both work");
    assert!(same.parts_at.is_none() && same.kl_mean == 0.0 && same.to_string().contains("right"), "{same}");
}

/// Every fixture on engine `tuned` keeps the contract.
#[test]
fn the_fixtures_keep_the_contract() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/generation");
    let mut tried = 0;
    for folder in std::fs::read_dir(root).expect("the fixtures").flatten() {
        if !folder.path().join("config.json").is_file() {
            continue;
        }
        let spec: crate::model::ModelSpec = format!("path:{}", folder.path().display()).parse().expect("a path");
        let loaded = crate::model::load(
            &spec,
            crate::model::Engine::Tuned,
            crate::device::Precision::F32,
            crate::device::DeviceChoice::Cpu,
            42,
        );
        let Ok(mut subject) = loaded else { continue };
        let bounds = Bounds { longest: 70, check_s: 1.0, ..Bounds::default() };
        let found = verify(&mut *subject.model, &bounds).expect("it can be reset");
        assert!(found.is_right(), "{}: {found}", folder.path().display());
        tried += 1;
    }
    assert!(tried >= 30, "only {tried} fixtures were loaded");
}
