//! Your own model in every generation scenario: `cargo run --release --example bring_your_own_model -- --bench`.
//! In your crate, the same file is a bench target with `harness = false`, and `cargo bench` runs it.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candlepower::{Candidate, CausalLm, CountingAllocator, Footprint, GENERATION};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const VOCAB_SIZE: usize = 8192;
const HIDDEN_SIZE: usize = 512;

/// Predicts the next token from the sum of the embeddings of all tokens so far.
struct BagOfWords {
    embedding: Tensor,
    sum: Tensor,
}

impl CausalLm for BagOfWords {
    fn forward(&mut self, tokens: &[u32], _position: usize) -> Result<Tensor> {
        let tokens = Tensor::new(tokens, self.embedding.device())?;
        self.sum = (&self.sum + self.embedding.index_select(&tokens, 0)?.sum_keepdim(0)?)?;
        Ok(self.sum.matmul(&self.embedding.t()?)?.flatten_all()?.to_dtype(DType::F32)?)
    }
    fn reset(&mut self) -> Result<()> {
        self.sum = self.sum.zeros_like()?;
        Ok(())
    }
    fn footprint(&self) -> Footprint {
        // The embedding is also the head, and there is no cache that grows.
        let parameters = VOCAB_SIZE * HIDDEN_SIZE;
        Footprint::dense(parameters, parameters, self.embedding.dtype(), 0)
    }
    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }
    fn max_position_embeddings(&self) -> usize {
        1 << 20
    }
    fn device(&self) -> &Device {
        self.embedding.device()
    }
}

fn load(dtype: DType, device: &Device) -> Result<BagOfWords> {
    // Unlike those of `randn`, these weights are equal in each process, and so are the tokens.
    let numbers = Tensor::arange(0f32, (VOCAB_SIZE * HIDDEN_SIZE) as f32, device)?;
    let embedding = (numbers.sin()? * 0.02)?.reshape((VOCAB_SIZE, HIDDEN_SIZE))?.to_dtype(dtype)?;
    Ok(BagOfWords { embedding, sum: Tensor::zeros((1, HIDDEN_SIZE), dtype, device)? })
}

fn main() -> std::process::ExitCode {
    candlepower::main(|suite| {
        suite.generation(GENERATION, vec![Candidate::own("bag-of-words", suite.settings(), load)])
    })
}
