//! The YAML files of the sweep's source, whose keys are in sections: `data`, `model`, `optimizer` and `trainer`.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::model::series::Architecture;

/// Keys of the source, with their section, and ours. Keys that are absent here do not apply to a sweep.
const KEYS: &[(&str, &str)] = &[
    ("seed", "seed"),
    ("data.window_size", "windows"),
    ("data.horizon", "horizons"),
    ("data.stride", "stride"),
    ("model.architecture", "architectures"),
    ("model.feature_dim", "features"),
    ("model.model_dim", "model_dims"),
    ("model.depth", "depths"),
    ("model.horizon", "horizons"),
    ("model.output_dim", "outputs"),
    ("model.heads", "heads"),
    ("model.ff_mult", "ff_mult"),
    ("model.conv_kernel_size", "conv_kernel"),
    ("model.conv_dilations", "dilations"),
    ("model.ssm_state_dim", "state_dim"),
    ("model.ssm_kernel_size", "state_kernel"),
    ("model.coarse_factor", "coarse_factor"),
    ("model.cross_every", "cross_every"),
    ("model.max_seq_len", "max_seq_len"),
    ("model.dropout", "dropout"),
    ("model.gradient_checkpointing", "gradient_checkpointing"),
    ("optimizer.lr", "learning_rate"),
    ("optimizer.weight_decay", "weight_decay"),
    ("trainer.batch_size", "batch"),
    ("trainer.accumulate_grad_batches", "accumulate"),
    ("trainer.gradient_clip_val", "clip_norm"),
    ("trainer.accelerator", "device"),
    ("trainer.devices", "devices"),
    ("trainer.max_epochs", "max_epochs"),
    ("trainer.limit_train_batches", "limit_train_batches"),
    ("trainer.limit_val_batches", "limit_val_batches"),
    ("trainer.log_every_n_steps", "log_every_n_steps"),
];

/// Steps of the source's cosine schedule, which its files do not name.
const COSINE_STEPS: u64 = 500;

/// A nested file in our keys.
pub struct Translated {
    /// Our keys, as YAML.
    pub yaml: String,
    /// Keys and sections that do not apply, as the file names them.
    pub skipped: Vec<String>,
}

/// Translates a file of the source. `None` for a file that has none of the source's sections.
///
/// # Errors
/// When a value that is translated cannot be understood.
pub fn translate(text: &str) -> Result<Option<Translated>> {
    // A text that cannot be read is reported where the keys of a flat file are.
    let Ok(file) = serde_saphyr::from_str::<Map<String, Value>>(text) else { return Ok(None) };
    let is_nested =
        ["data", "model", "optimizer", "trainer"].iter().any(|name| file.get(*name).is_some_and(Value::is_object));
    if !is_nested {
        return Ok(None);
    }
    let mut ours = Map::from_iter([("cosine_steps".to_owned(), json!(COSINE_STEPS))]);
    let mut skipped = Vec::new();
    for (name, value) in &file {
        let Value::Object(section) = value else {
            take(name, value, &mut ours, &mut skipped)?;
            continue;
        };
        let mut of_section = Vec::new();
        for (key, value) in section {
            take(&format!("{name}.{key}"), value, &mut ours, &mut of_section)?;
        }
        // A section of which nothing applies is named once.
        match of_section.len() == section.len() {
            true => skipped.push(name.clone()),
            false => skipped.extend(of_section),
        }
    }
    drop_own_heads(&mut ours);
    let yaml = serde_json::to_string(&ours).context("the keys cannot be written")?;
    Ok(Some(Translated { yaml, skipped }))
}

fn take(name: &str, value: &Value, ours: &mut Map<String, Value>, skipped: &mut Vec<String>) -> Result<()> {
    match (name, value) {
        (_, Value::Null) => skipped.push(name.to_owned()),
        ("optimizer.betas", value) => {
            let betas = value.as_array().filter(|betas| betas.len() == 2);
            let betas = betas.with_context(|| format!("{name}={value}: expected two numbers"))?;
            ours.extend([("beta1".to_owned(), betas[0].clone()), ("beta2".to_owned(), betas[1].clone())]);
        }
        ("trainer.precision", value) => {
            let precision = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let dtype = match precision.as_str() {
                "32" | "32-true" => "f32",
                "bf16" | "bf16-mixed" | "bf16-true" => "bf16",
                other => anyhow::bail!("{name}={other}: expected 32 or bf16-mixed"),
            };
            ours.insert("dtype".to_owned(), json!(dtype));
        }
        (name, value) => match KEYS.iter().find(|(theirs, _)| *theirs == name) {
            Some((_, key)) => drop(ours.insert((*key).to_owned(), value.clone())),
            None => skipped.push(name.to_owned()),
        },
    }
    Ok(())
}

/// Leaves out a number of heads that is the architecture's own, so that widths that it does not divide have others. The
/// source fails at such widths.
fn drop_own_heads(ours: &mut Map<String, Value>) {
    let architecture =
        ours.get("architectures").and_then(Value::as_str).and_then(|name| name.parse::<Architecture>().ok());
    let own = architecture.map(|architecture| architecture.sizes(1).heads as u64);
    if own.is_some() && ours.get("heads").and_then(Value::as_u64) == own {
        ours.remove("heads");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Layers, workload::series::SeriesGrid};

    const FILE: &str = "seed: 7\nnotes: a sweep\ndata: {sqlite_path: x.db, window_size: 64, horizon: 3, stride: 2}\n\
        model: {feature_dim: 12, model_dim: 96, depth: 2, heads: 12, architecture: omni, conv_dilations: [1, 2], \
        output_dim: 1, ssm_state_dim: 8, market_state: {enabled: true}}\noptimizer: {lr: 0.0002, betas: [0.9, 0.95]}\n\
        trainer: {batch_size: 4, accelerator: gpu, precision: bf16-mixed, gradient_clip_val: 1.0, devices: 1,\
        max_epochs: 12, limit_train_batches: 0.25}\n\
        diagnostics: {enabled: true}\nwandb_project: null\n";

    #[test]
    fn sections_become_keys_and_others_are_named() {
        let Translated { yaml, skipped } = translate(FILE).expect("read").expect("a nested file");
        let expected = ["data.sqlite_path", "diagnostics", "model.market_state", "notes", "wandb_project"];
        assert_eq!(skipped, expected);
        let grid: SeriesGrid = Layers::new(&SeriesGrid::default()).yaml("a.yaml", &yaml).resolve().expect("a grid");
        assert_eq!((grid.seed, grid.windows, grid.horizons, grid.stride), (7, vec![64], vec![3], 2));
        assert_eq!((grid.architectures[0].name(), grid.dilations, grid.heads), ("omni_mixture", vec![1, 2], None));
        assert_eq!((grid.max_epochs, grid.limit_train_batches), (Some(12), Some(0.25)));
        assert_eq!((grid.state_dim, grid.beta2, grid.clip_norm), (Some(8), 0.95, Some(1.0)));
        assert_eq!(
            (grid.device.to_string(), grid.dtype.as_str(), grid.cosine_steps),
            ("cuda0".into(), "bf16", Some(500))
        );
    }

    #[test]
    fn flat_files_are_left_alone_and_bad_values_named() {
        assert!(translate("depths: [1]").expect("read").is_none());
        assert!(translate("model: [").expect("left to the layers").is_none());
        let message = |text| translate(text).map(|_| ()).expect_err("an error").to_string();
        assert!(message("trainer: {precision: 16-mixed}").contains("trainer.precision=16-mixed: expected 32"));
        assert!(message("optimizer: {betas: 0.9}").contains("expected two numbers"));
    }
}
