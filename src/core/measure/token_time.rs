//! Wall time with throughput in tokens, because Criterion's own measurement prints "elem/s".

use std::time::{Duration, Instant};

use criterion::{
    Throughput,
    measurement::{Measurement, ValueFormatter, WallTime},
};

/// Wall time, with tokens per second.
pub struct TokenTime;

impl Measurement for TokenTime {
    type Intermediate = Instant;
    type Value = Duration;

    fn start(&self) -> Instant {
        WallTime.start()
    }
    fn end(&self, start: Instant) -> Duration {
        WallTime.end(start)
    }
    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        WallTime.add(a, b)
    }
    fn zero(&self) -> Duration {
        WallTime.zero()
    }
    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        &TokenFormatter
    }
}

struct TokenFormatter;

impl ValueFormatter for TokenFormatter {
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_values(typical, values)
    }

    fn scale_throughputs(&self, typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let Throughput::Elements(tokens) = *throughput else {
            return WallTime.formatter().scale_throughputs(typical, throughput, values);
        };
        let tokens_per_s = |ns: f64| tokens as f64 * 1e9 / ns;
        let (scale, unit) = match tokens_per_s(typical) {
            rate if rate < 1e4 => (1.0, "tok/s"),
            rate if rate < 1e7 => (1e-3, "ktok/s"),
            _ => (1e-6, "Mtok/s"),
        };
        for value in values {
            *value = tokens_per_s(*value) * scale;
        }
        unit
    }

    fn scale_for_machines(&self, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_for_machines(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throughput_is_in_tokens() {
        let mut ns = [1e9, 2e9];
        let unit = TokenFormatter.scale_throughputs(1e9, &Throughput::Elements(256), &mut ns);
        assert_eq!((ns, unit), ([256.0, 128.0], "tok/s"));
        let mut ns = [1e6];
        let unit = TokenFormatter.scale_throughputs(1e6, &Throughput::Elements(1024), &mut ns);
        assert_eq!((ns, unit), ([1024.0], "ktok/s"));
    }
}
