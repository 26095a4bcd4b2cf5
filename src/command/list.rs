//! `candlepower list`: the scenarios, the models, the backbones of the sweep, and the settings, by name or in full.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::flags::Flags;
use crate::{
    config::Config,
    model::{MINI, SYNTHETIC, series::Architecture, shape},
    output,
    report::text_table::terminal,
    runner::{Listing, TARGETS},
    settings::Settings,
    workload::series::{PRESETS, SeriesGrid},
};

#[derive(Args)]
pub struct List {
    /// The list to show in full [default: the names of everything]
    what: Option<What>,
    #[command(flatten)]
    settings: Flags<Settings>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum What {
    /// Groups of benchmarks and what each is for
    Scenarios,
    /// Forms of models, and the sizes of those without a download
    Models,
    /// Backbones of the sweep
    Backbones,
    /// Settings in force, and where each came from
    Settings,
}

impl List {
    pub fn run(self) -> Result<ExitCode> {
        let settings = Settings::load(self.settings.given())?;
        let tables = match self.what {
            None => vec![(overview(), 2)],
            Some(What::Scenarios) => scenario_tables(&settings),
            Some(What::Models) => vec![(models()?, 2)],
            Some(What::Backbones) => vec![(backbones()?, 3)],
            Some(What::Settings) => vec![(settings_in_force(&settings), 4)],
        };
        let tables: Vec<String> = tables.iter().map(|(rows, words)| terminal(rows, *words)).collect();
        output::print(tables.join("\n"));
        Ok(ExitCode::SUCCESS)
    }
}

type Rows = Vec<Vec<String>>;

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// The names of everything, on one screen.
fn overview() -> Rows {
    let mut rows = vec![row(&["list", "names"])];
    let mut names = |list: &str, names: &str| rows.push(row(&[list, names]));
    names("models", &FORMS.map(|(form, _)| form).join(" "));
    names("", &MINI.join(" "));
    names("", &SYNTHETIC.map(|name| format!("synthetic:{name}")).join(" "));
    for target in TARGETS {
        names(&format!("--bench {}", target.name), &target.keys().collect::<Vec<_>>().join(" "));
    }
    names("backbones", &Architecture::all().map(|architecture| architecture.name()).collect::<Vec<_>>().join(" "));
    names(
        "more",
        "candlepower list scenarios, candlepower list models, candlepower list backbones, candlepower list settings",
    );
    rows
}

/// Forms of models that are files.
const FORMS: [(&str, &str); 5] = [
    ("./model.gguf", "a GGUF file, or the first of its parts"),
    ("./folder", "config.json and safetensors in a folder"),
    ("owner/name[@revision]", "safetensors from the Hugging Face Hub, cached"),
    ("owner/name:Q4_K_M[@revision]", "the GGUF file of a quantisation from the Hub, cached"),
    ("owner/name/file.gguf[@revision]", "a GGUF file from the Hub, cached"),
];

fn models() -> Result<Rows> {
    let mut rows = vec![row(&["model", "weights", "parameters"])];
    rows.extend(FORMS.map(|(form, weights)| row(&[form, weights, ""])));
    let seeded = MINI.iter().map(|name| (*name, (*name).to_owned()));
    for (name, spec) in seeded.chain(SYNTHETIC.iter().map(|name| (*name, format!("synthetic:{name}")))) {
        let millions = shape(name)?.parameters() as f64 / 1e6;
        rows.push(row(&[&spec, "seeded", &format!("{millions:.1} M")]));
    }
    Ok(rows)
}

fn backbones() -> Result<Rows> {
    let mut rows = vec![row(&["backbone of the sweep", "other names", "presets"])];
    for architecture in Architecture::all() {
        let mut presets = Vec::new();
        for (name, _) in PRESETS {
            if SeriesGrid::preset(name)?.architectures.contains(&architecture) {
                presets.push(name);
            }
        }
        rows.push(row(&[architecture.name(), &architecture.aliases().join(", "), &presets.join(", ")]));
    }
    Ok(rows)
}

fn settings_in_force(settings: &Settings) -> Rows {
    let known = Settings::KEYS.iter().filter_map(|key| Some((key, settings.sources.get(key.name)?)));
    let rows = known.map(|(key, setting)| row(&[key.name, &setting.value, &setting.from, key.about]));
    [row(&["setting", "value", "from", "description"])].into_iter().chain(rows).collect()
}

/// The tables of scenarios for a terminal.
fn scenario_tables(settings: &Settings) -> Vec<(Rows, usize)> {
    let table = |Listing { heading, texts, rows }: Listing| {
        let mut heading: Vec<String> = heading.iter().map(|name| (*name).to_owned()).collect();
        heading.insert(1, "bench target".to_owned());
        ([heading].into_iter().chain(rows).collect(), texts + 1)
    };
    scenarios(settings).into_iter().map(table).collect()
}

/// The tables of scenarios, with the bench target in the second column. Targets with the same heading share a table.
fn scenarios(settings: &Settings) -> Vec<Listing> {
    let mut tables: Vec<Listing> = Vec::new();
    for target in TARGETS {
        for mut listing in target.listings(settings) {
            listing.rows.iter_mut().for_each(|row| row.insert(1, target.name.to_owned()));
            match tables.iter_mut().find(|known| known.heading == listing.heading) {
                Some(known) => known.rows.extend(listing.rows),
                None => tables.push(listing),
            }
        }
    }
    tables
}
