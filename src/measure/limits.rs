//! Limits of the machine: the bandwidth of its memory and the rate of its matrix products. Decode and prefill rates
//! are reported as shares of them.
//!
//! On a shared machine both change within seconds. A [`Gauge`] therefore reads them in short passes, before, between
//! and after the samples of a benchmark.

use std::{cell::Cell, hint::black_box};

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::{
    machine,
    matrix::{Matrices, best_of},
    memory,
    statistics::percentile,
};
use crate::{
    device::Precision,
    kernels::{sum, system::ask_for_huge_pages},
    record::{Limits, Spread},
};

/// Minimum size of the buffer that is read. If the caches are large, the buffer is [`CACHES`] times as large, so that
/// no pass finds data of the last pass in them.
const BUFFER_BYTES: usize = 256 << 20;
const CACHES: usize = 4;

/// The buffer takes at most this part of the free memory, because it stays while models are loaded.
const PART_OF_FREE: usize = 16;

/// Bytes that a thread reads at a time: few, so that other threads can take over the work of a delayed one.
const PART_BYTES: usize = 4 << 20;

/// Copies that are submitted to a device at once, so that launch and synchronisation do not count.
const COPIES: usize = 8;

/// Readings of [`limits`], which has no benchmark around which it could take them.
const READINGS: usize = 5;

/// Reads the limits of a device.
///
/// On a CPU, all threads read a buffer of a quarter of a gigabyte or four times the caches, and multiply matrices of 1536 rows
/// and columns by the fastest product that there is for the dtype of the models: that of our kernels in this dtype, that of our
/// kernels in f32, or Candle's in f32, to which Candle widens 16-bit products. The fastest is chosen once. The buffer stays
/// allocated and is written once before it is read, because untouched pages all share the zero page.
/// On Linux it consists of huge pages, if the system grants them: with small ones, translating addresses costs a sixth
/// of the bandwidth, and the share depends on where the pages happen to lie. Binding threads to cores and choosing the
/// thread that touches a page first made no difference on one socket.
///
/// On another device, the limits come from copies of a quarter of a gigabyte, where each byte is read and written and
/// counts twice, and from a bf16 product of 8192 rows and columns. Their memory is freed after each reading, because a
/// model may need it.
///
/// The limits are achieved rates, not those of a data sheet. If a hypervisor shares memory bandwidth between guests, the
/// bandwidth varies with their load and nothing reports it.
pub struct Gauge {
    device: Device,
    /// Buffer that is read; empty on devices other than a CPU.
    memory: Vec<u64>,
    /// Implementation and dtype of the matrix product.
    product: (&'static str, &'static str),
    /// The product on a CPU; `None` on other devices, where it is made for each reading.
    matrices: Option<Matrices>,
    /// The reading of an idle device, before models took its memory.
    first: Reading,
    /// The best of all readings, each limit for itself.
    best: Cell<Reading>,
}

/// The limits at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// Bandwidth of reading memory.
    pub read_bytes_per_s: f64,
    /// Rate of a matrix product.
    pub matrix_flops_per_s: f64,
}

impl Gauge {
    /// Allocates what the readings need and takes the first one. `precision` is that of the models.
    ///
    /// # Errors
    /// Returns an error if the device fails.
    pub fn new(device: &Device, precision: Precision) -> Result<Self> {
        let memory = if device.is_cpu() { written(buffer_bytes()) } else { Vec::new() };
        let matrices = Matrices::fastest(device, precision)?;
        let product = (matrices.library, matrices.dtype);
        // The first pass starts threads.
        reading(device, &memory, &matrices)?;
        let first = reading(device, &memory, &matrices)?;
        let matrices = device.is_cpu().then_some(matrices);
        Ok(Self { device: device.clone(), memory, product, matrices, first, best: Cell::new(first) })
    }

    /// Reads the limits. Takes about 60 ms.
    ///
    /// # Errors
    /// Returns an error if the device fails.
    pub fn read(&self) -> Result<Reading> {
        let reading = match &self.matrices {
            Some(matrices) => reading(&self.device, &self.memory, matrices)?,
            None => reading(&self.device, &self.memory, &Matrices::fastest(&self.device, Precision::BF16)?)?,
        };
        let best = self.best.get();
        self.best.set(Reading {
            read_bytes_per_s: best.read_bytes_per_s.max(reading.read_bytes_per_s),
            matrix_flops_per_s: best.matrix_flops_per_s.max(reading.matrix_flops_per_s),
        });
        Ok(reading)
    }

    /// Summarises readings: medians, extremes, and the best of the gauge. Without a reading, the first of the gauge
    /// counts.
    pub fn limits(&self, readings: &[Reading]) -> Limits {
        let readings = if readings.is_empty() { std::slice::from_ref(&self.first) } else { readings };
        summarise(readings, self.best.get(), self.product)
    }
}

