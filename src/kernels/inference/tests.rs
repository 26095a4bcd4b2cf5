//! Compares each kernel with its plain version in f64, in every instruction set that the machine has.

use candle_core::quantized::GgmlDType;
use half::{bf16, f16};

use super::*;

/// The instruction sets of this machine, each with one thread and with three.
fn machines() -> impl Iterator<Item = Machine> {
    let threads = |set| [1, 3].map(|threads| Machine::new(threads, set));
    Instructions::ALL.into_iter().flat_map(threads).flatten()
}

/// Numbers between -1 and 1 that differ from seed to seed.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// The same as elements, rounded.
fn elements<E: Element>(count: usize, seed: u64) -> Vec<E> {
    numbers(count, seed).into_iter().map(E::from_f32).collect()
}

/// Returns whether a type holds every f32.
fn is_exact<E: Element>() -> bool {
    E::round(0.1) == 0.1
}

/// Rows of `width`, in memory as kernels expect them.
fn in_rows<E: Element>(values: &[E], width: usize) -> Vec<E> {
    let stride = Rows::<E>::stride_of(width);
    let mut all = Vec::new();
    for row in values.chunks(width.max(1)) {
        all.extend_from_slice(row);
        all.resize(all.len().next_multiple_of(stride.max(1)), E::default());
    }
    all
}

/// Largest error of a sum in f32, as a share of the sum and of the values that it was computed from.
const SUM_ERROR: f64 = 2e-6;

/// Returns whether a result is a number no farther than `error` from the expected one, rounded once.
fn is_rounded_once<E: Element>(found: f32, expected: f64, error: f64) -> bool {
    let [least, most] = [expected - error, expected + error].map(|x| E::round(x as f32));
    (least..=most).contains(&found)
}

/// Asserts that results are sums in f32, rounded once. The values that they were computed from have about this magnitude.
fn rounded_once<E: Element>(found: &[f32], expected: &[f64], magnitude: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = SUM_ERROR * (expected.abs() + magnitude);
        assert!(is_rounded_once::<E>(*found, *expected, error), "{what}, at {place}: {found} for {expected}");
    }
}

/// Sums of truncated numbers, and of numbers that were rounded before, are not all taken for sums that are rounded once.
#[test]
fn a_second_rounding_is_found() {
    fn round(value: f32) -> f32 {
        <bf16 as Element>::round(value)
    }
    let accepted = |sum: fn(f32, f32) -> f32| {
        let pairs = numbers(100, 1).into_iter().zip(numbers(100, 2));
        let expected = |a: f32, b: f32| f64::from(a) + f64::from(b);
        pairs.filter(|(a, b)| is_rounded_once::<bf16>(sum(*a, *b), expected(*a, *b), 2.0 * SUM_ERROR)).count()
    };
    assert_eq!(accepted(|a, b| round(a + b)), 100);
    let wrong: [fn(f32, f32) -> f32; 2] =
        [|a, b| round(round(a) + round(b)), |a, b| f32::from_bits((a + b).to_bits() & 0xffff_0000)];
    for wrong in wrong {
        assert!((1..80).contains(&accepted(wrong)), "{}", accepted(wrong));
    }
}

/// Asserts that results differ by no more than rounding: some units of the type's precision, of the result and of the values
/// that it was computed from, which have about this magnitude.
fn near<E: Element>(found: &[f32], expected: &[f64], magnitude: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    // f32 accumulates errors. Other types round results, by up to half a step between two numbers above 1.
    let step = || (1..24).rev().map(|bits| 0.5f64.powi(bits)).find(|step| E::round(1.0 + *step as f32) > 1.0);
    let relative = if is_exact::<E>() { SUM_ERROR } else { step().expect("a step") / 2.0 };
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        let far = (f64::from(*found) - expected).abs();
        assert!(far <= relative * (expected.abs() + magnitude), "{what}, at {place}: {found} for {expected}");
    }
}

/// `x · weightsᵀ + bias` in f64.
fn plain_product<E: Element>(x: &[E], weights: &[E], bias: &[f32], inputs: usize) -> Vec<f64> {
    let outputs = bias.len();
    let rows = x.len().checked_div(inputs).unwrap_or(0);
    let f64_of = |value: &E| f64::from(value.to_f32());
    let element = |row: usize, output: usize| {
        let (x, w) = (&x[row * inputs..][..inputs], &weights[output * inputs..][..inputs]);
        x.iter().zip(w).map(|(x, w)| f64_of(x) * f64_of(w)).sum::<f64>() + f64::from(bias[output])
    };
    (0..rows)
        .flat_map(|row| (0..outputs).map(move |output| (row, output)))
        .map(|(row, output)| element(row, output))
        .collect()
}

fn layer<E: Element>(machine: &Machine, outputs: usize, inputs: usize, seed: u64) -> (Linear<E>, Vec<E>, Vec<f32>) {
    let weights = elements::<E>(outputs * inputs, seed);
    let bias = numbers(outputs, seed + 1);
    let packed = Packed::new(machine, outputs, inputs, Source::row_major(&weights, inputs));
    (Linear::new(packed, Some(bias.clone())), weights, bias)
}

/// Rows, inputs and outputs around the sizes of tiles, panels, depths and chunks.
const SIZES: [(usize, usize, usize); 18] = [
    (1, 1, 1),
    (1, 2, 16),
    (1, 7, 65),
    (1, 300, 200),
    (2, 3, 17),
    (3, 64, 64),
    (4, 33, 80),
    (5, 130, 31),
    (6, 128, 128),
    (7, 5, 97),
    (13, 50, 112),
    (1, 4099, 70),
    (8, 2049, 66),
    (7, 4100, 48),
    (17, 1025, 66),
    (33, 2050, 48),
    (265, 9, 70),
    (0, 8, 8),
];

fn products_are_sums<E: Element>() {
    for machine in machines() {
        let what = format!("{} threads, {}", machine.threads(), machine.instructions());
        for (rows, inputs, outputs) in SIZES {
            let what = format!("{what}: {rows} x {inputs} x {outputs}");
            let x = elements::<E>(rows * inputs, 3);
            let padded = in_rows(&x, inputs);
            let rows_of = Rows::new(&padded, rows, Rows::<E>::stride_of(inputs));
            let (first, first_weights, first_bias) = layer::<E>(&machine, outputs, inputs, 5);
            let (second, second_weights, second_bias) = layer::<E>(&machine, outputs + 3, inputs, 9);
            // Two layers in one call, one of which adds to what is there.
            let mut out = vec![f32::NAN; rows * outputs];
            let before: Vec<f32> = numbers(rows * (outputs + 3), 11).into_iter().map(E::round).collect();
            let mut sum = before.clone();
            products(
                &machine,
                vec![
                    Product { x: rows_of, layer: &first, out: &mut out, then: Then::Store },
                    Product { x: rows_of, layer: &second, out: &mut sum, then: Then::Add },
                ],
            );
            let magnitude = (inputs as f64).sqrt();
            rounded_once::<E>(&out, &plain_product(&x, &first_weights, &first_bias, inputs), magnitude, &what);
            let mut expected = plain_product(&x, &second_weights, &second_bias, inputs);
            expected.iter_mut().zip(&before).for_each(|(expected, before)| *expected += f64::from(*before));
            near::<E>(&sum, &expected, magnitude, &what);
        }
    }
}

