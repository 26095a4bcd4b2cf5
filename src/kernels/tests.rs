//! Compares kernels with compositions of Candle operations, and gradients with finite differences.

use std::{cell::Cell, sync::Arc};

use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};

use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

use super::*;

/// A function of tensors, of which the first ones are inputs of a network and the others its weights. In f32 it runs as kernels,
/// otherwise as a composition.
macro_rules! network {
    ($inputs:expr, $options:expr => $type:ty, |$graph:ident, $x:ident, $weights:ident, $given:ident| $body:expr) => {{
        struct Case<'a>(&'a [Tensor], $type);
        impl Network for Case<'_> {
            #[allow(unused_variables)]
            fn forward<G: Graph>(&self, $graph: &mut G, $x: &[G::Value]) -> Result<G::Value> {
                let ($weights, $given) = (self.0, self.1);
                $body
            }
        }
        let options: $type = $options;
        move |all: &[Tensor]| {
            let (inputs, weights) = all.split_at($inputs);
            fused(&Case(weights, options), &inputs.iter().collect::<Vec<_>>(), &Arc::default())
        }
    }};
}

/// Masks of rates that tests use.
fn masks() -> [Mask; 2] {
    [Mask::NONE, Mask::new(0.3, 5)]
}

/// Normal numbers from a fixed seed, different for each tensor of a test.
fn random(shape: &[usize]) -> Var {
    thread_local!(static DRAWN: Cell<u64> = const { Cell::new(0) });
    let seed = DRAWN.with(|drawn| drawn.replace(drawn.get() + 1));
    let mut uniform = {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        move || 1.0 - random.random::<f32>()
    };
    // Box and Muller's method.
    let mut normal = || (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos();
    let numbers = (0..shape.iter().product()).map(|_| normal()).collect();
    let numbers = Tensor::from_vec::<_, f32>(numbers, shape, &Device::Cpu).expect("numbers");
    Var::from_tensor(&numbers).expect("a variable")
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.flatten_all().and_then(|t| t.to_dtype(DType::F64)?.to_vec1());
    flat.expect("numbers")
}

/// Compares output and gradients of the kernel with those of the composition, which runs in f64.
fn compare(shapes: &[&[usize]], of: impl Fn(&[Tensor]) -> Result<Tensor>) {
    compare_within(2e-6, shapes, of);
}

fn compare_within(tolerance: f64, shapes: &[&[usize]], of: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let fast: Vec<Var> = shapes.iter().map(|shape| random(shape)).collect();
    let plain: Vec<Var> =
        fast.iter().map(|var| Var::from_tensor(&var.to_dtype(DType::F64).expect("f64")).expect("a variable")).collect();
    let run = |vars: &[Var]| {
        let inputs: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let out = of(&inputs).expect("an output");
        // Each element has another weight. With equal weights, gradients that sum to zero would hide errors.
        let count = out.elem_count() as f64;
        let weights = (Tensor::arange(0f64, count, &Device::Cpu).and_then(|x| (x * 0.37)?.sin())).expect("weights");
        let weights = weights.to_dtype(out.dtype()).and_then(|w| w.reshape(out.shape())).expect("weights");
        let loss = (&out * &weights).and_then(|x| x.sum_all()).expect("a loss");
        let grads = loss.backward().expect("gradients");
        let grads: Vec<_> = vars.iter().map(|var| numbers(grads.get(var).expect("a gradient"))).collect();
        (numbers(&out), grads)
    };
    let ((out, grads), (plain_out, plain_grads)) = (run(&fast), run(&plain));
    let near = |a: &[f64], b: &[f64], what: &str| {
        assert_eq!(a.len(), b.len());
        assert!(a.iter().all(|a| a.is_finite()), "{what} of {shapes:?} is not finite");
        let most = b.iter().fold(1.0, |most: f64, b| most.max(b.abs()));
        let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < tolerance * most, "{what} of {shapes:?}: {worst} off, of {most}");
    };
    near(&out, &plain_out, "output");
    for (number, (grad, plain)) in grads.iter().zip(&plain_grads).enumerate() {
        near(grad, plain, &format!("gradient {number}"));
    }
}

