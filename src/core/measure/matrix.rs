//! Matrix products whose rate is a limit of the machine: those of our kernels and those of Candle.

use std::{
    cell::RefCell,
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use super::{memory, statistics::median};
use crate::{
    device::Precision,
    kernels::inference::{Element, Linear, Machine, Packed, Product, Quantised, Rows, Source, Then, Weights, products},
};

/// Rows and columns of the weights, on a CPU and on other devices, which need more work to be busy.
const ON_CPU: usize = 1536;
const ON_DEVICE: usize = 8192;

/// Rows that are multiplied by the weights on a CPU: enough for the rate of many rows, and few for a short pass.
const ROWS_ON_CPU: usize = 256;

/// Minimum number of passes where the best one counts, and the time that they must fill.
const PASSES: usize = 2;
const FILL_BEST: Duration = Duration::from_millis(30);

/// Turns in which two products are compared, and the time of each in a turn.
const TURNS: usize = 15;
const TURN: Duration = Duration::from_millis(10);

/// Matrices in memory while products are compared: at most those of three, their sources and copies.
const COPIES: u64 = 16;

/// A product of two matrices that can be repeated.
pub struct Matrices {
    /// Implementation: `candlepower` or `candle`.
    pub library: &'static str,
    /// Form of the weights, which are one of the matrices.
    pub dtype: &'static str,
    /// Operations of the product.
    flops: f64,
    multiply: Box<dyn Fn() -> Result<()>>,
}

impl Matrices {
    /// The product whose rate is read around benchmarks: on a CPU the faster one of ours and Candle's in f32, to which Candle widens
    /// all others; on another device Candle's in bf16.
    ///
    /// # Errors
    /// Returns an error if the device fails.
    pub fn base(device: &Device) -> Result<Self> {
        if !device.is_cpu() {
            let matrix = || random((ON_DEVICE, ON_DEVICE), DType::BF16, device);
            return Ok(candle(matrix()?, matrix()?));
        }
        let [a, b] = on_cpu()?;
        let own = own(Precision::F32, &values(&a)?, &values(&b)?)?;
        best(vec![candle(a, b), own])
    }

    /// Our product on a CPU for weights in `precision`.
    ///
    /// # Errors
    /// Returns an error if memory is short.
    pub fn own(precision: Precision) -> Result<Self> {
        let [a, b] = on_cpu()?;
        own(precision, &values(&a)?, &values(&b)?)
    }

    /// How many times as fast as another product it is: the median of rates that are read in turns.
    ///
    /// # Errors
    /// Returns an error if the device fails.
    pub fn times(&self, other: &Self) -> Result<f64> {
        let turn = |_| Ok(self.flops_per_s(TURN)? / other.flops_per_s(TURN)?);
        Ok(median((0..TURNS).map(turn).collect::<Result<_>>()?))
    }

    /// Rate of the product during this time: the mean, because what holds the machine back is in a benchmark too.
    ///
    /// # Errors
    /// Returns an error if the device fails.
    pub fn flops_per_s(&self, time: Duration) -> Result<f64> {
        // This pass finds the matrices outside of the caches.
        (self.multiply)()?;
        let (mut passes, started) = (0.0, Instant::now());
        while passes == 0.0 || started.elapsed() < time {
            (self.multiply)()?;
            passes += 1.0;
        }
        Ok(passes * self.flops / started.elapsed().as_secs_f64())
    }
}

/// The product with the highest rate.
fn best(all: Vec<Matrices>) -> Result<Matrices> {
    let mut fastest: Option<(f64, Matrices)> = None;
    for matrices in all {
        // The first pass starts threads.
        (matrices.multiply)()?;
        let rate = matrices.flops / best_of(&matrices.multiply)?.as_secs_f64();
        if fastest.as_ref().is_none_or(|(best, _)| rate > *best) {
            fastest = Some((rate, matrices));
        }
    }
    fastest.map(|(_, matrices)| matrices).context("there is no matrix product")
}

/// Rows, and the weights that multiply them.
fn on_cpu() -> Result<[Tensor; 2]> {
    let bytes = COPIES * (ON_CPU * ON_CPU * size_of::<f32>()) as u64;
    memory::ensure_fits("the matrices of the limits", bytes, &Device::Cpu)?;
    Ok([random((ROWS_ON_CPU, ON_CPU), DType::F32, &Device::Cpu)?, random((ON_CPU, ON_CPU), DType::F32, &Device::Cpu)?])
}

fn values(matrix: &Tensor) -> Result<Vec<f32>> {
    Ok(matrix.flatten_all()?.to_vec1()?)
}

/// Random values, because some CPUs are faster on zeros.
fn random(shape: (usize, usize), dtype: DType, device: &Device) -> Result<Tensor> {
    let matrix = Tensor::randn(0f32, 1f32, shape, device)?.to_dtype(dtype)?;
    device.synchronize()?;
    Ok(matrix)
}

fn candle(a: Tensor, b: Tensor) -> Matrices {
    Matrices {
        library: "candle",
        dtype: a.dtype().as_str(),
        flops: 2.0 * (a.elem_count() * b.dims()[1]) as f64,
        multiply: Box::new(move || {
            black_box(a.matmul(&b)?);
            Ok(a.device().synchronize()?)
        }),
    }
}

fn own(precision: Precision, x: &[f32], weights: &[f32]) -> Result<Matrices> {
    let machine = Machine::with_threads(rayon::current_num_threads().min(candle_core::utils::get_num_threads()));
    if let Some(format) = precision.blocks() {
        let quantised = Quantised::new(&machine, format, (ON_CPU, ON_CPU), weights);
        return Ok(of_weights::<f32>(precision, machine, x, quantised.context("a weight is not finite")?.into()));
    }
    Ok(match precision.dtype() {
        DType::BF16 => packed::<bf16>(precision, machine, x, weights),
        DType::F16 => packed::<f16>(precision, machine, x, weights),
        _ => packed::<f32>(precision, machine, x, weights),
    })
}

fn packed<E: Element>(precision: Precision, machine: Machine, x: &[f32], weights: &[f32]) -> Matrices {
    let weights: Vec<E> = weights.iter().map(|value| E::from_f32(*value)).collect();
    let packed = Packed::new(&machine, ON_CPU, ON_CPU, Source::row_major(&weights, ON_CPU));
    of_weights::<E>(precision, machine, x, packed.into())
}

fn of_weights<E: Element>(precision: Precision, machine: Machine, x: &[f32], weights: Weights<E>) -> Matrices {
    let layer = Linear::new(weights, None);
    let x: Vec<E> = x.iter().map(|value| E::from_f32(*value)).collect();
    let rows = x.len() / ON_CPU;
    let out = RefCell::new(vec![0.0; rows * ON_CPU]);
    Matrices {
        library: "candlepower",
        dtype: precision.name(),
        flops: 2.0 * (x.len() * ON_CPU) as f64,
        multiply: Box::new(move || {
            let x = Rows::new(&x, rows, ON_CPU);
            let mut out = out.borrow_mut();
            products(&machine, vec![Product { x, layer: &layer, out: &mut out, then: Then::Store }]);
            black_box(&mut out);
            Ok(())
        }),
    }
}

/// Returns the shortest of several passes. An interruption only makes a pass longer.
pub fn best_of(mut pass: impl FnMut() -> Result<()>) -> Result<Duration> {
    let (mut best, mut passes, begun) = (Duration::MAX, 0, Instant::now());
    while passes < PASSES || begun.elapsed() < FILL_BEST {
        let started = Instant::now();
        pass()?;
        best = best.min(started.elapsed());
        passes += 1;
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn the_fastest_product_is_chosen() {
        let sleeping = |dtype, flops, ms| Matrices {
            library: "candle",
            dtype,
            flops,
            multiply: Box::new(move || {
                thread::sleep(Duration::from_millis(ms));
                Ok(())
            }),
        };
        let chosen = best(vec![sleeping("f32", 1e9, 20), sleeping("bf16", 1e9, 2), sleeping("f16", 2e9, 20)]);
        assert_eq!(chosen.expect("a product").dtype, "bf16");
        // Twice the work in about the same time.
        let chosen = best(vec![sleeping("f32", 1e9, 5), sleeping("f16", 4e9, 5)]);
        assert_eq!(chosen.expect("a product").dtype, "f16");
    }

    #[test]
    fn every_precision_has_a_product() {
        let (x, weights) = (vec![0.5; ROWS_ON_CPU * ON_CPU], vec![0.25; ON_CPU * ON_CPU]);
        for precision in Precision::ALL {
            let own = own(precision, &x, &weights).expect("a product");
            assert_eq!((own.library, own.dtype), ("candlepower", precision.name()));
            (own.multiply)().expect("a pass");
        }
    }
}
