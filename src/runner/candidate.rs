//! Models before they are loaded: a model on an engine in a dtype, with what is known of it.

use std::{cell::RefCell, collections::BTreeMap, path::PathBuf, rc::Rc};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};

use super::plan::OnModel;
use crate::{
    device::{DeviceChoice, Precision},
    model::{self, CausalLm, Engine, External, ModelSpec, Parallel, Subject},
    peer::{Launch, Peer, PeerName, Work},
    progress,
    record::{self, BenchmarkId, FEWEST},
    scenario::{Counterpart, EXPERT_HIDDEN_SIZE, ExpertDecoder, Tier, expert_grid},
    settings::{EngineChoice, Settings},
    workload::{PeerLogits, PeerSubject, SharedPeer, SharedSubject},
};

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
    source: Source,
    precision: Precision,
    device: DeviceChoice,
    seed: u64,
}

/// Where a model comes from, and what runs it.
enum Source {
    Engine { spec: ModelSpec, engine: Engine, parallel: Parallel },
    Peer { spec: ModelSpec, name: PeerName, launch: Option<Launch>, out: PathBuf },
    Experts { decoder: ExpertDecoder, skew: f64 },
    Own(Box<dyn Fn() -> Result<Subject>>),
}

/// An engine and its dtype.
type Variant = (EngineChoice, Precision);

impl Candidate {
    /// Returns the models that the settings name, each on its engines in their dtypes.
    pub fn from_settings(settings: &Settings) -> Vec<Self> {
        settings.models.iter().flat_map(|spec| Self::of_model(settings, spec, &settings.variants_for(spec))).collect()
    }

    /// The dtype that it is loaded in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Returns the models that the settings name, for loads on the scheduler of the server.
    pub fn serving(settings: &Settings) -> Vec<Self> {
        settings
            .models
            .iter()
            .flat_map(|spec| Self::of_model(settings, spec, &settings.serving_variants(spec)))
            .collect()
    }

    /// Returns a model on each of its engines in one dtype. Each is compared with all others, for ranks.
    #[cfg(feature = "cli")]
    pub(crate) fn rivals(settings: &Settings, spec: &ModelSpec, dtype: Precision) -> Vec<Self> {
        let mut variants = settings.variants_for(spec);
        variants.retain(|(_, own)| *own == dtype);
        let mut candidates = Self::of_model(settings, spec, &variants);
        let all: Vec<_> = candidates.iter().map(|candidate| candidate.about.clone()).collect();
        for candidate in &mut candidates {
            let others = all.iter().filter(|other| **other != candidate.about);
            candidate.against.extend(others.map(|other| (Counterpart::Rival, other.clone())));
        }
        candidates
    }

    /// Returns the models that the settings name, for scores: in every dtype, each on the engines that the settings name, or on one
    /// engine if they name none.
    pub(crate) fn scored(settings: &Settings) -> Vec<Self> {
        let mut all = Vec::new();
        for spec in &settings.models {
            let mut variants: Vec<Variant> = Vec::new();
            for (engine, dtype) in settings.variants_for(spec) {
                if !settings.has_default_engines() || variants.iter().all(|(_, known)| *known != dtype) {
                    variants.push((engine, dtype));
                }
            }
            all.extend(Self::of_model(settings, spec, &variants));
        }
        all
    }

