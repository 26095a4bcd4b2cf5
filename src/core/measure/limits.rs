//! Limits of the machine: the bandwidth of its memory and the rate of its matrix products. Decode and prefill rates
//! are reported as shares of them.
//!
//! On a shared machine both change within seconds. A [`Gauge`] therefore reads them in some milliseconds, over and over while a
//! benchmark runs, and a share is one of the [limits of its time](LimitsOverTime).

use std::{
    cell::{Cell, RefCell},
    hint::black_box,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

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
    kernels::{inference::Machine, read, sum, system::ask_for_huge_pages},
    record::{Limits, Spread},
};

/// Minimum size of the buffer that is read. If the caches are large, the buffer is [`CACHES`] times as large, so that
/// no pass finds data of the last pass in them.
const BUFFER_BYTES: usize = 256 << 20;
const CACHES: usize = 4;

/// The buffer takes at most this part of the free memory, because it stays while models are loaded.
const PART_OF_FREE: usize = 16;

/// Bytes that a thread reads at a time.
const PART_BYTES: usize = 1 << 20;

/// Time of a reading of the bandwidth. All readings take equally long, so that their mean is that over the time.
const READ_FOR: Duration = Duration::from_millis(5);

/// Time that the passes of a matrix product fill in a reading, and in one beside a prompt. The median over ten prompts is of few
/// readings, and another process takes a core for some milliseconds at a time, so these are longer.
const MULTIPLY_FOR: Duration = Duration::from_millis(10);
const BESIDE_PROMPT: Duration = Duration::from_millis(50);

/// Copies that are submitted to a device at once, so that launch and synchronisation do not count.
const COPIES: usize = 8;

/// Readings of [`limits`], which has no benchmark around which it could take them.
const READINGS: usize = 15;

/// Reads the limits of a device.
///
/// On a CPU, all threads read parts of a buffer of a quarter of a gigabyte or four times the caches, and multiply 256 rows by
/// a matrix of 1536 rows and columns, with the faster one of our product in f32 and Candle's, to which Candle widens 16-bit
/// products. The limit in another dtype is this rate, multiplied by the ratio of our product in that dtype to this one if that
/// is faster. The ratio is measured once. The buffer stays allocated and is written once before it is read, because untouched
/// pages all share the zero page.
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
    /// The part of the buffer that is read next. The parts that were read last are the ones that caches may hold.
    next: AtomicUsize,
    /// Implementation and dtype of the matrix product.
    product: Product,
    /// The product on a CPU; `None` on other devices, where it is made for each reading.
    matrices: Option<Matrices>,
    /// The fastest products for other dtypes that were asked for.
    fastest: RefCell<Vec<(Precision, Product)>>,
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

/// A matrix product.
#[derive(Clone, Copy)]
struct Product {
    library: &'static str,
    dtype: &'static str,
    /// How many times as fast as the one that is read it is.
    times: f64,
}

impl Gauge {
    /// Allocates what the readings need and takes the first one.
    ///
    /// # Errors
    /// Returns an error if the device fails.
    pub fn new(device: &Device) -> Result<Self> {
        let memory = if device.is_cpu() { written(buffer_bytes()) } else { Vec::new() };
        let matrices = Matrices::base(device)?;
        let product = Product { library: matrices.library, dtype: matrices.dtype, times: 1.0 };
        let next = AtomicUsize::new(0);
        // The first pass starts threads.
        reading(device, (&memory, &next), &matrices, MULTIPLY_FOR)?;
        let first = reading(device, (&memory, &next), &matrices, MULTIPLY_FOR)?;
        let matrices = device.is_cpu().then_some(matrices);
        let (fastest, best) = (RefCell::default(), Cell::new(first));
        Ok(Self { device: device.clone(), memory, next, product, matrices, fastest, first, best })
    }

    /// Returns whether a reading is so short and takes so little memory that it fits between two steps of a benchmark.
    pub fn fits_between_steps(&self) -> bool {
        self.device.is_cpu()
    }

    /// Reads the limits. On a CPU, this takes about 20 ms.
    ///
    /// # Errors
    /// Returns an error if the device fails.
    pub fn read(&self) -> Result<Reading> {
        self.read_for(MULTIPLY_FOR)
    }

    /// Does the same beside a prompt, for about 60 ms.
    ///
    /// # Errors
    /// Returns an error if the device fails.
    pub fn read_beside_prompt(&self) -> Result<Reading> {
        self.read_for(BESIDE_PROMPT)
    }

