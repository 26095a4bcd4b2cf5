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
    scenario::{CHECKPOINTS, GENERATIONS, PERPLEXITY, SERVINGS, TRAININGS, Tier},
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

        let mut rows =
            vec![row(&["scenario", "bench target", "sampling", "smallest tier", "purpose", "prompt", "new tokens"])];
        for (target, scenario) in
            GENERATIONS.iter().flat_map(|(target, table)| table.iter().map(move |row| (*target, row)))
        {
            let (prompt, new) = (scenario.prompt_tokens.to_string(), scenario.new_tokens.to_string());
            rows.push(row(&[
                scenario.key,
                target,
                &scenario.sampling.to_string(),
                &scenario.tier.to_string(),
                scenario.purpose,
                &prompt,
                &new,
            ]));
        }
        output::print_line(markdown(&rows, 5));

        let mut rows = vec![row(&["load", "bench target", "smallest tier", "purpose", "requests", "new tokens"])];
        for (target, load) in SERVINGS.iter().flat_map(|(target, table)| table.iter().map(move |row| (*target, row))) {
            let (requests, new) = (load.traffic.requests.to_string(), load.traffic.new_tokens.to_string());
            rows.push(row(&[load.key, target, &load.tier.to_string(), load.purpose, &requests, &new]));
        }
        output::print_line(markdown(&rows, 4));

        let mut rows = vec![row(&["training", "bench target", "purpose", "quick", "standard", "full"])];
        for (target, group) in TRAININGS.iter().flat_map(|(target, table)| table.iter().map(move |row| (*target, row)))
        {
            let grid = settings.training_grid();
            let entries = |tier| group.entries(tier, &grid).len().to_string();
            let [quick, standard, full] = [Tier::Quick, Tier::Standard, Tier::Full].map(entries);
            rows.push(row(&[group.key, target, group.purpose, &quick, &standard, &full]));
        }
        output::print_line(markdown(&rows, 3));

        let mut rows = vec![row(&["files of a checkpoint", "bench target", "purpose"])];
        for (target, scenario) in
            CHECKPOINTS.iter().flat_map(|(target, table)| table.iter().map(move |row| (*target, row)))
        {
            rows.push(row(&[scenario.key, target, scenario.purpose]));
        }
        output::print_line(markdown(&rows, 3));

        let mut rows = vec![row(&["quality", "bench target", "smallest tier", "purpose", "window", "stride"])];
        for scenario in PERPLEXITY {
            let (window, stride) = (scenario.window_tokens.to_string(), scenario.stride_tokens.to_string());
            let tier = scenario.tier.to_string();
            rows.push(row(&[scenario.key, "perplexity", &tier, scenario.purpose, &window, &stride]));
        }
        output::print_line(markdown(&rows, 4));

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
