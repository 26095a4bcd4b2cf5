//! Subjects before and after loading. The name of a candidate is known before the model is loaded. The pool loads a
//! candidate once, when its first benchmark runs, and frees its memory after the last.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::{DType, Device};

use crate::{
    measure::memory::{self, DoesNotFit},
    model::{self, CausalLm, Engine, External, ModelSpec, Parallel, Subject},
    output,
    peer::{PeerName, Unsupported},
    record::{self, FEWEST},
    scenario::{Counterpart, Generation, Tier, expert_grid},
    settings::{EngineChoice, Settings},
    text,
    workload::{PeerSubject, SharedPeer, SharedSubject},
};

/// Tells the memory that a model takes on a device; `None` if only loading it tells.
type Need = Box<dyn Fn(&Device) -> Option<u64>>;

/// Loads a candidate.
type Load = Box<dyn Fn() -> Result<Loaded>>;

/// A candidate that is ready to run.
#[derive(Clone)]
pub enum Loaded {
    /// A model in this process.
    Model(SharedSubject),
    /// A model in the process of a peer.
    Peer(SharedPeer),
}

impl From<Subject> for Loaded {
    fn from(subject: Subject) -> Self {
        Self::Model(Rc::new(RefCell::new(subject)))
    }
}

/// A model that can be loaded.
pub struct Candidate {
    /// Description for ids and records.
    pub about: record::Subject,
    /// The largest tier of scenarios that it runs.
    pub tier: Tier,
    /// The subjects that it is compared with in each scenario.
    pub against: Vec<(Counterpart, record::Subject)>,
    needed_bytes: Need,
    /// The longest sequence in tokens; `None` if only loading the model tells.
    longest: Option<usize>,
    load: Load,
}

impl Candidate {
    /// Returns the models that the settings name, each on its engines.
    pub fn from_settings(settings: &Settings) -> Vec<Self> {
        let candidate = |spec: &ModelSpec, engine: &EngineChoice, all: &[EngineChoice]| {
            let about = |engine: &EngineChoice| record::Subject {
                dtype: model::dtype_of(spec, settings.dtype),
                ..about(&spec.slug(), &settings.engine_id(engine), settings, &spec.to_string(), spec.is_synthetic())
            };
            let (needed_bytes, load) = match engine {
                EngineChoice::Own(engine) => own(spec.clone(), *engine, settings),
                EngineChoice::Peer(name) => peer(spec.clone(), name.clone(), settings.clone()),
            };
            let against = all.iter().filter_map(|other| Some((role(engine, other)?, about(other))));
            let against = against.collect();
            Self {
                about: about(engine),
                tier: settings.tier_for(spec),
                longest: model::max_position_embeddings(spec),
                against,
                needed_bytes,
                load,
            }
        };
        let on_engines = |spec| {
            let engines = settings.engines_for(spec);
            engines.iter().map(|engine| candidate(spec, engine, &engines)).collect::<Vec<_>>()
        };
        settings.models.iter().flat_map(on_engines).collect()
    }

    /// Returns the models that the settings name, for the long contexts: in the smallest tier unless the settings name one,
    /// because a long prompt takes minutes on a CPU.
    pub fn long_context(settings: &Settings) -> Vec<Self> {
        let tier = settings.tier.unwrap_or(Tier::Quick);
        Self::from_settings(settings).into_iter().map(|candidate| Self { tier, ..candidate }).collect()
    }

    /// Returns the models that the settings name on engine `tuned`, with each number of threads. They run if the settings name
    /// several numbers, or the tier.
    pub fn threads_scaling(settings: &Settings) -> Vec<Self> {
        let tier = if settings.threads.len() > 1 { Tier::Full } else { settings.tier.unwrap_or(Tier::Quick) };
        let parallel = |threads| Parallel { threads: Some(threads), ..Parallel::default() };
        Self::scaled(settings, tier, &settings.thread_counts(), ("threads", "t"), parallel)
    }

    /// Returns the models that the settings name on engine `tuned`, sharded over each number of ranks. They run if the settings
    /// name several numbers, or the tier.
    pub fn tensor_parallel(settings: &Settings) -> Vec<Self> {
        let tier = if settings.tensor_parallel.len() > 1 { Tier::Full } else { settings.tier.unwrap_or(Tier::Quick) };
        let parallel = |ranks| Parallel { ranks, ..Parallel::default() };
        Self::scaled(settings, tier, &settings.rank_counts(), ("ranks", "tp"), parallel)
    }

