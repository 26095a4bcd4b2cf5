//! Bytes instead of time: the most memory that was in use at once. It may be the same in every sample, so that what uses it
//! needs a noise threshold of its own: Criterion's would take a rise of one percent for noise.

use criterion::{
    Throughput,
    measurement::{Measurement, ValueFormatter},
};

use super::allocator;

/// A change below this share is called noise. Peak memory moves by as much as one small buffer more or less.
pub const NOISE_THRESHOLD: f64 = 0.005;

/// The bytes of a sample as Criterion is to be given them: a few more than were counted, other ones for each sample. Criterion
/// 0.8.2 panics when it plots the comparison of samples that are all alike. Records keep what was counted.
pub fn apart(bytes: u64, sample: usize) -> u64 {
    bytes + sample as u64 % 16
}

/// Peak memory of the program, counted by its allocator; 0 in a program that does not count.
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