    /// A model on each of some engines. Those of one dtype are compared.
    pub(super) fn of_model(settings: &Settings, spec: &ModelSpec, variants: &[Variant]) -> Vec<Self> {
        let Settings { device, seed, .. } = *settings;
        let candidate = |(engine, precision): &Variant| {
            let about = |engine: &EngineChoice| {
                let names = (spec.slug(), settings.engine_id(engine), model::dtype_of(spec, *precision));
                about(names, device, &spec.to_string(), spec.is_synthetic())
            };
            let spec = spec.clone();
            let source = match engine {
                EngineChoice::Own(own) => Source::Engine { spec, engine: *own, parallel: settings.parallel(*own) },
                EngineChoice::Peer(name) => {
                    let (launch, out) = (settings.peers.get(name).cloned(), settings.out.clone());
                    Source::Peer { spec, name: name.clone(), launch, out }
                }
            };
            let others = variants.iter().filter(|(_, other)| other == precision);
            let against = others.filter_map(|(other, _)| Some((role(engine, other)?, about(other)))).collect();
            let tier = settings.generation_tier();
            Self { about: about(engine), tier, against, source, precision: *precision, device, seed }
        };
        variants.iter().map(candidate).collect()
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
            Self {
                about: about(degree),
                tier,
                against: if degree == fewest { Vec::new() } else { vec![(Counterpart::Fewest, about(fewest))] },
                source: Source::Engine { spec: spec.clone(), engine: Engine::Tuned, parallel: parallel(degree) },
                precision: dtype,
                device,
                seed,
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
                source: Source::Experts { decoder, skew },
                precision: dtype,
                device,
                seed,
                about: own,
            });
        }
        candidates
    }

    /// Makes a candidate from your own model, named `model` in ids. It runs every scenario unless the settings name a
    /// tier.
    ///
    /// `load` gets the first dtype and the device of the settings. It is called when the first benchmark of the model
    /// runs.
    pub fn own<M: CausalLm + 'static>(
        model: &str,
        settings: &Settings,
        load: impl Fn(DType, &Device) -> Result<M> + 'static,
    ) -> Self {
        let source = format!("own:{model}");
        let Settings { device, seed, .. } = *settings;
        let precision = settings.first_dtype();
        Self {
            about: about((model.to_owned(), "own".to_owned(), precision.to_string()), device, &source, false),
            tier: settings.tier.unwrap_or(Tier::Full),
            against: Vec::new(),
            source: Source::Own(Box::new(move || {
                ensure!(!precision.is_only_tuned(), "dtype {precision} is only for models of engine tuned");
                let model = Box::new(load(precision.dtype(), &device.open()?)?);
                let source = source.clone();
                let (tokenizer, without_tokenizer) = (None, None);
                Ok(Subject {
                    model,
                    source,
                    tokenizer,
                    without_tokenizer,
                    eos_token_ids: Vec::new(),
                    formats: BTreeMap::new(),
                })
            })),
            precision,
            device,
            seed,
        }
    }

    /// Returns the memory that the model takes on a device; `None` if only loading it tells.
    pub(super) fn needed_bytes(&self, device: &Device) -> Option<u64> {
        match &self.source {
            Source::Engine { spec, engine, .. } => model::needed_bytes(spec, *engine, self.precision, device),
            Source::Peer { spec, .. } => {
                let model = spec.is_synthetic().then(|| External::of(spec).ok()).flatten()?;
                Some(model.needed_bytes(self.precision, device))
            }
            Source::Experts { decoder, .. } => model::expert_grid_bytes(*decoder, self.precision, device),
            Source::Own(_) => None,
        }
    }

    /// Returns the longest sequence in tokens; `None` if only loading the model tells.
    pub(super) fn longest(&self) -> Option<usize> {
        match &self.source {
            Source::Engine { spec, .. } | Source::Peer { spec, .. } => model::max_position_embeddings(spec),
            Source::Experts { .. } | Source::Own(_) => None,
        }
    }

    /// Loads it, and fills in the properties that only the loaded subject knows.
    ///
    /// # Errors
    /// Returns an error if it cannot be loaded or does not fit in memory.
    pub(super) fn load(&mut self) -> Result<Loaded> {
        if matches!(self.source, Source::Peer { .. }) {
            return Ok(Loaded::Peer(Rc::new(RefCell::new(self.peer(Work::Generate)?))));
        }
        Ok(self.load_model()?.into())
    }

    /// Starts a peer, lets it load the model for one kind of work, and fills in what only the peer knows.
    fn peer(&mut self, work: Work) -> Result<PeerSubject> {
        let Source::Peer { spec, name, launch, out } = &self.source else { bail!("the engine is no peer") };
        let launch = launch.as_ref().with_context(|| format!("peer {name} has no command"))?;
        let threads = candle_core::utils::get_num_threads();
        let (model, dtype) = (External::of(spec)?, model::dtype_of(spec, self.precision));
        model.ensure_fits(self.precision, &self.device.open()?)?;
        let _line = progress::live(format_args!("loading {} on {name}", self.about.model));
        let peer = Peer::start(name, launch, out, threads)?;
        let subject = PeerSubject::load((peer, work), model, (self.precision, &dtype), self.device, self.seed)?;
        subject.describe(&mut self.about);
        Ok(subject)
    }

    /// As [`Self::load`], for what needs logits. A peer computes them in its process.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(crate) fn load_model(&mut self) -> Result<Subject> {
        let Self { precision, device, seed, .. } = *self;
        let _line = progress::live(format_args!("loading {} on {}", self.about.model, self.about.variant()));
        let subject = match &self.source {
            Source::Engine { spec, engine, parallel } => {
                model::load_parallel(spec, *engine, precision, device, seed, *parallel)?
            }
            Source::Experts { decoder, skew } => model::expert_grid(*decoder, *skew, precision, &device.open()?, seed)?,
            Source::Own(load) => load()?,
            Source::Peer { .. } => return self.logits_of_peer(),
        };
        let footprint = subject.model.footprint();
        self.about.source = subject.source.clone();
        self.about.parameters = Some(footprint.parameters);
        self.about.weight_bytes = Some(footprint.weight_bytes);
        self.about.formats = subject.formats.clone();
        Ok(subject)
    }

    fn logits_of_peer(&mut self) -> Result<Subject> {
        let model = PeerLogits::new(self.peer(Work::Score)?);
        Ok(Subject {
            source: self.about.source.clone(),
            tokenizer: model.tokenizer().cloned(),
            without_tokenizer: None,
            eos_token_ids: model.eos_token_ids().to_vec(),
            formats: self.about.formats.clone(),
            model: Box::new(model),
        })
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
        formats: BTreeMap::new(),
        sizes: BTreeMap::new(),
        peer: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
