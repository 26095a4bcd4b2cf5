//! Observation of the machine around the samples of a benchmark: its limits in short passes, its load, and what held
//! single samples back.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    device::DeviceChoice,
    measure::{
        Gauge, LimitsOverTime, Reading,
        conditions::{Seen, Watch, Window},
        pauses::{self, Moment},
        rapl, weights_bytes_per_s,
    },
    record::{Conditions, LARGEST_SHARE, Limits, Measures, Spread},
};

/// Least time between two readings of the limits: between two steps, where a reading of about 20 ms fits there, and between two
/// samples otherwise.
const BETWEEN_STEPS: Duration = Duration::from_millis(250);
const BETWEEN_SAMPLES: Duration = Duration::from_secs(1);

/// Observes the machine from before the first sample to after the last.
pub struct Observation {
    readings: Rc<Readings>,
    between: Duration,
    watch: Watch,
}

/// The readings of a gauge, with their times.
struct Readings {
    gauge: Rc<Gauge>,
    taken: RefCell<Vec<(Instant, Reading)>>,
}

impl Readings {
    fn read(&self) {
        self.keep(Gauge::read);
    }

    /// A device whose memory is full cannot be read. The benchmark goes on without this reading.
    fn keep(&self, read: impl FnOnce(&Gauge) -> Result<Reading>) {
        let at = Instant::now();
        self.taken.borrow_mut().extend(read(&self.gauge).map(|reading| (at, reading)));
    }

    /// Reads in a pause. The weights come first, while the caches hold what the step before has left there.
    fn read_at(&self, moment: &Moment) -> Option<f64> {
        let of_weights = match moment {
            Moment::Decode(Some(weights)) => weights_bytes_per_s(weights),
            _ => None,
        };
        match moment {
            Moment::Prompt => self.keep(Gauge::read_beside_prompt),
            _ => self.read(),
        }
        of_weights
    }

    /// Reads unless a reading is so recent.
    fn read_after(&self, least: Duration) {
        let is_recent = self.taken.borrow().last().is_some_and(|(at, _)| at.elapsed() < least);
        if !is_recent {
            self.read();
        }
    }
}

impl Observation {
    /// Starts with a reading of the limits. The CPU time of the processes `helpers` counts as the benchmark's.
    pub fn start(gauge: Rc<Gauge>, device: DeviceChoice, helpers: Vec<u32>) -> Self {
        let watch = Watch::start(device, helpers);
        // A counter of energy would also count the readings.
        let between = match gauge.fits_between_steps() && rapl::zones().is_err() {
            true => BETWEEN_STEPS,
            false => BETWEEN_SAMPLES,
        };
        let readings = Rc::new(Readings { gauge, taken: RefCell::default() });
        readings.read();
        Self { readings, between, watch }
    }

    /// Takes one sample. The limits are read before it, and between its steps if these readings are short.
    pub fn sample<T>(&self, take: impl FnOnce() -> T) -> (T, Window) {
        self.readings.read_after(self.between);
        if self.between > BETWEEN_STEPS {
            return self.watch.around(take);
        }
        let readings = self.readings.clone();
        self.watch.around(|| pauses::within(BETWEEN_STEPS, move |moment| readings.read_at(moment), take))
    }

    /// Ends with a reading of the limits.
    pub fn end(self) -> Observed {
        self.readings.read();
        Observed { readings: self.readings, seen: self.watch.end() }
    }
}

/// The result of an observation.
pub struct Observed {
    readings: Rc<Readings>,
    seen: Seen,
}

impl Observed {
    /// The surroundings of a benchmark of a model in `dtype` whose samples were taken in these windows.
    pub fn of(&self, samples: &[Window], dtype: &str) -> Surroundings {
        let limits = self.readings.gauge.limits(&self.readings.taken.borrow(), dtype);
        Surroundings { limits, conditions: self.seen.of(samples) }
    }
}

