//! Compares the backbones with PyTorch's outputs and gradients in `fixtures/temporal`. `fixtures/README.md` describes the
//! files.

use std::{collections::HashMap, fs, path::Path};

use candle_core::{DType, Tensor, Var};
use candle_nn::{VarBuilder, VarMap, loss::mse};
use serde::Deserialize;

use super::{Architecture, Dropout, Forecaster, Sizes};
use crate::model::golden::{Errors, apart, at_device, device, numbers};

const OUTPUT_TOLERANCE: f32 = 1e-4;
/// Of a gradient's elements, as a share of its largest.
const GRADIENT_TOLERANCE: f32 = 1e-3;
/// Below this a gradient is 0.
const ROUNDING: f32 = 1e-5;

#[derive(Deserialize)]
struct Config {
    architecture: Architecture,
    sizes: Sizes,
    horizon: usize,
    outputs: usize,
}

impl Config {
    fn model(&self, dtype: DType, weights: VarBuilder) -> Forecaster {
        Forecaster::new(self.architecture, &self.sizes, self.horizon, self.outputs, dtype, weights).expect("a model")
    }
}

fn read(folder: &Path) -> (Config, HashMap<String, Tensor>, HashMap<String, Tensor>) {
    let tensors = |file: &str| candle_core::safetensors::load(folder.join(file), &device()).expect(file);
    let config = serde_json::from_slice(&fs::read(folder.join("config.json")).expect("config.json"));
    (config.expect("config.json"), tensors("model.safetensors"), tensors("golden.safetensors"))
}

#[test]
fn outputs_and_gradients_are_as_the_reference() {
    let mut architectures = Vec::new();
    for folder in crate::model::golden::folders("temporal") {
        let what = folder.file_name().expect("a name").to_string_lossy().into_owned();
        let (config, weights, golden) = read(&folder);
        let variables = VarMap::new();
        for (name, weight) in &weights {
            let variable = Var::from_tensor(weight).expect("a variable");
            variables.data().lock().expect("the map").insert(name.clone(), variable);
        }
        let model = config.model(DType::F32, VarBuilder::from_varmap(&variables, DType::F32, &device()));
        let used = variables.data().lock().expect("the map").len();
        assert_eq!(used, weights.len(), "{what}: the model has tensors that the reference has not");

        let output = model.forward(&golden["series"], Dropout::OFF).expect(&what);
        let far = apart(&output, &golden["output"]);
        assert!(far <= at_device(OUTPUT_TOLERANCE), "{what}: output {far} from the reference");
        let loss = mse(&output, &golden["target"]).expect("a loss");
        assert!((numbers(&loss)[0] - numbers(&golden["loss"])[0]).abs() < at_device(1e-5), "{what}: loss");

        let grads = loss.backward().expect("gradients");
        for (name, variable) in variables.data().lock().expect("the map").iter() {
            let expected = &golden[&format!("grad.{name}")];
            let found = grads.get(variable).unwrap_or_else(|| panic!("{what}: {name} has no gradient"));
            let most = |tensor: &Tensor| numbers(tensor).iter().fold(0f32, |most, x| most.max(x.abs()));
            if name.ends_with("key.bias") {
                // It moves all scores of a query alike, so its gradient is 0 but for rounding.
                assert!(most(found) < ROUNDING && most(expected) < ROUNDING, "{what}: gradient of {name}");
                continue;
            }
            let far = apart(found, expected) / most(expected);
            assert!(far <= GRADIENT_TOLERANCE, "{what}: gradient of {name} is off by {far} of its largest");
        }
        architectures.push(config.architecture);
    }
    for architecture in Architecture::all() {
        assert!(architectures.contains(&architecture), "no fixture of {architecture}");
    }
}

/// The compositions that run instead of [`crate::kernels`] on a GPU, and in other dtypes everywhere. In bf16 they are as close as
/// PyTorch.
#[test]
fn the_compositions_give_the_same() {
    let mut errors = Errors::of("temporal");
    for folder in crate::model::golden::folders("temporal") {
        let (config, weights, golden) = read(&folder);
        for dtype in [DType::F64, DType::BF16] {
            let weights = VarBuilder::from_tensors(weights.clone(), DType::F32, &device());
            let output = config.model(dtype, weights).forward(&golden["series"], Dropout::OFF).expect("an output");
            if dtype == DType::BF16 {
                let name = folder.file_name().expect("a name").to_string_lossy();
                errors.add(&name, "output", &numbers(&output), &golden["output"]);
                continue;
            }
            let far = apart(&output, &golden["output"]);
            assert!(far <= OUTPUT_TOLERANCE, "{}, {dtype:?}: {far} from the reference", folder.display());
        }
    }
    // PyTorch adds a bias within the product, before it rounds; the composition rounds both.
    errors.check("compositions in bf16", 1.25);
}