    /// Returns the models that the settings name on engine `tuned`, in several degrees of parallelism, fewest first. Each is
    /// compared with the first. Subjects have the degree among their sizes, under a name, and in the name of the engine,
    /// after a mark.
    fn scaled(
        settings: &Settings,
        tier: Tier,
        degrees: &[usize],
        (name, mark): (&str, &str),
        parallel: fn(usize) -> Parallel,
    ) -> Vec<Self> {
        let Some(&fewest) = degrees.first() else { return Vec::new() };
        let Settings { dtype, device, seed, .. } = *settings;
        let candidate = |spec: &ModelSpec, degree: usize| {
            let about = |degree: usize| record::Subject {
                dtype: model::dtype_of(spec, dtype),
                sizes: [(name, degree), (FEWEST, fewest)].map(|(name, size)| (name.to_owned(), size as u64)).into(),
                ..about(
                    &spec.slug(),
                    &format!("{}-{mark}{degree}", Engine::Tuned),
                    settings,
                    &spec.to_string(),
                    spec.is_synthetic(),
                )
            };
            let (needed_bytes, _) = own(spec.clone(), Engine::Tuned, settings);
            let loaded = spec.clone();
            Self {
                about: about(degree),
                tier,
                against: if degree == fewest { Vec::new() } else { vec![(Counterpart::Fewest, about(fewest))] },
                needed_bytes,
                longest: model::max_position_embeddings(spec),
                load: Box::new(move || {
                    Ok(model::load_parallel(&loaded, Engine::Tuned, dtype, device, seed, parallel(degree))?.into())
                }),
            }
        };
        let of_model = |spec| degrees.iter().map(move |degree| candidate(spec, *degree));
        settings.models.iter().flat_map(of_model).collect()
    }

    /// Returns the mixtures of experts that `moe_top_k` compares, and their dense twins.
    pub fn expert_grid(settings: &Settings) -> Vec<Self> {
        let Settings { dtype, device, seed, skew, .. } = *settings;
        let tier = settings.tier.unwrap_or(Tier::Full);
        let mut candidates: Vec<Self> = Vec::new();
        for feed_forward in expert_grid(tier, &settings.experts, &settings.top_k) {
            let name = feed_forward.name(skew);
            if candidates.iter().any(|candidate| candidate.about.model == name) {
                continue;
            }
            let source = format!("synthetic:{name}");
            let about = |name: &str| about(name, &Engine::Tuned.to_string(), settings, &source, true);
            let twins = feed_forward.twins().into_iter();
            candidates.push(Self {
                about: about(&name),
                tier,
                against: twins.map(|(counterpart, twin)| (counterpart, about(&twin.name(skew)))).collect(),
                longest: None,
                needed_bytes: Box::new(move |device| model::expert_grid_bytes(feed_forward, dtype, device)),
                load: Box::new(
                    move || Ok(model::expert_grid(feed_forward, skew, dtype, &device.open()?, seed)?.into()),
                ),
            });
        }
        candidates
    }

    /// Makes a candidate from your own model, named `model` in ids. It runs every scenario unless the settings name a
    /// tier.
    ///
    /// `load` gets the dtype and the device of the settings. The pool calls it when the first benchmark of the model
    /// runs.
    pub fn own<M: CausalLm + 'static>(
        model: &str,
        settings: &Settings,
        load: impl Fn(DType, &Device) -> Result<M> + 'static,
    ) -> Self {
        let source = format!("own:{model}");
        let (precision, device) = (settings.dtype, settings.device);
        Self {
            about: about(model, "own", settings, &source, false),
            tier: settings.tier.unwrap_or(Tier::Full),
            against: Vec::new(),
            needed_bytes: Box::new(|_| None),
            longest: None,
            load: Box::new(move || {
                ensure!(precision.blocks().is_none(), "dtype {precision} is only for models of engine tuned");
                let model = Box::new(load(precision.dtype(), &device.open()?)?);
                Ok(Subject { model, source: source.clone(), tokenizer: None, eos_token_ids: Vec::new() }.into())
            }),
        }
    }

    /// Fills in the properties that only the loaded subject knows.
    pub fn learn(&mut self, subject: &Subject) {
        let footprint = subject.model.footprint();
        self.about.source = subject.source.clone();
        self.about.parameters = Some(footprint.parameters);
        self.about.weight_bytes = Some(footprint.weight_bytes);
    }
}

/// Makes an error again, for every benchmark that it concerns.
fn again(error: &anyhow::Error) -> Box<dyn Fn() -> anyhow::Error> {
    match error.downcast_ref::<Unsupported>().cloned() {
        Some(unsupported) => Box::new(move || unsupported.clone().into()),
        None => {
            let reason = format!("{error:#}");
            Box::new(move || anyhow!("{reason}"))
        }
    }
}

