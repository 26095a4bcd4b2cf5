//! Several sequences in one step equal each sequence alone and the golden files of transformers in `fixtures`.

use std::collections::VecDeque;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use half::bf16;

use super::{CpuDecoder, MAX_SEQUENCES, cache_bytes};
use crate::{
    device::Precision,
    kernels::inference::{F8E4M3, Instructions, Machine},
    model::{
        CausalLm, Part,
        golden::{Fixture, Prompt, TOLERANCE, difference, fixtures, numbers},
        tensors::Tensors,
    },
};

/// A step of several sequences rounds differently than one of a single sequence. PyTorch's bf16 differs from f32 by up to
/// 0.04 of the norm of the logits on these fixtures.
const BF16_TOLERANCE: f32 = 0.03;

/// Small numbers from a seed.
struct Draw(u64);

impl Draw {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    fn tokens(&mut self, count: usize, vocab_size: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(vocab_size) as u32).collect()
    }
}

fn weights(fixture: &Fixture, dtype: DType) -> VarBuilder<'static> {
    fixture.checkpoint.weights(dtype, &Device::Cpu).expect("weights")
}

fn decoder(fixture: &Fixture, machine: Machine, planted: Option<(f64, u64)>) -> CpuDecoder<f32> {
    let layout = fixture.checkpoint.expert_layout().expect("a header");
    CpuDecoder::load(fixture.config.clone(), weights(fixture, DType::F32), layout, planted, machine, 1)
        .expect(&fixture.name)
}

/// The prompt and what greedily follows it, less the last token, after which there is no reference.
fn sequence_of(prompt: &Prompt) -> Vec<u32> {
    let all = prompt.ids.iter().chain(&prompt.greedy).copied();
    all.take(prompt.ids.len() + prompt.greedy.len() - 1).collect()
}

/// The logits after the tokens from `position` on, in a step of its own.
fn step(model: &mut dyn CausalLm, sequence: usize, tokens: &[u32], position: usize) -> Vec<f32> {
    let logits = model.forward_batch(&[Part { sequence, tokens, position }]).expect("a step");
    numbers(&logits[0])
}

/// The distance of logits from others, as a share of their norm.
fn relative(found: &[f32], expected: &[f32]) -> f32 {
    let error: f32 = found.iter().zip(expected).map(|(a, b)| (a - b).powi(2)).sum();
    (error / expected.iter().map(|logit| logit.powi(2)).sum::<f32>()).sqrt()
}

/// Runs sequences through a model. They enter one after the other and leave when they end; then another takes the number. A step
/// has chunks of several tokens and single tokens of up to four sequences, in any order. Calls `check` with the place of a
/// sequence in the list, its number of tokens, and the logits after them.
fn in_batches(
    model: &mut dyn CausalLm,
    sequences: &[Vec<u32>],
    seed: u64,
    mut check: impl FnMut(usize, usize, &[f32]),
) {
    let mut draw = Draw(seed);
    let mut numbers_free = VecDeque::from([MAX_SEQUENCES - 1, 0, 17, 5]);
    let mut waiting: VecDeque<usize> = (0..sequences.len()).collect();
    // The place in the list, the number and the length of each.
    let mut running: Vec<(usize, usize, usize)> = Vec::new();
    while !(waiting.is_empty() && running.is_empty()) {
        if !waiting.is_empty() && !numbers_free.is_empty() && (running.is_empty() || draw.below(3) > 0) {
            running.extend(waiting.pop_front().zip(numbers_free.pop_front()).map(|(place, number)| (place, number, 0)));
        }
        let first = draw.below(running.len().max(1));
        running.rotate_left(first);
        let mut steps = Vec::new();
        for (place, number, position) in &mut running {
            let left = &sequences[*place][*position..];
            // Some wait, most take one token, others several.
            let count = [0, 1, 1, 1, 1 + draw.below(30)][draw.below(5)].min(left.len());
            if count > 0 {
                steps.push((*place, Part { sequence: *number, tokens: &left[..count], position: *position }));
                *position += count;
            }
        }
        let parts: Vec<Part> = steps.iter().map(|(_, part)| *part).collect();
        let logits = model.forward_batch(&parts).expect("a step");
        assert_eq!(logits.len(), parts.len());
        for ((place, part), logits) in steps.iter().zip(&logits) {
            check(*place, part.position + part.tokens.len(), &numbers(logits));
        }
        running.retain(|(place, number, position)| {
            let is_running = *position < sequences[*place].len();
            if !is_running {
                model.release(*number).expect("a number");
                numbers_free.push_back(*number);
            }
            is_running
        });
    }
}

