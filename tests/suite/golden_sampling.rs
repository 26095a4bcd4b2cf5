//! Compares the sampler with transformers' logits processors after each transform.

use std::{
    fs,
    path::{Path, PathBuf},
};

use candle_core::Device;
use candlepower_core::{generate::Sampler, scenario::Sampling};
use serde::Deserialize;

/// Tolerance of a probability.
const TOLERANCE: f32 = 1e-5;

#[derive(Deserialize)]
struct Golden {
    #[serde(default)]
    sampling: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    logits: String,
    history: Vec<u32>,
    repetition_penalty: Option<f32>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    stages: Vec<String>,
}

impl Case {
    /// Returns the transforms up to and including a stage.
    fn up_to(&self, stage: &str) -> Sampling {
        let index = self.stages.iter().position(|name| name == stage).expect("a stage of this case");
        let on = |name: &str| self.stages[..=index].iter().any(|stage| stage == name);
        Sampling {
            repetition_penalty: self.repetition_penalty.filter(|_| on("repetition_penalty")),
            temperature: self.temperature.filter(|_| on("temperature")).unwrap_or(1.0),
            top_k: self.top_k.filter(|_| on("top_k")),
            top_p: self.top_p.filter(|_| on("top_p")),
        }
    }
}

#[test]
fn every_transform_leaves_the_references_distribution() {
    let root = std::env::var_os("CANDLEPOWER_FIXTURES").map_or_else(|| PathBuf::from("fixtures"), PathBuf::from);
    let mut compared = 0;
    for entry in fs::read_dir(root.join("generation")).expect("a folder of fixtures") {
        let folder = entry.expect("an entry").path();
        let Ok(golden) = fs::read(folder.join("golden.json")) else { continue };
        let golden: Golden = serde_json::from_slice(&golden).expect("golden.json in the documented form");
        let tensors = candle_core::safetensors::load(folder.join("golden.safetensors"), &Device::Cpu).expect("tensors");
        let row = |key: &str| tensors[key].to_vec1::<f32>().expect("a row");
        for case in &golden.sampling {
            for stage in &case.stages {
                let expected = row(&format!("sampling.{}.{stage}", case.name));
                let mut sampler = Sampler::new(case.up_to(stage), 0).expect("a sampler");
                let mut found = vec![0.0; expected.len()];
                let logits = row(&case.logits);
                for candidate in sampler.distribution(&logits, &case.history).expect("finite logits") {
                    found[candidate.id as usize] = candidate.probability;
                }
                for (id, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    assert!(
                        (found - expected).abs() <= TOLERANCE,
                        "{}, {} after {stage}: token {id} has {found}, not {expected}",
                        folder.display(),
                        case.name
                    );
                }
                compared += 1;
            }
        }
    }
    println!("{compared} distributions compared");
    assert!(compared > 0 || root != Path::new("fixtures"), "no fixture has sampling cases");
}