#[test]
fn products_equal_the_plain_ones() {
    products_are_sums::<f32>();
    products_are_sums::<bf16>();
    products_are_sums::<f16>();
}

#[test]
fn weights_are_packed_from_any_order_and_found_again() {
    let machine = Machine::with_threads(2);
    for (outputs, inputs) in [(1, 1), (70, 33), (130, 64), (64, 7)] {
        let weights = elements::<bf16>(outputs * inputs, 1);
        let transposed: Vec<bf16> = (0..inputs)
            .flat_map(|input| (0..outputs).map(move |output| output * inputs + input))
            .map(|at| weights[at])
            .collect();
        let packed = [
            Packed::new(&machine, outputs, inputs, Source::row_major(&weights, inputs)),
            Packed::new(
                &machine,
                outputs,
                inputs,
                Source { values: &transposed, output_stride: 1, input_stride: outputs },
            ),
        ];
        for packed in packed {
            for output in 0..outputs {
                let mut row = vec![0.0; inputs];
                packed.row(output, &mut row);
                let expected: Vec<f32> = weights[output * inputs..][..inputs].iter().map(|w| w.to_f32()).collect();
                assert_eq!(row, expected);
            }
        }
    }
}

#[test]
#[should_panic(expected = "outside of their slice")]
fn weights_that_are_missing_are_refused() {
    Packed::new(&Machine::with_threads(1), 3, 3, Source::row_major(&[1f32; 8], 3));
}

fn gates_are_activated<E: Element>() {
    type Plain = fn(f64, f64) -> f64;
    let clamped = Activation::ClampedSilu { alpha: 1.5, limit: 0.5 };
    let exact: [(Activation, Plain); 4] = [
        (Activation::Silu, |x, up| x / (1.0 + (-x).exp()) * up),
        // The integral of the normal density by Simpson's rule.
        (Activation::Gelu, |x, up| {
            let (steps, density) = (200, |z: f64| (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt());
            let at = |step: usize| density(x * step as f64 / f64::from(steps as u32));
            let inner: f64 = (1..steps).map(|step| at(step) * if step % 2 == 1 { 4.0 } else { 2.0 }).sum();
            x * (0.5 + x / steps as f64 / 3.0 * (at(0) + inner + at(steps))) * up
        }),
        (Activation::GeluTanh, |x, up| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh()) * up
        }),
        (clamped, |x, up| x.min(0.5) / (1.0 + (-1.5 * x.min(0.5)).exp()) * (1.0 + up.clamp(-0.5, 0.5))),
    ];
    for machine in machines() {
        for (rows, inputs, outputs) in SIZES.into_iter().filter(|(_, inputs, _)| *inputs < 300) {
            let what =
                format!("{} threads, {}: {rows} x {inputs} x {outputs}", machine.threads(), machine.instructions());
            let x = elements::<E>(rows * inputs, 3);
            let padded = in_rows(&x, inputs);
            let rows_of = Rows::new(&padded, rows, Rows::<E>::stride_of(inputs));
            let (gate, gate_weights, gate_bias) = layer::<E>(&machine, outputs, inputs, 5);
            let (up, up_weights, up_bias) = layer::<E>(&machine, outputs, inputs, 9);
            let gates = plain_product(&x, &gate_weights, &gate_bias, inputs);
            let ups = plain_product(&x, &up_weights, &up_bias, inputs);
            for (activation, plain) in exact {
                let stride = Rows::<E>::stride_of(outputs);
                let mut out = vec![E::from_f32(f32::NAN); rows * stride];
                gated(&machine, activation, vec![Gate { x: rows_of, gate: &gate, up: &up, out: &mut out }]);
                let found: Vec<f32> =
                    out.chunks(stride).flat_map(|row| &row[..outputs]).map(|out| out.to_f32()).collect();
                let expected: Vec<f64> = gates.iter().zip(&ups).map(|(gate, up)| plain(*gate, *up)).collect();
                assert!(out.chunks(stride).all(|row| row[outputs..].iter().all(|end| end.to_f32() == 0.0)), "{what}");
                near::<E>(&found, &expected, 2.0 * inputs as f64, &format!("{activation:?}, {what}"));
            }
        }
    }
}

#[test]
fn gated_layers_equal_the_plain_ones() {
    gates_are_activated::<f32>();
    gates_are_activated::<bf16>();
    gates_are_activated::<f16>();
}

/// An RMSNorm in f64.
fn plain_norm(row: &[f32], norm: &RowNorm) -> Vec<f64> {
    let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / row.len() as f64;
    let scale = 1.0 / (mean + f64::from(norm.eps)).sqrt();
    row.iter().zip(&norm.weight).map(|(x, w)| f64::from(*x) * scale * f64::from(*w)).collect()
}

fn rows_are_normed<E: Element>() {
    for machine in machines() {
        for (rows, width) in [(1, 1), (1, 5), (3, 17), (2, 64), (300, 101), (0, 4)] {
            let what = format!("{} threads, {}: {rows} x {width}", machine.threads(), machine.instructions());
            let x: Vec<f32> = numbers(rows * width, 1).into_iter().map(E::round).collect();
            let weights = RowNorm { weight: numbers(width, 2).iter().map(|w| 1.0 + w).collect(), eps: 1e-5 };
            let expected: Vec<f64> = x.chunks(width).flat_map(|row| plain_norm(row, &weights)).collect();
            let stride = Rows::<E>::stride_of(width);
            let mut out = vec![E::from_f32(f32::NAN); rows * stride];
            norm(&machine, &x, &weights, &mut out);
            let found: Vec<f32> = out.chunks(stride).flat_map(|row| &row[..width]).map(|out| out.to_f32()).collect();
            rounded_once::<E>(&found, &expected, 1.0, &what);
            let before: Vec<f32> = numbers(rows * width, 3).into_iter().map(E::round).collect();
            let mut sum = before.clone();
            add_norm::<E>(&machine, &x, &weights, &mut sum);
            let expected: Vec<f64> = expected.iter().zip(&before).map(|(a, b)| a + f64::from(*b)).collect();
            near::<E>(&sum, &expected, 4.0, &what);
        }
    }
}

