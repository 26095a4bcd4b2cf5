//! Compares the models with psannlm's outputs, gradients and training steps in `fixtures/psann`. `fixtures/README.md`
//! describes the layout.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use candle_core::{DType, Tensor};

use super::{
    gradients::{Gradients, Sequences, Workspace},
    language::{Language, Plan},
    optimizer::Options,
};
use crate::model::{
    golden::{Errors, apart, at_device, device, numbers},
    psann::{Base, PsannConfig},
};

const LOGIT_TOLERANCE: f32 = 1e-4;
const LOSS_TOLERANCE: f32 = 1e-5;
/// Tolerance of a gradient's elements, as a share of its largest.
const GRADIENT_TOLERANCE: f32 = 1e-3;
/// A smaller gradient is 0 but for rounding: of a parameter that does nothing, or that is at a bound.
const ROUNDING: f32 = 1e-7;
const LATER_LOSS_TOLERANCE: f64 = 1e-3;

/// Tolerance of logits in f64, as a share of the norm of the reference's.
const F64_TOLERANCE: f32 = 1e-5;

struct Fixture {
    name: String,
    config: PsannConfig,
    language: Language,
    batch: Sequences,
    golden: HashMap<String, Tensor>,
}

fn fixtures() -> Vec<Fixture> {
    let read = |folder: &Path| {
        let text = |file: &str| fs::read(folder.join(file)).expect(file);
        let tensors = |file: &str| candle_core::safetensors::load(folder.join(file), &device()).expect(file);
        let config: PsannConfig = serde_json::from_slice(&text("config.json")).expect("config.json");
        let options: Options = serde_json::from_slice(&text("optimizer.json")).expect("optimizer.json");
        let plan = Plan { dtype: DType::F32, checkpointing: false, micro_rows: usize::MAX / 1_000_000 };
        let language = Language::new(&config, options, plan, 0, &device()).expect("a model");
        language.load(&tensors("model.safetensors")).expect("psannlm's names");
        let golden = tensors("golden.safetensors");
        let ids = golden["ids"].to_vec2::<i64>().expect("ids");
        let length = ids[0].len();
        let batch = Sequences::new(ids.concat().iter().map(|id| *id as u32).collect(), length).expect("sequences");
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        Fixture { name, config, language, batch, golden }
    };
    crate::model::golden::folders("psann").iter().map(|folder| read(folder)).collect()
}

#[test]
fn logits_losses_gradients_and_steps_are_as_psannlms() {
    let mut seen = Vec::new();
    for Fixture { name, config, mut language, batch, golden } in fixtures() {
        let ids = golden["ids"].to_dtype(DType::U32).expect("ids");
        let inputs = ids.narrow(1, 0, ids.dim(1).expect("time") - 1).and_then(|ids| ids.contiguous()).expect("inputs");
        let far = apart(&language.model().forward(&inputs).expect("logits"), &golden["logits"]);
        assert!(far <= at_device(LOGIT_TOLERANCE), "{name}: logits {far} from the reference");

        let (named, fixed): (BTreeMap<_, _>, BTreeMap<_, _>) =
            language.named().into_iter().partition(|(tensor, _)| config.trains(tensor));
        for tensor in fixed.keys() {
            assert!(
                !golden.contains_key(&format!("grad.{tensor}")),
                "{name}: {tensor} has a gradient in the reference"
            );
        }
        let variables: Vec<_> = named.values().cloned().collect();
        let weight = 1.0 / batch.tokens() as f64;
        for checkpointing in [false, true] {
            let mut workspace = Workspace::default();
            let mut gradients = Gradients::new(language.model(), &variables, &mut workspace).expect("a batch");
            let pass = gradients.add(&batch, weight, checkpointing).expect("a pass");
            let grads = gradients.finish().expect("gradients");
            let far = (pass.loss_sum * weight - f64::from(numbers(&golden["loss"])[0])).abs();
            assert!(far <= f64::from(at_device(LOSS_TOLERANCE)), "{name}: loss {far} from the reference");
            for (tensor, grad) in named.keys().zip(&grads) {
                let expected = &golden[&format!("grad.{tensor}")];
                let most = numbers(expected).iter().fold(0f32, |most, x| most.max(x.abs()));
                let far = apart(grad, expected);
                let is_zero = most <= ROUNDING && far <= ROUNDING;
                assert!(
                    is_zero || far <= GRADIENT_TOLERANCE * most,
                    "{name}: gradient of {tensor} is off by {far}, its largest is {most}"
                );
            }
        }

        let expected = numbers(&golden["losses"]);
        for (step, expected) in expected.iter().enumerate() {
            let loss = match step + 1 < golden["losses"].elem_count() {
                true => language.step(&batch).expect("a step").loss,
                false => language.evaluate(&batch).expect("a loss").loss_sum * weight,
            };
            let far = (loss - f64::from(*expected)).abs();
            assert!(far <= LATER_LOSS_TOLERANCE, "{name}: after {step} steps the loss is {loss}, not {expected}");
        }
        assert!(expected[expected.len() - 1] < 0.9 * expected[0], "{name}: the reference learns too little to compare");
        seen.push((config.base, config.positional_encoding));
    }
    for base in Base::ALL {
        assert!(seen.iter().any(|(of, _)| *of == base), "no fixture of {base}");
    }
}

/// Tests the code that a GPU runs, and 16-bit dtypes everywhere: the compositions instead of the kernels of
/// [`crate::kernels`]. In bf16 they are as close as PyTorch.
#[test]
fn the_compositions_give_the_same() {
    let mut errors = Errors::of("psann");
    for Fixture { name, config, language, golden, .. } in fixtures() {
        let ids = golden["ids"].to_dtype(DType::U32).expect("ids");
        let inputs = ids.narrow(1, 0, ids.dim(1).expect("time") - 1).and_then(|ids| ids.contiguous()).expect("inputs");
        let weights: HashMap<String, Tensor> =
            language.named().into_iter().map(|(name, variable)| (name, variable.as_tensor().clone())).collect();
        for dtype in [DType::F64, DType::BF16] {
            let weights = candle_nn::VarBuilder::from_tensors(weights.clone(), DType::F32, &device());
            let logits =
                crate::model::psann::Decoder::new(&config, dtype, weights).and_then(|model| model.forward(&inputs));
            let logits = logits.expect("logits");
            if dtype == DType::BF16 {
                errors.add(&name, "logits", &numbers(&logits), &golden["logits"]);
                continue;
            }
            let size = |x: &Tensor| numbers(x).iter().map(|x| x * x).sum::<f32>().sqrt();
            let far = size(&(logits - &golden["logits"]).expect("a difference")) / size(&golden["logits"]);
            assert!(far <= F64_TOLERANCE, "{name}, {dtype:?}: {far} of the reference's norm away");
        }
    }
    errors.check("compositions in bf16", 1.0);
}