    fn read_for(&self, time: Duration) -> Result<Reading> {
        let memory = (self.memory.as_slice(), &self.next);
        let reading = match &self.matrices {
            Some(matrices) => reading(&self.device, memory, matrices, time)?,
            None => reading(&self.device, memory, &Matrices::base(&self.device)?, time)?,
        };
        let best = self.best.get();
        self.best.set(Reading {
            read_bytes_per_s: best.read_bytes_per_s.max(reading.read_bytes_per_s),
            matrix_flops_per_s: best.matrix_flops_per_s.max(reading.matrix_flops_per_s),
        });
        Ok(reading)
    }

    /// Summarises readings, in order, with their times: median and extremes of their means over a second, and the best of the
    /// gauge. Without a reading, the first of the gauge counts. The rate is that of the fastest product for models in `dtype`.
    pub fn limits(&self, readings: &[(Instant, Reading)], dtype: &str) -> LimitsOverTime {
        let product = self.fastest(dtype);
        let of =
            |reading: Reading| Reading { matrix_flops_per_s: product.times * reading.matrix_flops_per_s, ..reading };
        let readings: Vec<_> = readings.iter().map(|(at, reading)| (*at, of(*reading))).collect();
        let mut seconds: Vec<Reading> = seconds(&readings).map(|second| mean(&second)).collect();
        if seconds.is_empty() {
            seconds.push(of(self.first));
        }
        LimitsOverTime { medians: summarise(&seconds, readings.len(), of(self.best.get()), product), readings }
    }

    /// The fastest product for models in this dtype. The dtypes without a product of their own are types of GGUF files, which have blocks
    /// of several formats: that of the faster of two counts.
    fn fastest(&self, dtype: &str) -> Product {
        let [one, other] =
            dtype.parse().map_or([Precision::Q8_0, Precision::Q4K], |own| [own; 2]).map(|own| self.known(own));
        if one.times >= other.times { one } else { other }
    }

    /// The product for this form of weights, which is the one that is read if its own is not faster or cannot be measured.
    fn known(&self, precision: Precision) -> Product {
        let known = self.fastest.borrow().iter().find(|(other, _)| *other == precision).map(|(_, product)| *product);
        known.unwrap_or_else(|| {
            let product = self.measured(precision).unwrap_or(self.product);
            self.fastest.borrow_mut().push((precision, product));
            product
        })
    }

    fn measured(&self, precision: Precision) -> Option<Product> {
        let base = self.matrices.as_ref().filter(|_| precision.name() != self.product.dtype)?;
        let other = Matrices::own(precision).ok()?;
        let times = other.times(base).ok().filter(|times| *times > 1.0)?;
        Some(Product { library: other.library, dtype: other.dtype, times })
    }
}

/// The readings of each second: of one second after the first of them.
fn seconds(readings: &[(Instant, Reading)]) -> impl Iterator<Item = Vec<Reading>> {
    let mut rest = readings;
    std::iter::from_fn(move || {
        let (first, _) = rest.first()?;
        let count = rest.partition_point(|(at, _)| at.duration_since(*first) < Duration::from_secs(1));
        let second = rest[..count].iter().map(|(_, reading)| *reading).collect();
        rest = &rest[count..];
        Some(second)
    })
}

/// The readings between two moments, the last one before and the first one after, of readings in the order of their times.
pub fn around<T>(readings: &[(Instant, T)], from: Instant, to: Instant) -> &[(Instant, T)] {
    let first = readings.partition_point(|(at, _)| *at < from).saturating_sub(1);
    let end = readings.partition_point(|(at, _)| *at <= to).saturating_add(1).min(readings.len());
    &readings[first..end]
}

/// Bandwidth of reading the weights of a model, in main memory and in this order, with the threads that multiply with them. As in
/// a decode step, the threads meet after each matrix. Begins with the first one, so that the caches hold what they hold in a step.
pub fn weights_bytes_per_s(weights: &[&[u64]]) -> Option<f64> {
    let machine = Machine::with_threads(rayon::current_num_threads().min(candle_core::utils::get_num_threads()));
    let (mut bytes, started) = (0, Instant::now());
    for matrix in weights.iter().filter(|matrix| !matrix.is_empty()).cycle() {
        read(&machine, matrix);
        bytes += size_of_val(*matrix);
        if started.elapsed() >= READ_FOR {
            break;
        }
    }
    (bytes > 0).then(|| bytes as f64 / started.elapsed().as_secs_f64())
}