#[test]
fn norms_equal_the_plain_ones() {
    rows_are_normed::<f32>();
    rows_are_normed::<bf16>();
    rows_are_normed::<f16>();
}

#[test]
fn embeddings_are_looked_up_and_scaled() {
    for machine in machines() {
        let (table, weights, _) = layer::<f32>(&machine, 70, 33, 4);
        for tokens in [&[][..], &[69], &[3, 0, 3, 64]] {
            let mut found = vec![0.0; tokens.len() * 33];
            embed(&machine, table.weights(), tokens, 2.5, &mut found);
            let row = |token: &u32| weights[*token as usize * 33..][..33].iter().map(|w| 2.5 * w);
            assert_eq!(found, tokens.iter().flat_map(row).collect::<Vec<_>>());
        }
    }
}

#[test]
fn rows_are_combined_by_their_weights() {
    for machine in machines() {
        for (rows, width, count) in [(1, 3, 2), (40, 17, 3), (600, 33, 1), (0, 3, 2)] {
            let parts = numbers((rows * count).max(1) * width, 1);
            let places: Vec<u32> = (0..rows * count).rev().map(|place| place as u32).collect();
            let weights = numbers(rows * count, 2);
            let before = numbers(rows * width, 3);
            let mut sum = before.clone();
            combine::<f32>(&machine, &parts, (&places, &weights), width, &mut sum);
            let mut expected: Vec<f64> = before.into_iter().map(f64::from).collect();
            for (at, (place, weight)) in places.iter().zip(&weights).enumerate() {
                for element in 0..width {
                    let part = parts[*place as usize * width + element];
                    expected[at / count * width + element] += f64::from(*weight) * f64::from(part);
                }
            }
            near::<f32>(&sum, &expected, 4.0, &format!("{rows} x {width} from {count}"));
        }
    }
}

/// The sizes of one attention.
#[derive(Clone, Copy, Debug)]
struct Case {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    /// Tokens of each pass.
    passes: &'static [usize],
}

/// Attention in f64 over rounded queries and keys.
fn plain_attention<E: Element>(
    case: Case,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    norm: &RowNorm,
    frequencies: &[f32],
    sinks: &[f32],
) -> Vec<f64> {
    let Case { heads, kv_heads, head_dim, window, passes } = case;
    let tokens: usize = passes.iter().sum();
    let turned = |all: &[f32], heads: usize, token: usize, head: usize| -> Vec<f64> {
        let row = &all[(token * heads + head) * head_dim..][..head_dim];
        let row: Vec<f64> = plain_norm(row, norm).iter().map(|x| f64::from(E::round(*x as f32))).collect();
        let half = head_dim / 2;
        let pair = |element: usize| {
            let angle = f64::from(token as f32 * frequencies[element % half]);
            let (a, b) = (row[element % half], row[element % half + half]);
            let turned =
                if element < half { a * angle.cos() - b * angle.sin() } else { b * angle.cos() + a * angle.sin() };
            f64::from(E::round(turned as f32))
        };
        (0..head_dim).map(pair).collect()
    };
    let mut out = Vec::new();
    for token in 0..tokens {
        for head in 0..heads {
            let kv_head = head / (heads / kv_heads);
            let query = turned(q, heads, token, head);
            let start = window.map_or(0, |window| (token + 1).saturating_sub(window));
            let scores: Vec<f64> = (start..=token)
                .map(|other| turned(k, kv_heads, other, kv_head).iter().zip(&query).map(|(k, q)| k * q * 0.3).sum())
                .collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sink = sinks.get(head).map(|sink| f64::from(*sink));
            let sum: f64 = scores.iter().copied().chain(sink).map(|score| (score - most).exp()).sum();
            for element in 0..head_dim {
                let value = |other: usize| f64::from(E::round(v[(other * kv_heads + kv_head) * head_dim + element]));
                let weighted =
                    scores.iter().enumerate().map(|(at, score)| (score - most).exp() / sum * value(start + at));
                out.push(weighted.sum());
            }
        }
    }
    out
}

fn attention_is_plain<E: Element>() {
    let case = |heads, kv_heads, head_dim, window, passes| Case { heads, kv_heads, head_dim, window, passes };
    let cases = [
        case(1, 1, 2, None, &[1, 1, 1]),
        case(4, 2, 6, None, &[5, 1, 3]),
        case(4, 1, 16, Some(3), &[7, 1, 1]),
        case(3, 3, 66, None, &[70, 1]),
        case(2, 1, 80, Some(70), &[100, 1, 40]),
        case(4, 2, 10, None, &[257, 1, 1]),
        case(2, 2, 4, Some(300), &[520, 1]),
        case(6, 2, 8, None, &[1, 600, 1, 2]),
        case(60, 1, 4, Some(20), &[40, 1]),
    ];
    for (number, case) in cases.into_iter().enumerate() {
        let Case { heads, kv_heads, head_dim, window, passes } = case;
        let sinks = if number % 2 == 1 { numbers(heads, 6) } else { Vec::new() };
        let tokens: usize = passes.iter().sum();
        let [q, k, v] = [(heads, 1), (kv_heads, 2), (kv_heads, 3)].map(|(heads, seed)| {
            numbers(tokens * heads * head_dim, seed).into_iter().map(E::round).collect::<Vec<_>>()
        });
        let norm = RowNorm { weight: numbers(head_dim, 4).iter().map(|w| 1.5 + w).collect(), eps: 1e-6 };
        let frequencies: Vec<f32> = (0..head_dim / 2).map(|pair| 0.7 / (1.0 + pair as f32)).collect();
        // In f32, an error of a score of this size is that of the exponential. In bf16, queries and keys are exact here.
        let magnitude = if is_exact::<E>() { 0.3 * 4.0 * (head_dim as f64).sqrt() } else { 1.0 };
        let expected = plain_attention::<E>(case, &q, &k, &v, &norm, &frequencies, &sinks);
        for machine in machines() {
            // Alone, and beside a sequence of the same tokens whose passes come in the opposite order.
            for sequences in [1, 2] {
                let what = format!(
                    "{case:?}, {sequences} sequences, {} threads, {}",
                    machine.threads(),
                    machine.instructions()
                );
                let mut pages = Pages::<E>::new(2, kv_heads, head_dim);
                let region = pages.region(1);
                let attention = Attention { heads, scale: 0.3, soft_cap: None, window, sinks: sinks.clone() };
                let mut held: Vec<Sequence<E>> = (0..sequences).map(|_| Sequence::default()).collect();
                for (first, second) in passes.iter().zip(passes.iter().rev()) {
                    let counts = held.drain(..).zip([*first, *second]);
                    let mut spans: Vec<Span<E>> = Vec::new();
                    for (mut sequence, count) in counts {
                        assert!(pages.extend(&mut sequence, count), "{what}");
                        let start = spans.last().map_or(0, |span| span.rows.end);
                        spans.push(Span { sequence, rows: start..start + count });
                    }
                    let positions: Vec<usize> = spans.iter().flat_map(Span::positions).collect();
                    let angles = Angles::new(&frequencies, 1.0, positions.iter().copied());
                    let [q, k, v] = [(&q, heads), (&k, kv_heads), (&v, kv_heads)].map(|(all, heads)| {
                        let row = |position: &usize| all[position * heads * head_dim..][..heads * head_dim].to_vec();
                        positions.iter().flat_map(row).collect::<Vec<_>>()
                    });
                    region.append(&machine, &mut spans, Heads { values: &k, norm: Some(&norm) }, &v, &angles);
                    let width = heads * head_dim;
                    let mut out = vec![E::default(); positions.len() * width];
                    let queries = Heads { values: &q, norm: Some(&norm) };
                    attention.apply(&machine, (&spans, region), queries, &angles, &mut out);
                    let found: Vec<f32> = out.iter().map(|out| out.to_f32()).collect();
                    let row = |position: &usize| expected[position * width..][..width].to_vec();
                    let expected: Vec<f64> = positions.iter().flat_map(row).collect();
                    near::<E>(&found, &expected, magnitude, &what);
                    held = spans.into_iter().map(Span::ended).collect();
                }
            }
        }
    }
}