/// The machine while a benchmark ran.
#[derive(Clone, Debug, PartialEq)]
pub struct Surroundings {
    /// The limits around the samples.
    pub limits: LimitsOverTime,
    /// The load, and the samples that were held back.
    pub conditions: Conditions,
}

impl Surroundings {
    /// Adds the reason for each share that is above 100 % by more than the error of its limit. A limit that moved says something of the
    /// machine and nothing of the result: the record holds its lowest and highest reading.
    pub fn judge(&mut self, measures: Option<&Measures>) {
        let Limits { matrix_flops_per_s, read, matrix, .. } = self.limits.medians;
        let read_bytes_per_s = self.limits.medians.read_of(measures);
        let shares = [
            ("MBU", measures.and_then(Measures::mbu), read_bytes_per_s, read),
            ("MFU", measures.and_then(Measures::mfu), matrix_flops_per_s, matrix),
        ];
        for (name, share, limit, spread) in shares {
            let Some(spread) = spread else { continue };
            if let Some(share) = share.filter(|share| *share > LARGEST_SHARE) {
                let reason = why(name, share * limit, spread);
                self.limits.medians.exceeded.push(format!("{name} is {:.0} %: {reason}", share * 100.0));
            }
        }
    }
}

/// Why a benchmark achieved a higher rate than the limit.
fn why(share: &str, achieved: f64, spread: Spread) -> &'static str {
    if achieved <= spread.highest {
        "the machine was faster during the samples than in the median reading"
    } else if achieved <= spread.best_of_run {
        "the machine was faster during the samples than in the readings around them, but not than in the best of the run"
    } else if share == "MFU" {
        "its matrix products are faster than the one whose rate is the limit, or the machine was slower in every reading"
    } else {
        "the benchmark needed less than it is assumed to, for example because caches held a part of the weights, or the \
         machine was slower in every reading"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Generation, Record};

    fn surroundings(lowest: f64, median: f64, highest: f64, best_of_run: f64) -> Surroundings {
        let record: Record = serde_json::from_str(include_str!("../core/record/sample.json")).expect("the sample");
        let spread = |scale: f64| {
            Some(Spread {
                readings: 3,
                lowest: lowest * scale,
                highest: highest * scale,
                best_of_run: best_of_run * scale,
            })
        };
        let limits = Limits {
            read_bytes_per_s: median * 1e9,
            matrix_flops_per_s: 200e9,
            read: spread(1e9),
            matrix: Some(Spread { readings: 3, lowest: 198e9, highest: 202e9, best_of_run: 202e9 }),
            ..record.limits.expect("limits")
        };
        Surroundings { limits: limits.into(), conditions: Conditions::default() }
    }

    fn judged(mut of: Surroundings, mbu: f64) -> Surroundings {
        of.judge(Some(&Measures::Generation(Generation { mbu: Some(mbu), mfu: Some(0.5), ..Generation::default() })));
        of
    }

    #[test]
    fn a_limit_that_moved_is_no_doubt() {
        let moved = judged(surroundings(29.0, 50.0, 68.0, 68.0), 0.5);
        assert!(moved.conditions.doubts.is_empty() && moved.limits.medians.exceeded.is_empty(), "{moved:?}");
    }

    #[test]
    fn no_share_is_above_the_limit_and_its_error_without_a_reason() {
        assert!(judged(surroundings(48.0, 50.0, 54.0, 60.0), 1.04).limits.medians.exceeded.is_empty());
        for (mbu, part) in [(1.06, "in the median reading"), (1.15, "best of the run"), (1.5, "caches")] {
            let judged = judged(surroundings(48.0, 50.0, 54.0, 60.0), mbu);
            assert!(judged.conditions.doubts.is_empty(), "the machine is not to blame: {judged:?}");
            let [reason] = judged.limits.medians.exceeded.as_slice() else { panic!("{judged:?}") };
            assert!(reason.starts_with(&format!("MBU is {:.0} %: ", mbu * 100.0)) && reason.contains(part), "{reason}");
        }
    }
}
