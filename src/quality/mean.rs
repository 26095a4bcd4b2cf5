//! A mean and its standard error.

/// The mean of values that are added one at a time (Welford, 1962).
#[derive(Clone, Copy, Debug, Default)]
pub struct Mean {
    count: u64,
    mean: f64,
    /// Sum of the squares around the mean.
    squares: f64,
}

impl Mean {
    pub fn add(&mut self, value: f64) {
        self.count += 1;
        let from_mean = value - self.mean;
        self.mean += from_mean / self.count as f64;
        self.squares += from_mean * (value - self.mean);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// 0 without a value.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Standard error of the mean of independent values; `None` for fewer than two.
    pub fn standard_error(&self) -> Option<f64> {
        (self.count > 1).then(|| (self.squares / (self.count - 1) as f64 / self.count as f64).sqrt())
    }
}

impl FromIterator<f64> for Mean {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut mean = Self::default();
        values.into_iter().for_each(|value| mean.add(value));
        mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_error_is_that_of_the_sample() {
        // Variance of the sample: (1 + 1 + 4 + 4) / 3.
        let mean: Mean = [1.0, 3.0, 0.0, 4.0].into_iter().collect();
        assert!((mean.mean() - 2.0).abs() < 1e-12);
        let error = mean.standard_error().expect("four values");
        assert!((error - (10.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12, "{error}");
        let one: Mean = [5.0].into_iter().collect();
        assert_eq!((one.mean(), one.standard_error()), (5.0, None));
    }
}
