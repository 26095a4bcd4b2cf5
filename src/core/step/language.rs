//! A language model in training: steps, evaluation, and stability statistics.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use tracing::trace_span;

use super::{
    STEP,
    gradients::{self, Gradients, Pass, Sequences, Workspace},
    optimizer::{AdamW, Options},
};
use crate::model::{
    psann::{Decoder, PsannConfig},
    trainable::Variables,
};

/// How a step is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Compute dtype of the model. Weights, gradients and moments are f32.
    pub dtype: DType,
    /// Stores only the input of each layer and recomputes the layer in the backward pass.
    pub checkpointing: bool,
    /// Sequences that are computed at a time. A larger batch is computed in parts whose gradients are accumulated.
    pub micro_rows: usize,
}

/// Result of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Mean over the tokens, before the update, in nats.
    pub loss: f64,
    /// Norm of all gradients, before clipping.
    pub gradient_norm: f64,
    /// Norm of the update over the norm of the weights.
    pub update_ratio: f64,
    /// Number of parts that the batch was computed in.
    pub micro_batches: usize,
}

impl Step {
    /// Returns whether the loss and the gradients are finite.
    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.gradient_norm.is_finite()
    }
}

/// A language model in training, with its optimizer and buffers.
pub struct Language {
    model: Decoder,
    variables: Variables,
    /// Names of the variables that are trained, and these, in the order of the names, as in the optimizer.
    names: Vec<String>,
    trained: Vec<Var>,
    optimizer: AdamW,
    workspace: Workspace,
    plan: Plan,
    device: Device,
}

impl Language {
    /// Makes a model with seeded weights.
    ///
    /// # Errors
    /// Returns an error if the sizes are inconsistent, or memory is insufficient.
    pub fn new(config: &PsannConfig, options: Options, plan: Plan, seed: u64, device: &Device) -> Result<Self> {
        ensure!(plan.micro_rows > 0, "a micro-batch needs a sequence");
        let variables = Variables::new(seed);
        let model = Decoder::new(config, plan.dtype, variables.builder(DType::F32, device))?;
        let (names, trained): (Vec<_>, Vec<_>) =
            variables.named().into_iter().filter(|(name, _)| config.trains(name)).unzip();
        let optimizer = AdamW::new(trained.clone(), options)?;
        let workspace = Workspace::default();
        Ok(Self { model, variables, names, trained, optimizer, workspace, plan, device: device.clone() })
    }

    /// Weights by psannlm's names, in the order of the gradients.
    pub fn named(&self) -> BTreeMap<String, Var> {
        self.variables.named()
    }

    /// The model.
    pub fn model(&self) -> &Decoder {
        &self.model
    }

    /// Number of completed steps.
    pub fn steps(&self) -> usize {
        self.optimizer.steps()
    }

    /// Runs one step on a batch and waits for the device. If the loss or a gradient is not finite, nothing is
    /// updated.
    ///
    /// # Errors
    /// Returns an error if a token is not in the vocabulary, or the device fails.
    pub fn step(&mut self, batch: &Sequences) -> Result<Step> {
        let _step = trace_span!(STEP).entered();
        let (weight, plan) = (1.0 / batch.tokens() as f64, self.plan);
        let (mut loss_sum, mut micro_batches) = (0.0, 0);
        let mut gradients = Gradients::new(&self.model, &self.trained, &mut self.workspace)?;
        for part in batch.split(plan.micro_rows) {
            loss_sum += gradients.add(&part, weight, plan.checkpointing)?.loss_sum;
            micro_batches += 1;
        }
        let update = self.optimizer.step(&gradients.finish()?)?;
        self.device.synchronize()?;
        Ok(Step {
            loss: loss_sum * weight,
            gradient_norm: update.gradient_norm,
            update_ratio: update.update_ratio,
            micro_batches,
        })
    }