/// At least eight sequences: the prompts of a fixture, some of them again. Also returns the prompt of each.
fn sequences(fixture: &Fixture) -> (Vec<&Prompt>, Vec<Vec<u32>>) {
    let prompts: Vec<&Prompt> = fixture.prompts.iter().cycle().take(fixture.prompts.len().max(8)).collect();
    let sequences = prompts.iter().map(|prompt| sequence_of(prompt)).collect();
    (prompts, sequences)
}

#[test]
fn batches_equal_the_reference() {
    let (mut checked, mut worst) = (0, 0f32);
    for fixture in fixtures("generation").into_iter().chain(fixtures("moe")) {
        for set in Instructions::ALL {
            let Some(machine) = Machine::new(2, set) else { continue };
            let mut model = decoder(&fixture, machine, None);
            let (prompts, sequences) = sequences(&fixture);
            in_batches(&mut model, &sequences, 1, |place, tokens, logits| {
                let far = difference(logits, &fixture.logits(prompts[place], tokens - 1));
                assert!(
                    far <= TOLERANCE,
                    "{}, {}, {set}, {tokens} tokens: {far} from the reference",
                    fixture.name,
                    prompts[place].name
                );
                worst = worst.max(far);
                checked += 1;
            });
            // Each token is counted once, also by the experts.
            let Some(load) = model.expert_load().cloned() else { continue };
            model.reset().expect("a reset");
            for tokens in &sequences {
                step(&mut model, 3, tokens, 0);
                model.release(3).expect("a number");
            }
            assert_eq!(model.expert_load(), Some(&load), "{}, {set}", fixture.name);
        }
    }
    println!("{checked} steps of sequences, at most {worst} from the reference");
    assert!(checked > 0);
}