/// The mean of at least one reading.
fn mean(readings: &[Reading]) -> Reading {
    let of = |limit: fn(&Reading) -> f64| readings.iter().map(limit).sum::<f64>() / readings.len() as f64;
    Reading {
        read_bytes_per_s: of(|reading| reading.read_bytes_per_s),
        matrix_flops_per_s: of(|reading| reading.matrix_flops_per_s),
    }
}

/// The limits while a benchmark ran.
#[derive(Clone, Debug, PartialEq)]
pub struct LimitsOverTime {
    /// Medians over the seconds of the whole time.
    pub medians: Limits,
    /// Readings with their times, in order.
    readings: Vec<(Instant, Reading)>,
}

impl LimitsOverTime {
    /// The mean of the limits between two moments: of the readings there, of the last one before and of the first one after.
    /// Without any reading, the medians.
    ///
    /// Readings are evenly spread over the time of a benchmark, so the work that a limit allows in a time is its mean
    /// multiplied by the time.
    pub(crate) fn during(&self, from: Instant, to: Instant) -> Reading {
        let readings: Vec<Reading> = around(&self.readings, from, to).iter().map(|(_, reading)| *reading).collect();
        if readings.is_empty() { self.median() } else { mean(&readings) }
    }

    /// The medians as a reading.
    pub fn median(&self) -> Reading {
        let Limits { read_bytes_per_s, matrix_flops_per_s, .. } = self.medians;
        Reading { read_bytes_per_s, matrix_flops_per_s }
    }
}

/// Limits that do not change.
impl From<Limits> for LimitsOverTime {
    fn from(medians: Limits) -> Self {
        Self { medians, readings: Vec::new() }
    }
}

/// Reads the limits of a device several times in a row: for the state of a machine, where no benchmark runs.
///
/// # Errors
/// Returns an error if the device fails.
pub fn limits(device: &Device, precision: Precision) -> Result<Limits> {
    let gauge = Gauge::new(device)?;
    let readings = (0..READINGS).map(|_| Ok((Instant::now(), gauge.read()?))).collect::<Result<Vec<_>>>()?;
    Ok(gauge.limits(&readings, precision.name()).medians)
}

/// A reading whose matrix products fill `time`.
fn reading(device: &Device, memory: (&[u64], &AtomicUsize), matrices: &Matrices, time: Duration) -> Result<Reading> {
    let read_bytes_per_s = if device.is_cpu() { read_bytes_per_s(memory) } else { copied_bytes_per_s(device)? };
    Ok(Reading { read_bytes_per_s, matrix_flops_per_s: matrices.flops_per_s(time)? })
}