#[test]
fn fast_operations_are_as_the_compositions() {
    for (rows, width) in [(1, 1), (3, 7), (200, 96), (1025, 17)] {
        let shape = [rows, width];
        for mask in masks() {
            compare(&[&shape], network!(1, mask => Mask, |graph, x, w, mask| graph.gelu(&x[0], mask)));
            compare(&[&shape], network!(1, mask => Mask, |graph, x, w, mask| graph.drop(&x[0], mask)));
            compare(&[&shape, &shape], network!(2, mask => Mask, |graph, x, w, mask| graph.add(&x[0], &x[1], mask)));
        }
        compare(&[&[rows, 2 * width]], network!(1, () => (), |graph, x, w, none| graph.gate(&x[0])));
        // A value that is used more than once.
        let twice = network!(1, () => (), |graph, x, w, none| {
            let more = graph.gelu(&x[0], Mask::NONE)?;
            let sum = graph.add(&x[0], &more, Mask::NONE)?;
            graph.add(&sum, &more, Mask::NONE)
        });
        compare(&[&shape], twice);
    }
    for (rows, width) in [(1, 2), (3, 7), (200, 96), (77, 300)] {
        let (shape, width) = ([2, rows, width], [width]);
        compare(
            &[&shape, &width, &width],
            network!(1, () => (), |graph, x, w, none| graph.layer_norm(&x[0], &w[0], &w[1], 1e-5)),
        );
        for mask in masks() {
            compare(
                &[&shape, &shape, &width, &width],
                network!(2, mask => Mask, |graph, x, w, mask| graph.add_norm(&x[0], &x[1], mask, &w[0], &w[1], 1e-5)),
            );
        }
    }
}

#[test]
fn operations_over_time_are_as_the_compositions() {
    for (time, channels, taps, dilation) in
        [(1, 1, 1, 1), (9, 5, 3, 1), (9, 5, 4, 3), (40, 33, 7, 8), (5, 32, 3, 9), (300, 80, 5, 2)]
    {
        for padding in [Padding::Same, Padding::Causal] {
            let (weight, bias) = ([channels, 1, taps], [channels]);
            let options = (dilation, padding);
            compare_within(
                5e-6,
                &[&[2, time, channels], &weight, &bias],
                network!(1, options => (usize, Padding), |graph, x, w, options| {
                    graph.depthwise(&x[0], taps_of(w, options))
                }),
            );
            compare_within(
                5e-6,
                &[&[2, time, 2 * channels], &weight, &bias],
                network!(1, options => (usize, Padding), |graph, x, w, options| {
                    graph.gated_convolution(&x[0], taps_of(w, options))
                }),
            );
        }
    }
    for (batch, time, width, factor) in [(1, 1, 1, 4), (2, 8, 5, 4), (3, 30, 33, 7), (2, 100, 200, 3)] {
        let shape = [batch, time, width];
        compare(&[&shape], network!(1, factor => usize, |graph, x, w, factor| graph.pool(&x[0], factor)));
        compare(&[&shape], network!(1, () => (), |graph, x, w, none| graph.last(&x[0])));
        for mask in masks() {
            compare(
                &[&shape, &[time + 3, width]],
                network!(1, mask => Mask, |graph, x, w, mask| graph.add_positions(&x[0], &w[0], mask)),
            );
        }
    }
}

fn taps_of(weights: &[Tensor], (dilation, padding): (usize, Padding)) -> Taps<'_> {
    Taps { weight: &weights[0], bias: &weights[1], dilation, padding }
}