/// In f32, the difference from the sequence alone is that of the order of sums. In bf16, sums that differ are rounded again. With a
/// cache in FP8, they may be rounded to another key, so that both differ by no more than their distances from f32.
#[test]
fn batches_equal_the_sequences_alone() {
    let alone = |model: &mut dyn CausalLm, tokens: &[u32]| -> Vec<Vec<f32>> {
        model.reset().expect("a reset");
        let logits = tokens.iter().enumerate();
        logits.map(|(position, token)| numbers(&model.forward(&[*token], position).expect("a step"))).collect()
    };
    let (mut worst_f32, mut worst_bf16, mut worst_fp8) = (0f32, 0f32, 0f32);
    for fixture in fixtures("generation").into_iter().filter(|fixture| is_as_long_as(fixture, 200)) {
        let (_, mut sequences) = sequences(&fixture);
        // Longer than any in the fixtures, over several pages.
        sequences.push(Draw(7).tokens(200, fixture.config.vocab_size));
        let mut f32 = decoder(&fixture, Machine::with_threads(2), None);
        let exact: Vec<_> = sequences.iter().map(|tokens| alone(&mut f32, tokens)).collect();
        f32.reset().expect("a reset");
        in_batches(&mut f32, &sequences, 2, |place, tokens, logits| {
            let far = difference(logits, &exact[place][tokens - 1]);
            assert!(far <= TOLERANCE, "{}, {tokens} tokens: {far} from the sequence alone", fixture.name);
            worst_f32 = worst_f32.max(far);
        });

        let layout = fixture.checkpoint.expert_layout().expect("a header");
        let (config, machine) = (fixture.config.clone(), Machine::with_threads(2));
        let tensors = Tensors::new(weights(&fixture, DType::F32), Precision::F32.with_fp8_cache());
        let fp8 = CpuDecoder::<f32, F8E4M3>::load(config, tensors, layout, None, machine, 1);
        let mut fp8 = fp8.expect(&fixture.name);
        let expected: Vec<_> = sequences.iter().map(|tokens| alone(&mut fp8, tokens)).collect();
        let pairs = expected.iter().flatten().zip(exact.iter().flatten());
        let of_format = pairs.map(|(found, exact)| relative(found, exact)).fold(0.0, f32::max);
        assert!(of_format > 1e-5, "{}: FP8 is {of_format} from f32", fixture.name);
        fp8.reset().expect("a reset");
        in_batches(&mut fp8, &sequences, 5, |place, tokens, logits| {
            let far = relative(logits, &expected[place][tokens - 1]);
            assert!(
                far <= 2.0 * of_format,
                "{} with FP8, {tokens} tokens: {far} off, {of_format} from f32",
                fixture.name
            );
            worst_fp8 = worst_fp8.max(far);
        });

        let (config, machine) = (fixture.config.clone(), Machine::with_threads(2));
        let bf16 = CpuDecoder::<bf16>::load(config, weights(&fixture, DType::BF16), layout, None, machine, 1);
        let mut bf16 = bf16.expect(&fixture.name);
        let expected: Vec<_> = sequences.iter().map(|tokens| alone(&mut bf16, tokens)).collect();
        bf16.reset().expect("a reset");
        in_batches(&mut bf16, &sequences, 3, |place, tokens, logits| {
            let far = relative(logits, &expected[place][tokens - 1]);
            assert!(far <= BF16_TOLERANCE, "{} in bf16, {tokens} tokens: {far} off", fixture.name);
            worst_bf16 = worst_bf16.max(far);
        });
    }
    println!("f32: at most {worst_f32} from the sequence alone; bf16: {worst_bf16} of its norm; FP8: {worst_fp8}");
}

fn is_as_long_as(fixture: &Fixture, tokens: usize) -> bool {
    fixture.config.max_position_embeddings >= tokens
}

/// A sequence that shares the tokens of another continues as one that computed them, even if the other is released.
#[test]
fn a_shared_prefix_equals_a_computed_one() {
    let fixtures = fixtures("generation").into_iter().chain(fixtures("moe"));
    for fixture in fixtures.filter(|fixture| is_as_long_as(fixture, 220)) {
        let mut model = decoder(&fixture, Machine::with_threads(2), None);
        let mut draw = Draw(11);
        let vocab_size = fixture.config.vocab_size;
        let donor = draw.tokens(200, vocab_size);
        // The same up to position 150.
        let mut sharer = donor[..150].to_vec();
        sharer.extend(draw.tokens(70, vocab_size));
        let expected = [140, 160, 220].map(|count| {
            model.reset().expect("a reset");
            numbers(&model.forward(&sharer[..count], 0).expect("a pass"))
        });
        let near = |logits: &[f32], expected: &[f32], what: &str| {
            let far = difference(logits, expected);
            assert!(far <= TOLERANCE, "{}, {what}: {far} from the computed prefix", fixture.name);
        };

        model.reset().expect("a reset");
        step(&mut model, 2, &donor[..190], 0);
        assert_eq!(model.share_prefix(2, 9, 150).expect("shared"), 128, "two pages");
        // Donor and sharer continue in one step, and differ from there on.
        let parts = [
            Part { sequence: 9, tokens: &sharer[128..140], position: 128 },
            Part { sequence: 2, tokens: &donor[190..], position: 190 },
        ];
        let logits = model.forward_batch(&parts).expect("a step");
        near(&numbers(&logits[0]), &expected[0], "beside the donor");
        near(&step(&mut model, 9, &sharer[140..160], 140), &expected[1], "past the common tokens");
        // The pages that the donor returns are written by another sequence.
        model.release(2).expect("a number");
        step(&mut model, 2, &draw.tokens(200, vocab_size), 0);
        near(&step(&mut model, 9, &sharer[160..], 160), &expected[2], "after the donor");
        // A sharer is a donor too.
        assert_eq!(model.share_prefix(9, 3, 128).expect("shared"), 128);
        model.release(9).expect("a number");
        near(&step(&mut model, 3, &sharer[128..160], 128), &expected[1], "from a sharer");
    }
}