/// The need and the loader of an engine.
fn own(spec: ModelSpec, engine: Engine, settings: &Settings) -> (Need, Load) {
    let Settings { dtype, device, seed, .. } = *settings;
    let parallel = settings.parallel(engine);
    let known = spec.clone();
    let needed_bytes = Box::new(move |device: &Device| model::needed_bytes(&known, engine, dtype, device));
    (needed_bytes, Box::new(move || Ok(model::load_parallel(&spec, engine, dtype, device, seed, parallel)?.into())))
}

/// The need and the loader of a peer.
fn peer(spec: ModelSpec, name: PeerName, settings: Settings) -> (Need, Load) {
    let Settings { dtype: precision, device, seed, .. } = settings;
    let dtype = precision.dtype();
    let known = spec.clone();
    let needed_bytes = move |device: &Device| {
        let model = known.is_synthetic().then(|| External::of(&known).ok()).flatten()?;
        Some(model.needed_bytes(dtype, device))
    };
    let load = move || {
        ensure!(precision.blocks().is_none(), "dtype {precision} is only for models of engine tuned");
        let launch = settings.peers.get(&name).with_context(|| format!("peer {name} has no command"))?;
        let threads = candle_core::utils::get_num_threads();
        let model = External::of(&spec)?;
        let subject = PeerSubject::load((&name, launch), model, (dtype, device, threads, seed), &settings.out)?;
        Ok(Loaded::Peer(Rc::new(RefCell::new(subject))))
    };
    (Box::new(needed_bytes), Box::new(load))
}

/// The role of `other` for an engine of the same model; `None` if the two are not compared. Every engine is compared with
/// `stock`, and those of this crate with the peers.
fn role(engine: &EngineChoice, other: &EngineChoice) -> Option<Counterpart> {
    use EngineChoice::{Own, Peer};
    match (engine, other) {
        (Own(Engine::Stock), _) => None,
        (_, Own(Engine::Stock)) => Some(Counterpart::Stock),
        (Own(_), Peer(_)) => Some(Counterpart::Peer),
        _ => None,
    }
}

pub(super) fn about(
    model: &str,
    engine: &str,
    settings: &Settings,
    source: &str,
    synthetic_weights: bool,
) -> record::Subject {
    record::Subject {
        model: model.into(),
        engine: engine.into(),
        dtype: settings.dtype.to_string(),
        device: settings.device.to_string(),
        source: source.into(),
        synthetic_weights,
        parameters: None,
        weight_bytes: None,
        sizes: BTreeMap::new(),
        peer: None,
    }
}

/// Candidates, and those of them that are loaded.
pub struct Pool {
    places: Vec<Place>,
    device: Device,
}

struct Place {
    candidate: Candidate,
    subject: Option<Loaded>,
    /// Memory that loading the subject took.
    bytes: u64,
    /// Makes the error with which loading failed. The pool does not retry, because every scenario would repeat a failed
    /// download.
    unloadable: Option<Box<dyn Fn() -> anyhow::Error>>,
}

impl Pool {
    pub fn new(candidates: Vec<Candidate>, device: Device) -> Self {
        Self {
            device,
            places: candidates
                .into_iter()
                .map(|candidate| Place { candidate, subject: None, bytes: 0, unloadable: None })
                .collect(),
        }
    }

    /// Returns the places of the candidates whose tier includes the scenario and whose sequences are long enough for it, as
    /// far as that is known before they are loaded.
    pub fn that_run(&self, scenario: &Generation) -> Vec<usize> {
        let is_included = |place: &usize| self.places[*place].candidate.tier >= scenario.tier;
        (0..self.places.len()).filter(is_included).filter(|place| self.is_long_enough(*place, scenario)).collect()
    }

    /// Returns whether a candidate is long enough for a scenario, or its length is not known yet.
    pub fn is_long_enough(&self, place: usize, scenario: &Generation) -> bool {
        let Place { candidate, subject, .. } = &self.places[place];
        let loaded = subject.as_ref().and_then(|loaded| match loaded {
            Loaded::Model(subject) => Some(subject.borrow().model.max_position_embeddings()),
            Loaded::Peer(_) => None,
        });
        loaded.or(candidate.longest).is_none_or(|longest| scenario.total_tokens() <= longest)
    }

    pub fn candidate(&self, place: usize) -> &Candidate {
        &self.places[place].candidate
    }