#[test]
fn attention_equals_the_plain_one() {
    attention_is_plain::<f32>();
    attention_is_plain::<bf16>();
    attention_is_plain::<f16>();
}

/// Attention of the passes of a case over a cache of `C`, without norms and at angles of 0.
fn attended<C: Operand>(machine: &Machine, case: Case, [q, k, v]: [&[f32]; 3]) -> Vec<f32> {
    let Case { heads, kv_heads, head_dim, window, passes } = case;
    let mut pages = Pages::<C>::new(1, kv_heads, head_dim);
    let attention = Attention { heads, scale: 0.3, soft_cap: None, window, sinks: Vec::new() };
    let region = pages.region(0);
    let (mut sequence, mut all) = (Sequence::default(), Vec::new());
    for count in passes {
        assert!(pages.extend(&mut sequence, *count), "{case:?}");
        let position = sequence.tokens();
        let angles = Angles::new(&vec![0.0; head_dim / 2], 1.0, position..position + count);
        let rows = |all: &[f32], heads: usize| all[position * heads * head_dim..][..count * heads * head_dim].to_vec();
        let (q, k, v) = (rows(q, heads), rows(k, kv_heads), rows(v, kv_heads));
        let mut spans = [Span { sequence, rows: 0..*count }];
        region.append(machine, &mut spans, Heads { values: &k, norm: None }, &v, &angles);
        let mut out = vec![0f32; q.len()];
        attention.apply(machine, (&spans, region), Heads { values: &q, norm: None }, &angles, &mut out);
        all.extend(out);
        let [span] = spans;
        sequence = span.ended();
    }
    all
}

/// Numbers of FP8 are multiplied as the same numbers in f32 are. Loads divide them by a power of two, so results have the
/// same bits. Numbers beyond the largest become the largest.
#[test]
fn attention_over_fp8_is_that_over_its_numbers() {
    let case = |heads, kv_heads, head_dim, window, passes| Case { heads, kv_heads, head_dim, window, passes };
    for case in [
        case(1, 1, 2, None, &[1, 1, 1]),
        case(4, 2, 6, None, &[5, 1, 3]),
        case(4, 1, 16, Some(3), &[7, 1, 1]),
        case(3, 3, 66, None, &[70, 1]),
        case(2, 1, 80, Some(70), &[100, 1, 40]),
        case(2, 2, 4, Some(300), &[520, 1]),
        case(6, 2, 8, None, &[1, 600, 1, 2]),
    ] {
        let Case { heads, kv_heads, head_dim, passes, .. } = case;
        let tokens: usize = passes.iter().sum();
        let q = numbers(tokens * heads * head_dim, 1);
        let [mut k, v] = [2, 3].map(|seed| numbers(tokens * kv_heads * head_dim, seed));
        k[0] = -1e4;
        let in_fp8 = |values: &[f32]| -> Vec<f32> {
            let rounded = values.iter().map(|value| F8E4M3::stored(*value));
            rounded.map(|number| number.to_half().to_f32() * F8E4M3::SCALE).collect()
        };
        let (rounded_k, rounded_v) = (in_fp8(&k), in_fp8(&v));
        assert!(rounded_k[0] == -448.0 && rounded_v != v);
        for machine in machines() {
            let found = attended::<F8E4M3>(&machine, case, [&q, &k, &v]);
            let expected = attended::<f32>(&machine, case, [&q, &rounded_k, &rounded_v]);
            assert_eq!(found, expected, "{case:?}, {} threads, {}", machine.threads(), machine.instructions());
        }
    }
    let [fp8, f32] = [Pages::<F8E4M3>::new(3, 2, 16).page_bytes(), Pages::<f32>::new(3, 2, 16).page_bytes()];
    assert_eq!(4 * fp8, f32);
}

/// The values of an earlier sequence in a page have no effect, even if they are not finite.
#[test]
fn a_page_can_be_used_again() {
    let machine = Machine::with_threads(2);
    let attention = Attention { heads: 1, scale: 1.0, soft_cap: None, window: None, sinks: Vec::new() };
    let angles = Angles::new(&[0.1], 1.0, 0..9);
    let run = |pages: &mut Pages<bf16>, values: &[f32]| {
        let mut sequence = Sequence::default();
        assert!(pages.extend(&mut sequence, values.len() / 2));
        let (heads, region) = (Heads { values, norm: None }, pages.region(0));
        let mut spans = [Span { sequence, rows: 0..values.len() / 2 }];
        region.append(&machine, &mut spans, heads, values, &angles);
        let mut out = vec![bf16::ZERO; values.len()];
        attention.apply(&machine, (&spans, region), heads, &angles, &mut out);
        spans.into_iter().for_each(|span| pages.release(&mut span.ended()));
        out
    };
    let values = numbers(6, 1);
    let expected = run(&mut Pages::new(1, 1, 2), &values);
    let mut pages = Pages::new(1, 1, 2);
    run(&mut pages, &[f32::NAN; 18]);
    assert_eq!(run(&mut pages, &values), expected);
    assert_eq!(pages.unused(), 1, "both used the same page");
}

