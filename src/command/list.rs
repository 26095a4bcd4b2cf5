//! `candlepower list`: the scenarios, the models, the backbones of the sweep, and the settings.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::flags::Flags;
use crate::{
    config::Config,
    model::{MINI, SYNTHETIC, series::Architecture, shape},
    output,
    report::text_table::markdown,
    runner::{Listing, TARGETS},
    settings::Settings,
    workload::series::{PRESETS, SeriesGrid},
};

#[derive(Args)]
pub struct List {
    #[command(flatten)]
    settings: Flags<Settings>,
}

impl List {
    pub fn run(self) -> Result<ExitCode> {
        let settings = Settings::load(self.settings.given())?;
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();

        for Listing { heading, texts, rows } in scenarios(&settings) {
            let mut heading: Vec<String> = heading.iter().map(|name| (*name).to_owned()).collect();
            heading.insert(1, "bench target".to_owned());
            let rows: Vec<Vec<String>> = [heading].into_iter().chain(rows).collect();
            output::print_line(markdown(&rows, texts + 1));
        }

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
        output::print_line(markdown(&rows, 3));

        let mut rows = vec![row(&["model", "weights", "parameters"])];
        for (name, spec) in MINI
            .iter()
            .map(|name| (*name, (*name).to_owned()))
            .chain(SYNTHETIC.iter().map(|name| (*name, format!("synthetic:{name}"))))
        {
            let millions = shape(name)?.parameters() as f64 / 1e6;
            rows.push(row(&[&spec, "seeded", &format!("{millions:.1} M")]));
        }
        rows.push(row(&["owner/name[@revision]", "safetensors from the Hugging Face Hub, cached", ""]));
        rows.push(row(&["owner/name:Q4_K_M[@revision]", "the GGUF file of a quantisation from the Hub, cached", ""]));
        rows.push(row(&["owner/name/file.gguf[@revision]", "a GGUF file from the Hub, cached", ""]));
        rows.push(row(&["./model.gguf", "a GGUF file, or the first of its parts", ""]));
        rows.push(row(&["./folder", "config.json and safetensors in a folder", ""]));
        output::print_line(markdown(&rows, 2));

        let mut rows = vec![row(&["setting", "value", "from", "description"])];
        for key in Settings::KEYS {
            if let Some(setting) = settings.sources.get(key.name) {
                rows.push(row(&[key.name, &setting.value, &setting.from, key.about]));
            }
        }
        output::print(markdown(&rows, 4));
        Ok(ExitCode::SUCCESS)
    }
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
