//! Draws from the distributions of arrivals and lengths. Each purpose has its own generator, so that a change of one draw
//! moves no other.

use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};

/// Purpose of a sequence of draws.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    Arrivals = 1,
    Lengths = 2,
    Prompt = 3,
    SharedPrefix = 4,
    Block = 5,
}

/// A seeded source of draws.
pub struct Draw(ChaCha8Rng);

impl Draw {
    /// The source for one purpose and, within it, one number, such as the index of a request.
    pub fn new(seed: u64, purpose: Purpose, number: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&(purpose as u64).to_le_bytes());
        bytes[16..24].copy_from_slice(&number.to_le_bytes());
        Self(ChaCha8Rng::from_seed(bytes))
    }

    /// Uniform in the open interval from 0 to 1.
    pub fn unit(&mut self) -> f64 {
        ((self.0.next_u64() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    /// Uniform among `0..below`.
    pub fn below(&mut self, below: usize) -> usize {
        ((self.unit() * below as f64) as usize).min(below.saturating_sub(1))
    }

    /// Exponential with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -self.unit().ln()
    }

    /// Standard normal (Box and Muller, 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Gamma with the given shape and scale 1 (Marsaglia and Tsang, 2000).
    pub fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            // A gamma of shape + 1, times a power of a uniform draw, has the smaller shape.
            return self.gamma(shape + 1.0) * self.unit().powf(1.0 / shape);
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.unit().ln() < 0.5 * x * x + d * (1.0 - v + v.ln()) {
                return d * v;
            }
        }
    }

    /// Zipf over `1..=most` with the given exponent, by rejection from its continuous envelope (Hörmann and Derflinger,
    /// 1996).
    pub fn zipf(&mut self, exponent: f64, most: f64) -> f64 {
        // Integral of x^-exponent, and its inverse. Near an exponent of 1 both become logarithms.
        let h = |x: f64| {
            let log = x.ln();
            ratio(f64::exp_m1, (1.0 - exponent) * log) * log
        };
        let h_inverse = |y: f64| {
            let t = (y * (1.0 - exponent)).max(-1.0);
            (ratio(f64::ln_1p, t) * y).exp()
        };
        let density = |x: f64| (-exponent * x.ln()).exp();
        let (low, high) = (h(1.5) - 1.0, h(most + 0.5));
        let near = 2.0 - h_inverse(h(2.5) - density(2.0));
        loop {
            let u = high + self.unit() * (low - high);
            let x = h_inverse(u);
            let k = x.round().clamp(1.0, most);
            if k - x <= near || u >= h(k + 0.5) - density(k) {
                return k;
            }
        }
    }
}

/// `function(x) / x`, which is 1 at 0 for the functions used here.
fn ratio(function: fn(f64) -> f64, x: f64) -> f64 {
    if x.abs() < 1e-12 { 1.0 } else { function(x) / x }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest distance between the sample's distribution function and `cdf`, times the root of the sample size. Above
    /// 1.63 the Kolmogorov-Smirnov test refuses at the level of 1 %.
    fn kolmogorov_smirnov(mut sample: Vec<f64>, cdf: impl Fn(f64) -> f64) -> f64 {
        sample.sort_by(f64::total_cmp);
        let n = sample.len() as f64;
        let distance = |(rank, x): (usize, &f64)| {
            let at = cdf(*x);
            (at - rank as f64 / n).abs().max((at - (rank + 1) as f64 / n).abs())
        };
        sample.iter().enumerate().map(distance).fold(0.0, f64::max) * n.sqrt()
    }

    /// The regularised lower incomplete gamma function by its power series.
    fn gamma_cdf(shape: f64, x: f64) -> f64 {
        let (mut term, mut sum) = (1.0 / shape, 1.0 / shape);
        for n in 1..2000 {
            term *= x / (shape + f64::from(n));
            sum += term;
        }
        sum * (shape * x.ln() - x - crate::load::statistics::ln_gamma(shape)).exp()
    }

    #[test]
    fn gamma_draws_have_the_gamma_distribution() {
        for shape in [0.25, 0.5, 1.0, 2.5, 10.0] {
            let mut draw = Draw::new(7, Purpose::Arrivals, 0);
            let sample: Vec<f64> = (0..20_000).map(|_| draw.gamma(shape)).collect();
            let distance = kolmogorov_smirnov(sample.clone(), |x| gamma_cdf(shape, x));
            assert!(distance < 1.63, "shape {shape}: {distance}");
            // The test has power: it refuses a shape that is wrong by a tenth.
            assert!(kolmogorov_smirnov(sample, |x| gamma_cdf(shape * 1.1, x)) > 1.63, "shape {shape}");
        }
    }

    #[test]
    fn zipf_draws_have_the_zipf_distribution() {
        for (exponent, most) in [(0.8, 50.0), (1.0, 1000.0), (1.5, 200.0)] {
            let mut draw = Draw::new(3, Purpose::Lengths, 0);
            let n = 100_000;
            let mut counts = vec![0u32; most as usize + 1];
            (0..n).for_each(|_| counts[draw.zipf(exponent, most) as usize] += 1);
            let total: f64 = (1..=most as usize).map(|k| (k as f64).powf(-exponent)).sum();
            for k in [1usize, 2, 3, 10, most as usize] {
                let expected = f64::from(n) * (k as f64).powf(-exponent) / total;
                let deviation = (f64::from(counts[k]) - expected) / expected.sqrt();
                assert!(deviation.abs() < 4.0, "{exponent}: {k} was drawn {} times, not {expected}", counts[k]);
            }
        }
    }

    #[test]
    fn normal_draws_have_mean_zero_and_variance_one() {
        let mut draw = Draw::new(1, Purpose::Lengths, 0);
        let sample: Vec<f64> = (0..50_000).map(|_| draw.normal()).collect();
        let mean = sample.iter().sum::<f64>() / 50_000.0;
        let variance = sample.iter().map(|x| x * x).sum::<f64>() / 50_000.0;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    }
}
