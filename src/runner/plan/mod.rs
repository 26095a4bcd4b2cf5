//! The benchmarks that exist: one row of [`TARGETS`] for each bench target, which yields its benchmarks for the settings of a
//! session. Bench files, `list`, `bench`, `duel` and the commands that repeat a measurement read these rows.
//!
//! A [`Kind`] is a table of scenarios with what one kind of benchmark needs; each has a file here. It makes [`Section`]s, whose
//! benchmarks are prepared one at a time and know nothing of who measures them.

mod checkpoint;
mod models;
mod perplexity;
mod sweep;
mod training;

pub(crate) use models::generations;
#[cfg(feature = "serve")]
pub(crate) use models::loads;
pub(super) use models::{OnModel, benchmarks_of};

use std::{rc::Rc, time::Duration};

use anyhow::{Context, Result, bail};
use criterion::Throughput;

use super::{Candidate, Session, session, turns::Pace};
use crate::{
    peer::PeerName,
    record::{BenchmarkId, Subject},
    scenario::{
        CHECKPOINT_MEMORY, Counterpart, GENERATION, LOAD, LONG_CONTEXT, MOE_TOP_K, PERPLEXITY, PSANN_THROUGHPUT,
        TENSOR_PARALLEL, THREADS_SCALING, TOKENIZER, TRAINING_SWEEP,
    },
    settings::Settings,
    text,
    workload::Workload,
};

/// A bench target.
pub struct Target {
    /// Name in `Cargo.toml`, and of its file in `benches`.
    pub name: &'static str,
    /// True if its process is set up for training steps.
    is_training: bool,
    kinds: &'static [&'static dyn Kind],
}

/// Every bench target, in the order in which `cargo bench` and `list` name them.
pub const TARGETS: &[Target] = &[
    Target::new("generation", &[&models::Generations(GENERATION, Candidate::from_settings)]),
    Target::new("moe", &[&models::Generations(MOE_TOP_K, Candidate::expert_grid)]),
    Target::new("long_context", &[&models::Generations(LONG_CONTEXT, Candidate::from_settings)]),
    Target::new("threads_scaling", &[&models::Generations(THREADS_SCALING, Candidate::threads_scaling)]),
    Target::new("tensor_parallel", &[&models::Generations(TENSOR_PARALLEL, Candidate::tensor_parallel)]),
    #[cfg(feature = "serve")]
    Target::new("serving_load", &[&models::Loads(crate::scenario::SERVING_LOAD)]),
    Target::training("training", &[&training::Trainings(PSANN_THROUGHPUT), &training::Trainings(TRAINING_SWEEP)]),
    Target::training("memory", &[&training::Trainings(CHECKPOINT_MEMORY)]),
    Target::training("sweep", &[&sweep::Combinations]),
    Target::new("load", &[&checkpoint::Files(LOAD)]),
    Target::new("tokenizer", &[&checkpoint::Files(TOKENIZER)]),
    Target::new("perplexity", &[&perplexity::Scores(PERPLEXITY)]),
];

impl Target {
    const fn new(name: &'static str, kinds: &'static [&'static dyn Kind]) -> Self {
        Self { name, is_training: false, kinds }
    }

    const fn training(name: &'static str, kinds: &'static [&'static dyn Kind]) -> Self {
        Self { name, is_training: true, kinds }
    }

    /// The target of this name.
    ///
    /// # Errors
    /// Returns an error if there is none.
    pub fn named(name: &str) -> Result<&'static Self> {
        let names = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
        TARGETS
            .iter()
            .find(|target| target.name == name)
            .with_context(|| format!("there is no bench target '{name}': the targets are {}", names()))
    }

    /// The target that has a scenario.
    pub fn of_scenario(key: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.keys().any(|own| own == key))
    }

    /// The scenarios: first parts of the ids of its benchmarks.
    pub fn keys(&self) -> impl Iterator<Item = &'static str> {
        self.kinds.iter().flat_map(|kind| kind.keys())
    }

    /// Its scenarios, for people.
    pub fn listings(&self, settings: &Settings) -> impl Iterator<Item = Listing> {
        self.kinds.iter().map(|kind| kind.listing(settings))
    }

    /// Sets the process up. Call this first in `main`.
    pub fn set_up(&self) {
        if self.is_training {
            session::set_up_training();
        }
    }

    /// Its benchmarks for the settings of a session.
    pub fn sections(&self, session: &Session) -> Vec<Section> {
        self.kinds.iter().flat_map(|kind| kind.sections(session)).collect()
    }
}