#[test]
fn attention_is_as_the_composition() {
    let positions = [Positions::Rope, Positions::Halves, Positions::Alibi, Positions::None];
    for (batch, time, heads, size) in [(1, 1, 1, 2), (2, 9, 3, 4), (2, 130, 2, 6), (1, 300, 6, 2), (1, 70, 2, 24)] {
        let shape = [batch, time, heads * size];
        for positions in positions {
            for (is_causal, mask) in [(true, Mask::NONE), (false, Mask::NONE), (false, Mask::new(0.2, 3))] {
                if positions == Positions::Alibi && !is_causal {
                    continue;
                }
                let attention = Attention { heads, positions, is_causal, mask };
                compare_within(
                    1e-5,
                    &[&shape, &shape, &shape],
                    network!(3, attention => Attention, |graph, x, w, attention| {
                        graph.attention(&x[0], &x[1], &x[2], attention)
                    }),
                );
                compare_within(
                    1e-5,
                    &[&[batch, time, 3 * heads * size]],
                    network!(1, attention => Attention, |graph, x, w, attention| {
                        graph.joined_attention(&x[0], attention)
                    }),
                );
            }
        }
        // Over another sequence, with keys that are values too.
        for mask in masks() {
            let attention = Attention { heads, positions: Positions::None, is_causal: false, mask };
            compare_within(
                1e-5,
                &[&shape, &[batch, 33, heads * size]],
                network!(2, attention => Attention, |graph, x, w, attention| {
                    graph.attention(&x[0], &x[1], &x[1], attention)
                }),
            );
        }
    }
}

#[test]
fn operations_of_language_models_are_as_the_compositions() {
    for (rows, width) in [(1, 1), (3, 7), (200, 96), (1025, 17)] {
        let shape = [rows, width];
        compare(&[&shape, &[width]], network!(1, () => (), |graph, x, w, none| graph.rms_norm(&x[0], &w[0], 1e-6)));
        compare_within(
            5e-6,
            &[&[2, rows, width], &[5, width]],
            network!(1, () => (), |graph, x, w, none| graph.linear(&x[0], &w[0], None)),
        );
        compare_within(
            5e-6,
            &[&shape, &[89, width], &[89]],
            network!(1, () => (), |graph, x, w, none| graph.linear(&x[0], &w[0], Some(&w[1]))),
        );
        // The gradient of the scale is one number, the sum of many products that nearly cancel.
        compare_within(
            2e-5,
            &[&shape, &shape, &[1]],
            network!(2, () => (), |graph, x, w, none| graph.add_scaled(&x[0], &x[1], &w[0])),
        );
        for decay in [Decay::Abs, Decay::Relu, Decay::None] {
            compare_within(
                1e-5,
                &[&shape, &[width], &[width], &[width]],
                network!(1, decay => Decay, |graph, x, w, decay| {
                    // Without decay, its parameter has no part in the result of the composition.
                    let x = graph.sine(&x[0], [&w[0], &w[1], &w[2]], decay.into())?;
                    graph.sine(&x, [&w[0], &w[1], &w[2]], Decay::Abs.into())
                }),
            );
        }
    }
}

/// The sine of a language model must stay precise at large angles and must not hide NaN.
#[test]
fn wide_angles_and_missing_numbers_go_through_the_sine() {
    let z = Tensor::new(&[[1e7f32, -3e5], [f32::NAN, 2.0]], &Device::Cpu).expect("numbers");
    let raw = [1f32, 0.5, -30.0].map(|raw| Tensor::new(&[raw, raw], &Device::Cpu).expect("numbers"));
    let sine = network!(1, () => (), |graph, x, w, none| graph.sine(&x[0], [&w[0], &w[1], &w[2]], Decay::None.into()));
    let all = |z: Tensor| [&[z], &raw[..]].concat();
    let found = numbers(&sine(&all(z.clone())).expect("an output"));
    // f32 times f32, as in the kernel, whose product is rounded before the sine.
    let (amplitude, frequency) = ((1.0 + 1f32.exp()).ln(), (1.0 + 0.5f32.exp()).ln() + 1e-6);
    let expected = |z: f32| f64::from(amplitude) * f64::from(z * frequency).sin();
    for (found, z) in found.iter().zip([1e7, -3e5, f32::NAN, 2.0]) {
        assert!(z.is_nan() || (found - expected(z)).abs() < 1e-5, "{found} for {}", expected(z));
    }
    assert_eq!(found.iter().map(|x| x.is_nan()).collect::<Vec<_>>(), [false, false, true, false]);
}