#[test]
fn impossible_steps_are_refused_in_one_line() {
    let fixture = fixtures("generation").into_iter().next().expect("a fixture");
    let mut model = decoder(&fixture, Machine::with_threads(2), None);
    let longest = fixture.config.max_position_embeddings;
    let expected = step(&mut model, 1, &[3, 4, 5], 0);
    model.release(1).expect("a number");
    step(&mut model, 1, &[3, 4], 0);
    let too_many = vec![3; longest + 1];
    let unknown = fixture.config.vocab_size as u32;
    let part = |sequence, tokens, position| Part { sequence, tokens, position };
    for (parts, message) in [
        (vec![part(MAX_SEQUENCES, &[3][..], 0)], "sequence 64 does not exist"),
        (vec![part(usize::MAX, &[3], 0)], "does not exist"),
        (vec![part(0, &[3], 0), part(2, &[], 0)], "at least one token"),
        (vec![part(0, &[3], 0), part(1, &[3], 3)], "sequence 1 has 2 tokens"),
        (vec![part(1, &[3], 0)], "position 0 is not that of the next token"),
        (vec![part(0, &[3], 1)], "sequence 0 has 0 tokens"),
        (vec![part(0, &too_many, 0)], "exceed max_position_embeddings"),
        (vec![part(1, &too_many[2..], 2)], "exceed max_position_embeddings"),
        (vec![part(0, &[3], usize::MAX)], "exceed max_position_embeddings"),
        (vec![part(0, &[3, unknown], 0)], "is not below vocab_size"),
        (vec![part(0, &[3], 0), part(1, &[3], 2), part(0, &[3], 0)], "sequence 0 occurs twice"),
    ] {
        let error = model.forward_batch(&parts).expect_err(message).to_string();
        assert!(error.contains(message) && !error.contains('\n'), "{error}");
    }
    for (error, message) in [
        (model.release(MAX_SEQUENCES), "sequence 64 does not exist"),
        (model.share_prefix(64, 0, 0).map(drop), "sequence 64 does not exist"),
        (model.share_prefix(1, 64, 0).map(drop), "sequence 64 does not exist"),
        (model.share_prefix(0, 1, 0).map(drop), "sequence 1 has 2 tokens: only an empty sequence"),
        (model.share_prefix(1, 1, 2).map(drop), "sequence 1 has 2 tokens: only an empty sequence"),
        (model.share_prefix(1, 0, 3).map(drop), "sequence 1 has 2 tokens, fewer than 3"),
    ] {
        let error = error.expect_err(message).to_string();
        assert!(error.contains(message) && !error.contains('\n'), "{error}");
    }
    assert!(model.forward_batch(&[]).expect("an empty step").is_empty());
    // None of them changed the sequence.
    assert!(difference(&step(&mut model, 1, &[5], 2), &expected) <= TOLERANCE);
    assert_eq!(model.max_sequences(), MAX_SEQUENCES);
}

/// A decoder that is sharded over ranks, or why it is not.
fn sharded(fixture: &Fixture, precision: Precision, ranks: usize) -> anyhow::Result<CpuDecoder<f32>> {
    let layout = fixture.checkpoint.expert_layout().expect("a header");
    let tensors = Tensors::of_checkpoint(&fixture.checkpoint, precision, &Device::Cpu)?;
    CpuDecoder::load(fixture.config.clone(), tensors, layout, None, Machine::with_threads(4), ranks)
}

