//! Checks that the JSON schemas in `src/report/schemas` match the types. `UPDATE_SCHEMAS=1 cargo test --test suite
//! schemas::` rewrites them.

use std::{fs, path::Path};

use candlepower::{
    quality::{Evaluation, Report},
    recommend::Recommendation,
    report::{bisect::Bisection, compare::Comparison, duel::Duel, history::History},
    serve,
    verify::Verified,
    why::Advised,
    wrap::{Memory, Power},
};
use candlepower_core::record::Record;
use schemars::{Schema, schema_for};

#[test]
fn the_schemas_are_those_of_the_types() {
    let interface: Schema = serve::document(None).try_into().expect("a schema");
    let schemas: [(&str, Schema); 13] = [
        ("record.json", schema_for!(Record)),
        ("comparison.json", schema_for!(Comparison)),
        ("duel.json", schema_for!(Duel)),
        ("bisection.json", schema_for!(Bisection)),
        ("history.json", schema_for!(Vec<History>)),
        ("perplexity.json", schema_for!(Report)),
        ("evaluation.json", schema_for!(Evaluation)),
        ("recommendation.json", schema_for!(Recommendation)),
        ("verification.json", schema_for!(Vec<Verified>)),
        ("explanation.json", schema_for!(Advised)),
        ("memory.json", schema_for!(Memory)),
        ("power.json", schema_for!(Power)),
        ("openapi.json", interface),
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/report/schemas");
    for (file, schema) in schemas {
        let text = serde_json::to_string_pretty(&schema).expect("a schema") + "\n";
        let path = folder.join(file);
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            fs::write(&path, &text).expect("written");
        }
        assert_eq!(fs::read_to_string(&path).unwrap_or_default(), text, "{file} is out of date");
    }
}
