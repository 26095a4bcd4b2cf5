//! Command lines that repeat a measurement, for a POSIX shell.

use std::{collections::BTreeMap, ffi::OsString};

use anyhow::{Result, ensure};

use super::Target;
use crate::{
    config::Config,
    record::{Record, Setting, VARIABLES},
    settings::{Settings, variable},
    text,
};

/// The command line of this process, with the settings that it takes from the environment or from the settings file.
pub fn own_command(arguments: impl IntoIterator<Item = OsString>, settings: &Settings) -> String {
    let mut words = assignments(&settings.sources, |setting| setting.from != "command line");
    words.push("candlepower".into());
    words.extend(arguments.into_iter().skip(1).map(|argument| text::shell(&argument.to_string_lossy())));
    words.join(" ")
}

/// The command line that repeats the benchmark of a record, with every setting that was not the default.
///
/// # Errors
/// Returns an error for a sandbox record, which nothing measured, and for a load, whose command line may hold secrets.
pub fn reproduction(record: &Record) -> Result<String> {
    ensure!(!record.sandbox, "{}: the record is synthetic, so no command repeats it", record.id);
    if let Some(command) = &record.command {
        return Ok(command.clone());
    }
    ensure!(record.subject.device != "server", "{}: the record of a load does not hold its command", record.id);
    let variable = |name| Some(format!("{name}={}", text::shell(record.software.variable(name)?)));
    let mut words: Vec<String> = VARIABLES.iter().filter_map(|known| variable(known.name)).collect();
    words.extend(assignments(&record.settings, |_| true));
    words.extend(["cargo", "bench"].map(str::to_owned));
    let target = Target::of_scenario(&record.scenario).filter(|_| record.subject.engine != "own");
    if let Some(target) = target {
        words.extend(["--bench".to_owned(), target.name.to_owned()]);
    }
    if !record.software.features.is_empty() {
        words.extend(["--features".to_owned(), text::shell(&record.software.features.join(","))]);
    }
    words.extend(["--".to_owned(), text::shell(&format!("^{}$", literal(&record.id)))]);
    Ok(words.join(" "))
}

/// Assignments of the environment for the settings that were given. The folder of the records does not change what is
/// measured. A record may come from elsewhere, so an unknown name of a setting is left out.
fn assignments(settings: &BTreeMap<String, Setting>, is_wanted: fn(&Setting) -> bool) -> Vec<String> {
    let is_given = |name: &str, setting: &Setting| {
        setting.from != "default" && name != "out" && Settings::KEYS.iter().any(|key| key.name == name)
    };
    let given = settings.iter().filter(|(name, setting)| is_given(name, setting) && is_wanted(setting));
    given.map(|(name, setting)| format!("{}={}", variable(name), text::shell(&setting.value))).collect()
}

/// A regular expression that matches the text alone.
fn literal(text: &str) -> String {
    let mut expression = String::new();
    for c in text.chars() {
        if c.is_ascii_punctuation() && !"/-_".contains(c) {
            expression.push('\\');
        }
        expression.push(c);
    }
    expression
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(edit: impl Fn(&mut Record)) -> Record {
        let mut record = serde_json::from_str(include_str!("../core/record/sample.json")).expect("the sample");
        edit(&mut record);
        record
    }

    fn given(value: &str, from: &str) -> Setting {
        Setting { value: value.into(), from: from.into() }
    }

    #[test]
    fn a_benchmark_is_repeated_with_what_was_set() {
        let record = sample(|record| {
            record.id = "medium/llama-3.2-1b/tuned-bf16-cpu".into();
            record.scenario = "medium".into();
            record.software.features = vec!["avx512".into(), "mkl".into()];
            record.settings = BTreeMap::from([
                ("models".into(), given("path:./my model", "candlepower.toml")),
                ("dtype".into(), given("bf16", "environment")),
                ("seed".into(), given("42", "default")),
                ("out".into(), given("elsewhere", "environment")),
                ("x; rm".into(), given("1", "environment")),
            ]);
            record.software.glibc_tunables = Some("glibc.malloc.mmap_max=0; rm".into());
            let given = [("CANDLE_CPU_MASK", "0-1"), ("LD_PRELOAD", "./evil.so")];
            record.software.environment = given.map(|(name, value)| (name.into(), value.into())).into();
        });
        assert_eq!(
            reproduction(&record).expect("a command"),
            "CANDLE_CPU_MASK=0-1 GLIBC_TUNABLES='glibc.malloc.mmap_max=0; rm' CANDLEPOWER_DTYPE=bf16 \
             CANDLEPOWER_MODELS='path:./my model' cargo bench --bench generation --features avx512,mkl -- '^medium/llama-3\\.2-1b/tuned-bf16-cpu$'"
        );
    }

    #[test]
    fn each_kind_has_its_target() {
        for (scenario, target) in [
            ("moe_top_k_decode", "--bench moe "),
            ("checkpoint_memory_bytes", "--bench memory "),
            ("training_sweep_train", "--bench training "),
            ("architecture_sweep_infer", "--bench sweep "),
            ("depth-4k", "--bench long_context "),
            ("threads_scaling", "--bench threads_scaling "),
            ("tensor_parallel", "--bench tensor_parallel "),
            ("load_cold", "--bench load "),
            ("tokenizer_stream", "--bench tokenizer "),
            ("perplexity", "--bench perplexity "),
        ] {
            let command = reproduction(&sample(|record| record.scenario = scenario.into())).expect(scenario);
            assert!(command.contains(target), "{command}");
        }
        let own = reproduction(&sample(|record| record.subject.engine = "own".into())).expect("a command");
        assert!(own.contains("cargo bench -- "), "the target of another crate is unknown: {own}");
    }

    #[test]
    fn a_command_of_its_own_wins_and_what_was_not_measured_has_none() {
        let record = sample(|record| record.command = Some("candlepower run --seed 3".into()));
        assert_eq!(reproduction(&record).expect("a command"), "candlepower run --seed 3");
        assert!(reproduction(&sample(|record| record.sandbox = true)).is_err());
        assert!(reproduction(&sample(|record| record.subject.device = "server".into())).is_err());
    }

    #[test]
    fn the_command_of_a_process_has_the_settings_from_elsewhere() {
        let mut settings = Settings::default();
        settings.sources.insert("threads".into(), given("1", "environment"));
        settings.sources.insert("seed".into(), given("7", "command line"));
        let arguments = ["/usr/bin/candlepower", "run", "--seed", "7", "--prompt", "it's"].map(OsString::from);
        assert_eq!(
            own_command(arguments, &settings),
            "CANDLEPOWER_THREADS=1 candlepower run --seed 7 --prompt 'it'\\''s'"
        );
    }
}