/// A table of scenarios of one kind.
pub trait Kind: Sync {
    /// First parts of the ids of its benchmarks.
    fn keys(&self) -> Vec<&'static str>;

    /// Its scenarios, for people.
    fn listing(&self, settings: &Settings) -> Listing;

    /// Its benchmarks for the settings of a session.
    fn sections(&self, session: &Session) -> Vec<Section>;
}

/// A table for people. Tables with the same heading are one.
pub struct Listing {
    /// Names of the columns, of which the first `texts` are texts and the others numbers. The first is that of the scenario.
    pub heading: &'static [&'static str],
    /// Number of columns that are texts.
    pub texts: usize,
    /// A row for each scenario.
    pub rows: Vec<Vec<String>>,
}

/// Benchmarks whose samples have the same quantity and pace. Those that are compared with each other are measured in turns.
pub struct Section {
    pub quantity: Sampled,
    pub pace: Pace,
    /// In the order of their groups: those of one scenario follow each other.
    pub benchmarks: Vec<Rc<dyn Benchmark>>,
    /// Benchmarks that cannot be made, with the reason.
    pub failures: Vec<anyhow::Error>,
    /// What the settings leave out.
    pub notes: Vec<String>,
}

impl Section {
    fn new(quantity: Sampled, pace: Pace, benchmarks: Vec<Rc<dyn Benchmark>>) -> Self {
        Self { quantity, pace, benchmarks, failures: Vec::new(), notes: Vec::new() }
    }
}

/// The quantity that Criterion's samples consist of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampled {
    /// Time, with a rate of tokens.
    TokenTime,
    /// Time, with a rate of other elements.
    WallTime,
    /// The most memory in use.
    PeakBytes,
}

/// A benchmark before it runs.
pub trait Benchmark {
    /// First part of its id.
    fn scenario(&self) -> &'static str;

    /// Describes the subject for records, as far as it is known: loading a model tells its size.
    fn subject(&self) -> Subject;

    /// Ids of the benchmarks that it is compared with.
    fn counterparts(&self) -> Vec<(Counterpart, String)> {
        Vec::new()
    }

    /// The amount of work of an iteration.
    fn throughput(&self) -> Option<Throughput> {
        None
    }

    /// The number of the subject that it needs, and the memory that loading it would take now. Benchmarks that share a subject have
    /// the same number.
    fn needs(&self) -> (usize, u64) {
        (0, 0)
    }

    /// Returns whether the subject can run it, as far as that is known.
    fn is_possible(&self) -> bool {
        true
    }

    /// Makes the work, and loads the subject if needed.
    ///
    /// # Errors
    /// Returns an error if the subject cannot be loaded, or the work cannot be made.
    fn prepare(&self) -> Result<Box<dyn Workload>>;

    /// Is called once the benchmark has run, or will not run.
    fn release(&self) {}

    /// The id of its record.
    fn id(&self) -> BenchmarkId {
        BenchmarkId::new(self.scenario(), &self.subject())
    }
}

/// Candlepower, which is `None`, and the peers.
fn engines(peers: &[PeerName]) -> impl Iterator<Item = Option<&PeerName>> {
    [None].into_iter().chain(peers.iter().map(Some))
}

/// The subject on a peer, or as it is.
fn on(subject: Subject, peer: Option<&PeerName>) -> Subject {
    Subject { engine: peer.map_or(subject.engine, PeerName::to_string), ..subject }
}

/// The peers that a subject of this crate is compared with. A peer is compared with nothing by itself.
fn counterparts(
    scenario: &str,
    own: &Subject,
    peer: Option<&PeerName>,
    peers: &[PeerName],
) -> Vec<(Counterpart, String)> {
    let others = if peer.is_none() { peers } else { &[] };
    let id = |other| BenchmarkId::new(scenario, &on(own.clone(), Some(other))).to_string();
    others.iter().map(|other| (Counterpart::Peer, id(other))).collect()
}

/// The pace of generations: one untimed iteration, then ten samples of one, or of several if they take less than a fifth of a
/// second.
const GENERATIONS: Pace = Pace::new(Duration::from_millis(1), Duration::from_secs(2));

/// The pace of loads: one untimed iteration, then samples of one. Their latencies are shorter than an iteration, so time
/// does not decide the number of iterations.
#[cfg(feature = "serve")]
const SINGLE_ITERATIONS: Pace = Pace::new(Duration::from_millis(1), Duration::from_millis(1));

/// The pace of training steps: a second of steps in ten samples, after a short warm-up.
const STEPS: Pace = Pace::new(Duration::from_millis(200), Duration::from_secs(1));

