//! Recommends settings for a model on this machine: measures alternatives in turns, and gives the reason of each choice.
//!
//! ```text
//! search    varies one setting at a time → Recommendation
//!   floor   the quality that an alternative must keep
//!   contest two candidates in turns, each in a process of its own
//!   batch   several sequences in one step, in turns
//!   part    floor and batch, in a process of their own
//! file      writes the settings file
//! ```

mod batch;
mod contest;
mod file;
mod floor;
mod part;
mod search;

pub(crate) use contest::{Contest, Ended};
pub(crate) use file::{check, write};
pub(crate) use floor::{Floor, Quality};
pub(crate) use part::answer;
pub(crate) use search::{Request, dtypes, recommend, values};

use std::{fmt::Write, str::FromStr};

use anyhow::{Result, anyhow};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    config::unknown,
    measure::statistics::Paired,
    report::text_table::{terminal, width, wrapped},
};

/// The quantity that settings are chosen to improve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Goal {
    /// The time of a short generation of one sequence.
    Latency,
    /// Tokens per second, of several sequences at once where the model holds several.
    Throughput,
    /// The peak of memory of a short generation.
    Memory,
}

impl Goal {
    const ALL: [Self; 3] = [Self::Latency, Self::Throughput, Self::Memory];

    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Throughput => "throughput",
            Self::Memory => "memory",
        }
    }

    /// The generation scenario that candidates run.
    fn scenario(self) -> &'static str {
        match self {
            Self::Latency | Self::Memory => "short",
            Self::Throughput => "medium",
        }
    }

    /// The quantity that is compared. Less is better.
    fn quantity(self) -> &'static str {
        match self {
            Self::Latency | Self::Throughput => "time",
            Self::Memory => "peak memory",
        }
    }
}

impl FromStr for Goal {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|goal| goal.name() == text);
        found.ok_or_else(|| anyhow!("{}", unknown("goal", text, &Self::ALL.map(Self::name))))
    }
}

/// The settings for a goal, and why.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Recommendation {
    /// Model specification.
    pub model: String,
    /// The goal of the settings.
    pub goal: Goal,
    /// Generation scenario that the candidates ran.
    pub scenario: String,
    /// Quality that a dtype must keep against f32.
    pub floor: String,
    /// The chosen value of each setting.
    pub choices: Vec<Choice>,
    /// Every alternative, in the order of measurement.
    pub comparisons: Vec<Comparison>,
    /// Reasons to doubt the measurements, as sentences.
    pub doubts: Vec<String>,
    /// Time of all measurements.
    pub seconds: f64,
}

/// The chosen value of a setting.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Choice {
    /// Key of the setting, or `max_sequences` for the option of `candlepower serve`.
    pub setting: String,
    /// The value.
    pub value: String,
    /// Why it is chosen, as a sentence.
    pub reason: String,
}

/// An alternative to the best value so far.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Comparison {
    /// Key of the setting.
    pub setting: String,
    /// The alternative.
    pub value: String,
    /// The best value so far.
    pub against: String,
    /// The result for the alternative.
    pub verdict: Verdict,
    /// Time or memory with `value`, divided by that with `against`; `null` if they were not measured in turns.
    pub ratio: Option<Ratio>,
    /// Quality of the alternative against f32; `null` where it was not measured.
    pub quality: Option<Quality>,
    /// Why there is no ratio, or why the alternative is refused; `null` otherwise.
    pub reason: Option<String>,
}

/// The result of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The alternative is better, and becomes the best value so far.
    Better,
    /// The alternative is worse.
    Worse,
    /// No difference was measured that is large enough to change a setting.
    Same,
    /// The alternative does not run, or its quality is below the floor.
    Refused,
    /// The budget of time was too short.
    NotMeasured,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Same => "no measurable difference",
            Self::Refused => "refused",
            Self::NotMeasured => "not measured",
        }
    }
}

/// The median of paired ratios, with its interval from order statistics.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ratio {
    /// Median of the ratios of all pairs.
    pub ratio: f64,
    /// Lower end of its interval.
    pub low: f64,
    /// Upper end of its interval.
    pub high: f64,
    /// Probability with which such an interval contains the true median.
    pub level: f64,
    /// Number of pairs.
    pub pairs: usize,
}

/// A smaller gain does not change a setting: several alternatives are tried, and one of them is ahead by chance.
const LEAST_GAIN: f64 = 0.01;

impl Ratio {
    /// The ratio with its two sides exchanged.
    fn inverse(self) -> Self {
        Self { ratio: 1.0 / self.ratio, low: 1.0 / self.high, high: 1.0 / self.low, ..self }
    }

    /// The verdict for the side above the line.
    pub fn verdict(self) -> Verdict {
        match self {
            Self { high, .. } if high < 1.0 - LEAST_GAIN => Verdict::Better,
            Self { low, .. } if low > 1.0 => Verdict::Worse,
            _ => Verdict::Same,
        }
    }

    /// The ratio and its interval.
    pub fn text(self) -> String {
        format!("{:.3} ({:.3} to {:.3})", self.ratio, self.low, self.high)
    }
}