    /// Computes the loss without a step, in the same parts as a step.
    ///
    /// # Errors
    /// See [`Self::step`].
    pub fn evaluate(&mut self, batch: &Sequences) -> Result<Pass> {
        let _step = trace_span!(STEP).entered();
        let mut sum = Pass { loss_sum: 0.0, correct: 0 };
        for part in batch.split(self.plan.micro_rows) {
            let pass = gradients::evaluate(&self.model, &part, &mut self.workspace)?;
            sum = Pass { loss_sum: sum.loss_sum + pass.loss_sum, correct: sum.correct + pass.correct };
        }
        self.device.synchronize()?;
        Ok(sum)
    }

    /// Returns everything that the next steps depend on: weights by their names, moments as `<name>.moments`.
    ///
    /// # Errors
    /// Returns an error if the device fails.
    pub fn state(&self) -> Result<HashMap<String, Tensor>> {
        let weights = self.variables.named();
        let moments: Vec<_> =
            self.names.iter().map(|name| format!("{name}.moments")).zip(self.optimizer.moments()?).collect();
        Ok(weights.into_iter().map(|(name, variable)| (name, variable.as_tensor().clone())).chain(moments).collect())
    }

    /// Restores the result of [`Self::state`] after the given number of steps.
    ///
    /// # Errors
    /// Returns an error if the state belongs to another model.
    pub fn resume(&mut self, mut state: HashMap<String, Tensor>, steps: usize) -> Result<()> {
        let moments = self.names.iter().map(|name| state.remove(&format!("{name}.moments")));
        let moments: Option<Vec<Tensor>> = moments.collect();
        let Some(moments) = moments else { anyhow::bail!("the optimizer's moments are missing") };
        self.optimizer.resume(&moments, steps)?;
        self.variables.assign(&state)
    }

