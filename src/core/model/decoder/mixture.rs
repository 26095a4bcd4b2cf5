//! A mixture of experts, by Candle's operations. The router chooses the experts of each token, tokens are sorted by expert, each expert computes its
//! tokens with one product per matrix, and the results are summed. The weights of experts without tokens are not read, and no
//! weights are copied.

use anyhow::Result;
use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;

use super::{
    feed_forward::Gated,
    routing::{ExpertLoad, Planted, Routes},
};
use crate::model::{
    config::{ExpertLayout, Experts},
    family::ExpertNames,
};

#[derive(Clone, Debug)]
pub struct Mixture {
    /// (experts, hidden)
    router: Tensor,
    experts: Vec<Gated>,
    top_k: usize,
    normalise: bool,
    /// Index among the layers that are mixtures.
    number: usize,
}

impl Mixture {
    /// Loads the mixture. `weights` are those of the decoder's layer.
    pub fn load(
        config: &Experts,
        names: &ExpertNames,
        hidden: usize,
        number: usize,
        weights: &VarBuilder,
        layout: ExpertLayout,
    ) -> Result<Self> {
        let (count, inner) = (config.num_experts, config.intermediate_size);
        let (router, experts) = match layout {
            ExpertLayout::Stacked => {
                let weights = weights.pp("mlp");
                let gate_up = weights.get((count, 2 * inner, hidden), "experts.gate_up_proj")?;
                let down = weights.get((count, hidden, inner), "experts.down_proj")?;
                let experts = (0..count).map(|expert| Ok(Gated::new(gate_up.get(expert)?, down.get(expert)?)));
                (weights.get((count, hidden), "gate.weight")?, experts.collect::<Result<_>>()?)
            }
            ExpertLayout::Single => {
                let weights = weights.pp(names.block);
                let expert = |expert: usize| {
                    let weights = weights.pp("experts").pp(expert);
                    let gate = weights.get((inner, hidden), &format!("{}.weight", names.gate))?;
                    let up = weights.get((inner, hidden), &format!("{}.weight", names.up))?;
                    let down = weights.get((hidden, inner), &format!("{}.weight", names.down))?;
                    Ok(Gated::new(Tensor::cat(&[gate, up], 0)?, down))
                };
                (weights.get((count, hidden), "gate.weight")?, (0..count).map(expert).collect::<Result<_>>()?)
            }
        };
        Ok(Self { router, experts, top_k: config.num_experts_per_tok, normalise: config.norm_topk_prob, number })
    }

    /// Routes of the tokens `x` (tokens, hidden), of which the first is at `position`.
    pub fn route(&self, x: &Tensor, position: usize, planted: Option<&Planted>) -> Result<Routes> {
        let logits = x.matmul(&self.router.t()?)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let logits = match planted {
            None => logits,
            Some(planted) => planted.logits(self.number, position, x.dim(0)?),
        };
        Ok(Routes::choose(&logits, self.experts.len(), self.top_k, self.normalise))
    }

    /// Adds the mixture of `x` to `sum`, both (tokens, hidden), and counts the tokens of each expert.
    pub fn add_to(
        &self,
        sum: Tensor,
        x: &Tensor,
        position: usize,
        planted: Option<&Planted>,
        load: &mut ExpertLoad,
    ) -> Result<Tensor> {
        let routes = self.route(x, position, planted)?;
        load.count(self.number, &routes);
        self.dispatch(sum, x, &routes)
    }

    /// Adds the experts of each token with as few launches and copies to the device as possible, because a step waits for
    /// those.
    pub(super) fn dispatch(&self, mut sum: Tensor, x: &Tensor, routes: &Routes) -> Result<Tensor> {
        if x.dim(0)? == 1 {
            for (expert, weight) in routes.experts.iter().zip(&routes.weights) {
                sum = (sum + (self.experts[*expert as usize].forward(x)? * f64::from(*weight))?)?;
            }
            return Ok(sum);
        }
        let groups = routes.by_expert(self.experts.len());
        let tokens: Vec<u32> = groups.iter().flat_map(|(tokens, _)| tokens).copied().collect();
        let weights: Vec<f32> = groups.iter().flat_map(|(_, weights)| weights).copied().collect();
        let (tokens, places) = (Tensor::new(tokens, x.device())?, weights.len());
        let weights = Tensor::from_vec(weights, (places, 1), x.device())?.to_dtype(x.dtype())?;
        let sorted = x.index_select(&tokens, 0)?;
        let (mut rows, mut first) = (Vec::new(), 0);
        for (expert, (tokens, _)) in self.experts.iter().zip(&groups).filter(|(_, (tokens, _))| !tokens.is_empty()) {
            rows.push(expert.forward(&sorted.narrow(0, first, tokens.len())?)?);
            first += tokens.len();
        }
        Ok(sum.index_add(&tokens, &Tensor::cat(&rows, 0)?.broadcast_mul(&weights)?, 0)?)
    }
}
