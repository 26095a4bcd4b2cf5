//! The course of a value over time.

/// Most points of a course. A longer one has fewer points for each second.
const MOST_POINTS: usize = 4096;

/// Values with their times in seconds.
pub struct Course {
    /// The value that stands for neighbours where a course is too long.
    summed_up: fn(&[(f64, f64)]) -> f64,
    points: Vec<(f64, f64)>,
    /// Values for each point.
    stride: usize,
    pending: Vec<(f64, f64)>,
}

impl Course {
    /// A course that keeps the largest of neighbouring values.
    pub fn of_peaks() -> Self {
        Self::new(|points| points.iter().map(|point| point.1).fold(0.0, f64::max))
    }

    /// A course that keeps the mean of neighbouring values.
    pub fn of_means() -> Self {
        Self::new(|points| points.iter().map(|point| point.1).sum::<f64>() / points.len() as f64)
    }

    fn new(summed_up: fn(&[(f64, f64)]) -> f64) -> Self {
        Self { summed_up, points: Vec::new(), stride: 1, pending: Vec::new() }
    }

    /// Adds a value.
    pub fn push(&mut self, at_s: f64, value: f64) {
        self.pending.push((at_s, value));
        if self.pending.len() < self.stride {
            return;
        }
        self.points.push((self.pending[0].0, (self.summed_up)(&self.pending)));
        self.pending.clear();
        if self.points.len() == MOST_POINTS {
            self.points = self.points.chunks(2).map(|pair| (pair[0].0, (self.summed_up)(pair))).collect();
            self.stride *= 2;
        }
    }

    /// The points, in order of time.
    pub fn points(mut self) -> Vec<(f64, f64)> {
        if let Some(first) = self.pending.first() {
            self.points.push((first.0, (self.summed_up)(&self.pending)));
        }
        self.points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_course_keeps_its_peaks_its_means_and_its_length() {
        const COUNT: usize = 3 * MOST_POINTS + 1;
        let made = |mut course: Course| {
            for number in 0..COUNT {
                course.push(number as f64, if number == 5000 { 100.0 } else { 1.0 });
            }
            course.points()
        };
        let peaks = made(Course::of_peaks());
        assert!(peaks.len() < MOST_POINTS && peaks.len() > MOST_POINTS / 2, "{}", peaks.len());
        assert_eq!(peaks.iter().filter(|point| point.1 == 100.0).count(), 1);
        assert!(peaks.windows(2).all(|pair| pair[0].0 < pair[1].0) && peaks[0].0 == 0.0);
        assert_eq!(peaks.last().expect("points").0, (COUNT - 1) as f64);
        let means = made(Course::of_means());
        assert_eq!(means.iter().filter(|point| point.1 == (100.0 + 3.0) / 4.0).count(), 1);
    }
}
