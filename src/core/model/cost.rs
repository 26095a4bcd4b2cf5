//! The cost of a decoder, from its configuration: parameters, bytes that a step reads, floating-point operations.

use candle_core::DType;

use super::{
    causal_lm::Footprint,
    config::{ExpertLayout, ModelConfig},
};

/// The name that transformers gives the embedding.
const EMBEDDING: &str = "model.embed_tokens.weight";

/// Parameters of the matrices of one layer.
struct LayerMatrices {
    /// Those that multiply each token: of a mixture, the router and the experts that compute one token.
    multiplied: u64,
    /// Those of the experts that do not compute the token, with their biases.
    idle: u64,
}

impl ModelConfig {
    /// Number of parameters. A tied head counts once.
    pub fn parameters(&self) -> u64 {
        self.tensors(ExpertLayout::Stacked).iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }

    /// The footprint with weights in `dtype`. A step reads and multiplies only the weights of the chosen experts.
    pub(crate) fn footprint(&self, dtype: DType) -> Footprint {
        let size = dtype.size_in_bytes() as u64;
        let parameters = self.parameters();
        let head = self.head_parameters();
        let layers = (0..self.num_hidden_layers).map(|layer| self.layer_matrices(layer));
        let (multiplied, idle) =
            layers.fold((head, 0), |(all, idle), layer| (all + layer.multiplied, idle + layer.idle));
        // A tied embedding is also the head, of which a step reads every row. A separate embedding has the size of the
        // head, and a step reads one row of it.
        let unread_embedding = if self.tie_word_embeddings { 0 } else { head };
        Footprint {
            parameters,
            weight_bytes: parameters * size,
            step_weight_bytes: (parameters - idle - unread_embedding) * size,
            cache_bytes_per_token: self.cache_row_bytes(dtype) * self.num_hidden_layers as u64,
            flops_per_token: 2 * multiplied,
            head_flops: 2 * head,
        }
    }

    /// The footprint with tensors of other sizes than those of one dtype. `bytes` gives that of a tensor from the name that
    /// transformers gives it and its shape. The cache is in `dtype`.
    pub(crate) fn footprint_of(&self, dtype: DType, bytes: impl Fn(&str, &[usize]) -> u64) -> Footprint {
        let (mut weight_bytes, mut unread, mut of_experts) = (0, 0, 0);
        for (name, shape) in self.tensors(ExpertLayout::Single) {
            let bytes = bytes(&name, &shape);
            weight_bytes += bytes;
            if name.contains(".experts.") {
                of_experts += bytes;
            }
            if name == EMBEDDING && !self.tie_word_embeddings {
                unread += bytes;
            }
        }
        let idle = self.experts.as_ref().map_or(0, |experts| {
            let (all, used) = (experts.num_experts as u64, experts.num_experts_per_tok as u64);
            of_experts / all * (all - used)
        });
        Footprint { weight_bytes, step_weight_bytes: weight_bytes - unread - idle, ..self.footprint(dtype) }
    }

    /// Floating-point operations of a prompt of `tokens`, attention included. Only the last position needs the head.
    pub fn prefill_flops(&self, tokens: usize) -> u64 {
        let footprint = self.footprint(DType::F32);
        let seen_by_all: usize = (self.sliding_layers.iter())
            .map(|sliding| match self.sliding_window.filter(|window| *sliding && *window < tokens) {
                None => tokens * (tokens + 1) / 2,
                Some(window) => window * (window + 1) / 2 + (tokens - window) * window,
            })
            .sum();
        // Scores and weighted values: two products of length head_dim for each query head and each position it sees.
        let attention = 4 * (seen_by_all * self.num_attention_heads * self.head_dim) as u64;
        (footprint.flops_per_token - footprint.head_flops) * tokens as u64 + footprint.head_flops + attention
    }

    /// Bytes of keys and values of one token in one layer.
    pub(crate) fn cache_row_bytes(&self, dtype: DType) -> u64 {
        (2 * self.num_key_value_heads * self.head_dim * dtype.size_in_bytes()) as u64
    }

    /// Elements of the biases of one expert.
    pub(crate) fn expert_biases(&self) -> usize {
        match (&self.experts, &self.family.experts) {
            (Some(experts), Some(family)) if family.has_biases => 2 * experts.intermediate_size + self.hidden_size,
            _ => 0,
        }
    }

    fn head_parameters(&self) -> u64 {
        (self.vocab_size * self.hidden_size) as u64
    }

    fn layer_matrices(&self, layer: usize) -> LayerMatrices {
        let hidden = self.hidden_size;
        // Query and output projections, then those of keys and values.
        let attention = 2 * hidden * (self.num_attention_heads + self.num_key_value_heads) * self.head_dim;
        // Gate, up and down projections.
        let gated = |inner: usize| 3 * hidden * inner;
        let (feed_forward, idle) = match self.experts_of(layer) {
            None => (gated(self.intermediate_size), 0),
            Some(experts) => {
                let expert = gated(experts.intermediate_size);
                let router = hidden * experts.num_experts;
                let shared = experts.shared_intermediate_size.map_or(0, |inner| gated(inner) + hidden);
                let idle = experts.num_experts - experts.num_experts_per_tok;
                (router + shared + experts.num_experts_per_tok * expert, idle * (expert + self.expert_biases()))
            }
        };
        LayerMatrices { multiplied: (attention + feed_forward) as u64, idle: idle as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{SYNTHETIC, decoder, shape},
        scenario::{ExpertDecoder, FeedForward},
    };

    /// Tensors of the sizes of a dtype have the footprint of the dtype, idle experts included.
    #[test]
    fn a_footprint_by_tensors_is_that_of_the_dtype() {
        let mixture = FeedForward::Mixture { num_experts: 8, top_k: 2, skew: None };
        let mixture = decoder::shape::config(ExpertDecoder::new(mixture));
        let shapes = SYNTHETIC.map(|name| shape(name).expect("a shape")).into_iter().chain([mixture.expect("a shape")]);
        for config in shapes {
            for tie_word_embeddings in [true, false] {
                let config = ModelConfig { tie_word_embeddings, ..config.clone() };
                let bytes = |_: &str, shape: &[usize]| 2 * shape.iter().product::<usize>() as u64;
                assert_eq!(config.footprint_of(DType::BF16, bytes), config.footprint(DType::BF16));
            }
        }
    }

    /// Every matrix is multiplied with each token, except an embedding that is not the head.
    #[test]
    fn products_are_those_of_all_matrices_of_a_dense_decoder() {
        for name in SYNTHETIC.into_iter().filter(|name| shape(name).expect("a shape").experts.is_none()) {
            for tied in [true, false] {
                let config = ModelConfig { tie_word_embeddings: tied, ..shape(name).expect("a shape") };
                let tensors = config.tensors(ExpertLayout::Single);
                let matrices = tensors.iter().filter(|(tensor, shape)| {
                    shape.len() == 2 && (tied || tensor.as_str() != "model.embed_tokens.weight")
                });
                let expected: usize = matrices.map(|(_, shape)| shape.iter().product::<usize>()).sum();
                let footprint = config.footprint(DType::BF16);
                assert_eq!(footprint.flops_per_token, 2 * expected as u64, "{name}, tied: {tied}");
                let vectors: usize =
                    tensors.iter().filter(|(_, shape)| shape.len() == 1).map(|(_, shape)| shape[0]).sum();
                assert_eq!(footprint.step_weight_bytes, 2 * (expected + vectors) as u64, "{name}, tied: {tied}");
            }
        }
    }
}
