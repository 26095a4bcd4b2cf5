//! How long prompts and answers are.

use std::{fmt, path::Path, str::FromStr};

use anyhow::{Context, Result, bail, ensure};

use super::draw::Draw;
use crate::files;

/// Longest prompt or answer, in tokens.
pub(super) const MAX_TOKENS: f64 = 2_097_152.0;
/// Largest file of lengths.
const FILE_MAX_BYTES: u64 = 64 << 20;

/// A distribution of lengths in tokens. As text: `256`, `uniform:64..512`, `normal:256,64` (mean, standard deviation),
/// `lognormal:256,0.5` (median, standard deviation of the logarithm), `zipf:1.2,4096` (exponent, maximum), or `file:PATH`
/// with one length on each line, which are taken in order and again from the start.
#[derive(Clone, Debug, PartialEq)]
pub enum Lengths {
    /// The same for every request.
    Fixed(u32),
    /// Uniform between two lengths, both included.
    Uniform(u32, u32),
    /// Normal: mean and standard deviation.
    Normal(f64, f64),
    /// Lognormal: median, and standard deviation of the natural logarithm.
    Lognormal(f64, f64),
    /// Zipf: exponent and maximum.
    Zipf(f64, u32),
    /// Lengths of a file, and its name.
    File(String, Vec<u32>),
}

impl Lengths {
    /// The length of the request with this index. It is at least 1.
    pub(super) fn draw(&self, draw: &mut Draw, index: u64) -> u32 {
        let drawn = match self {
            Self::Fixed(tokens) => f64::from(*tokens),
            Self::Uniform(low, high) => f64::from(*low) + draw.below((high - low) as usize + 1) as f64,
            Self::Normal(mean, deviation) => mean + deviation * draw.normal(),
            Self::Lognormal(median, deviation) => median * (deviation * draw.normal()).exp(),
            Self::Zipf(exponent, most) => draw.zipf(*exponent, f64::from(*most)),
            Self::File(_, lengths) => f64::from(lengths[(index % lengths.len() as u64) as usize]),
        };
        drawn.round().clamp(1.0, MAX_TOKENS) as u32
    }
}

impl FromStr for Lengths {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (kind, arguments) = text.split_once(':').unwrap_or(("", text));
        let length = |text: &str| -> Result<u32> {
            let tokens: u32 = text.trim().parse().with_context(|| format!("'{text}' is not a number of tokens"))?;
            ensure!((1..=MAX_TOKENS as u32).contains(&tokens), "{tokens} tokens: use 1 to {MAX_TOKENS}");
            Ok(tokens)
        };
        let number = |text: &str| -> Result<f64> {
            let number: f64 = text.trim().parse().with_context(|| format!("'{text}' is not a number"))?;
            ensure!((0.0..=MAX_TOKENS).contains(&number), "{number}: use 0 to {MAX_TOKENS}");
            Ok(number)
        };
        let two = || arguments.split_once(',').with_context(|| format!("'{text}' needs two numbers, as in {kind}:a,b"));
        Ok(match kind {
            "" => Self::Fixed(length(arguments)?),
            "uniform" => {
                let (low, high) = arguments
                    .split_once("..")
                    .with_context(|| format!("'{text}' needs a range, as in uniform:64..512"))?;
                let (low, high) = (length(low)?, length(high)?);
                ensure!(low <= high, "'{text}': the range is empty");
                Self::Uniform(low, high)
            }
            "normal" => {
                let (mean, deviation) = two()?;
                Self::Normal(number(mean)?, number(deviation)?)
            }
            "lognormal" => {
                let (median, deviation) = two()?;
                Self::Lognormal(number(median)?, number(deviation)?)
            }
            "zipf" => {
                let (exponent, most) = two()?;
                let exponent = number(exponent)?;
                ensure!(exponent > 0.0, "'{text}': the exponent must be above 0");
                Self::Zipf(exponent, length(most)?)
            }
            "file" => {
                let content = files::read_text_limited(Path::new(arguments), FILE_MAX_BYTES)
                    .with_context(|| format!("{arguments} could not be read"))?;
                let lines = content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
                let lengths: Vec<u32> = lines
                    .map(|(number, line)| length(line).with_context(|| format!("{arguments} line {}", number + 1)))
                    .collect::<Result<_>>()?;
                ensure!(!lengths.is_empty(), "{arguments} has no lengths: write one on each line");
                Self::File(arguments.to_owned(), lengths)
            }
            _ => bail!("'{text}' is not a length: use a number, uniform:, normal:, lognormal:, zipf: or file:"),
        })
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(tokens) => write!(f, "{tokens}"),
            Self::Uniform(low, high) => write!(f, "uniform:{low}..{high}"),
            Self::Normal(mean, deviation) => write!(f, "normal:{mean},{deviation}"),
            Self::Lognormal(median, deviation) => write!(f, "lognormal:{median},{deviation}"),
            Self::Zipf(exponent, most) => write!(f, "zipf:{exponent},{most}"),
            Self::File(name, _) => write!(f, "file:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::draw::Purpose, *};

    fn drawn(text: &str) -> Vec<f64> {
        let lengths: Lengths = text.parse().expect(text);
        assert!(text.starts_with("file") || lengths.to_string() == text, "{lengths}");
        (0..4000).map(|index| f64::from(lengths.draw(&mut Draw::new(1, Purpose::Lengths, index), index))).collect()
    }

    #[test]
    fn lengths_have_their_distribution() {
        let mean = |sample: &[f64]| sample.iter().sum::<f64>() / sample.len() as f64;
        assert!(drawn("256").iter().all(|length| *length == 256.0));
        let uniform = drawn("uniform:10..20");
        assert!(uniform.contains(&10.0) && uniform.contains(&20.0) && (mean(&uniform) - 15.0).abs() < 0.3);
        assert!((mean(&drawn("normal:200,30")) - 200.0).abs() < 2.0);
        let mut lognormal = drawn("lognormal:300,0.5");
        lognormal.sort_by(f64::total_cmp);
        assert!((lognormal[2000] - 300.0).abs() < 15.0 && (lognormal[3364] / lognormal[2000]).ln() > 0.45);
        assert!(drawn("normal:1,100").iter().all(|length| *length >= 1.0));
        assert!(drawn("zipf:1.1,64").iter().all(|length| (1.0..=64.0).contains(length)));
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "5\n\n7\n").expect("written");
        assert_eq!(drawn(&format!("file:{}", file.path().display()))[..3], [5.0, 7.0, 5.0]);
    }

    #[test]
    fn bad_lengths_are_refused_with_a_reason() {
        for (text, part) in [
            ("0", "1 to"),
            ("many", "not a number of tokens"),
            ("uniform:9..3", "empty"),
            ("normal:5", "two numbers"),
            ("zipf:0,10", "above 0"),
            ("cauchy:1,2", "not a length"),
            ("file:/no/such/file", "could not be read"),
            ("normal:nan,1", "use 0 to"),
            ("normal:1e300,1e300", "use 0 to"),
        ] {
            let error = format!("{:#}", text.parse::<Lengths>().expect_err(text));
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
