//! The benchmarks of all bench targets by id, for callers that prepare one at a time.

use anyhow::{Context, Result};

use super::{
    Session,
    criterion::training_tier,
    on_model::OnModel,
    pool::{Candidate, Pool},
};
use crate::{
    record::{BenchmarkId, Subject},
    scenario::{GENERATIONS, Phase, SERVINGS, SWEEP, TRAININGS, Trained, TrainingScenario},
    settings::Settings,
    workload::{
        LanguageWorkload, Workload, language_subject,
        series::{Combination, SeriesGrid, SeriesWorkload, series_subject},
    },
};

/// Benchmarks that can be prepared. Loaded models stay loaded.
pub struct Catalogue {
    settings: Settings,
    benchmarks: Vec<Benchmark>,
    /// Candidates of the targets in [`GENERATIONS`] and [`SERVINGS`], in the same order.
    pools: Vec<Pool>,
    grid: SeriesGrid,
}

/// One benchmark of a bench target.
pub struct Benchmark {
    /// Id of the benchmark.
    pub id: BenchmarkId,
    /// Bench target that has it.
    pub target: &'static str,
    work: Work,
}

/// The work of an iteration.
enum Work {
    OnModel { scenario: &'static dyn OnModel, pool: usize, place: usize, batch: usize },
    Language { group: &'static TrainingScenario, entry: Trained },
    Series { combination: Box<Combination>, phase: Phase },
}

impl Catalogue {
    /// The benchmarks that the settings of the session select, in the order in which `cargo bench` runs those of a target.
    ///
    /// # Errors
    /// Returns an error if the sizes of a benchmark are inconsistent.
    pub fn new(session: &Session) -> Result<Self> {
        let settings = session.settings().clone();
        let grid = SeriesGrid::of_settings(&settings)?;
        let mut all = Self { benchmarks: Vec::new(), pools: Vec::new(), grid, settings };
        let batches = all.settings.generation_batches();
        for &(target, table) in GENERATIONS {
            let candidates = match target {
                "moe" => Candidate::expert_grid(&all.settings),
                "threads_scaling" => Candidate::threads_scaling(&all.settings),
                "tensor_parallel" => Candidate::tensor_parallel(&all.settings),
                _ => Candidate::from_settings(&all.settings),
            };
            all.add(target, table, Pool::new(candidates, session.device().clone()), &batches);
        }
        for &(target, table) in SERVINGS {
            let candidates = Candidate::serving(&all.settings);
            all.add(target, table, Pool::new(candidates, session.device().clone()), &[1]);
        }
        let training_grid = all.settings.training_grid();
        for (target, group) in TRAININGS.iter().flat_map(|(target, table)| table.iter().map(move |row| (*target, row)))
        {
            for entry in group.entries(training_tier(&all.settings), &training_grid) {
                let id = BenchmarkId::new(group.key, &language_subject(&entry, &all.settings)?);
                all.benchmarks.push(Benchmark { id, target, work: Work::Language { group, entry } });
            }
        }
        for phase in [Phase::Train, Phase::Forward] {
            for combination in all.grid.combinations()? {
                let id = BenchmarkId::new(SWEEP.key(phase), &series_subject(&combination, &all.grid));
                let work = Work::Series { combination: Box::new(combination), phase };
                all.benchmarks.push(Benchmark { id, target: "sweep", work });
            }
        }
        Ok(all)
    }

    /// Adds the benchmarks of a bench target that runs on the candidates of a pool.
    fn add<S: OnModel + 'static>(&mut self, target: &'static str, table: &'static [S], pool: Pool, batches: &[usize]) {
        for scenario in table {
            for place in pool.that_run(scenario) {
                for &batch in batches {
                    let id = BenchmarkId::new(scenario.key(), &pool.candidate(place).about.clone().in_batch(batch));
                    let work = Work::OnModel { scenario, pool: self.pools.len(), place, batch };
                    self.benchmarks.push(Benchmark { id, target, work });
                }
            }
        }
        self.pools.push(pool);
    }

    /// Every benchmark.
    pub fn benchmarks(&self) -> &[Benchmark] {
        &self.benchmarks
    }

    /// Index of the benchmark with this id.
    ///
    /// # Errors
    /// Returns an error if there is none.
    pub fn find(&self, id: &str) -> Result<usize> {
        let found = self.benchmarks.iter().position(|benchmark| benchmark.id.to_string() == id);
        found.with_context(|| format!("there is no benchmark '{id}'"))
    }

    /// Makes the workload of a benchmark and loads its model if needed.
    ///
    /// # Errors
    /// Returns an error if the model cannot be loaded, or the workload cannot be made.
    pub fn prepare(&mut self, index: usize) -> Result<Box<dyn Workload>> {
        let Settings { seed, device, .. } = self.settings;
        Ok(match &self.benchmarks[index].work {
            Work::OnModel { scenario, pool, place, batch } => {
                scenario.workload(&mut self.pools[*pool], (*place, *batch), seed, device)?
            }
            Work::Language { group, entry } => {
                let dtype = language_subject(entry, &self.settings)?.dtype;
                Box::new(LanguageWorkload::new(entry, group.phase, group.quantity, &dtype, seed, device)?)
            }
            Work::Series { combination, phase } => Box::new(SeriesWorkload::new(combination, *phase, &self.grid)?),
        })
    }

    /// Describes the subject of a benchmark for records. The size of a model is known once it has been loaded.
    ///
    /// # Errors
    /// Returns an error if the sizes are inconsistent.
    pub fn subject(&self, index: usize) -> Result<Subject> {
        Ok(match &self.benchmarks[index].work {
            Work::OnModel { pool, place, batch, .. } => {
                self.pools[*pool].candidate(*place).about.clone().in_batch(*batch)
            }
            Work::Language { entry, .. } => language_subject(entry, &self.settings)?,
            Work::Series { combination, .. } => series_subject(combination, &self.grid),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_benchmark_is_found_by_its_id() {
        let session = Session::new(Settings::default()).expect("a session");
        let catalogue = Catalogue::new(&session).expect("a catalogue");
        let targets: std::collections::BTreeSet<_> = catalogue.benchmarks().iter().map(|one| one.target).collect();
        let expected = ["generation", "memory", "moe", "serving_load", "sweep", "training"];
        assert_eq!(targets.into_iter().collect::<Vec<_>>(), expected);
        for (index, benchmark) in catalogue.benchmarks().iter().enumerate() {
            let id = benchmark.id.to_string();
            assert_eq!(catalogue.find(&id).expect("found"), index, "{id}");
            assert_eq!(
                BenchmarkId::new(&benchmark.id.scenario, &catalogue.subject(index).expect("a subject")),
                benchmark.id
            );
        }
        assert!(catalogue.find("short/none/stock-f32-cpu").is_err());
    }
}