#[test]
fn full_pages_are_shared_and_return_with_their_last_sequence() {
    let mut pages = Pages::<f32>::new(3, 2, 10);
    let mut first = Sequence::default();
    assert_eq!(pages.lacking([(&first, 130)].into_iter()), 3);
    assert!(pages.extend(&mut first, 130));
    let mut first = Span { sequence: first, rows: 0..130 }.ended();
    assert_eq!(pages.lacking([(&first, 62), (&first, 63)].into_iter()), 1);
    for (tokens, shared) in [(0, 0), (63, 0), (64, 64), (127, 64), (130, 128), (1000, 128)] {
        assert_eq!(first.prefix(tokens).tokens(), shared);
    }
    let mut second = first.prefix(100);
    pages.release(&mut first);
    assert_eq!((first.tokens(), pages.unused()), (0, 2), "one page is shared");
    assert!(pages.extend(&mut second, 1));
    pages.release(&mut second);
    assert_eq!(pages.unused(), 3);
}

#[test]
fn memory_that_is_missing_is_reported() {
    let mut pages = Pages::<bf16>::new(1 << 20, 1 << 20, 1 << 10);
    let mut sequence = Sequence::default();
    assert!(!pages.extend(&mut sequence, 1));
    pages.release(&mut sequence);
    assert_eq!(pages.unused(), 0);
}

#[test]
fn instruction_sets_are_parsed_by_name() {
    for set in Instructions::ALL.into_iter().filter(|set| set.is_available()) {
        assert_eq!(set.to_string().parse(), Ok(set));
    }
    assert!("mmx".parse::<Instructions>().expect_err("unknown").contains("this machine has portable"));
    assert_eq!(Machine::with_threads(1).instructions(), Instructions::best());
}

/// The formats that Candle has too.
const OF_CANDLE: [GgmlDType; 10] = [
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

/// Blocks with any numbers, as a file may have them, whose weights have a magnitude of about 1.
fn blocks(format: Format, (outputs, inputs): (usize, usize)) -> Vec<u8> {
    let (inputs_of_block, bytes) = format.block;
    let mut all: Vec<u8> =
        numbers(outputs * inputs / inputs_of_block * bytes, 8).iter().map(|x| x.to_bits() as u8).collect();
    // The places of scales, and the largest number that each multiplies.
    let scales: &[(usize, f32)] = match format.name {
        "q4_0" => &[(0, 8.0)],
        "q4_1" => &[(0, 15.0), (2, 2.0)],
        "q5_0" => &[(0, 16.0)],
        "q5_1" => &[(0, 31.0), (2, 2.0)],
        "q8_0" | "iq4_nl" => &[(0, 128.0)],
        "q2_k" => &[(80, 45.0), (82, 15.0)],
        "q3_k" => &[(108, 128.0)],
        "q4_k" => &[(0, 945.0), (2, 63.0)],
        "q5_k" => &[(0, 1953.0), (2, 63.0)],
        "q6_k" => &[(208, 4096.0)],
        "iq4_xs" => &[(0, 4064.0)],
        "mxfp4" => &[],
        other => panic!("{other} has no scales"),
    };
    for (number, block) in all.chunks_exact_mut(bytes).enumerate() {
        for (place, most) in scales {
            let scale = (number % 7 + 4) as f32 / 7.0 / most;
            let signed = if number % 3 == 0 { -scale } else { scale };
            block[*place..place + 2].copy_from_slice(&f16::from_f32(signed).to_le_bytes());
        }
        if format.name == "mxfp4" {
            block[0] = 122 + block[0] % 4;
        }
    }
    all
}

/// The weights of blocks: what Candle says, or the definition of ggml.
fn weights_of(format: Format, bytes: &[u8]) -> Vec<f32> {
    const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
    let (inputs, block_bytes) = format.block;
    if let Some(of_candle) = OF_CANDLE.into_iter().find(|other| Format::try_from(*other) == Ok(format)) {
        let count = bytes.len() / block_bytes * inputs;
        let stored = of_candle.from_data(bytes.to_vec().into()).dequantize(count).expect("numbers");
        return stored.as_slice::<f32>().expect("f32").to_vec();
    }
    let half = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    let weight = |block: &[u8], input: usize| {
        let nibble = |bytes: &[u8], input: usize| usize::from(bytes[input % 16] >> (input / 16 * 4) & 15);
        match format.name {
            "iq4_nl" => half(block) * f32::from(IQ4[nibble(&block[2..], input)]),
            "iq4_xs" => {
                let (group, high) = (input / 32, u16::from_le_bytes([block[2], block[3]]));
                let scale =
                    (block[4 + group / 2] >> (group % 2 * 4) & 15) as i32 | i32::from(high >> (2 * group) & 3) << 4;
                let value = IQ4[nibble(&block[8 + 16 * group..], input % 32)];
                half(block) * (scale - 32) as f32 * f32::from(value)
            }
            "mxfp4" => {
                let nibble = nibble(&block[1..], input);
                let value = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][nibble % 8];
                let signed = if nibble < 8 { value } else { -value };
                2f32.powi(i32::from(block[0]) - 127) * signed
            }
            other => panic!("{other} is not defined"),
        }
    };
    bytes.chunks_exact(block_bytes).flat_map(|block| (0..inputs).map(move |input| weight(block, input))).collect()
}

/// Weights in a format, and what they should be.
fn quantised(machine: &Machine, format: Format, shape: (usize, usize)) -> (Quantised, Vec<f32>) {
    let bytes = blocks(format, shape);
    let weights = Quantised::from_bytes(machine, format, shape, &bytes, |row| row).expect("weights");
    (weights, weights_of(format, &bytes))
}

fn rows_of(weights: &Quantised) -> Vec<f32> {
    let mut all = vec![0.0; weights.outputs() * weights.inputs()];
    for (output, row) in all.chunks_exact_mut(weights.inputs()).enumerate() {
        weights.row(output, row);
    }
    all
}

#[test]
fn blocks_hold_what_their_format_says() {
    let machine = Machine::with_threads(2);
    for format in Format::ALL {
        for (outputs, blocks) in [(1, 1), (70, 2), (16, 3), (33, 18)] {
            let shape = (outputs, blocks * format.block.0);
            let (weights, expected) = quantised(&machine, format, shape);
            assert_eq!(rows_of(&weights), expected, "{format:?}, {shape:?}");
        }
    }
}

/// Tiles have the bytes of the file and a tenth at most.
#[test]
fn tiles_have_the_bits_of_their_blocks() {
    let machine = Machine::with_threads(2);
    for format in Format::ALL {
        let (outputs, inputs) = (64, 768);
        let of_file = outputs * inputs / format.block.0 * format.block.1;
        let found = quantised(&machine, format, (outputs, inputs)).0.bytes();
        assert!((of_file..of_file * 11 / 10).contains(&found), "{format:?}: {found} bytes for {of_file}");
    }
}

