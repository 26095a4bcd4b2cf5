//! Peak memory in bytes as a Criterion measurement. Criterion's default noise threshold would report a rise of one
//! percent as noise, so byte measures need a smaller one.

use criterion::{
    Throughput,
    measurement::{Measurement, ValueFormatter},
};

use super::allocator;

/// A smaller change is noise. Peak memory varies by about one small buffer.
pub const NOISE_THRESHOLD: f64 = 0.005;

/// The bytes of a sample as passed to Criterion: a few bytes more than counted, a different number for each sample.
/// Criterion 0.8.2 panics when it plots a comparison of samples that are all equal. Records contain the counted
/// bytes.
pub fn apart(bytes: u64, sample: usize) -> u64 {
    bytes + sample as u64 % 16
}

/// Peak memory of the program, counted by its allocator; 0 in a program without it.
pub struct PeakBytes;

impl Measurement for PeakBytes {
    type Intermediate = ();
    type Value = u64;

    fn start(&self) {
        allocator::reset_peak();
    }
    fn end(&self, (): ()) -> u64 {
        allocator::peak_bytes().unwrap_or_default()
    }
    fn add(&self, a: &u64, b: &u64) -> u64 {
        a + b
    }
    fn zero(&self) -> u64 {
        0
    }
    fn to_f64(&self, value: &u64) -> f64 {
        *value as f64
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        &Bytes
    }
}

struct Bytes;

impl ValueFormatter for Bytes {
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        let (scale, unit) = match typical {
            bytes if bytes < 1e3 => (1.0, "B"),
            bytes if bytes < 1e6 => (1e-3, "kB"),
            bytes if bytes < 1e9 => (1e-6, "MB"),
            _ => (1e-9, "GB"),
        };
        values.iter_mut().for_each(|value| *value *= scale);
        unit
    }

    fn scale_throughputs(&self, typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        match throughput {
            Throughput::Elements(tokens) => {
                values.iter_mut().for_each(|value| *value /= *tokens as f64);
                "B/token"
            }
            _ => self.scale_values(typical, values),
        }
    }

    fn scale_for_machines(&self, _: &mut [f64]) -> &'static str {
        "B"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_their_units() {
        for (bytes, scaled, unit) in [(12.0, 12.0, "B"), (2.5e6, 2.5, "MB"), (3e9, 3.0, "GB")] {
            let mut values = [bytes];
            assert_eq!(Bytes.scale_values(bytes, &mut values), unit);
            assert!((values[0] - scaled).abs() < 1e-9);
        }
        let mut values = [1000.0];
        assert_eq!(Bytes.scale_throughputs(1000.0, &Throughput::Elements(10), &mut values), "B/token");
        assert_eq!(values, [100.0]);
        assert_eq!(PeakBytes.to_f64(&PeakBytes.add(&PeakBytes.zero(), &7)), 7.0);
    }
}