    /// Returns the subject and loads it first if needed. If it does not fit in memory, the pool unloads the other
    /// subjects and retries.
    pub fn subject(&mut self, place: usize) -> Result<Loaded> {
        if let Some(subject) = &self.places[place].subject {
            return Ok(subject.clone());
        }
        if let Some(error) = &self.places[place].unloadable {
            return Err(error());
        }
        let loaded = self.load(place);
        // A model that does not fit now may fit once others are released, and refusing it takes no time.
        let lasting = loaded.as_ref().err().filter(|error| !error.is::<DoesNotFit>());
        self.places[place].unloadable = lasting.map(again);
        Ok(self.places[place].subject.insert(loaded?).clone())
    }

    fn load(&mut self, place: usize) -> Result<Loaded> {
        let started = Instant::now();
        let mut before = memory::current_bytes(&self.device);
        let mut loaded = (self.places[place].candidate.load)();
        if loaded.as_ref().is_err_and(|error| error.is::<DoesNotFit>()) {
            self.places.iter_mut().for_each(|place| place.subject = None);
            memory::release(&self.device);
            before = memory::current_bytes(&self.device);
            loaded = (self.places[place].candidate.load)();
        }
        let subject = loaded?;
        self.places[place].bytes = memory::current_bytes(&self.device).saturating_sub(before);
        let candidate = &mut self.places[place].candidate;
        match &subject {
            Loaded::Model(subject) => candidate.learn(&subject.borrow()),
            Loaded::Peer(subject) => subject.borrow().describe(&mut candidate.about),
        }
        let about = &candidate.about;
        if started.elapsed() > Duration::from_secs(1) {
            let seconds = started.elapsed().as_secs_f64();
            output::report(format_args!("{}: loaded in {seconds:.1} s", text::line(&about.model)));
        }
        Ok(subject)
    }

    /// Returns the memory that loading the subject would take: 0 if it is loaded, or if its size is not known yet.
    pub fn needed_bytes(&self, place: usize) -> u64 {
        let Place { candidate, subject, .. } = &self.places[place];
        if subject.is_some() { 0 } else { (candidate.needed_bytes)(&self.device).unwrap_or_default() }
    }

    /// Returns the memory in use that does not belong to the subject, such as that of other subjects.
    pub fn bytes_beside(&self, place: usize) -> u64 {
        memory::current_bytes(&self.device).saturating_sub(self.places[place].bytes)
    }

    /// Frees the memory of the subject.
    pub fn release(&mut self, place: usize) {
        self.places[place].subject = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::SYNTHETIC, scenario::LONG_CONTEXT};

    fn running(settings: &Settings) -> Vec<(&'static str, usize)> {
        let pool = Pool::new(Candidate::long_context(settings), Device::Cpu);
        LONG_CONTEXT.iter().map(|scenario| (scenario.key, pool.that_run(scenario).len())).collect()
    }

    #[test]
    fn each_number_of_threads_is_a_candidate_beside_the_fewest() {
        let settings =
            Settings { threads: vec![2, 1], models: vec![ModelSpec::Mini("llama-mini")], ..Settings::default() };
        let candidates = Candidate::threads_scaling(&settings);
        let engines: Vec<&str> = candidates.iter().map(|candidate| candidate.about.engine.as_str()).collect();
        assert_eq!(engines, ["tuned-t1", "tuned-t2"]);
        assert_eq!(candidates[1].about.sizes, [(FEWEST, 1), ("threads", 2)].map(|(k, v)| (k.to_owned(), v)).into());
        assert!(candidates[0].against.is_empty());
        assert_eq!(candidates[1].against, [(Counterpart::Fewest, candidates[0].about.clone())]);
        assert!(candidates.iter().all(|candidate| candidate.tier == Tier::Full));
        let one = Settings { threads: vec![2], ..settings };
        assert!(Candidate::threads_scaling(&one).iter().all(|candidate| candidate.tier == Tier::Quick));
    }

    #[test]
    fn long_contexts_run_on_request_on_models_that_are_long_enough() {
        let engine = vec![EngineChoice::Own(Engine::Tuned)];
        let settings = Settings { engine, ..Settings::default() };
        assert!(running(&settings).iter().all(|(_, count)| *count == 0), "nothing runs by default");
        // The embedded models have 8192 positions.
        let full = Settings { tier: Some(Tier::Full), ..settings };
        let counts: Vec<usize> = running(&full).into_iter().map(|(_, count)| count).collect();
        let models = full.models.len() * full.engines_for(&full.models[0]).len();
        assert_eq!(counts, [models, models, models, 0, 0]);
        let published = SYNTHETIC.map(ModelSpec::Synthetic).to_vec();
        let count = published.len();
        let published = Settings { models: published, ..full };
        assert!(running(&published).iter().all(|(_, found)| *found == count), "{:?}", running(&published));
    }
}
