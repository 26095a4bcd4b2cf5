//! A seeded multivariate series. Each feature is a sum of waves with its own periods, a share of the feature before it and
//! noise. The continuation can be learnt in part, and nothing needs to be downloaded.

use std::{f64::consts::TAU, ops::Range};

use anyhow::Result;
use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};

/// Waves of a feature.
const WAVES: usize = 3;

/// Share of the feature before it that a feature takes over, a step later.
const COUPLING: f64 = 0.4;

/// Share of its noise that is still there a step later.
const PERSISTENCE: f64 = 0.8;

/// A seeded multivariate series.
pub struct Series {
    features: usize,
    /// (steps, features), one step after the other.
    values: Vec<f32>,
}

impl Series {
    /// Draws `steps` steps of `features` features.
    pub fn new(steps: usize, features: usize, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut unit = || (f64::from(random.next_u32()) + 0.5) / (1u64 << 32) as f64;
        let waves: Vec<[(f64, f64, f64); WAVES]> = (0..features)
            .map(|_| std::array::from_fn(|_| (TAU / (6.0 + 90.0 * unit()), TAU * unit(), 0.3 + unit())))
            .collect();
        let mut noise = vec![0.0; features];
        let mut values: Vec<f32> = Vec::with_capacity(steps * features);
        for step in 0..steps {
            let before = values.len().checked_sub(features).map(|start| values[start..].to_vec());
            for (feature, waves) in waves.iter().enumerate() {
                // The sum of four uniform numbers is normal enough.
                let draw = unit() + unit() + unit() + unit() - 2.0;
                noise[feature] = PERSISTENCE * noise[feature] + 0.2 * draw;
                let wave: f64 =
                    waves.iter().map(|(speed, phase, height)| height * (speed * step as f64 + phase).sin()).sum();
                let neighbour =
                    before.as_ref().map_or(0.0, |before| f64::from(before[(feature + features - 1) % features]));
                values.push((wave / 2.0 + COUPLING * neighbour + noise[feature]) as f32);
            }
        }
        Self { features, values }
    }

    /// Windows and their continuations: (batch, time, features) and (batch, horizon, outputs), the first `outputs` features,
    /// in f32. Windows start at multiples of `stride` steps from the beginning of `starts`. The same `number` gives the same
    /// batch; successive numbers give windows elsewhere in the range.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn batch(
        &self,
        number: usize,
        shape: &Window,
        starts: &Range<usize>,
        stride: usize,
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
        let Window { batch, time, horizon, outputs } = *shape;
        let places = starts.len().div_ceil(stride);
        let (mut into, mut after) = (Vec::new(), Vec::new());
        for place in 0..batch {
            // Windows are a prime number of places apart, so that each comes up once before any comes again.
            let start = starts.start + (number * batch + place) * 7919 % places * stride;
            let row = |step: usize| &self.values[step * self.features..(step + 1) * self.features];
            (start..start + time).for_each(|step| into.extend_from_slice(row(step)));
            (start + time..start + time + horizon).for_each(|step| after.extend_from_slice(&row(step)[..outputs]));
        }
        let into = Tensor::from_vec(into, (batch, time, self.features), device)?;
        Ok((into, Tensor::from_vec(after, (batch, horizon, outputs), device)?))
    }
}

/// The shape of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Windows of a batch.
    pub batch: usize,
    /// Steps of the series that are seen.
    pub time: usize,
    /// Steps that are forecast.
    pub horizon: usize,
    /// Features that are forecast.
    pub outputs: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeded_bounded_and_not_constant() {
        let series = Series::new(3000, 5, 42);
        assert_eq!(series.values, Series::new(3000, 5, 42).values);
        assert_ne!(series.values, Series::new(3000, 5, 43).values);
        let most = series.values.iter().fold(0f32, |most, value| most.max(value.abs()));
        assert!(most > 0.5 && most < 20.0, "{most}");
    }

    #[test]
    fn targets_continue_their_windows() {
        let series = Series::new(200, 4, 1);
        let window = Window { batch: 3, time: 16, horizon: 5, outputs: 2 };
        let (into, after) = series.batch(2, &window, &(10..170), 4, &Device::Cpu).expect("a batch");
        assert_eq!((into.dims(), after.dims()), (&[3, 16, 4][..], &[3, 5, 2][..]));
        let start = 10 + 6 * 7919 % 40 * 4;
        let row: Vec<f32> = after.get(0).and_then(|x| x.get(0)?.to_vec1()).expect("a row");
        assert_eq!(row, series.values[(start + 16) * 4..(start + 16) * 4 + 2]);
        let row: Vec<f32> = into.get(0).and_then(|x| x.get(15)?.to_vec1()).expect("a row");
        assert_eq!(row, series.values[(start + 15) * 4..(start + 16) * 4]);
    }
}
