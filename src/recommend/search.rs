//! The search: one setting is varied at a time. The best value so far meets each alternative, and an alternative that is
//! measurably better takes its place.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Choice, Comparison, Floor, Goal, Quality, Ratio, Recommendation, Verdict,
    contest::{Contest, Ended, Values, flags},
    part::Part,
};
use crate::{
    device::{DeviceChoice, Precision},
    model::{Engine, ModelSpec},
    progress,
    settings::{EngineChoice, Settings, up_to},
};

/// The goal of a recommendation, its quality floor and its time budget.
pub struct Request<'a> {
    /// The goal of the settings.
    pub goal: Goal,
    /// The quality that a dtype must keep.
    pub floor: Floor,
    /// The file that quality is measured on; `None` for the embedded text.
    pub text: Option<&'a Path>,
    /// Time for all measurements.
    pub budget: Duration,
    /// Settings from the command line, by key. They are not varied.
    pub given: &'a [(&'static str, String)],
    /// The `candlepower` program.
    pub program: &'a Path,
    /// Folder of the messages of the processes that are started.
    pub logs: &'a Path,
}

/// The option of the server that takes a number of sequences.
const SEQUENCES: &str = "max_sequences";

/// The setting of each stage. Numbers of sequences are measured with the number of threads in force. The threads come last.
const STAGES: [&str; 4] = ["engine", "dtype", SEQUENCES, "threads"];

