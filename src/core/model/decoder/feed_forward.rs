//! One gated feed-forward, `down · (silu(gate · x) ⊙ (up · x))`, of a dense layer or of one expert, by Candle's operations.

use candle_core::{Result, Tensor};

/// Weights of shape (2 × intermediate, hidden), gate above up, and (hidden, intermediate).
#[derive(Clone, Debug)]
pub struct Gated {
    gate_up: Tensor,
    down: Tensor,
}

impl Gated {
    pub fn new(gate_up: Tensor, down: Tensor) -> Self {
        Self { gate_up, down }
    }

    /// The feed-forward of `rows` (n, hidden): (n, hidden).
    pub fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        let gate_up = rows.matmul(&self.gate_up.t()?)?;
        let inner = gate_up.dim(1)? / 2;
        (gate_up.narrow(1, 0, inner)?.silu()? * gate_up.narrow(1, inner, inner)?)?.matmul(&self.down.t()?)
    }
}
