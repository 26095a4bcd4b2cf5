//! Limits of the machine: the bandwidth of its memory and the rate of its matrix products. Decode and prefill rates
//! are reported as shares of them.

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
use crate::{kernels::sum, record::Limits};

/// Minimum size of the buffer that is read. If the caches are large, the buffer is [`CACHES`] times as large, so that
/// no pass finds data of the last pass in them.
const BUFFER_BYTES: usize = 512 << 20;
const CACHES: usize = 4;

/// Bytes that a thread reads at a time: few, so that other threads can take over the work of a delayed one.
const PART_BYTES: usize = 4 << 20;

/// Copies that are submitted to a device at once, so that launch and synchronisation do not count.
const COPIES: usize = 8;

/// Rows and columns of the square matrices, on a CPU and on other devices, which need more work to be busy.
const MATRIX_ON_CPU: usize = 1536;
const MATRIX_ON_DEVICE: usize = 8192;

/// Minimum number of passes, and the time that passes must fill. On a busy machine, few passes are undisturbed, and
/// an idle device takes time to raise its clocks.
const PASSES: usize = 5;
const FILL: Duration = Duration::from_millis(300);

/// Measured once per device and process.
static MEASURED: Mutex<BTreeMap<String, Limits>> = Mutex::new(BTreeMap::new());

/// Measures the limits of a device, or returns the earlier result. Takes about a second.
///
/// On a CPU, all threads read a buffer of half a gigabyte or four times the caches, and Candle multiplies f32
/// matrices of 1536 rows and columns. The best of several passes counts. The dtype is f32 for all models, because
/// Candle widens 16-bit products to f32. On another device, the limits come from copies of half a gigabyte, where
/// each byte is read and written and counts twice, and from a bf16 product of 8192 rows and columns.
///
/// The limits are achieved rates, not those of a data sheet. A share above 100 % is possible: the benchmark then uses
/// the machine better than the measurement of the limits. If a hypervisor shares memory bandwidth between guests, the
/// bandwidth varies with their load and nothing reports it.
///
/// # Errors
/// Returns an error if the device fails.
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
    // With little free memory, use a smaller buffer that the caches may hold in part.
    let available = memory::available_bytes(&Device::Cpu).map_or(usize::MAX, |available| available as usize);
    bytes.min(available / 4).max(PART_BYTES)
}

fn read_bytes_per_s(bytes: usize) -> Result<f64> {
    // Written, so that every page is mapped: untouched pages all share the zero page.
    let buffer: Vec<u64> = (0..bytes as u64 / 8).into_par_iter().collect();
    let best = best_of(|| {
        black_box(buffer.par_chunks(PART_BYTES / 8).map(sum).reduce(|| 0, u64::wrapping_add));
        Ok(())
    })?;
    Ok(size_of_val(buffer.as_slice()) as f64 / best.as_secs_f64())
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
    // Random values, because some CPUs are faster on zeros.
    let random = || Tensor::randn(0f32, 1f32, (size, size), device)?.to_dtype(dtype);
    let (a, b) = (random()?, random()?);
    device.synchronize()?;
    let best = best_of(|| {
        black_box(a.matmul(&b)?);
        Ok(device.synchronize()?)
    })?;
    Ok(2.0 * (size as f64).powi(3) / best.as_secs_f64())
}

/// Returns the shortest of several passes after a warm-up. Disturbances only make a pass longer.
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
    fn measured_once_and_plausible() {
        let first = limits(&Device::Cpu).expect("a processor has limits");
        assert!(first.read_bytes_per_s > 1e8 && first.matrix_flops_per_s > 1e8, "{first:?}");
        assert_eq!(first, limits(&Device::Cpu).expect("recalled"));
    }
}