#[test]
fn bytes_that_are_no_blocks_are_refused() {
    let machine = Machine::with_threads(2);
    // Rows in another order, and numbers of bytes that do not match.
    let bytes: Vec<u8> = [[1u8; 34], [2; 34]].concat();
    let turned = Quantised::from_bytes(&machine, GgmlDType::Q8_0, (2, 32), &bytes, |row| 1 - row).expect("weights");
    let straight = Quantised::from_bytes(&machine, GgmlDType::Q8_0, (2, 32), &bytes, |row| row).expect("weights");
    assert_eq!(rows_of(&turned)[..32], rows_of(&straight)[32..]);
    for (format, shape) in [(GgmlDType::Q8_0, (3, 32)), (GgmlDType::Q8_0, (2, 33)), (GgmlDType::Q8K, (1, 256))] {
        assert!(Quantised::from_bytes(&machine, format, shape, &bytes, |row| row).is_none(), "{format:?}");
    }
}

/// Rows of any length are quantised, with errors of at most a step of their blocks.
#[test]
fn weights_of_any_width_are_quantised() {
    let machine = Machine::with_threads(3);
    // Half a step of 8 bits and of 4 bits over a range of 2, the latter with the rounding of scale and offset to 6 bits.
    for (format, bound) in [(GgmlDType::Q8_0, 0.0041), (GgmlDType::Q4K, 0.1)] {
        for (outputs, inputs) in [(1, 1), (5, 40), (33, 48), (17, 300), (70, 257)] {
            let values = elements::<bf16>(outputs * inputs, 2);
            let weights = Quantised::new(&machine, format, (outputs, inputs), &values).expect("weights");
            for (found, value) in rows_of(&weights).iter().zip(&values) {
                let far = (found - value.to_f32()).abs();
                assert!(far <= bound, "{format:?}, {outputs} x {inputs}: {found} for {value}");
            }
        }
        for wrong in [f32::NAN, f32::INFINITY] {
            assert!(Quantised::new(&machine, format, (2, 40), &[vec![0.5; 79], vec![wrong]].concat()).is_none());
        }
    }
    assert!(Quantised::new(&machine, GgmlDType::Q6K, (1, 256), &[0f32; 256]).is_none());
}

fn quantised_products_are_sums<E: Element>(tolerance: f64) {
    for machine in machines() {
        for format in Format::ALL {
            for (rows, inputs, outputs) in [(1, 256, 64), (1, 2304, 70), (3, 512, 97), (7, 256, 16), (40, 1280, 66)] {
                let what = format!("{format:?}, {}: {rows} x {inputs} x {outputs}", machine.instructions());
                let (weights, plain) = quantised(&machine, format, (outputs, inputs));
                let squares: f64 = plain.iter().map(|weight| f64::from(*weight).powi(2)).sum();
                let magnitude = (squares / plain.len() as f64).sqrt();
                let bias = numbers(outputs, 4);
                let layer = Linear::<E>::new(weights, Some(bias.clone()));
                let x = elements::<E>(rows * inputs, 3);
                let plain: Vec<E> = plain.into_iter().map(E::from_f32).collect();
                let expected = plain_product(&x, &plain, &bias, inputs);
                let mut found = vec![f32::NAN; rows * outputs];
                let x = Rows::new(&x, rows, inputs);
                products(&machine, vec![Product { x, layer: &layer, out: &mut found, then: Then::Store }]);
                for (found, expected) in found.iter().zip(expected) {
                    let far = (f64::from(*found) - expected).abs();
                    assert!(far <= tolerance * magnitude * (inputs as f64).sqrt(), "{what}: {found} for {expected}");
                }
            }
        }
    }
}

/// Inputs between -1 and 1 are rounded to steps of 1/127, whose error has a standard deviation of 0.29 steps: that of a sum is 0.0023 times
/// the magnitude of the weights and the root of its length. Eight times this never happens by chance.
#[test]
fn products_of_blocks_equal_those_of_their_weights() {
    quantised_products_are_sums::<f32>(0.0183);
    // Weights that are compared in bf16, and results, are rounded to 8 bits in addition.
    quantised_products_are_sums::<bf16>(0.05);
}

/// Whole inputs, of which each group has one of 127, are not rounded: products have the errors of sums in f32. Among them are inputs that
/// are all -127 or 127, with which the sums of products are largest.
#[test]
fn products_of_blocks_with_whole_inputs_are_exact() {
    let last = Machine::shared();
    for machine in machines() {
        for format in Format::ALL {
            let blocks = |count: usize| count * format.block.0;
            for (rows, inputs, outputs) in
                [(1, blocks(1), 1), (1, blocks(3), 35), (2, blocks(2), 64), (5, blocks(5), 17), (40, blocks(4), 70)]
            {
                let what = format!("{format:?}, {}: {rows} x {inputs} x {outputs}", machine.instructions());
                let (weights, plain) = quantised(last, format, (outputs, inputs));
                let layer = Linear::<f32>::new(weights, None);
                let mut x: Vec<f32> = numbers(rows * inputs, 5).iter().map(|x| (x * 127.0).trunc()).collect();
                for (group, x) in x.chunks_exact_mut(32).enumerate() {
                    x[group % 32] = 127.0;
                    if group % 3 > 0 {
                        x.fill(if group % 3 == 1 { 127.0 } else { -127.0 });
                    }
                }
                let mut found = vec![f32::NAN; rows * outputs];
                let rows_of_x = Rows::new(&x, rows, inputs);
                products(&machine, vec![Product { x: rows_of_x, layer: &layer, out: &mut found, then: Then::Store }]);
                let expected = plain_product(&x, &plain, &vec![0.0; outputs], inputs);
                // Offsets are subtracted from larger sums.
                let magnitude = 127.0 * inputs as f64;
                near::<f32>(&found, &expected, magnitude, &what);
            }
        }
    }
}

fn fp8_products_are_sums<E: Element>() {
    for machine in machines() {
        for (rows, inputs, outputs) in SIZES {
            let what = format!("{}: {rows} x {inputs} x {outputs}", machine.instructions());
            let values = elements::<E>(outputs * inputs, 5);
            let weights = Quantised::fp8(&machine, (outputs, inputs), &values).expect("finite weights");
            assert_eq!(weights.bytes(), outputs * (inputs + 4), "{what}");
            let plain = rows_of(&weights);
            let bias = numbers(outputs, 4);
            let layer = Linear::<E>::new(weights, Some(bias.clone()));
            let x = elements::<E>(rows * inputs, 3);
            let of_numbers: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
            let expected = plain_product(&of_numbers, &plain, &bias, inputs);
            let padded = in_rows(&x, inputs);
            let x = Rows::new(&padded, rows, Rows::<E>::stride_of(inputs));
            let mut found = vec![f32::NAN; rows * outputs];
            products(&machine, vec![Product { x, layer: &layer, out: &mut found, then: Then::Store }]);
            near::<E>(&found, &expected, (inputs as f64).sqrt(), &what);
        }
    }
}