    /// Loads weights by psannlm's names.
    ///
    /// # Errors
    /// Returns an error if a weight is missing, has another shape, or does not belong to this model.
    pub fn load(&self, weights: &HashMap<String, Tensor>) -> Result<()> {
        self.variables.assign(weights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::psann::Base;

    fn config(base: Base) -> PsannConfig {
        PsannConfig {
            base,
            vocab_size: 50,
            d_model: 16,
            n_layers: 3,
            n_heads: 2,
            d_mlp: 24,
            k_fft: 8,
            ..PsannConfig::default()
        }
    }

    const PLAN: Plan = Plan { dtype: DType::F32, checkpointing: false, micro_rows: 64 };

    fn language(base: Base, plan: Plan) -> Language {
        let options = Options { learning_rate: 3e-3, warmup_steps: 2, ..Options::default() };
        Language::new(&config(base), options, plan, 5, &Device::Cpu).expect("a training")
    }

    /// Sequences that can be learnt: each token follows from the one before.
    fn batch(rows: usize, number: u32) -> Sequences {
        let ids = (0..rows as u32).flat_map(|row| (0..13).map(move |step| (row * 11 + number * 17 + step * 3) % 50));
        Sequences::new(ids.collect(), 13).expect("sequences")
    }

    fn gradients(language: &Language, checkpointing: bool) -> (Pass, Vec<Tensor>) {
        let (batch, mut workspace) = (batch(6, 1), Workspace::default());
        let mut gradients = Gradients::new(&language.model, &language.trained, &mut workspace).expect("a batch");
        let pass = gradients.add(&batch, 1.0 / batch.tokens() as f64, checkpointing).expect("a pass");
        (pass, gradients.finish().expect("gradients"))
    }

    #[test]
    fn checkpointed_gradients_are_the_plain_ones() {
        for base in Base::ALL {
            let language = language(base, PLAN);
            let ((plain, of_plain), (kept, of_kept)) = (gradients(&language, false), gradients(&language, true));
            assert_eq!(plain, kept);
            for ((name, _), (plain, kept)) in language.variables.named().iter().zip(of_plain.iter().zip(&of_kept)) {
                let far = (plain - kept).and_then(|x| x.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()).expect(name);
                assert!(far <= 1e-6, "{base} {name}: {far}");
            }
        }
    }

    #[test]
    fn micro_batches_are_the_batch_and_a_training_learns() {
        for base in Base::ALL {
            let losses = |plan| -> Vec<f64> {
                let mut language = language(base, plan);
                (0..30).map(|number| language.step(&batch(6, number)).expect("a step").loss).collect()
            };
            let whole = losses(PLAN);
            assert!(whole[29] < 0.8 * whole[0], "{base}: {whole:?}");
            assert_eq!(whole, losses(PLAN), "{base}: the same seed gives the same losses");
            let parts = losses(Plan { micro_rows: 4, checkpointing: true, ..PLAN });
            for (whole, part) in whole.iter().zip(&parts) {
                assert!((whole - part).abs() < 2e-3 * whole, "{base}: {whole} for {part}");
            }
        }
        let mut language = language(Base::Respsann, Plan { micro_rows: 4, ..PLAN });
        assert_eq!(language.step(&batch(6, 0)).expect("a step").micro_batches, 2);
    }

    #[test]
    fn sixteen_bits_learn_too() {
        let mut language = language(Base::Respsann, Plan { dtype: DType::BF16, ..PLAN });
        let losses: Vec<f64> = (0..30).map(|number| language.step(&batch(6, number)).expect("a step").loss).collect();
        assert!(losses[29] < 0.8 * losses[0], "{losses:?}");
        assert!(language.trained.iter().all(|variable| variable.dtype() == DType::F32));
    }

    #[test]
    fn a_resumed_training_goes_on_as_if_nothing_had_been() {
        let mut unbroken = language(Base::Sgrpsann, PLAN);
        for number in 0..5 {
            unbroken.step(&batch(4, number)).expect("a step");
        }
        let state = unbroken.state().expect("a state");
        let state: HashMap<String, Tensor> =
            state.into_iter().map(|(name, tensor)| (name, tensor.copy().expect("a copy"))).collect();
        let mut resumed = language(Base::Sgrpsann, PLAN);
        resumed.resume(state.clone(), 5).expect("resumed");
        for number in 5..10 {
            assert_eq!(
                unbroken.step(&batch(4, number)).expect("a step"),
                resumed.step(&batch(4, number)).expect("a step")
            );
        }
        let mut other = language(Base::Respsann, PLAN);
        assert!(other.resume(state.clone(), 5).is_err());
        let mut lacking = state;
        lacking.remove("ln_f.scale");
        let error = resumed.resume(lacking, 5).expect_err("a tensor is missing").to_string();
        assert!(error.contains("tensor ln_f.scale is missing"), "{error}");
    }

    #[test]
    fn a_training_that_diverges_shows_it_and_is_left_alone() {
        let options = Options { learning_rate: 1e12, warmup_steps: 0, ..Options::default() };
        let mut language = Language::new(&config(Base::Respsann), options, PLAN, 5, &Device::Cpu).expect("a training");
        let steps: Vec<Step> = (0..20).map(|number| language.step(&batch(4, number)).expect("a step")).collect();
        assert!(steps[0].is_finite());
        assert!(steps.iter().any(|step| !step.is_finite() || step.loss > 1e3), "{steps:?}");
    }

    #[test]
    fn the_loss_is_that_of_the_models_logits() {
        let mut language = language(Base::Respsann, PLAN);
        for number in 0..2 {
            let batch = batch(3, number);
            let inputs = batch.input(&language.model).expect("ids");
            let logits = language.model.forward(&inputs).expect("logits");
            assert_eq!(logits.dims(), [3, 12, 50]);
            let targets = Tensor::new(batch.targets(), &Device::Cpu).expect("ids");
            let loss = logits.flatten(0, 1).and_then(|logits| candle_nn::loss::cross_entropy(&logits, &targets));
            let loss = f64::from(loss.and_then(|loss| loss.to_scalar::<f32>()).expect("a loss"));
            let found = language.evaluate(&batch).expect("a loss").loss_sum / 36.0;
            assert!((loss - found).abs() < 1e-5, "{loss} for {found}");
        }
    }

    #[test]
    fn sequences_are_checked() {
        assert!(Sequences::new(vec![1, 2, 3], 2).is_err() && Sequences::new(Vec::new(), 2).is_err());
        assert!(Sequences::new(vec![1, 2], 1).is_err());
        let error = language(Base::Respsann, PLAN).evaluate(&Sequences::new(vec![1, 50], 2).expect("ids")).err();
        assert!(error.expect("an error").to_string().contains("token 50 is not in the vocabulary"));
    }
}