/// The pace of steps of half a second or more: one warm-up step, then one step per sample, or more short steps.
const LONG_STEPS: Pace = Pace::new(Duration::from_millis(1), Duration::from_millis(500));

/// Least steps in a row where a peer takes part.
const BLOCK: usize = 5;

/// The pace of steps beside those of a peer: in blocks.
fn beside_peers(pace: Pace, peers: &[PeerName]) -> Pace {
    if peers.is_empty() { pace } else { Pace { block: BLOCK, ..pace } }
}

/// Every benchmark of every target, for callers that prepare one at a time. Loaded models stay loaded.
pub struct Catalogue(Vec<(&'static str, Rc<dyn Benchmark>)>);

impl Catalogue {
    /// The benchmarks of all bench targets that the settings of the session select.
    pub fn new(session: &Session) -> Self {
        let of_target = |target: &'static Target| {
            let benchmarks = target.sections(session).into_iter().flat_map(|section| section.benchmarks);
            benchmarks.map(move |benchmark| (target.name, benchmark))
        };
        Self(TARGETS.iter().flat_map(of_target).collect())
    }

    /// The benchmarks of some sections of a program that has no other bench target.
    pub fn of(sections: impl IntoIterator<Item = Section>) -> Self {
        Self(sections.into_iter().flat_map(|section| section.benchmarks).map(|benchmark| ("", benchmark)).collect())
    }

    /// The name of the target and the id of each benchmark.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, BenchmarkId)> {
        self.0.iter().map(|(target, benchmark)| (*target, benchmark.id()))
    }

    /// The one benchmark whose id begins with this text, or is it.
    ///
    /// # Errors
    /// Returns an error if there is none, or several.
    #[cfg(feature = "cli")]
    pub fn only(&self, start: &str) -> Result<Rc<dyn Benchmark>> {
        let ids = self.all().map(|(_, id)| id.to_string()).filter(|id| id.starts_with(start));
        match ids.collect::<Vec<_>>().as_slice() {
            [id] => self.find(id),
            ids if ids.iter().any(|id| id == start) => self.find(start),
            [] => bail!("no benchmark begins with '{}': `cargo bench -- --list` shows all", text::line(start)),
            [first, others @ ..] => {
                bail!("{} benchmarks begin with '{}', such as {first}", 1 + others.len(), text::line(start))
            }
        }
    }

    /// The benchmark with this id.
    ///
    /// # Errors
    /// Returns an error if there is none.
    pub fn find(&self, id: &str) -> Result<Rc<dyn Benchmark>> {
        let found = self.0.iter().find(|(_, benchmark)| benchmark.id().to_string() == id);
        Ok(found.with_context(|| format!("there is no benchmark '{id}'"))?.1.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_kind_of_benchmark_is_found_by_its_id() {
        let session = Session::new(Settings::default()).expect("a session");
        let catalogue = Catalogue::new(&session);
        let targets: BTreeSet<_> = catalogue.all().map(|(target, _)| target).collect();
        // The others need settings: checkpoints, several threads or ranks, or a larger tier.
        let mut expected = vec!["generation", "memory", "moe", "perplexity", "sweep", "tokenizer", "training"];
        if cfg!(feature = "serve") {
            expected.insert(4, "serving_load");
            expected.sort_unstable();
        }
        assert_eq!(targets.into_iter().collect::<Vec<_>>(), expected);
        for (target, id) in catalogue.all() {
            let found = catalogue.find(&id.to_string()).expect("found");
            assert_eq!(found.id(), id);
            assert_eq!(Target::of_scenario(found.scenario()).map(|target| target.name), Some(target), "{id}");
        }
        assert!(catalogue.find("short/none/stock-f32-cpu").is_err());
        let error = |start: &str| catalogue.only(start).err().expect(start).to_string();
        assert!(error("psann_throughput_train/none").starts_with("no benchmark begins with 'psann"));
        assert!(
            error("psann_throughput_train/").contains("benchmarks begin with 'psann_throughput_train/', such as psann")
        );
    }

    #[test]
    fn scenarios_have_one_target_and_a_row_for_people() {
        let settings = Settings::default();
        let mut known = BTreeSet::new();
        for target in TARGETS {
            let listed: Vec<String> =
                target.listings(&settings).flat_map(|listing| listing.rows).map(|row| row[0].clone()).collect();
            assert_eq!(listed, target.keys().collect::<Vec<_>>());
            assert!(target.keys().all(|key| known.insert(key)), "{}", target.name);
        }
    }
}
