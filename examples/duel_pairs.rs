//! Duels between two programs that are built already, one after the other:
//! `cargo run --release --example duel_pairs -- A B DUELS FILTER SECONDS RESOLVE`. A and B are paths of programs `candlepower`. A
//! duel ends after so many seconds, or when its interval reaches at most the share RESOLVE to either side. A line for each duel
//! begins with its verdict. scripts/duel_pairs.sh runs it.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use candlepower::{
    duel::{Folders, Program, Rules, Until, measure},
    runner,
    settings::Settings,
};
use candlepower_core::output;

fn main() -> ExitCode {
    runner::in_one_line(|| {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let [a, b, duels, filter, seconds, resolve] = arguments.as_slice() else {
            bail!("give A B DUELS FILTER SECONDS RESOLVE")
        };
        let program = |path: &String| -> Result<Program> {
            let path = PathBuf::from(path).canonicalize().with_context(|| path.clone())?;
            let given = path.display().to_string();
            Ok(Program { given, commit: "unknown".into(), path, settings: BTreeMap::new() })
        };
        let (a, b) = (program(a)?, program(b)?);
        let rules = Rules {
            filter: Some(filter.parse()?),
            resolve: resolve.parse().with_context(|| resolve.clone())?,
            until: Until::Resolved,
            level: 0.05,
            budget: Duration::from_secs(seconds.parse().with_context(|| seconds.clone())?),
        };
        let out = Settings::load(&[])?.out;
        let logs = tempfile::tempdir()?;
        for _ in 0..duels.parse::<usize>().with_context(|| duels.clone())? {
            let duel = measure([&a, &b], &rules, Folders { out: &out, logs: logs.path() }, |_| ())?;
            if let Some(failed) = duel.failed.first() {
                bail!("{failed}");
            }
            for row in &duel.rows {
                let tokens = match row.same_work {
                    Some(true) => "the same tokens",
                    Some(false) => "other tokens",
                    None => "no tokens",
                };
                let verdict = serde_json::to_value(row.verdict)?;
                output::print_line(format_args!(
                    "{} {}: {}, {} pairs in {:.0} s, {tokens}",
                    verdict.as_str().unwrap_or_default(),
                    row.id,
                    row.summary(),
                    row.pairs,
                    row.seconds
                ));
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}
