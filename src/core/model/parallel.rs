//! How a model of engine `tuned` divides its work on a CPU, and whether its logits are those of an undivided one.

use anyhow::Result;

use super::causal_lm::CausalLm;

/// The threads and the ranks of one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parallel {
    /// Number of threads; `None` for as many as the process has.
    pub threads: Option<usize>,
    /// Ranks that share each layer (tensor parallelism) and divide the threads: 1 for a model that is not sharded.
    pub ranks: usize,
}

impl Default for Parallel {
    fn default() -> Self {
        Self { threads: None, ranks: 1 }
    }
}

/// Steps after the prompt whose logits are compared.
const STEPS: usize = 8;

/// The largest difference of the logits of two models after a prompt and after some tokens that follow greedily. Infinite if one
/// is not finite. Both models are reset.
///
/// # Errors
/// As [`CausalLm::forward`].
pub fn apart(model: &mut dyn CausalLm, reference: &mut dyn CausalLm, prompt: &[u32]) -> Result<f32> {
    model.reset()?;
    reference.reset()?;
    let longest = model.max_position_embeddings();
    let (mut tokens, mut position, mut worst) = (prompt.to_vec(), 0, 0f32);
    for _ in 0..=STEPS.min(longest.saturating_sub(prompt.len())) {
        let found: Vec<f32> = model.forward(&tokens, position)?.to_vec1()?;
        let expected: Vec<f32> = reference.forward(&tokens, position)?.to_vec1()?;
        let differences = found.iter().zip(&expected).map(|(found, expected)| (found - expected).abs());
        worst = differences.fold(worst, |worst, apart| if apart.is_nan() { f32::INFINITY } else { worst.max(apart) });
        position += tokens.len();
        let likeliest = (0..expected.len()).max_by(|a, b| expected[*a].total_cmp(&expected[*b]));
        tokens = vec![likeliest.unwrap_or_default() as u32];
    }
    model.reset()?;
    reference.reset()?;
    Ok(worst)
}