#[test]
fn products_of_fp8_equal_those_of_their_weights() {
    fp8_products_are_sums::<f32>();
    fp8_products_are_sums::<bf16>();
    fp8_products_are_sums::<f16>();
}

/// Three bits of mantissa: an error of a sixteenth at most, or of half the smallest step, which is a 512th of a unit of the scale.
#[test]
fn weights_in_fp8_have_the_precision_of_the_format() {
    let machine = Machine::with_threads(3);
    for (outputs, inputs) in [(1, 1), (5, 40), (70, 257)] {
        let mut values = numbers(outputs * inputs, 2);
        values[0] *= 1e-6;
        let weights = Quantised::fp8(&machine, (outputs, inputs), &values).expect("weights");
        for (row, found) in values.chunks(inputs).zip(rows_of(&weights).chunks(inputs)) {
            let most = row.iter().fold(0f32, |most, value| most.max(value.abs()));
            for (value, found) in row.iter().zip(found) {
                let bound = value.abs() / 16.0 + most / 448.0 / 1024.0;
                assert!((found - value).abs() <= bound * 1.00001, "{outputs} x {inputs}: {found} for {value}");
            }
        }
    }
    let zeros = Quantised::fp8(&machine, (3, 20), &[0f32; 60]).expect("weights");
    assert!(rows_of(&zeros).iter().all(|value| *value == 0.0));
    for wrong in [f32::NAN, f32::INFINITY] {
        assert!(Quantised::fp8(&machine, (2, 40), &[vec![0.5; 79], vec![wrong]].concat()).is_none());
    }
}

/// The gates of a feed-forward whose layers have different formats.
#[test]
fn gates_of_blocks_are_activated() {
    let machine = Machine::with_threads(2);
    for rows in [1, 20] {
        let (inputs, outputs) = (512, 80);
        let layers = [GgmlDType::Q4K, GgmlDType::Q6K].map(|format| {
            let (weights, plain) = quantised(&machine, format.try_into().expect("blocks"), (outputs, inputs));
            (Linear::<f32>::new(weights, None), plain)
        });
        let [(gate, plain_gate), (up, plain_up)] = &layers;
        let x: Vec<f32> = elements(rows * inputs, 3);
        let mut found = vec![0.0; rows * outputs];
        let rows_of_x = Rows::new(&x, rows, inputs);
        gated(&machine, Activation::Silu, vec![Gate { x: rows_of_x, gate, up, out: &mut found }]);
        let zeros = vec![0.0; outputs];
        let [gates, ups] = [plain_gate, plain_up].map(|plain| plain_product(&x, plain, &zeros, inputs));
        for (found, (gate, up)) in found.iter().zip(gates.iter().zip(ups)) {
            let expected = gate / (1.0 + (-gate).exp()) * up;
            let error = 0.0183 * (inputs as f64).sqrt();
            let far = (f64::from(*found) - expected).abs();
            assert!(far <= error * (1.1 * up.abs() + gate.abs() + error), "{found} for {expected}");
        }
    }
}

/// Whole numbers do not hide a number that is not finite, and FP8 does not either.
#[test]
fn inputs_that_are_not_finite_stay_so() {
    for machine in machines() {
        for format in Format::ALL.map(Some).into_iter().chain([None]) {
            for wrong in [f32::NAN, f32::NEG_INFINITY] {
                let weights = match format {
                    Some(format) => quantised(&machine, format, (20, 512)).0,
                    None => Quantised::fp8(&machine, (20, 512), &numbers(20 * 512, 21)).expect("weights"),
                };
                let layer = Linear::<f32>::new(weights, None);
                let mut x = numbers(3 * 512, 1);
                x[512 + 300] = wrong;
                let mut found = vec![0.0; 60];
                let x = Rows::new(&x, 3, 512);
                products(&machine, vec![Product { x, layer: &layer, out: &mut found, then: Then::Store }]);
                let is_finite =
                    |row: usize| found[row * 20..][..20].iter().map(|value| value.is_finite()).collect::<Vec<_>>();
                assert!(is_finite(0).iter().chain(&is_finite(2)).all(|finite| *finite), "{format:?}");
                assert!(is_finite(1).iter().all(|finite| !finite), "{format:?} with {wrong}");
            }
        }
    }
}

/// The product of one row, as in decoding, in turns with passes that only read the weights. `cargo test --release --lib -- --ignored
/// --nocapture one_row_reads` prints the ratio of the two rates for layers of the sizes of Llama 3.2 1B, with its quartiles.
#[test]
#[ignore = "takes half a minute, and the machine must do nothing else"]
fn one_row_reads_at_the_speed_of_memory() {
    use std::{hint::black_box, time::Instant};

    use crate::{each_of, sum};

    const ROUNDS: usize = 40;
    const MEGABYTE: usize = 1 << 17;

    fn ratio<E: Element>(held: impl Fn(&Machine, (usize, usize), &[E]) -> Weights<E>) -> [f64; 3] {
        let machine = Machine::shared();
        let block = [(3072, 2048), (2048, 2048), (8192, 2048), (8192, 2048), (2048, 8192)];
        let layer = |shape: (usize, usize)| {
            let weights = vec![E::from_f32(0.01); shape.0 * shape.1];
            Linear::new(held(machine, shape, &weights), None)
        };
        let layers: Vec<Linear<E>> = [block; 4].concat().into_iter().chain([(64_128, 2048)]).map(layer).collect();
        let (x, mut out) = (vec![E::from_f32(0.1); 8192], vec![0f32; 64_128]);
        let mut round = || {
            let began = Instant::now();
            black_box(each_of(layers.iter().flat_map(|layer| layer.weights().words().chunks(MEGABYTE)), sum));
            let read_s = began.elapsed().as_secs_f64();
            let began = Instant::now();
            for layer in &layers {
                let (inputs, outputs) = (layer.weights().inputs(), layer.weights().outputs());
                let (x, out) = (Rows::new(&x[..inputs], 1, inputs), &mut out[..outputs]);
                products(machine, vec![Product { x, layer, out, then: Then::Store }]);
            }
            read_s / began.elapsed().as_secs_f64()
        };
        let mut ratios: Vec<f64> = (0..ROUNDS).map(|_| round()).collect();
        ratios.sort_unstable_by(f64::total_cmp);
        [1, 2, 3].map(|quarter| ratios[quarter * ROUNDS / 4])
    }

    fn packed<E: Element>(machine: &Machine, (outputs, inputs): (usize, usize), weights: &[E]) -> Weights<E> {
        Packed::new(machine, outputs, inputs, Source::row_major(weights, inputs)).into()
    }

    fn quantised(format: GgmlDType) -> impl Fn(&Machine, (usize, usize), &[f32]) -> Weights<f32> {
        move |machine, shape, weights| Quantised::new(machine, format, shape, weights).expect("finite").into()
    }

    for (name, [low, middle, high], least) in [
        // The bounds are for memory that two cores read at 66 GB/s. At 35 GB/s, the shares are 0.98, 0.98, 0.95 and 0.86.
        ("f32", ratio::<f32>(packed), 0.85),
        ("bf16", ratio::<bf16>(packed), 0.8),
        ("q8_0", ratio(quantised(GgmlDType::Q8_0)), 0.6),
        ("q4k", ratio(quantised(GgmlDType::Q4K)), 0.5),
    ] {
        println!("one row in {name}: {middle:.3} of the rate of reading ({low:.3} to {high:.3})");
        assert!(middle > least, "{name}");
    }
}

