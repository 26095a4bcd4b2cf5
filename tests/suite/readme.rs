//! Compares the tables of the README and of the guide with the program.

use std::path::Path;

use candlepower::{
    report::{table::tables, text_table::terminal},
    settings::Settings,
};
use candlepower_core::{
    config::Config,
    model::{config_keys_in_markdown, families_in_markdown, series::Architecture, shapes_in_markdown},
    record,
    scenario::{GENERATION, Tier},
};

use crate::generated::assert_part;

const README: &str = include_str!("../../README.md");
const SETTINGS: &str = include_str!("../../src/guide/settings.md");

#[test]
fn every_scenario_is_in_its_table() {
    for scenario in GENERATION {
        let row = format!("| {} | {} | {} |", scenario.key, scenario.prompt_tokens, scenario.new_tokens);
        assert!(README.contains(&row), "{row}");
    }
    let quick = GENERATION.iter().filter(|scenario| scenario.tier == Tier::Quick);
    let quick = quick.map(|scenario| format!("`{}`", scenario.key)).collect::<Vec<_>>().join(" and ");
    assert!(README.contains(&format!("{quick} run unless")), "{quick}");
}

#[test]
fn every_setting_is_described() {
    for key in Settings::KEYS {
        let cell = format!("| `CANDLEPOWER_{}` | `{}` |", key.name.to_uppercase(), key.name);
        assert!(SETTINGS.contains(&cell), "{cell}");
    }
}

#[test]
fn every_model_and_family_is_in_the_tables_of_the_guide() {
    assert_part("settings.md", "shapes", &shapes_in_markdown().expect("a table"));
    assert_part("settings.md", "families", &families_in_markdown().expect("a table"));
    assert_part("settings.md", "config keys", &config_keys_in_markdown());
}

/// The README quotes what a run of `short` prints, from the kept report that it links to.
#[test]
fn the_quoted_table_is_that_of_the_kept_report() {
    let link = README.split("[kept report](").nth(1).and_then(|rest| rest.split("/README.md)").next());
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(link.expect("a link")).join("results.jsonl");
    let mut records = record::latest(&file).expect("the kept records").records;
    records.retain(|record| record.scenario == "short");
    let table = tables(records.iter()).remove(0);
    let text = format!("{}\n\n{}", table.heading(), terminal(&table.rows, table.words));
    assert!(README.contains(&text), "the README lacks\n{text}");
}

#[test]
fn every_backbone_is_in_the_table_of_the_guide() {
    assert_part("sweep.md", "backbones", &Architecture::documentation());
}

#[test]
fn the_test_command_is_the_one_that_is_run() {
    let checks = include_str!("../../.ci/run");
    assert!(README.contains("\ncargo test ") && checks.contains("\ncargo test\n"));
}

/// A scenario may add its row to the table.
#[test]
fn the_readme_stays_short() {
    assert!(README.lines().count() <= 193 + GENERATION.len(), "move details to the guide in src/guide");
}
