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

use super::on_model::OnModel;
use crate::{
    device::{DeviceChoice, Precision},
    measure::memory::{self, DoesNotFit, HeldBytes},
    model::{self, CausalLm, Engine, External, ModelSpec, Parallel, Subject},
    output,
    peer::{Peer, PeerName, Unsupported},
    record::{self, BenchmarkId, FEWEST},
    scenario::{Counterpart, EXPERT_HIDDEN_SIZE, Tier, expert_grid},
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

/// An engine and its dtype.
type Variant = (EngineChoice, Precision);

impl Candidate {
    /// Returns the models that the settings name, each on its engines in their dtypes.
    pub fn from_settings(settings: &Settings) -> Vec<Self> {
        Self::in_variants(settings, |spec| settings.variants_for(spec))
    }

    /// Returns the models that the settings name, for loads on the scheduler of the server.
    pub fn serving(settings: &Settings) -> Vec<Self> {
        Self::in_variants(settings, |spec| settings.serving_variants(spec))
    }

    fn in_variants(settings: &Settings, variants: impl Fn(&ModelSpec) -> Vec<Variant>) -> Vec<Self> {
        let candidate = |spec: &ModelSpec, (engine, dtype): &Variant, all: &[Variant]| {
            let about = |engine: &EngineChoice| {
                let names = (spec.slug(), settings.engine_id(engine), model::dtype_of(spec, *dtype));
                about(names, settings.device, &spec.to_string(), spec.is_synthetic())
            };
            let (needed_bytes, load) = match engine {
                EngineChoice::Own(engine) => own(spec.clone(), *engine, *dtype, settings),
                EngineChoice::Peer(name) => peer(spec.clone(), name.clone(), *dtype, settings.clone()),
            };
            let others = all.iter().filter(|(_, other)| other == dtype);
            let against = others.filter_map(|(other, _)| Some((role(engine, other)?, about(other)))).collect();
            Self {
                about: about(engine),
                tier: settings.generation_tier(),
                longest: model::max_position_embeddings(spec),
                against,
                needed_bytes,
                load,
            }
        };
        let in_variants = |spec| {
            let variants = variants(spec);
            variants.iter().map(|variant| candidate(spec, variant, &variants)).collect::<Vec<_>>()
        };
        settings.models.iter().flat_map(in_variants).collect()
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
        let Settings { device, seed, .. } = *settings;
        let candidate = |spec: &ModelSpec, dtype: Precision, degree: usize| {
            let about = |degree: usize| {
                let engine = format!("{}-{mark}{degree}", Engine::Tuned);
                let names = (spec.slug(), engine, model::dtype_of(spec, dtype));
                let sizes = [(name, degree), (FEWEST, fewest)];
                record::Subject {
                    sizes: sizes.map(|(name, size)| (name.to_owned(), size as u64)).into(),
                    ..about(names, device, &spec.to_string(), spec.is_synthetic())
                }
            };
            let (needed_bytes, _) = own(spec.clone(), Engine::Tuned, dtype, settings);
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
        let in_dtypes = |spec| settings.dtypes_for(spec).into_iter().map(move |dtype| (spec, dtype));
        let variants = settings.models.iter().flat_map(in_dtypes);
        variants
            .flat_map(|(spec, dtype)| degrees.iter().map(move |degree| (spec, dtype, *degree)))
            .map(|(spec, dtype, degree)| candidate(spec, dtype, degree))
            .collect()
    }

    /// Returns the mixtures of experts that `moe_top_k` compares, and their dense twins.
    pub fn expert_grid(settings: &Settings) -> Vec<Self> {
        let Settings { device, seed, skew, .. } = *settings;
        let tier = settings.tier.unwrap_or(Tier::Full);
        let mut candidates: Vec<Self> = Vec::new();
        let in_dtypes = |decoder| settings.dtype.iter().map(move |dtype| (decoder, *dtype));
        let decoders = expert_grid(tier, &settings.experts, &settings.top_k, &settings.hidden_size);
        for (decoder, dtype) in decoders.into_iter().flat_map(in_dtypes) {
            let name = decoder.name(skew);
            let source = format!("synthetic:{name}");
            let sizes = match decoder.hidden_size {
                EXPERT_HIDDEN_SIZE => BTreeMap::new(),
                other => BTreeMap::from([("hidden_size".to_owned(), other as u64)]),
            };
            let about = |name: &str| record::Subject {
                sizes: sizes.clone(),
                ..about((name.to_owned(), Engine::Tuned.to_string(), dtype.to_string()), device, &source, true)
            };
            let own = about(&name);
            let is_known = |known: &Self| (&known.about.model, &known.about.dtype) == (&own.model, &own.dtype);
            if candidates.iter().any(is_known) {
                continue;
            }
            let twins = decoder.twins().into_iter();
            candidates.push(Self {
                tier,
                against: twins.map(|(counterpart, twin)| (counterpart, about(&twin.name(skew)))).collect(),
                longest: None,
                needed_bytes: Box::new(move |device| model::expert_grid_bytes(decoder, dtype, device)),
                load: Box::new(move || Ok(model::expert_grid(decoder, skew, dtype, &device.open()?, seed)?.into())),
                about: own,
            });
        }
        candidates
    }

    /// Makes a candidate from your own model, named `model` in ids. It runs every scenario unless the settings name a
    /// tier.
    ///
    /// `load` gets the first dtype and the device of the settings. The pool calls it when the first benchmark of the model
    /// runs.
    pub fn own<M: CausalLm + 'static>(
        model: &str,
        settings: &Settings,
        load: impl Fn(DType, &Device) -> Result<M> + 'static,
    ) -> Self {
        let source = format!("own:{model}");
        let (precision, device) = (settings.first_dtype(), settings.device);
        Self {
            about: about((model.to_owned(), "own".to_owned(), precision.to_string()), device, &source, false),
            tier: settings.tier.unwrap_or(Tier::Full),
            against: Vec::new(),
            needed_bytes: Box::new(|_| None),
            longest: None,
            load: Box::new(move || {
                ensure!(!precision.is_only_tuned(), "dtype {precision} is only for models of engine tuned");
                let model = Box::new(load(precision.dtype(), &device.open()?)?);
                Ok(Subject { model, source: source.clone(), tokenizer: None, eos_token_ids: Vec::new() }.into())
            }),
        }
    }

    /// The ids of the benchmarks that it is compared with in a scenario, in the same batch.
    pub(super) fn counterparts(&self, scenario: &impl OnModel, batch: usize) -> Vec<(Counterpart, String)> {
        let id = |scenario: &str, subject: &record::Subject| {
            BenchmarkId::new(scenario, &subject.clone().in_batch(batch)).to_string()
        };
        let of_scenario = scenario.against().map(|other| (Counterpart::Scenario, id(other, &self.about)));
        let of_model = self.against.iter().map(|(counterpart, subject)| (*counterpart, id(scenario.key(), subject)));
        of_scenario.into_iter().chain(of_model).collect()
    }

    /// Fills in the properties that only the loaded subject knows.
    pub(crate) fn learn(&mut self, subject: &Subject) {
        let footprint = subject.model.footprint();
        self.about.source = subject.source.clone();
        self.about.parameters = Some(footprint.parameters);
        self.about.weight_bytes = Some(footprint.weight_bytes);
    }
}

/// Makes an error again, for every benchmark that it concerns.
pub(super) fn again(error: &anyhow::Error) -> Box<dyn Fn() -> anyhow::Error> {
    match error.downcast_ref::<Unsupported>().cloned() {
        Some(unsupported) => Box::new(move || unsupported.clone().into()),
        None => {
            let reason = format!("{error:#}");
            Box::new(move || anyhow!("{reason}"))
        }
    }
}

/// The need and the loader of an engine.
fn own(spec: ModelSpec, engine: Engine, dtype: Precision, settings: &Settings) -> (Need, Load) {
    let Settings { device, seed, .. } = *settings;
    let parallel = settings.parallel(engine);
    let known = spec.clone();
    let needed_bytes = Box::new(move |device: &Device| model::needed_bytes(&known, engine, dtype, device));
    (needed_bytes, Box::new(move || Ok(model::load_parallel(&spec, engine, dtype, device, seed, parallel)?.into())))
}

/// The need and the loader of a peer.
fn peer(spec: ModelSpec, name: PeerName, precision: Precision, settings: Settings) -> (Need, Load) {
    let Settings { device, seed, .. } = settings;
    let known = spec.clone();
    let needed_bytes = move |device: &Device| {
        let model = known.is_synthetic().then(|| External::of(&known).ok()).flatten()?;
        Some(model.needed_bytes(precision, device))
    };
    let load = move || {
        let launch = settings.peers.get(&name).with_context(|| format!("peer {name} has no command"))?;
        let threads = candle_core::utils::get_num_threads();
        let (model, dtype) = (External::of(&spec)?, model::dtype_of(&spec, precision));
        model.ensure_fits(precision, &device.open()?)?;
        let peer = Peer::start(&name, launch, &settings.out, threads)?;
        let subject = PeerSubject::load(peer, model, (precision, &dtype), device, seed)?;
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
    (model, engine, dtype): (String, String, String),
    device: DeviceChoice,
    source: &str,
    synthetic_weights: bool,
) -> record::Subject {
    record::Subject {
        model,
        engine,
        dtype,
        device: device.to_string(),
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
    /// Memory that the subject holds.
    held: HeldBytes,
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
                .map(|candidate| Place { candidate, subject: None, held: HeldBytes::default(), unloadable: None })
                .collect(),
        }
    }

    /// Returns the places of the candidates whose tier includes the scenario and whose sequences are long enough for it, as
    /// far as that is known before they are loaded.
    pub fn that_run(&self, scenario: &dyn OnModel) -> Vec<usize> {
        let is_included = |place: &usize| self.places[*place].candidate.tier >= scenario.tier();
        (0..self.places.len()).filter(is_included).filter(|place| self.is_long_enough(*place, scenario)).collect()
    }

    /// Returns whether a candidate is long enough for a scenario, or its length is not known yet.
    pub fn is_long_enough(&self, place: usize, scenario: &dyn OnModel) -> bool {
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
        self.places[place].held = HeldBytes::except(&self.device, before);
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

    /// Returns the memory that the subject holds, which all work on it shares.
    pub fn held(&self, place: usize) -> HeldBytes {
        self.places[place].held.clone()
    }

    /// Frees the memory of the subject.
    pub fn release(&mut self, place: usize) {
        self.places[place].subject = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{SYNTHETIC, shape},
        scenario::LONG_CONTEXT,
    };

    fn running(settings: &Settings) -> Vec<(&'static str, usize)> {
        let pool = Pool::new(Candidate::from_settings(settings), Device::Cpu);
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
        let models = full.models.len() * full.variants_for(&full.models[0]).len();
        assert_eq!(counts, [models, models, models, 0, 0]);
        let longest = LONG_CONTEXT.iter().map(OnModel::total_tokens).max().unwrap_or(0);
        let is_long = |name: &&str| shape(name).expect("a shape").max_position_embeddings >= longest;
        let published: Vec<_> = SYNTHETIC.into_iter().filter(is_long).map(ModelSpec::Synthetic).collect();
        let count = published.len();
        let published = Settings { models: published, ..full };
        assert!(running(&published).iter().all(|(_, found)| *found == count), "{:?}", running(&published));
    }
}