/// Tied and untied heads, fewer key-value heads than ranks, biases and mixtures are among the fixtures.
#[test]
fn ranks_equal_the_reference() {
    let (mut checked, mut refused, mut worst) = (0, 0, 0f32);
    for fixture in fixtures("generation").into_iter().chain(fixtures("moe")) {
        let whole = sharded(&fixture, Precision::F32, 1).expect(&fixture.name).footprint();
        for ranks in [1, 2, 4] {
            let mut model = match sharded(&fixture, Precision::F32, ranks) {
                Ok(model) => model,
                Err(error) => {
                    let error = format!("{error:#}");
                    let is_known =
                        ["cannot be divided among", "are not divided among"].iter().any(|part| error.contains(part));
                    assert!(is_known && error.lines().count() == 1, "{error}");
                    let has_whole_norms = error.contains("are not divided among");
                    assert!(
                        has_whole_norms || !fixture.config.num_attention_heads.is_multiple_of(ranks),
                        "{}: {error}",
                        fixture.name
                    );
                    refused += 1;
                    continue;
                }
            };
            let (prompts, sequences) = sequences(&fixture);
            in_batches(&mut model, &sequences, 4, |place, tokens, logits| {
                let far = difference(logits, &fixture.logits(prompts[place], tokens - 1));
                assert!(far <= TOLERANCE, "{}, {ranks} ranks, {tokens} tokens: {far}", fixture.name);
                worst = worst.max(far);
                checked += 1;
            });
            // Copies of key-value heads take memory.
            let has_copies = ranks > fixture.config.num_key_value_heads;
            let footprint = model.footprint();
            assert_eq!(footprint.weight_bytes > whole.weight_bytes, has_copies, "{}, {ranks} ranks", fixture.name);
            assert!(footprint.weight_bytes >= whole.weight_bytes && footprint.parameters == whole.parameters);

            if !is_as_long_as(&fixture, 150) {
                continue;
            }
            model.reset().expect("a reset");
            let tokens = Draw(13).tokens(150, fixture.config.vocab_size);
            let expected = step(&mut model, 1, &tokens, 0);
            assert_eq!(model.share_prefix(1, 2, 140).expect("shared"), 128, "two pages");
            let far = difference(&step(&mut model, 2, &tokens[128..], 128), &expected);
            assert!(far <= TOLERANCE, "{}, {ranks} ranks, a shared prefix: {far}", fixture.name);
            // The embedding, and two blocks of each layer, for each of the tokens that were computed.
            let sums = (1 + 2 * fixture.config.num_hidden_layers) * (150 + 22) * fixture.config.hidden_size;
            assert_eq!(model.reduced_bytes(), (ranks > 1).then_some(4 * sums as u64), "{}", fixture.name);
        }
    }
    println!("{checked} steps of sharded decoders, at most {worst} from the reference");
    assert!(checked > 0 && refused > 0);
}

/// Blocks and scales of quantised weights begin anew at the inputs of each rank, so their errors differ. The logits differ by at
/// most what both add, and the errors of the parts are no larger than those of the whole.
#[test]
fn ranks_of_quantised_weights_are_near_those_of_the_whole() {
    for fixture in fixtures("generation") {
        for precision in [Precision::Q8_0, Precision::F8E4M3] {
            let Ok(mut parts) = sharded(&fixture, precision, 2) else { continue };
            let mut whole = sharded(&fixture, precision, 1).expect(&fixture.name);
            let tokens = Draw(17).tokens(40, fixture.config.vocab_size);
            let mut exact = sharded(&fixture, Precision::F32, 1).expect(&fixture.name);
            let exact = step(&mut exact, 0, &tokens, 0);
            let (found, whole) = (step(&mut parts, 0, &tokens, 0), step(&mut whole, 0, &tokens, 0));
            let (between, of_whole) = (relative(&found, &whole), relative(&whole, &exact));
            assert!(between <= 2.0 * of_whole, "{} in {precision}: {between}, {of_whole}", fixture.name);
        }
    }
}

