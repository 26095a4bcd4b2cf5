//! A benchmark whose iterations are steps of one piece of work, of which Criterion puts several into a sample.

use anyhow::Result;
use criterion::{Bencher, BenchmarkGroup, BenchmarkId, measurement::Measurement};

use super::{SAMPLES, Suite, abort, argument, session::Seen};
use crate::record;

/// Which benchmark it is.
pub(super) struct Entry<'a> {
    pub scenario: &'a str,
    pub name: &'a str,
    pub variant: &'a str,
    pub about: record::Subject,
}

impl Suite {
    /// Runs one benchmark. `prepare` makes the work when it is really to be done; `bench` gives Criterion its steps and notes
    /// how many each sample has; `end` says what was seen of them, told how many steps the samples that count have.
    pub(super) fn stepped<M: Measurement, W>(
        &mut self,
        group: &mut BenchmarkGroup<'_, M>,
        entry: Entry,
        prepare: impl Fn() -> Result<W>,
        bench: impl Fn(&mut Bencher<'_, M>, &mut W, &mut Vec<usize>),
        end: impl FnOnce(W, &[usize]) -> Seen,
    ) {
        let Entry { scenario, name, variant, about } = entry;
        let mut work: Option<W> = None;
        let mut samples: Vec<usize> = Vec::new();
        let ended = Self::isolated(|| {
            group.bench_function(BenchmarkId::new(name, variant), |bencher| {
                let prepare = || prepare().unwrap_or_else(|error| abort(error));
                bench(bencher, work.get_or_insert_with(prepare), &mut samples);
            });
        });
        let seen = match (ended, work) {
            (Ok(()), None) => return, // left out by the filter, or only listed
            (Ok(()), Some(work)) => {
                // Criterion warms up in samples of its own, which come first.
                let size = argument("--sample-size").and_then(|size| size.parse().ok()).unwrap_or(SAMPLES);
                end(work, &samples[samples.len().saturating_sub(size)..])
            }
            (Err(error), _) => Seen::failed(error),
        };
        let record = self.session.record(format!("{scenario}/{name}/{variant}"), scenario, about, seen);
        self.keep(record);
    }
}
