//! Times PSANN language models a step at a time, as it is asked to on standard input, so that another program can take turns
//! with it: `scripts/psann_ratio.py` does, with psannlm on PyTorch. A line is a base and `forward`, `loss` or `train`; the answer is
//! milliseconds.

use std::{collections::HashMap, io::BufRead, time::Instant};

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use candlepower::{
    model::psann::{Base, PsannConfig},
    runner::let_waiting_threads_sleep,
    train::step::{
        gradients::Sequences,
        language::{Language, Plan},
        optimizer::Options,
    },
};

const ROWS: usize = 4;
const TIME: usize = 256;

fn main() -> Result<()> {
    let_waiting_threads_sleep();
    let mut models: HashMap<Base, Language> = HashMap::new();
    let ids = (0..ROWS * (TIME + 1)).map(|place| (place * 7919 % 32_000) as u32).collect();
    let batch = Sequences::new(ids, TIME + 1)?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (base, phase) = line.split_once(' ').with_context(|| format!("'{line}' is no base and phase"))?;
        let base: Base = base.parse()?;
        let config = PsannConfig { base, d_model: 256, n_layers: 4, n_heads: 4, d_mlp: 1024, ..PsannConfig::default() };
        let plan = Plan { dtype: DType::F32, checkpointing: false, micro_rows: ROWS };
        let model = match models.remove(&base) {
            Some(model) => model,
            None => Language::new(&config, Options::default(), plan, 42, &Device::Cpu)?,
        };
        let model = models.entry(base).or_insert(model);
        let started = Instant::now();
        match phase {
            "forward" => drop(model.logits(&batch)?),
            "loss" => {
                model.evaluate(&batch)?;
            }
            "train" => {
                model.step(&batch)?;
            }
            other => bail!("unknown phase '{other}': forward, loss or train"),
        }
        println!("{:.4}", started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(())
}