/// The settings of a candidate: those that are given, and one model on one engine.
pub fn values(
    settings: &Settings,
    given: &[(&'static str, String)],
    spec: &ModelSpec,
    (engine, dtype): (Engine, Precision),
) -> Values {
    let mut values: Values = given.iter().cloned().collect();
    values.extend([
        ("models", spec.to_string()),
        ("tier", "quick".into()),
        ("engine", engine.to_string()),
        ("dtype", dtype.to_string()),
        ("threads", settings.threads_in_force().to_string()),
    ]);
    values
}

/// Finds the settings of the only model of `settings` for a goal. `progress` gets a line after each comparison.
///
/// # Errors
/// Returns an error if the model or every candidate fails, or there is nothing to vary.
pub fn recommend(settings: &Settings, request: &Request, progress: impl FnMut(&str)) -> Result<Recommendation> {
    let started = Instant::now();
    let [spec] = settings.models.as_slice() else { bail!("--model: name one model") };
    let (first, dtype) = settings.variants_for(spec).into_iter().next().context("there is no engine")?;
    ensure!(first.own().is_some(), "--engine={first}: a peer has settings of its own, name stock or tuned");
    let is_given = |setting: &str| request.given.iter().any(|(key, _)| *key == setting);
    let is_one = settings.dtype.len() == 1 || !is_given("dtype");
    ensure!(is_one, "--dtype={}: name one dtype", settings.sources["dtype"].value);
    let best = values(settings, request.given, spec, (first.own().unwrap_or(Engine::Tuned), dtype));
    let mut search = Search {
        request,
        spec,
        best,
        contest: Contest { goal: request.goal, program: request.program, logs: request.logs, variables: &[] },
        comparisons: Vec::new(),
        doubts: Vec::new(),
        progress,
        end: started + request.budget,
    };
    let mut sequences = None;
    let stages: Vec<&'static str> = STAGES.into_iter().filter(|setting| !is_given(setting)).collect();
    for (place, setting) in stages.iter().enumerate() {
        let later = (stages.len() - 1 - place) as u32;
        match *setting {
            SEQUENCES => sequences = search.sequences(later),
            setting => search.setting(setting, later)?,
        }
    }
    let Search { best, comparisons, doubts, .. } = search;
    ensure!(!comparisons.is_empty(), "every setting is given on the command line, so there is nothing to vary");
    let chosen = |setting: &str| Choice::new(request.goal, setting, &best[setting], &comparisons);
    let mut choices: Vec<Choice> =
        ["engine", "dtype", "threads"].into_iter().filter(|setting| !is_given(setting)).map(chosen).collect();
    choices.extend(sequences.map(|value| Choice::new(request.goal, SEQUENCES, &value.to_string(), &comparisons)));
    for (key, value) in request.given {
        choices.push(Choice {
            setting: (*key).into(),
            value: value.clone(),
            reason: "it was given on the command line".into(),
        });
    }
    Ok(Recommendation {
        model: spec.to_string(),
        goal: request.goal,
        scenario: request.goal.scenario().into(),
        floor: request.floor.to_string(),
        choices,
        comparisons,
        doubts,
        seconds: started.elapsed().as_secs_f64(),
    })
}

struct Search<'a, P> {
    request: &'a Request<'a>,
    spec: &'a ModelSpec,
    /// The best values so far.
    best: Values,
    contest: Contest<'a>,
    comparisons: Vec<Comparison>,
    doubts: Vec<String>,
    progress: P,
    end: Instant,
}

impl<P: FnMut(&str)> Search<'_, P> {
    /// Varies a setting. So many stages follow, each of which gets as much time as this one.
    fn setting(&mut self, setting: &'static str, later: u32) -> Result<()> {
        let start = self.settings()?;
        let alternatives = match setting {
            "engine" => Engine::DEFAULT.iter().map(ToString::to_string).collect(),
            "dtype" => dtypes(&start, self.spec, self.engine()?).iter().map(ToString::to_string).collect(),
            _ if start.device == DeviceChoice::Cpu => threads(),
            _ => Vec::new(),
        };
        let alternatives: Vec<String> = alternatives.into_iter().filter(|value| *value != self.best[setting]).collect();
        let stage_end = Instant::now() + self.left() / (later + 1);
        for (place, value) in alternatives.iter().enumerate() {
            let time = stage_end.saturating_duration_since(Instant::now()) / (alternatives.len() - place) as u32;
            self.alternative(setting, value, time)?;
        }
        Ok(())
    }

    /// Measures an alternative against the best value so far.
    fn alternative(&mut self, setting: &'static str, value: &str, time: Duration) -> Result<()> {
        let started = Instant::now();
        let against = self.best[setting].clone();
        let _line = progress::live(format_args!("{setting}: {value} against {against}"));
        let mut challenger = self.best.clone();
        challenger.insert(setting, value.to_owned());
        let quality = match setting {
            "dtype" if self.request.floor != Floor::None => Some(self.quality(&challenger)),
            _ => None,
        };
        let (quality, refused) = match quality {
            None => (None, None),
            Some(Ok(quality)) => (Some(quality), self.request.floor.refuses(&quality)),
            Some(Err(error)) => (None, Some(format!("{error:#}"))),
        };
        let (verdict, ratio, reason) = match refused {
            Some(reason) => (Verdict::Refused, None, Some(reason)),
            None => {
                let left = time.saturating_sub(started.elapsed());
                match self.contest.measure([&self.best, &challenger], left, &mut self.doubts)? {
                    Ended::Measured(ratio) => (ratio.verdict(), Some(ratio), None),
                    Ended::HolderFailed(reason) => (Verdict::Better, None, Some(format!("{against} fails: {reason}"))),
                    Ended::ChallengerFailed(reason) => (Verdict::Refused, None, Some(reason)),
                    Ended::OutOfTime(reason) => (Verdict::NotMeasured, None, Some(reason)),
                }
            }
        };
        if verdict == Verdict::Better {
            self.best = challenger;
        }
        self.keep(Comparison {
            setting: setting.into(),
            value: value.into(),
            against,
            verdict,
            ratio,
            quality,
            reason,
        });
        Ok(())
    }

    /// Varies the number of sequences in a step. `None` if it is not part of the goal, or was not measured.
    fn sequences(&mut self, later: u32) -> Option<usize> {
        if self.request.goal != Goal::Throughput {
            return None;
        }
        let part = Part::Sequences(self.left() / (later + 1));
        let measured: Vec<(usize, Vec<Ratio>)> = match part.measure(self.request.program, &self.best) {
            Ok(measured) => measured,
            Err(error) => {
                self.keep(Comparison {
                    setting: SEQUENCES.into(),
                    value: "several".into(),
                    against: "1".into(),
                    verdict: Verdict::Refused,
                    ratio: None,
                    quality: None,
                    reason: Some(format!("{error:#}")),
                });
                return None;
            }
        };
        let mut numbers = vec![1];
        // Place of the best number so far.
        let mut best = 0;
        for (sequences, ratios) in measured {
            numbers.push(sequences);
            let ratio = ratios[best];
            let verdict = ratio.verdict();
            self.keep(Comparison {
                setting: SEQUENCES.into(),
                value: sequences.to_string(),
                against: numbers[best].to_string(),
                verdict,
                ratio: Some(ratio),
                quality: None,
                reason: None,
            });
            if verdict == Verdict::Better {
                best = numbers.len() - 1;
            }
        }
        (numbers.len() > 1).then_some(numbers[best])
    }

    fn keep(&mut self, comparison: Comparison) {
        let Comparison { setting, value, against, verdict, ratio, .. } = &comparison;
        let ratio = ratio.map(|ratio| format!(", {}", ratio.text())).unwrap_or_default();
        (self.progress)(&format!("{setting} {value} against {against}: {}{ratio}", verdict.name()));
        self.comparisons.push(comparison);
    }

    fn quality(&self, values: &Values) -> Result<Quality> {
        Part::Quality(self.request.text.map(PathBuf::from)).measure(self.request.program, values)
    }

    /// The settings with the best values so far.
    fn settings(&self) -> Result<Settings> {
        Settings::load(&flags(&self.best))
    }

    fn engine(&self) -> Result<Engine> {
        self.best["engine"].parse::<EngineChoice>()?.own().context("a peer")
    }

    fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }
}

/// The forms of weights that an engine has on the device. The tensors of a GGUF file keep theirs.
pub fn dtypes(settings: &Settings, spec: &ModelSpec, engine: Engine) -> Vec<Precision> {
    let has_quantised = engine == Engine::Tuned && settings.device == DeviceChoice::Cpu;
    let all = Precision::ALL.into_iter().filter(|precision| !precision.is_quantised() || has_quantised);
    if spec.is_gguf() { Vec::new() } else { all.collect() }
}

/// One thread, twice as many, and so on up to one for each logical core.
fn threads() -> Vec<String> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    up_to(cores).into_iter().map(|threads| threads.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternatives_are_those_of_the_engine() {
        let (settings, mini) = (Settings::default(), ModelSpec::Mini("llama-mini"));
        let dtypes = |spec, engine| dtypes(&settings, spec, engine).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(dtypes(&mini, Engine::Stock), ["f32", "f16", "bf16"]);
        assert_eq!(dtypes(&mini, Engine::Tuned), ["f32", "f16", "bf16", "q8_0", "q4k", "f8e4m3"]);
        assert!(dtypes(&ModelSpec::Path("model.gguf".into()), Engine::Tuned).is_empty());
    }
}