/// Summarises the means of at least one second, which come from so many readings.
fn summarise(seconds: &[Reading], readings: usize, best: Reading, product: Product) -> Limits {
    let of = |limit: fn(&Reading) -> f64| {
        let mut values: Vec<f64> = seconds.iter().map(limit).collect();
        values.sort_unstable_by(f64::total_cmp);
        let (lowest, highest) = (values[0], values[values.len() - 1]);
        let spread = Spread { readings, lowest, highest, best_of_run: limit(&best) };
        (percentile(&values, 0.5), Some(spread))
    };
    let (read_bytes_per_s, read) = of(|reading| reading.read_bytes_per_s);
    let (matrix_flops_per_s, matrix) = of(|reading| reading.matrix_flops_per_s);
    Limits {
        read_bytes_per_s,
        matrix_flops_per_s,
        matrix_dtype: product.dtype.into(),
        matrix_library: Some(product.library.into()),
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

/// Sum of the rates of all threads. Each takes the next part of the buffer until the time has passed.
fn read_bytes_per_s((buffer, next): (&[u64], &AtomicUsize)) -> f64 {
    let parts: Vec<&[u64]> = buffer.chunks_exact(PART_BYTES / 8).collect();
    let rate = |_: rayon::BroadcastContext| {
        let (mut bytes, started) = (0, Instant::now());
        while bytes == 0 || started.elapsed() < READ_FOR {
            let part = parts[next.fetch_add(1, Ordering::Relaxed) % parts.len()];
            black_box(sum(part));
            bytes += size_of_val(part);
        }
        bytes as f64 / started.elapsed().as_secs_f64()
    };
    rayon::broadcast(rate).iter().sum()
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

    const OF_CANDLE: Product = Product { library: "candle", dtype: "f32", times: 1.0 };

    #[test]
    fn a_buffer_is_written_in_huge_and_in_small_pages() {
        for bytes in [4096, 5 << 20] {
            let buffer = written(bytes);
            assert_eq!(size_of_val(buffer.as_slice()), bytes);
            assert!(buffer.iter().enumerate().all(|(place, value)| *value == place as u64));
        }
    }

    #[test]
    fn weights_are_read_over_and_over() {
        let matrix = vec![1_u64; 1 << 17];
        let rate = weights_bytes_per_s(&[&[], &matrix, &matrix[..1]]).expect("a rate");
        assert!(rate > 1e8, "{rate}");
        assert_eq!(weights_bytes_per_s(&[]), None);
        assert_eq!(weights_bytes_per_s(&[&[]]), None);
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

    /// The rate of each dtype is that of our product in it, and never less than the one that is read.
    #[test]
    fn a_limit_is_that_of_the_fastest_product_for_the_dtype() {
        let gauge = Gauge::new(&Device::Cpu).expect("a gauge");
        let product = |dtype, times| Product { library: "candlepower", dtype, times };
        gauge.fastest.replace(vec![(Precision::Q8_0, product("q8_0", 3.0)), (Precision::Q4K, product("q4k", 4.0))]);
        let readings = [(Instant::now(), Reading { read_bytes_per_s: 40.0, matrix_flops_per_s: 7.0 })];
        for (dtype, times) in [("f32", 1.0), ("q8_0", 3.0), ("q4k", 4.0), ("q4_k_m", 4.0), ("iq4_xs", 4.0)] {
            let limits = gauge.limits(&readings, dtype).medians;
            assert_eq!((limits.read_bytes_per_s, limits.matrix_flops_per_s), (40.0, 7.0 * times), "{dtype}");
            assert!(limits.matrix.is_some_and(|spread| spread.lowest == 7.0 * times), "{dtype}: {limits:?}");
        }
        for precision in Precision::ALL {
            assert!(gauge.fastest(precision.name()).times >= 1.0, "{precision}");
        }
    }

    #[test]
    fn readings_have_a_median_a_spread_and_the_best_of_the_run() {
        let reading = |read_bytes_per_s, matrix_flops_per_s| Reading { read_bytes_per_s, matrix_flops_per_s };
        let readings = [reading(40.0, 7.0), reading(60.0, 9.0), reading(44.0, 8.0)];
        let limits = summarise(&readings, 3, reading(70.0, 9.0), OF_CANDLE);
        assert_eq!((limits.matrix_library.as_deref(), limits.matrix_dtype.as_str()), (Some("candle"), "f32"));
        assert_eq!((limits.read_bytes_per_s, limits.matrix_flops_per_s), (44.0, 8.0));
        let spread = |lowest, highest, best_of_run| Some(Spread { readings: 3, lowest, highest, best_of_run });
        assert_eq!((limits.read, limits.matrix), (spread(40.0, 60.0, 70.0), spread(7.0, 9.0, 9.0)));
    }

    #[test]
    fn limits_of_a_time_are_means_of_its_readings() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let reading = |read_bytes_per_s: f64| Reading { read_bytes_per_s, matrix_flops_per_s: read_bytes_per_s / 10.0 };
        let readings: Vec<(Instant, Reading)> =
            [(100, 10.0), (200, 20.0), (300, 40.0), (400, 80.0)].map(|(ms, rate)| (at(ms), reading(rate))).into();
        let best = reading(80.0);
        let all: Vec<Reading> = readings.iter().map(|(_, reading)| *reading).collect();
        let medians = summarise(&all, all.len(), best, OF_CANDLE);
        let over_time = LimitsOverTime { medians, readings };
        for (from, to, expected) in [
            (150, 350, (10.0 + 20.0 + 40.0 + 80.0) / 4.0),
            (210, 220, (20.0 + 40.0) / 2.0),
            (0, 50, 10.0),
            (500, 600, 80.0),
            (0, 1000, 37.5),
        ] {
            assert_eq!(over_time.during(at(from), at(to)), reading(expected), "from {from} to {to}");
        }
        let means = seconds(&over_time.readings).map(|second| mean(&second));
        assert_eq!(means.collect::<Vec<_>>(), [reading(37.5)], "all are in a second");
        let minute: Vec<(Instant, Reading)> =
            (0..150).map(|number: u64| (at(400 * number), reading((number / 3) as f64))).collect();
        let means: Vec<Reading> = seconds(&minute).map(|second| mean(&second)).collect();
        assert_eq!((means.len(), means[0], means[49]), (50, reading(0.0), reading(49.0)));
        let constant = LimitsOverTime::from(over_time.medians);
        assert_eq!(constant.during(at(0), at(1)), reading(30.0), "the medians");
    }
}
