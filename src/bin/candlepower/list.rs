//! `candlepower list`: what there is, and what is set.

use std::process::ExitCode;

use anyhow::Result;
use candlepower::{
    model::{MINI, SYNTHETIC, shape},
    report::table::markdown,
    scenario::{GENERATIONS, TRAININGS, Tier},
    settings::KEYS,
};
use clap::Args;

use crate::SettingFlags;

#[derive(Args)]
pub struct List {
    #[command(flatten)]
    settings: SettingFlags,
}

impl List {
    pub fn run(self) -> Result<ExitCode> {
        let settings = self.settings.settings(&[])?;
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();

        let mut rows =
            vec![row(&["scenario", "bench target", "sampling", "smallest tier", "purpose", "prompt", "new tokens"])];
        for (target, scenario) in
            GENERATIONS.iter().flat_map(|(target, table)| table.iter().map(move |row| (*target, row)))
        {
            let tier = format!("{:?}", scenario.tier).to_lowercase();
            let (prompt, new) = (scenario.prompt_tokens.to_string(), scenario.new_tokens.to_string());
            rows.push(row(&[
                scenario.key,
                target,
                &scenario.sampling.to_string(),
                &tier,
                scenario.purpose,
                &prompt,
                &new,
            ]));
        }
        println!("{}", markdown(&rows, 5));

        let mut rows = vec![row(&["training", "bench target", "purpose", "quick", "standard", "full"])];
        for (target, group) in TRAININGS.iter().flat_map(|(target, table)| table.iter().map(move |row| (*target, row)))
        {
            let entries = |tier| group.entries(tier).len().to_string();
            let [quick, standard, full] = [Tier::Quick, Tier::Standard, Tier::Full].map(entries);
            rows.push(row(&[group.key, target, group.purpose, &quick, &standard, &full]));
        }
        println!("{}", markdown(&rows, 3));

        let mut rows = vec![row(&["model", "weights", "parameters"])];
        for (name, spec) in MINI
            .iter()
            .map(|name| (*name, (*name).to_owned()))
            .chain(SYNTHETIC.iter().map(|name| (*name, format!("synthetic:{name}"))))
        {
            let millions = shape(name)?.parameters() as f64 / 1e6;
            rows.push(row(&[&spec, "seeded", &format!("{millions:.1} M")]));
        }
        rows.push(row(&["hub:<owner>/<name>[@revision]", "from the Hugging Face Hub, cached", ""]));
        rows.push(row(&["path:<folder>", "config.json and safetensors in a folder", ""]));
        println!("{}", markdown(&rows, 2));

        let mut rows = vec![row(&["setting", "value", "from", "what it is"])];
        for key in KEYS {
            if let Some(setting) = settings.sources.get(key.name) {
                rows.push(row(&[key.name, &setting.value, &setting.from, key.about]));
            }
        }
        print!("{}", markdown(&rows, 4));
        Ok(ExitCode::SUCCESS)
    }
}