#[test]
fn released_pages_are_used_again() {
    let fixture = fixtures("generation").into_iter().next().expect("a fixture");
    let mut model = decoder(&fixture, Machine::with_threads(2), None);
    let tokens = Draw(5).tokens(130, fixture.config.vocab_size);
    let page_bytes = cache_bytes(&fixture.config, DType::F32, 1).allocated;
    for _ in 0..3 {
        step(&mut model, 4, &tokens, 0);
        assert_eq!(model.ranks[0].sequences.unused_pages(), 0, "all three pages are in use");
        model.release(4).expect("a number");
        assert_eq!(model.ranks[0].sequences.unused_pages(), 3);
        step(&mut model, 0, &tokens[..64], 0);
        step(&mut model, 63, &tokens[..1], 0);
        assert_eq!(model.ranks[0].sequences.unused_pages(), 1);
        assert_eq!(model.share_prefix(0, 7, 64).expect("shared"), 64);
        model.release(0).expect("a number");
        assert_eq!(model.ranks[0].sequences.unused_pages(), 1, "another sequence shares the page");
        model.reset().expect("a reset");
        assert_eq!(model.ranks[0].sequences.unused_pages(), 3);
    }
    assert_eq!(model.cache_bytes(130).allocated, 3 * page_bytes);
    let footprint = model.footprint();
    assert_eq!(page_bytes, 64 * footprint.cache_bytes_per_token, "the heads of this fixture need no padding");
}

#[test]
fn the_weights_that_a_step_reads_are_offered() {
    for fixture in fixtures("generation").iter().chain(&fixtures("moe")) {
        for precision in [Precision::F32, Precision::Q8_0, Precision::Q4K, Precision::F8E4M3] {
            let mut model = sharded(fixture, precision, 1).expect(&fixture.name);
            // Norms, biases, routers and the scales of FP8 are left out, and panels are filled with zeros.
            let check = |model: &dyn CausalLm, steps: u64, of_step: u64| {
                let words: usize = model.weights().expect("matrices").iter().map(|matrix| size_of_val(*matrix)).sum();
                let share = words as f64 / (steps * of_step) as f64;
                assert!((0.8..1.5).contains(&share), "{}, {precision}: {words} of {of_step}", fixture.name);
            };
            check(&model, 1, model.step_weight_bytes(MAX_SEQUENCES));
            model.forward(&[1, 2, 3, 4], 0).expect("a prompt");
            for position in 4..7 {
                model.forward(&[5], position).expect("a step");
            }
            let steps = if fixture.config.experts.is_some() { 3 } else { 1 };
            check(&model, steps, model.step_weight_bytes(1));
        }
    }
}

/// Planted routes depend on the position in a sequence, not on the row in a step.
#[test]
fn planted_routes_follow_the_positions_of_each_sequence() {
    let fixture = fixtures("moe").into_iter().next().expect("a fixture");
    let mut model = decoder(&fixture, Machine::with_threads(2), Some((2.0, 42)));
    step(&mut model, 0, &[5; 40], 0);
    step(&mut model, 1, &[5; 7], 0);
    step(&mut model, 1, &[5; 20], 7);
    let expected = model.expert_load().cloned();
    model.reset().expect("a reset");
    step(&mut model, 1, &[5; 7], 0);
    let parts =
        [Part { sequence: 1, tokens: &[5; 20], position: 7 }, Part { sequence: 0, tokens: &[5; 40], position: 0 }];
    model.forward_batch(&parts).expect("a step");
    assert_eq!(model.expert_load(), expected.as_ref());
}

/// More sequences choose more of the experts, up to all of them. A dense decoder reads the same weights for any number.
#[test]
fn a_step_of_more_sequences_reads_more_experts() {
    for fixture in fixtures("generation").iter().chain(&fixtures("moe")) {
        let model = decoder(fixture, Machine::with_threads(1), None);
        let [one, two, many] = [1, 2, 10_000].map(|sequences| model.step_weight_bytes(sequences));
        assert_eq!(one, model.footprint().step_weight_bytes, "{}", fixture.name);
        let mut all = fixture.config.clone();
        let Some(experts) = &mut all.experts else {
            assert_eq!((two, many), (one, one), "{}", fixture.name);
            continue;
        };
        let chooses = experts.num_experts_per_tok < experts.num_experts;
        experts.num_experts_per_tok = experts.num_experts;
        let all = all.footprint(DType::F32).step_weight_bytes;
        let grows = if chooses { one < two && two < many } else { one == two && two == many };
        assert!(grows && all - many <= 1, "{}: {one}, {two}, {many} of {all}", fixture.name);
    }
}
