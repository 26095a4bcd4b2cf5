//! Compares kernels with compositions of Candle operations, and gradients with finite differences.

use std::cell::Cell;

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor, Var};

use candle_nn::Init;

use super::*;
use crate::model::trainable::Variables;

/// Normal numbers from a fixed seed, different for each tensor of a test.
fn random(shape: &[usize]) -> Var {
    thread_local!(static DRAWN: Cell<u64> = const { Cell::new(0) });
    let seed = DRAWN.with(|drawn| drawn.replace(drawn.get() + 1));
    let weights = Variables::new(seed).frozen(DType::F32, &Device::Cpu);
    let numbers = weights.get_with_hints(shape, "numbers", Init::Randn { mean: 0.0, stdev: 1.0 }).expect("numbers");
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
        compare(&[&[rows, width]], |x| softmax(&x[0]));
        compare(&[&[rows, width]], |x| gelu(&x[0]));
    }
    for (rows, width) in [(1, 2), (3, 7), (200, 96)] {
        compare(&[&[2, rows, width], &[width], &[width]], |x| {
            if x[0].dtype() == DType::F32 {
                return layer_norm(&x[0], &x[1], &x[2], 1e-5);
            }
            let centred = x[0].broadcast_sub(&x[0].mean_keepdim(D::Minus1)?)?;
            let scale = (centred.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?.sqrt()?;
            Ok(centred.broadcast_div(&scale)?.broadcast_mul(&x[1])?.broadcast_add(&x[2])?)
        });
    }
    for (time, channels, taps, dilation) in [(1, 1, 1, 1), (9, 5, 3, 1), (9, 5, 4, 3), (40, 33, 7, 8), (300, 80, 5, 2)]
    {
        for padding in [Padding::Same, Padding::Causal] {
            compare(&[&[2, time, channels], &[channels, 1, taps], &[channels]], |x| {
                depthwise(&x[0], &x[1], &x[2], dilation, padding)
            });
        }
    }
}

#[test]
fn operations_of_language_models_are_as_the_compositions() {
    for (rows, width) in [(1, 1), (3, 7), (200, 96), (1025, 17)] {
        compare(&[&[rows, width], &[width]], |x| {
            let rms = (x[0].sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
            match x[0].dtype() {
                DType::F32 => rms_norm(&x[0], &x[1], 1e-6),
                _ => Ok(x[0].broadcast_div(&rms)?.broadcast_mul(&x[1])?),
            }
        });
        compare_within(5e-6, &[&[2, rows, width], &[5, width]], |x| linear(&x[0], &x[1], None));
        compare_within(5e-6, &[&[rows, width], &[9, width], &[9]], |x| linear(&x[0], &x[1], Some(&x[2])));
        // The gradient of the scale is one number, the sum of many products that nearly cancel.
        compare_within(2e-5, &[&[rows, width], &[rows, width], &[1]], |x| add_scaled(&x[0], &x[1], &x[2]));
        for decay in [Decay::Abs, Decay::Relu, Decay::None] {
            // The composition computes in f32 too, and its rounding errors accumulate over many rows.
            compare_within(1e-5, &[&[rows, width], &[3, width]], |x| sine(&x[0], &x[1], decay));
        }
    }
    for (batch, time, heads, size) in [(1, 1, 1, 2), (2, 9, 3, 4), (2, 130, 2, 6), (1, 300, 6, 2)] {
        let shape = [batch, time, heads * size];
        for positions in [Positions::Rope, Positions::Alibi, Positions::None] {
            let attention = Attention { heads, positions };
            compare_within(1e-5, &[&shape, &shape, &shape], |x| attention.forward(&x[0], &x[1], &x[2]));
        }
    }
}

/// The sine of a language model must stay precise at large angles and must not hide NaN.
#[test]
fn wide_angles_and_missing_numbers_go_through_the_sine() {
    let z = Tensor::new(&[[1e7f32, -3e5], [f32::NAN, 2.0]], &Device::Cpu).expect("numbers");
    let raw = Tensor::new(&[[1f32, 1.0], [0.5, 0.5], [-30.0, -30.0]], &Device::Cpu).expect("numbers");
    let found = numbers(&sine(&z, &raw, Decay::None).expect("an output"));
    let expected = sine(&z.to_dtype(DType::F64).expect("f64"), &raw, Decay::None).expect("an output");
    for (a, b) in found.iter().zip(numbers(&expected)).filter(|(a, _)| !a.is_nan()) {
        assert!((a - b).abs() < 1e-5, "{a} for {b}");
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
    check(&[&[4, 6]], &|x| softmax(&x[0]));
    check(&[&[5, 6], &[6]], &|x| rms_norm(&x[0], &x[1], 1e-6));
    check(&[&[2, 5, 6], &[3, 6]], &|x| linear(&x[0], &x[1], None));
    check(&[&[5, 6], &[3, 6], &[3]], &|x| linear(&x[0], &x[1], Some(&x[2])));
    check(&[&[5, 6], &[5, 6], &[1]], &|x| add_scaled(&x[0], &x[1], &x[2]));
    check(&[&[5, 6], &[3, 6]], &|x| sine(&x[0], &x[1], Decay::Relu));
    let attention = Attention { heads: 2, positions: Positions::Rope };
    check(&[&[2, 7, 8], &[2, 7, 8], &[2, 7, 8]], &|x| attention.forward(&x[0], &x[1], &x[2]));
    check(&[&[4, 6]], &|x| gelu(&x[0]));
    check(&[&[3, 6], &[6], &[6]], &|x| layer_norm(&x[0], &x[1], &x[2], 1e-5));
    check(&[&[2, 9, 3], &[3, 1, 4], &[3]], &|x| depthwise(&x[0], &x[1], &x[2], 2, Padding::Causal));
    check(&[&[2, 9, 3], &[3, 1, 5], &[3]], &|x| depthwise(&x[0], &x[1], &x[2], 1, Padding::Same));
}

#[test]
fn a_causal_convolution_sees_no_later_step() {
    let (weight, bias) = (random(&[3, 1, 4]), random(&[3]));
    let x = random(&[1, 10, 3]);
    let run = |x: &Tensor| numbers(&depthwise(x, &weight, &bias, 2, Padding::Causal).expect("an output"));
    let later = Tensor::cat(&[&x.narrow(1, 0, 6).expect("rows"), &random(&[1, 4, 3])], 1).expect("changed");
    assert_eq!(run(&x)[..18], run(&later)[..18]);
    assert_ne!(run(&x)[18..], run(&later)[18..]);
}