impl From<Paired> for Ratio {
    fn from(Paired { ratio, low, high, level, pairs }: Paired) -> Self {
        Self { ratio, low, high, level, pairs }
    }
}

impl Choice {
    /// The value of a setting, with the reason that its comparisons give. The runner-up is the alternative that came nearest
    /// in a direct comparison.
    fn new(goal: Goal, setting: &str, value: &str, comparisons: &[Comparison]) -> Self {
        let direct = comparisons.iter().filter(|one| one.setting == setting).filter_map(|one| match one.ratio? {
            ratio if one.value == value => Some((ratio, one.against.as_str())),
            ratio if one.against == value => Some((ratio.inverse(), one.value.as_str())),
            _ => None,
        });
        let nearest = direct.max_by(|(a, _), (b, _)| a.ratio.total_cmp(&b.ratio));
        let reason = match nearest {
            None => "no alternative was measured beside it".to_owned(),
            Some((ratio, other)) if ratio.high < 1.0 => {
                format!("{} {} of that with {other}, the runner-up", goal.quantity(), ratio.text())
            }
            Some((ratio, other)) => {
                format!("no measurable gain from {other}, the runner-up: {} {}", goal.quantity(), ratio.text())
            }
        };
        Self { setting: setting.into(), value: value.into(), reason }
    }
}

impl Recommendation {
    /// The recommendation for a terminal.
    pub(crate) fn text(&self) -> String {
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        let mut rows = vec![row(&["setting", "alternative", "against", "verdict", "ratio", "KL, nats"])];
        for one in &self.comparisons {
            let ratio = one.ratio.map(Ratio::text).unwrap_or_default();
            let kl = one.quality.as_ref().map(|quality| format!("{:.1e}", quality.kl_mean)).unwrap_or_default();
            rows.push(row(&[&one.setting, &one.value, &one.against, one.verdict.name(), &ratio, &kl]));
        }
        let mut text = format!(
            "Settings of {} for {}, measured in {:.0} s on the scenario {}\n\n{}",
            self.model,
            self.goal.name(),
            self.seconds,
            self.scenario,
            terminal(&rows, 4)
        );
        let mut paragraph = |line: String| {
            let _ = write!(text, "\n{}\n", wrapped(&line, width()).join("\n"));
        };
        paragraph(format!(
            "A ratio is the {} with the alternative over that with the value against which it was measured, in turns, with \
             its interval. Dtypes must keep {}.",
            self.goal.quantity(),
            self.floor
        ));
        for one in self.comparisons.iter().filter(|one| one.reason.is_some()) {
            paragraph(format!("{} {}: {}", one.setting, one.value, one.reason.as_deref().unwrap_or_default()));
        }
        for doubt in &self.doubts {
            paragraph(format!("doubt: {doubt}"));
        }
        for choice in &self.choices {
            paragraph(format!("{} = {}: {}", choice.setting, choice.value, choice.reason));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratio(ratio: f64) -> Ratio {
        Ratio { ratio, low: ratio - 0.01, high: ratio + 0.01, level: 0.95, pairs: 20 }
    }

    fn comparison(value: &str, against: &str, measured: f64) -> Comparison {
        let ratio = ratio(measured);
        Comparison {
            setting: "dtype".into(),
            value: value.into(),
            against: against.into(),
            verdict: ratio.verdict(),
            ratio: Some(ratio),
            quality: None,
            reason: None,
        }
    }

    #[test]
    fn an_interval_decides() {
        let verdicts = [0.5, 0.985, 1.0, 1.005, 1.2].map(|value| ratio(value).verdict());
        use Verdict::{Better, Same, Worse};
        assert_eq!(verdicts, [Better, Same, Same, Same, Worse]);
        let inverse = ratio(0.5).inverse();
        assert!((inverse.ratio - 2.0).abs() < 1e-12 && inverse.low < 2.0 && inverse.high > 2.0, "{inverse:?}");
    }

    #[test]
    fn the_reason_is_the_ratio_to_the_runner_up() {
        let comparisons =
            [comparison("bf16", "f32", 0.6), comparison("q8_0", "bf16", 0.8), comparison("q4k", "q8_0", 1.1)];
        let choice = Choice::new(Goal::Latency, "dtype", "q8_0", &comparisons);
        assert_eq!(choice.reason, "time 0.909 (0.901 to 0.917) of that with q4k, the runner-up");
        let kept = Choice::new(Goal::Memory, "dtype", "f32", &[comparison("bf16", "f32", 1.0)]);
        assert_eq!(kept.reason, "no measurable gain from bf16, the runner-up: peak memory 1.000 (0.990 to 1.010)");
        assert!(Choice::new(Goal::Latency, "threads", "2", &comparisons).reason.contains("no alternative"));
    }

    #[test]
    fn an_unknown_goal_is_refused_in_one_line() {
        assert_eq!("memory".parse::<Goal>().expect("a goal"), Goal::Memory);
        let error = "latenc".parse::<Goal>().expect_err("unknown").to_string();
        assert_eq!(error, "unknown goal 'latenc': did you mean latency?");
    }
}