#[test]
fn gradients_are_finite_differences() {
    let check = |shapes: &[&[usize]], of: &dyn Fn(&[Tensor]) -> Result<Tensor>| {
        let vars: Vec<Var> = shapes.iter().map(|shape| random(shape)).collect();
        let loss = |inputs: &[Tensor]| of(inputs).and_then(|x| Ok(x.sqr()?.sum_all()?)).expect("a loss");
        let inputs: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let grads = loss(&inputs).backward().expect("gradients");
        for (which, var) in vars.iter().enumerate() {
            let direction = random(var.dims()).as_tensor().clone();
            let moved = |by: f64| {
                let mut inputs = inputs.clone();
                inputs[which] = (&inputs[which] + (&direction * by).expect("a step")).expect("moved");
                numbers(&loss(&inputs))[0]
            };
            let step = 5e-3;
            let slope = (moved(step) - moved(-step)) / (2.0 * step);
            let grad = (grads.get(var).expect("a gradient") * &direction).and_then(|x| x.sum_all()).expect("a slope");
            let expected = numbers(&grad)[0];
            assert!((slope - expected).abs() < 0.01 * (1.0 + expected.abs()), "{which}: {slope} for {expected}");
        }
    };
    check(&[&[5, 6], &[6]], &network!(1, () => (), |graph, x, w, none| graph.rms_norm(&x[0], &w[0], 1e-6)));
    check(
        &[&[5, 6], &[3, 6], &[3]],
        &network!(1, () => (), |graph, x, w, none| graph.linear(&x[0], &w[0], Some(&w[1]))),
    );
    let sine = network!(1, () => (), |graph, x, w, none| graph.sine(&x[0], [&w[0], &w[1], &w[2]], Decay::Relu.into()));
    check(&[&[5, 6], &[6], &[6], &[6]], &sine);
    let attention = Attention { heads: 2, positions: Positions::Halves, is_causal: false, mask: Mask::new(0.2, 1) };
    let joined = network!(1, attention => Attention, |graph, x, w, options| graph.joined_attention(&x[0], options));
    check(&[&[2, 7, 24]], &joined);
}

/// A block: a norm, a gated convolution, a residual connection, a feed-forward and another norm.
#[test]
fn blocks_are_as_the_compositions() {
    for (time, width, state) in [(1, 2, 1), (5, 6, 4), (30, 33, 17), (64, 96, 64)] {
        for mask in masks() {
            let block = network!(1, mask => Mask, |graph, x, w, mask| {
                let both = graph.layer_norm(&x[0], &w[0], &w[1], 1e-5)?;
                let both = graph.linear(&both, &w[2], Some(&w[3]))?;
                let mixed = graph.gated_convolution(&both, taps_of(&w[4..], (2, Padding::Causal)))?;
                let mixed = graph.linear(&mixed, &w[6], None)?;
                let x = graph.add(&x[0], &mixed, mask)?;
                let inner = graph.linear(&x, &w[7], None)?;
                let inner = graph.gelu(&inner, mask)?;
                let fed = graph.linear(&inner, &w[6], None)?;
                graph.add_norm(&x, &fed, mask, &w[0], &w[1], 1e-5)
            });
            let norm: &[usize] = &[width];
            compare_within(
                1e-4,
                &[
                    &[3, time, width],
                    norm,
                    norm,
                    &[2 * state, width],
                    &[2 * state],
                    &[state, 1, 3],
                    &[state],
                    &[width, state],
                    &[state, width],
                ],
                block,
            );
        }
    }
}

#[test]
fn a_causal_convolution_sees_no_later_step() {
    let all = |x: Tensor| [x, random(&[3, 1, 4]).as_tensor().clone(), random(&[3]).as_tensor().clone()];
    let [x, weight, bias] = all(random(&[1, 10, 3]).as_tensor().clone());
    let of = network!(1, () => (), |graph, x, w, none| graph.depthwise(&x[0], taps_of(w, (2, Padding::Causal))));
    let run = |x: &Tensor| numbers(&of(&[x.clone(), weight.clone(), bias.clone()]).expect("an output"));
    let later = Tensor::cat(&[&x.narrow(1, 0, 6).expect("rows"), &random(&[1, 4, 3])], 1).expect("changed");
    assert_eq!(run(&x)[..18], run(&later)[..18]);
    assert_ne!(run(&x)[18..], run(&later)[18..]);
}