/// Each format in turns with Candle's product, for one row and for many, and with passes that only read the weights. `cargo test
/// --release --lib -- --ignored --nocapture formats_beside` prints ratios with their quartiles. `FORMATS=q4_0,q6_k` chooses some.
#[test]
#[ignore = "takes minutes, and the machine must do nothing else"]
fn formats_beside_candle() {
    use std::time::Instant;

    use candle_core::{
        Device, Module, Tensor,
        quantized::{QMatMul, QStorage, QTensor},
    };

    const ROUNDS: usize = 9;
    // More than a cache holds.
    const LAYERS: usize = 8;
    let shape @ (outputs, inputs) = (4096, 2048);

    fn seconds(run: impl FnOnce()) -> f64 {
        let began = Instant::now();
        run();
        began.elapsed().as_secs_f64()
    }

    fn quartiles(mut ratios: Vec<f64>) -> String {
        ratios.sort_unstable_by(f64::total_cmp);
        let [low, middle, high] = [1, 2, 3].map(|quarter| ratios[quarter * ratios.len() / 4]);
        format!("{middle:.2} ({low:.2} to {high:.2})")
    }

    let machine = Machine::shared();
    let chosen = std::env::var("FORMATS").ok();
    let is_chosen =
        |format: &Format| chosen.as_ref().is_none_or(|names| names.split(',').any(|name| name == format.name));
    for format in Format::ALL.into_iter().filter(is_chosen) {
        let bytes = blocks(format, shape);
        let layer = || Quantised::from_bytes(machine, format, shape, &bytes, |row| row).expect("weights");
        let layers: Vec<Linear<f32>> = (0..LAYERS).map(|_| Linear::new(layer(), None)).collect();
        let of_candle = OF_CANDLE.into_iter().find(|other| Format::try_from(*other) == Ok(format));
        let candles: Vec<QMatMul> = of_candle.map_or_else(Vec::new, |format| {
            let tensor = || QTensor::new(QStorage::from_data((&bytes[..]).into(), &Device::Cpu, format)?, shape);
            (0..LAYERS).map(|_| tensor().and_then(QMatMul::from_qtensor).expect("a product")).collect()
        });
        for rows in [1, 256] {
            let layers = if rows == 1 { &layers[..] } else { &layers[..1] };
            let x = numbers(rows * inputs, 2);
            let of_candle = Tensor::from_slice(&x, (rows, inputs), &Device::Cpu).expect("inputs");
            let mut out = vec![0f32; rows * outputs];
            let (mut of_reads, mut of_candles, mut rates) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                let ours = seconds(|| {
                    for layer in layers {
                        let x = Rows::new(&x, rows, inputs);
                        products(machine, vec![Product { x, layer, out: &mut out, then: Then::Store }]);
                    }
                });
                let reads = seconds(|| layers.iter().for_each(|layer| crate::read(machine, layer.weights().words())));
                of_reads.push(reads / ours);
                rates.push(2e-9 * (rows * inputs * outputs * layers.len()) as f64 / ours);
                if !candles.is_empty() {
                    let candle = seconds(|| {
                        for layer in &candles[..layers.len()] {
                            layer.forward(&of_candle).expect("outputs");
                        }
                    });
                    of_candles.push(candle / ours);
                }
            }
            let candle = if candles.is_empty() { "-".into() } else { quartiles(of_candles) };
            let reads = if rows == 1 { quartiles(of_reads) } else { "-".into() };
            println!(
                "{format:?}, {rows} rows: {} GFLOP/s; {candle} of Candle's speed; {reads} of the rate of reading",
                quartiles(rates)
            );
        }
    }
}

/// The products of a prompt in types that instructions may not multiply, beside the same ones in f32. `cargo test --release --lib --
/// --ignored --nocapture many_rows_multiply` prints the rates for a layer of Llama 3.2 1B.
#[test]
#[ignore = "takes some seconds, and the machine must do nothing else"]
fn many_rows_multiply_at_the_speed_of_f32() {
    use std::time::Instant;

    const ROUNDS: usize = 15;
    let (rows, inputs, outputs) = (256, 2048, 8192);

    fn product<E: Element>(machine: &Machine, (rows, inputs, outputs): (usize, usize, usize)) -> impl FnMut() -> f64 {
        let (layer, ..) = layer::<E>(machine, outputs, inputs, 1);
        let (x, mut out) = (elements::<E>(rows * inputs, 2), vec![0f32; rows * outputs]);
        move || {
            let began = Instant::now();
            let x = Rows::new(&x, rows, inputs);
            products(machine, vec![Product { x, layer: &layer, out: &mut out, then: Then::Store }]);
            2e-9 * (rows * inputs * outputs) as f64 / began.elapsed().as_secs_f64()
        }
    }

    for machine in Instructions::ALL.into_iter().filter_map(|set| Machine::new(Machine::shared().threads(), set)) {
        let shape = (rows, inputs, outputs);
        let mut in_f32 = product::<f32>(&machine, shape);
        let mut others = [
            ("bf16", Box::new(product::<bf16>(&machine, shape)) as Box<dyn FnMut() -> f64>),
            ("f16", Box::new(product::<f16>(&machine, shape))),
        ];
        let mut rates = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            rates[0].push(in_f32());
            rates.iter_mut().skip(1).zip(&mut others).for_each(|(rates, (_, product))| rates.push(product()));
        }
        let [f32, bf16, f16] = rates.map(|mut rates| {
            rates.sort_unstable_by(f64::total_cmp);
            rates[ROUNDS / 2]
        });
        println!("{}: {f32:.0} GFLOP/s in f32, {bf16:.0} in bf16, {f16:.0} in f16", machine.instructions());
        assert!(bf16.min(f16) > 0.85 * f32, "{}", machine.instructions());
    }
}
