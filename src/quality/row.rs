//! Log-probabilities of a row of logits.

use anyhow::{Context, Result, ensure};

use crate::model::LogitRows;

/// A row of logits and its normalisation.
#[derive(Debug)]
pub struct Row {
    logits: Vec<f32>,
    /// Logarithm of the sum of the exponentials.
    log_sum: f64,
    top: usize,
}

impl Row {
    /// The next of the rows of a model.
    ///
    /// # Errors
    /// When the model fails, has no further row, or its logits are not finite or not `vocab_size`.
    pub fn next(rows: &mut LogitRows, vocab_size: usize) -> Result<Self> {
        let logits = rows.next().context("the model returned too few rows of logits")??;
        ensure!(logits.len() == vocab_size, "the model returned {} logits for vocab_size={vocab_size}", logits.len());
        Self::new(logits)
    }

    fn new(logits: Vec<f32>) -> Result<Self> {
        let mut top = 0;
        for (index, logit) in logits.iter().enumerate() {
            if *logit > logits[top] {
                top = index;
            }
        }
        let most = logits.first().map_or(f64::NAN, |_| f64::from(logits[top]));
        let log_sum = most + logits.iter().map(|logit| (f64::from(*logit) - most).exp()).sum::<f64>().ln();
        ensure!(log_sum.is_finite(), "the logits are not finite");
        Ok(Self { logits, log_sum, top })
    }

    /// The logits, one for each token.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Logarithm of the probability of a token, which must be in the vocabulary.
    pub fn log_probability(&self, token: u32) -> f64 {
        f64::from(self.logits[token as usize]) - self.log_sum
    }

    /// The most probable token; the first of equals.
    pub fn top(&self) -> u32 {
        self.top as u32
    }

    /// Kullback-Leibler divergence of `other` from this row, in nats: the mean of the difference of their log-probabilities
    /// under this row. Both must have the same length.
    pub fn divergence(&self, other: &Self) -> f64 {
        let terms = self.logits.iter().zip(&other.logits).map(|(own, other_logit)| {
            let own = f64::from(*own) - self.log_sum;
            let probability = own.exp();
            // A token without probability adds nothing, although its logarithm may be infinite.
            if probability > 0.0 { probability * (own - (f64::from(*other_logit) - other.log_sum)) } else { 0.0 }
        });
        // Rounding may make the sum of almost equal rows negative.
        terms.sum::<f64>().max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_those_of_a_softmax() {
        let row = Row::new(vec![0.0, 2f32.ln(), 5f32.ln()]).expect("finite");
        for (token, probability) in [(0, 0.125f64), (1, 0.25), (2, 0.625)] {
            assert!((row.log_probability(token) - probability.ln()).abs() < 1e-7);
        }
        assert_eq!(row.top(), 2);
        assert_eq!(Row::new(vec![1.0, 3.0, 3.0]).expect("finite").top(), 1);
        for bad in [vec![f32::NAN, 1.0], vec![f32::INFINITY, 1.0], vec![f32::NEG_INFINITY; 2], vec![]] {
            assert!(Row::new(bad).is_err());
        }
    }

    #[test]
    fn the_divergence_is_that_of_the_definition_and_zero_from_itself() {
        let a = Row::new(vec![0.0, 0.0, f32::NEG_INFINITY]).expect("finite");
        let b = Row::new(vec![3f32.ln(), 0.0, -1000.0]).expect("finite");
        let expected = 0.5 * (0.5f64 / 0.75).ln() + 0.5 * (0.5f64 / 0.25).ln();
        assert!((a.divergence(&b) - expected).abs() < 1e-7);
        assert_eq!((a.divergence(&a), b.divergence(&b)), (0.0, 0.0));
    }
}
