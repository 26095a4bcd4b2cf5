//! Overhead of the harness: the suite and a bare loop run the same generation on the same model in turns, so that drift
//! affects both.

use std::{
    cell::RefCell,
    process::ExitCode,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::Result;
use candle_core::Tensor;
use candlepower::{
    runner,
    settings::Settings,
    workload::{GenerationWorkload, Workload},
};
use candlepower_core::{
    generate::Request,
    measure::{CountingAllocator, memory::HeldBytes},
    model::{self, CausalLm, Engine, ModelSpec},
    scenario::Sampling,
};
use criterion::{Criterion, SamplingMode};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const NEW_TOKENS: usize = 32;

/// Greedy generation with nothing but the model and argmax.
fn bare_loop(model: &mut dyn CausalLm, prompt: &[u32]) -> Result<Duration> {
    model.reset()?;
    let started = Instant::now();
    let likeliest = |logits: Tensor| -> Result<u32> { Ok(logits.argmax(0)?.to_scalar()?) };
    let mut next = likeliest(model.forward(prompt, 0)?)?;
    for step in 1..NEW_TOKENS {
        next = likeliest(model.forward(&[next], prompt.len() + step - 1)?)?;
    }
    std::hint::black_box(next);
    Ok(started.elapsed())
}

fn main() -> ExitCode {
    runner::in_one_line(|| {
        let settings = Settings::load(&[])?;
        let device = settings.device;
        let spec = ModelSpec::Mini("llama-mini");
        let mut criterion = Criterion::default()
            .sample_size(80)
            .warm_up_time(Duration::from_millis(1))
            .measurement_time(Duration::from_millis(1))
            .configure_from_args();
        let mut group = criterion.benchmark_group("harness");
        group.sampling_mode(SamplingMode::Flat);
        let mut pairs: Vec<(f64, f64)> = Vec::new();
        group.bench_function("llama-mini", |bencher| {
            let mut bench = || -> Result<()> {
                let subject = model::load(&spec, Engine::Stock, settings.first_dtype(), device, settings.seed)?;
                let subject = Rc::new(RefCell::new(subject));
                let prompt: Vec<u32> = (0..64).collect();
                let request = Request { new_tokens: NEW_TOKENS, sampling: Sampling::GREEDY, seed: 0, stop: Vec::new() };
                let mut workload = GenerationWorkload::new(
                    subject.clone(),
                    HeldBytes::default(),
                    vec![prompt.clone()],
                    request,
                    device,
                )?;
                let bare = || bare_loop(subject.borrow_mut().model.as_mut(), &prompt);
                bencher.iter_custom(|iterations| {
                    let mut total = Duration::ZERO;
                    for _ in 0..iterations {
                        let bare_first = pairs.len().is_multiple_of(2);
                        let before = bare_first.then(bare);
                        let suite = workload.iterate();
                        let bare = before.unwrap_or_else(bare);
                        let (Ok(bare), Ok(suite)) = (bare, suite) else { continue };
                        pairs.push((bare.as_secs_f64(), suite.time.as_secs_f64()));
                        total += suite.time;
                    }
                    total
                });
                Ok(())
            };
            if let Err(error) = bench() {
                std::panic::resume_unwind(Box::new(format!("{error:#}")));
            }
        });
        group.finish();
        if pairs.len() > 1 {
            let mut ratios: Vec<_> = pairs.iter().map(|(bare, suite)| suite / bare).collect();
            ratios.sort_unstable_by(f64::total_cmp);
            // Distribution-free 95 % interval of the median: the order statistics at n/2 ± √n.
            let (middle, half_width) = (ratios.len() / 2, (ratios.len() as f64).sqrt().ceil() as usize);
            candlepower_core::output::print_line(format_args!(
                "suite / bare loop: median {:.4} of {} pairs, 95 % interval {:.4} to {:.4}",
                ratios[middle],
                ratios.len(),
                ratios[middle.saturating_sub(half_width)],
                ratios[(middle + half_width).min(ratios.len() - 1)]
            ));
        }
        criterion.final_summary();
        Ok(ExitCode::SUCCESS)
    })
}
