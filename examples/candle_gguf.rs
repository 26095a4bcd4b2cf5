//! A GGUF file on candle-transformers alone, without candlepower: what engine `stock` must not differ from.
//! scripts/check_stock_gguf.sh compares their tokens.
//!
//! `cargo run --release --example candle_gguf -- model.gguf 16 1,2,3` prints 16 greedy tokens after three.

#![allow(clippy::print_stderr, clippy::print_stdout)]

use std::{env, fs::File, time::Instant};

use anyhow::{Context, Result, bail};
use candle_core::{D, DType, Device, Tensor, quantized::gguf_file::Content};
use candle_transformers::models::{
    quantized_gemma3, quantized_glm4, quantized_llama, quantized_phi3, quantized_qwen2, quantized_qwen3,
};

type Forward = Box<dyn FnMut(&Tensor, usize) -> candle_core::Result<Tensor>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [file, count, ids] = &arguments[..] else { bail!("usage: candle_gguf FILE TOKENS ID,ID,…") };
    let ids: Vec<u32> = ids.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let mut reader = File::open(file).with_context(|| file.clone())?;
    let content = Content::read(&mut reader)?;
    macro_rules! model {
        ($module:ident) => { model!($module(content, &mut reader, &Device::Cpu)) };
        ($module:ident($($argument:expr),*)) => {{
            let mut model = $module::ModelWeights::from_gguf($($argument),*)?;
            Box::new(move |tokens: &Tensor, position| model.forward(tokens, position))
        }};
    }
    let mut forward: Forward = match content.metadata["general.architecture"].to_string()?.as_str() {
        "llama" => model!(quantized_llama),
        "qwen2" => model!(quantized_qwen2),
        "qwen3" => model!(quantized_qwen3),
        "gemma3" => model!(quantized_gemma3),
        "phi3" => model!(quantized_phi3(false, content, &mut reader, &Device::Cpu)),
        "glm4" => model!(quantized_glm4(content, &mut reader, &Device::Cpu, DType::F32)),
        other => bail!("{other} is not in this example"),
    };
    let (start, mut first, mut position, mut input, mut tokens) = (Instant::now(), None, 0, ids, Vec::<u32>::new());
    for _ in 0..count.parse()? {
        let logits = forward(&Tensor::new(&input[..], &Device::Cpu)?.unsqueeze(0)?, position)?;
        position += input.len();
        input = vec![logits.argmax(D::Minus1)?.flatten_all()?.to_vec1::<u32>()?[0]];
        tokens.extend(&input);
        first.get_or_insert_with(|| start.elapsed());
    }
    let (all, first) = (start.elapsed(), first.unwrap_or_default());
    let rate = tokens.len().saturating_sub(1) as f64 / (all - first).as_secs_f64();
    eprintln!("first token after {:.1} ms, then {rate:.1} tok/s", first.as_secs_f64() * 1e3);
    println!("{tokens:?}");
    Ok(())
}
