//! Comparison of a model with another implementation of it.

use std::fmt;

use anyhow::{Result, ensure};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Bounds, Counterexample,
    checks::{distance, drawn},
};
use crate::{model::CausalLm, quality::Row};

/// The predictions of a model beside those of a reference, along one sequence.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Reference {
    /// Name of the reference.
    pub name: String,
    /// Tokens of the sequence.
    pub tokens: usize,
    /// Mean Kullback-Leibler divergence of the model's predictions from the reference's, in nats.
    pub kl_mean: f64,
    /// The largest one, and the position after which it is found.
    pub kl_largest: (f64, usize),
    /// Share of the positions at which both find the same token most probable.
    pub top1_agreement: f64,
    /// The shortest prompt after which the logits differ by more than twice the tolerance; `null` if there is none.
    pub parts_at: Option<Counterexample>,
}

/// Compares a model with a reference, on a sequence that is drawn by the seed. Either may be off from the exact result by the tolerance,
/// so they may be apart by twice as much.
///
/// # Errors
/// Returns an error if one of them fails, or if their vocabularies differ.
pub fn against(
    model: &mut dyn CausalLm,
    (name, reference): (&str, &mut dyn CausalLm),
    bounds: &Bounds,
) -> Result<Reference> {
    let (own, other) = (model.vocab_size(), reference.vocab_size());
    ensure!(own == other, "the vocabulary has {own} tokens, and that of {name} {other}");
    let context = model.max_position_embeddings().min(reference.max_position_embeddings());
    let tokens = drawn(bounds.seed, bounds.longest.min(context), own);
    let (mut kl, mut agreed, mut parts_at) = (Vec::new(), 0_usize, None);
    let allowed = 2.0 * bounds.tolerance;
    {
        let (mut rows, mut expected) = (model.logit_rows(&tokens, 0)?, reference.logit_rows(&tokens, 0)?);
        for position in 0..tokens.len() {
            let (row, wanted) = (Row::next(&mut rows, own)?, Row::next(&mut expected, own)?);
            kl.push(wanted.divergence(&row));
            agreed += usize::from(row.top() == wanted.top());
            let apart = distance(row.logits(), wanted.logits());
            if parts_at.is_none() && apart.is_none_or(|apart| apart > allowed) {
                let apart_text = apart.map_or("not finite".into(), |apart| format!("off by {apart:.1e}"));
                parts_at = Some(Counterexample {
                    tokens: tokens[..=position].to_vec(),
                    position,
                    distance: apart,
                    happened: format!(
                        "after {} tokens the logits are {apart_text} from those of {name}, and {allowed:.1e} is allowed",
                        position + 1
                    ),
                });
            }
        }
    }
    model.reset()?;
    reference.reset()?;
    let largest = kl.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default();
    Ok(Reference {
        name: name.to_owned(),
        tokens: tokens.len(),
        kl_mean: kl.iter().sum::<f64>() / kl.len() as f64,
        kl_largest: (largest.1, largest.0),
        top1_agreement: agreed as f64 / tokens.len() as f64,
        parts_at,
    })
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, tokens, kl_mean, kl_largest: (largest, at), top1_agreement, parts_at } = self;
        let verdict = if parts_at.is_some() { "WRONG" } else { "right" };
        writeln!(
            f,
            "{:<9} {verdict}  {tokens} tokens beside {name}: KL {kl_mean:.1e} nats, up to {largest:.1e} after token {at}; the same \
             token most probable in {:.1} %",
            "reference",
            top1_agreement * 100.0
        )?;
        parts_at.as_ref().map_or(Ok(()), |found| writeln!(f, "{found}"))
    }
}