#[test]
fn dropout_keeps_the_mean_and_differs_between_seeds() {
    let ones = Tensor::ones((300, 300), DType::F32, &Device::Cpu).expect("ones");
    let draw = |seed: u64| {
        let drop = network!(1, seed => u64, |graph, x, w, seed| graph.drop(&x[0], Mask::new(0.25, seed)));
        numbers(&drop(std::slice::from_ref(&ones)).expect("a mask"))
    };
    let (first, again, other) = (draw(1), draw(1), draw(2));
    assert_eq!(first, again);
    assert!(first.iter().all(|x| *x == 0.0 || (*x - 4.0 / 3.0).abs() < 1e-6));
    let share = |zeros: usize, of: usize| zeros as f64 / of as f64;
    let zeros = first.iter().filter(|x| **x == 0.0).count();
    assert!((share(zeros, first.len()) - 0.25).abs() < 0.005, "{zeros}");
    // Neighbours, rows and seeds are independent: both numbers are 0 in a sixteenth of the places.
    for (name, distance, with) in [("neighbours", 1, &first), ("rows", 300, &first), ("seeds", 0, &other)] {
        let both = first.iter().zip(&with[distance..]).filter(|(a, b)| **a == 0.0 && **b == 0.0).count();
        assert!((share(both, first.len() - distance) - 0.0625).abs() < 0.004, "{name}: {both}");
    }
}

#[test]
fn networks_without_gradients_are_plain_tensors() {
    let x = Tensor::ones((2, 3), DType::F32, &Device::Cpu).expect("ones");
    let out = network!(1, () => (), |graph, x, w, none| graph.gelu(&x[0], Mask::NONE))(&[x]).expect("an output");
    assert!(!out.track_op());
}

#[test]
fn shapes_that_do_not_go_together_are_refused() {
    let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).expect("ones");
    let linear = network!(1, () => (), |graph, x, w, none| graph.linear(&x[0], &w[0], None));
    let error = linear(&[ones(&[2, 3]), ones(&[5, 4])]).expect_err("sizes differ").to_string();
    assert!(error.contains("4 inputs"), "{error}");
    let add = network!(2, () => (), |graph, x, w, none| graph.add(&x[0], &x[1], Mask::NONE));
    add(&[ones(&[2, 3]), ones(&[3, 3])]).expect_err("sizes differ");
    let attention = Attention { heads: 2, positions: Positions::Rope, is_causal: true, mask: Mask::NONE };
    let attend =
        network!(3, attention => Attention, |graph, x, w, options| graph.attention(&x[0], &x[1], &x[2], options));
    attend(&[ones(&[1, 3, 4]), ones(&[1, 5, 4]), ones(&[1, 5, 4])]).expect_err("lengths differ");
    attend(&[ones(&[1, 3, 5]), ones(&[1, 3, 5]), ones(&[1, 3, 5])]).expect_err("heads do not divide the width");
}

#[test]
fn items_are_shared_out_in_order() {
    let mut numbers: Vec<usize> = (0..1000).collect();
    let sums = each_of(numbers.chunks_mut(7), |part| {
        part.iter_mut().for_each(|x| *x *= 2);
        part.iter().sum::<usize>()
    });
    assert_eq!((sums.len(), sums.iter().sum::<usize>()), (143, 999_000));
    assert_eq!(sums[0], 42);
}

#[test]
fn tensors_are_changed_together() {
    let tensors = [3, 5].map(|len| Tensor::ones(len, DType::F32, &Device::Cpu).expect("ones"));
    let lens = change_all(&tensors.each_ref(), |all| {
        let lens: Vec<usize> = all.iter().map(|part| part.len()).collect();
        all.into_iter().enumerate().for_each(|(number, part)| part.fill(number as f32));
        lens
    });
    assert_eq!(lens.expect("they are f32"), [3, 5]);
    assert_eq!((numbers(&tensors[0]), numbers(&tensors[1])), (vec![0.0; 3], vec![1.0; 5]));
    let wide = Tensor::ones(2, DType::F64, &Device::Cpu).expect("ones");
    change_all(&[&tensors[0], &wide], |_| ()).expect_err("f64");
}
