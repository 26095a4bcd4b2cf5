//! What the machine allows: the bandwidth of its memory and the rate of its matrix products, which every decode and
//! prefill rate is set beside.

use std::{
    collections::BTreeMap,
    hint::black_box,
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::{machine, memory};
use crate::record::Limits;

/// The buffer that is read, at the least. Where the caches hold more, it is [`CACHES`] times as large as they are, so
/// that no pass finds in them what the last left there.
const BUFFER_BYTES: usize = 512 << 20;
const CACHES: usize = 4;

/// What a thread reads at a time: small, so that one that is held up leaves the rest to the others.
const PART_BYTES: usize = 4 << 20;

/// Copies that a device is given at once, so that starting them and waiting for them is no part of their time.
const COPIES: usize = 8;

/// Rows and columns of the square matrices, on a processor and on a device that takes more to fill.
const MATRIX_ON_CPU: usize = 1536;
const MATRIX_ON_DEVICE: usize = 8192;

/// Passes over what is measured, at the least, and the time to fill with more of them: on a busy machine few passes are
/// undisturbed, and an idle device takes a while to raise its clocks.
const PASSES: usize = 5;
const FILL: Duration = Duration::from_millis(300);

/// Measured once for each device in a process.
static MEASURED: Mutex<BTreeMap<String, Limits>> = Mutex::new(BTreeMap::new());

/// Measures the limits of a device, or recalls them. Takes about a second.
///
/// On a processor: reading a buffer of half a gigabyte or four times the caches with every thread, and Candle's f32
/// matrix product of 1536 rows and columns, the best of several passes each. f32 whatever the models run in, since
/// Candle widens 16-bit products to it. On another device: copying half a gigabyte, where each byte is read and written
/// and counts twice, and the bf16 product of 8192 rows and columns.
///
/// They are what this machine reaches at these, not what its data sheet says; a figure of over 100 % can happen and
/// says that a benchmark uses the machine better than the measurement of its limits did. Where a hypervisor shares the
/// memory among guests, the bandwidth changes with what the others do, and nothing tells of it.
///
/// # Errors
/// When the device fails.
pub fn limits(device: &Device) -> Result<Limits> {
    let name = format!("{:?}", device.location());
    let mut measured = MEASURED.lock().map_err(|_| anyhow!("the limits could not be measured"))?;
    if let Some(limits) = measured.get(&name) {
        return Ok(limits.clone());
    }
    let limits = if device.is_cpu() {
        Limits {
            read_bytes_per_s: read_bytes_per_s(buffer_bytes())?,
            matrix_flops_per_s: matrix_flops_per_s(device, DType::F32, MATRIX_ON_CPU)?,
            matrix_dtype: "f32".into(),
        }
    } else {
        Limits {
            read_bytes_per_s: copied_bytes_per_s(device)?,
            matrix_flops_per_s: matrix_flops_per_s(device, DType::BF16, MATRIX_ON_DEVICE)?,
            matrix_dtype: "bf16".into(),
        }
    };
    measured.insert(name, limits.clone());
    Ok(limits)
}

fn buffer_bytes() -> usize {
    let bytes = BUFFER_BYTES.max(CACHES * machine::last_level_cache_bytes().unwrap_or(0) as usize);
    // On a machine that has little left, a buffer that the caches may hold in part is better than none.
    let available = memory::available_bytes(&Device::Cpu).map_or(usize::MAX, |available| available as usize);
    bytes.min(available / 4).max(PART_BYTES)
}

fn read_bytes_per_s(bytes: usize) -> Result<f64> {
    // Written, so that every page is there and is its own: untouched pages are all the same zeroes.
    let buffer: Vec<u64> = (0..bytes as u64 / 8).into_par_iter().collect();
    let best = best_of(|| {
        black_box(buffer.par_chunks(PART_BYTES / 8).map(sum).reduce(|| 0, u64::wrapping_add));
        Ok(())
    })?;
    Ok(size_of_val(buffer.as_slice()) as f64 / best.as_secs_f64())
}

/// With the widest loads that matrix products make, or they would read faster than what they are set beside.
fn sum(values: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which is all that the function asks for.
        return unsafe { sum_avx2(values) };
    }
    plain_sum(values)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(values: &[u64]) -> u64 {
    plain_sum(values)
}

/// The compiler makes vectors and several independent sums of it, so that memory is the limit and not the adder. The
/// same spelt out, with 8 to 32 sums in an array, was ten times slower when compiled for a processor with AVX-512.
#[inline(always)]
fn plain_sum(values: &[u64]) -> u64 {
    values.iter().fold(0, |sum, value| sum.wrapping_add(*value))
}

fn copied_bytes_per_s(device: &Device) -> Result<f64> {
    let from = Tensor::ones(BUFFER_BYTES / 4, DType::F32, device)?;
    let best = best_of(|| {
        for _ in 0..COPIES {
            from.copy()?;
        }
        Ok(device.synchronize()?)
    })?;
    Ok((2 * COPIES * BUFFER_BYTES) as f64 / best.as_secs_f64())
}

fn matrix_flops_per_s(device: &Device, dtype: DType, size: usize) -> Result<f64> {
    // Random, because some processors are faster on zeroes.
    let random = || Tensor::randn(0f32, 1f32, (size, size), device)?.to_dtype(dtype);
    let (a, b) = (random()?, random()?);
    device.synchronize()?;
    let best = best_of(|| {
        black_box(a.matmul(&b)?);
        Ok(device.synchronize()?)
    })?;
    Ok(2.0 * (size as f64).powi(3) / best.as_secs_f64())
}

/// The shortest of some passes, after one that warms up: what disturbs a pass only makes it longer.
fn best_of(mut pass: impl FnMut() -> Result<()>) -> Result<Duration> {
    pass()?;
    let (mut best, mut passes, begun) = (Duration::MAX, 0, Instant::now());
    while passes < PASSES || begun.elapsed() < FILL {
        let started = Instant::now();
        pass()?;
        best = best.min(started.elapsed());
        passes += 1;
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_read() {
        for length in [0, 1, 31, 32, 33, 1000] {
            let values: Vec<u64> = (1..=length).collect();
            assert_eq!(sum(&values), length * (length + 1) / 2);
            assert_eq!(plain_sum(&values), sum(&values));
        }
    }

    #[test]
    fn measured_once_and_plausible() {
        let first = limits(&Device::Cpu).expect("a processor has limits");
        assert!(first.read_bytes_per_s > 1e8 && first.matrix_flops_per_s > 1e8, "{first:?}");
        assert_eq!(first, limits(&Device::Cpu).expect("recalled"));
    }
}
