//! The README says what the program does: its tables are compared with the program's.

use candlepower::{
    config::Config,
    model::{MINI, SYNTHETIC},
    scenario::GENERATION,
    settings::Settings,
};

const README: &str = include_str!("../README.md");

#[test]
fn every_scenario_is_in_its_table() {
    for scenario in GENERATION {
        let row = format!("| {} | {} | {} |", scenario.key, scenario.prompt_tokens, scenario.new_tokens);
        assert!(README.contains(&row), "{row}");
    }
}

#[test]
fn every_setting_and_model_is_described() {
    for key in Settings::KEYS {
        let cell = format!("| `CANDLEPOWER_{}` | `{}` |", key.name.to_uppercase(), key.name);
        assert!(README.contains(&cell), "{cell}");
    }
    for model in
        MINI.iter().map(|name| (*name).to_owned()).chain(SYNTHETIC.iter().map(|name| format!("synthetic:{name}")))
    {
        assert!(README.contains(&format!("`{model}`")), "{model}");
    }
}

#[test]
fn the_test_command_is_the_one_that_is_run() {
    let checks = include_str!("../.ci/run");
    assert!(README.contains("\ncargo test ") && checks.contains("\ncargo test\n"));
}
