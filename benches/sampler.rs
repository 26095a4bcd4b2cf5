//! The cost of sampling a token, for the vocabularies of published models.

use std::{hint::black_box, time::Duration};

use candlepower_core::{generate::Sampler, scenario::GENERATION};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};

const VOCABULARIES: [(&str, usize); 2] = [("llama-3.2-1b", 128_256), ("gemma3-1b", 262_144)];

fn sampler(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sampler");
    let sequence: Vec<u32> = (0..512).map(|i| i * 37).collect();
    for (model, vocab_size) in VOCABULARIES {
        let mut random = ChaCha8Rng::seed_from_u64(42);
        let logits: Vec<f32> = (0..vocab_size).map(|_| (random.next_u32() >> 8) as f32 / 1e6).collect();
        for key in ["medium", "sampled", "full-pipe"] {
            let Some(scenario) = GENERATION.iter().find(|scenario| scenario.key == key) else { continue };
            group.throughput(Throughput::Elements(vocab_size as u64));
            group.bench_function(BenchmarkId::new(model, key), |bencher| {
                let mut sampler = Sampler::new(scenario.sampling, 42).expect("the table's parameters are in range");
                bencher.iter(|| black_box(sampler.sample(black_box(&logits), &sequence)));
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .nresamples(10_000);
    targets = sampler
}
criterion_main!(benches);