/// Reads the limits of a device several times in a row: for the state of a machine, where no benchmark runs.
///
/// # Errors
/// Returns an error if the device fails.
pub fn limits(device: &Device, precision: Precision) -> Result<Limits> {
    let gauge = Gauge::new(device, precision)?;
    let readings = (0..READINGS).map(|_| gauge.read()).collect::<Result<Vec<_>>>()?;
    Ok(gauge.limits(&readings))
}

fn reading(device: &Device, memory: &[u64], matrices: &Matrices) -> Result<Reading> {
    let read_bytes_per_s = if device.is_cpu() { read_bytes_per_s(memory)? } else { copied_bytes_per_s(device)? };
    Ok(Reading { read_bytes_per_s, matrix_flops_per_s: matrices.flops_per_s()? })
}

/// Summarises at least one reading.
fn summarise(readings: &[Reading], best: Reading, (library, dtype): (&str, &str)) -> Limits {
    let of = |limit: fn(&Reading) -> f64| {
        let mut values: Vec<f64> = readings.iter().map(limit).collect();
        values.sort_unstable_by(f64::total_cmp);
        let (lowest, highest) = (values[0], values[values.len() - 1]);
        let spread = Spread { readings: values.len(), lowest, highest, best_of_run: limit(&best) };
        (percentile(&values, 0.5), Some(spread))
    };
    let (read_bytes_per_s, read) = of(|reading| reading.read_bytes_per_s);
    let (matrix_flops_per_s, matrix) = of(|reading| reading.matrix_flops_per_s);
    Limits {
        read_bytes_per_s,
        matrix_flops_per_s,
        matrix_dtype: dtype.into(),
        matrix_library: Some(library.into()),
        read,
        matrix,
        exceeded: Vec::new(),
    }
}

fn buffer_bytes() -> usize {
    let bytes = BUFFER_BYTES.max(CACHES * machine::last_level_cache_bytes().unwrap_or(0) as usize);
    // With little free memory, use a smaller buffer that the caches may hold in part.
    let available = memory::available_bytes(&Device::Cpu).map_or(usize::MAX, |available| available as usize);
    bytes.min(available / PART_OF_FREE).max(PART_BYTES)
}

/// A buffer whose pages are huge, if the system grants them, and all written.
fn written(bytes: usize) -> Vec<u64> {
    let mut buffer = Vec::with_capacity(bytes / size_of::<u64>());
    ask_for_huge_pages(buffer.spare_capacity_mut());
    (0..bytes / size_of::<u64>()).into_par_iter().map(|place| place as u64).collect_into_vec(&mut buffer);
    buffer
}

fn read_bytes_per_s(buffer: &[u64]) -> Result<f64> {
    let best = best_of(|| {
        black_box(buffer.par_chunks(PART_BYTES / 8).map(sum).reduce(|| 0, u64::wrapping_add));
        Ok(())
    })?;
    Ok(size_of_val(buffer) as f64 / best.as_secs_f64())
}

fn copied_bytes_per_s(device: &Device) -> Result<f64> {
    let from = Tensor::ones(BUFFER_BYTES / 4, DType::F32, device)?;
    let pass = || {
        for _ in 0..COPIES {
            from.copy()?;
        }
        Ok(device.synchronize()?)
    };
    // The memory of the copies is allocated in the first pass.
    pass()?;
    Ok((2 * COPIES * BUFFER_BYTES) as f64 / best_of(pass)?.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_written_in_huge_and_in_small_pages() {
        for bytes in [4096, 5 << 20] {
            let buffer = written(bytes);
            assert_eq!(size_of_val(buffer.as_slice()), bytes);
            assert!(buffer.iter().enumerate().all(|(place, value)| *value == place as u64));
        }
    }

    #[test]
    fn a_processor_has_limits() {
        let limits = limits(&Device::Cpu, Precision::F32).expect("a processor has limits");
        assert_eq!(limits.matrix_dtype, "f32");
        assert!(limits.read_bytes_per_s > 1e8 && limits.matrix_flops_per_s > 1e8, "{limits:?}");
        let read = limits.read.expect("readings");
        assert_eq!(read.readings, READINGS);
        assert!(read.lowest <= limits.read_bytes_per_s && limits.read_bytes_per_s <= read.highest);
        assert!(read.highest <= read.best_of_run);
    }

    #[test]
    fn readings_have_a_median_a_spread_and_the_best_of_the_run() {
        let reading = |read_bytes_per_s, matrix_flops_per_s| Reading { read_bytes_per_s, matrix_flops_per_s };
        let readings = [reading(40.0, 7.0), reading(60.0, 9.0), reading(44.0, 8.0)];
        let limits = summarise(&readings, reading(70.0, 9.0), ("candle", "f32"));
        assert_eq!((limits.matrix_library.as_deref(), limits.matrix_dtype.as_str()), (Some("candle"), "f32"));
        assert_eq!((limits.read_bytes_per_s, limits.matrix_flops_per_s), (44.0, 8.0));
        let spread = |lowest, highest, best_of_run| Some(Spread { readings: 3, lowest, highest, best_of_run });
        assert_eq!((limits.read, limits.matrix), (spread(40.0, 60.0, 70.0), spread(7.0, 9.0, 9.0)));
    }
}
