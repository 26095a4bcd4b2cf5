//! Criterion's command line, which the bench targets read too: the benchmarks that it selects, and how they run.

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Arg, ArgAction, ArgMatches, Command};
use regex::Regex;

use crate::names::PathName;

/// Criterion's options with a value, and their short names.
const WITH_VALUE: &[(&str, Option<char>)] = &[
    ("color", Some('c')),
    ("save-baseline", Some('s')),
    ("baseline", Some('b')),
    ("baseline-lenient", None),
    ("load-baseline", None),
    ("format", None),
    ("profile-time", None),
    ("sample-size", None),
    ("warm-up-time", None),
    ("measurement-time", None),
    ("nresamples", None),
    ("noise-threshold", None),
    ("confidence-level", None),
    ("significance-level", None),
    ("plotting-backend", None),
    ("output-format", None),
];

/// Criterion's other options.
const FLAGS: &[(&str, Option<char>)] = &[
    ("verbose", Some('v')),
    ("quiet", None),
    ("noplot", Some('n')),
    ("discard-baseline", None),
    ("list", None),
    ("ignored", None),
    ("exact", None),
    ("quick", None),
    ("test", None),
    ("bench", None),
    ("nocapture", None),
    ("show-output", None),
    ("include-ignored", None),
];

/// The use of benchmarks by a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Measures, and keeps records.
    Measure,
    /// Runs an iteration of each and measures nothing.
    Test,
    /// Nothing runs: benchmarks are listed, or compared with what a baseline holds.
    Read,
    /// Runs each for a time while the user profiles.
    Profile,
}

/// The command line of this process.
pub struct Arguments {
    matches: ArgMatches,
    filter: Option<Regex>,
}

impl Arguments {
    /// Reads the command line of this process.
    ///
    /// # Errors
    /// Returns an error if a value is out of its range, or the filter is no regular expression.
    pub fn read() -> Result<Self> {
        Self::of(std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()))
    }

    fn of(arguments: impl IntoIterator<Item = String>) -> Result<Self> {
        let option = |&(name, short): &(&'static str, Option<char>), action| {
            let option = Arg::new(name).long(name).action(action);
            short.map_or(option.clone(), |short| option.short(short))
        };
        // Criterion reports what it does not know.
        let command = Command::new("bench")
            .disable_help_flag(true)
            .ignore_errors(true)
            .args(WITH_VALUE.iter().map(|one| option(one, ArgAction::Set)))
            .args(FLAGS.iter().map(|one| option(one, ArgAction::SetTrue)))
            .arg(Arg::new("FILTER"));
        let matches = command.try_get_matches_from(arguments)?;
        let all = Self { matches, filter: None };
        for (option, least, most) in [("sample-size", 10, 100_000), ("nresamples", 1, 10_000_000)] {
            if let Some(text) = all.value(option) {
                let fits = text.parse::<usize>().is_ok_and(|number| (least..=most).contains(&number));
                ensure!(fits, "--{option} {text}: expected a whole number from {least} to {most}");
            }
        }
        for option in ["save-baseline", "baseline", "baseline-lenient", "load-baseline"] {
            all.value(option)
                .map_or(Ok(()), |name| name.parse::<PathName>().map(drop))
                .with_context(|| format!("--{option}"))?;
        }
        let filter = match all.value("FILTER").filter(|_| !all.given("exact")) {
            Some(text) => Some(Regex::new(text).map_err(|error| {
                let error = error.to_string();
                let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
                anyhow!("the filter '{text}' is no regular expression: {reason}")
            })?),
            None => None,
        };
        Ok(Self { filter, ..all })
    }

    /// Returns the value of an option.
    pub fn value(&self, option: &str) -> Option<&str> {
        self.matches.get_one::<String>(option).map(String::as_str)
    }

    /// Returns whether a flag is given.
    pub fn given(&self, flag: &str) -> bool {
        self.matches.get_flag(flag)
    }

    /// Returns the number that an option gives.
    pub fn number<T: std::str::FromStr>(&self, option: &str) -> Option<T> {
        self.value(option)?.parse().ok()
    }

    /// The use of benchmarks, as Criterion decides it.
    pub fn mode(&self) -> Mode {
        if self.given("list") || self.value("load-baseline").is_some() {
            Mode::Read
        } else if self.given("test") || !self.given("bench") {
            Mode::Test
        } else if self.value("profile-time").is_some() {
            Mode::Profile
        } else {
            Mode::Measure
        }
    }

    /// Returns whether Criterion runs the benchmark with this id.
    pub fn selects(&self, id: &str) -> bool {
        // No benchmark is ignored.
        if self.given("ignored") {
            return false;
        }
        match (&self.filter, self.value("FILTER")) {
            (Some(filter), _) => filter.is_match(id),
            (None, Some(exact)) => id == exact,
            (None, None) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Arguments> {
        Arguments::of(text.split(' ').map(str::to_owned))
    }

    #[test]
    fn the_filter_is_found_among_the_options() {
        let id = "short/llama-mini/tuned-f32-cpu";
        for (line, selects) in [
            ("x --bench", true),
            ("x --bench ^short/", true),
            ("x ^medium/ --bench", false),
            ("x --save-baseline main --bench llama", true),
            ("x -s main --bench qwen", false),
            ("x -smain --bench llama", true),
            ("x --sample-size=20 --quick ^short/.*cpu$", true),
            ("x --exact short/llama-mini", false),
            ("x --exact short/llama-mini/tuned-f32-cpu", true),
            ("x --ignored", false),
            ("x --unknown llama", true),
        ] {
            assert_eq!(read(line).expect(line).selects(id), selects, "{line}");
        }
    }

    #[test]
    fn the_mode_is_that_of_criterion() {
        for (line, mode) in [
            ("x --bench", Mode::Measure),
            ("x --bench --quick", Mode::Measure),
            ("x", Mode::Test),
            ("x --bench --test", Mode::Test),
            ("x --list --bench", Mode::Read),
            ("x --bench --load-baseline main", Mode::Read),
            ("x --bench --profile-time 3", Mode::Profile),
        ] {
            assert_eq!(read(line).expect(line).mode(), mode, "{line}");
        }
    }

    #[test]
    fn bad_values_are_one_line() {
        for (line, named) in [
            ("x --sample-size 9", "--sample-size 9: expected a whole number from 10"),
            ("x --nresamples 0", "--nresamples 0: expected"),
            ("x (", "the filter '(' is no regular expression"),
            ("x --save-baseline ../a", "--save-baseline: '../a' can't be the name of a file or folder"),
            ("x -b a/b", "--baseline: 'a/b' can't be"),
            ("x --load-baseline ..", "--load-baseline: '..' can't be"),
        ] {
            let error = format!("{:#}", read(line).err().expect(line));
            assert!(error.contains(named), "{error}");
        }
    }
}
