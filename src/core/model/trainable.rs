//! Weights that are trained: variables with seeded initial values that are created when a model requests them. Also lists the
//! shapes of a model's weights without creating them.

use std::{
    collections::{BTreeMap, HashMap},
    f32::consts::TAU,
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Error, Shape, Tensor, Var};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};
use sha2::{Digest, Sha256};

/// The variables of a model.
#[derive(Clone)]
pub struct Variables {
    seed: u64,
    by_name: Arc<Mutex<BTreeMap<String, Var>>>,
}

impl Variables {
    /// No variables yet. `seed` determines the initial values.
    pub fn new(seed: u64) -> Self {
        Self { seed, by_name: Arc::default() }
    }

    /// A builder that creates a variable for each requested name, and returns the same variable for the same name. Initial
    /// values depend only on the seed and the name.
    pub fn builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), dtype, device.clone())
    }

    /// A builder of plain tensors with the same initial values, for models that are not trained.
    pub fn frozen(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(Frozen(self.clone())), dtype, device.clone())
    }

    /// Every variable, ordered by name.
    pub fn all(&self) -> Vec<Var> {
        self.by_name.lock().map(|by_name| by_name.values().cloned().collect()).unwrap_or_default()
    }

    /// Every variable with its name, ordered by name.
    pub fn named(&self) -> BTreeMap<String, Var> {
        self.by_name.lock().map(|by_name| by_name.clone()).unwrap_or_default()
    }

    /// Sets every variable to the tensor with its name.
    ///
    /// # Errors
    /// If a tensor is missing, has the wrong shape, or is not in the model.
    pub fn assign(&self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        let variables = self.named();
        if let Some(unknown) = tensors.keys().find(|name| !variables.contains_key(*name)) {
            bail!("tensor {unknown} is not in this model");
        }
        for (name, variable) in variables {
            let tensor = tensors.get(&name).with_context(|| format!("tensor {name} is missing"))?;
            ensure!(
                tensor.shape() == variable.shape(),
                "tensor {name} has shape {:?}, the model needs {:?}",
                tensor.dims(),
                variable.dims()
            );
            variable.set(&tensor.to_dtype(variable.dtype())?.to_device(variable.device())?)?;
        }
        Ok(())
    }

    fn tensor(
        &self,
        shape: Shape,
        name: &str,
        init: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let values = self.values(name, shape.elem_count(), init)?;
        Tensor::from_vec(values, shape, device)?.to_dtype(dtype)
    }

    fn values(&self, name: &str, count: usize, init: Init) -> candle_core::Result<Vec<f32>> {
        let key = Sha256::new().chain_update(self.seed.to_le_bytes()).chain_update(name).finalize();
        let mut random = ChaCha8Rng::from_seed(key.into());
        // In (0, 1), so that its logarithm is finite.
        let mut unit = || ((random.next_u32() >> 8) as f32 + 0.5) / (1 << 24) as f32;
        Ok(match init {
            Init::Const(value) => vec![value as f32; count],
            Init::Uniform { lo, up } => (0..count).map(|_| lo as f32 + unit() * (up - lo) as f32).collect(),
            // The Box-Muller transform.
            Init::Randn { mean, stdev } => (0..count)
                .map(|_| mean as f32 + stdev as f32 * (-2.0 * unit().ln()).sqrt() * (TAU * unit()).cos())
                .collect(),
            Init::Kaiming { .. } => return Err(Error::Msg(format!("{name}: these initial values are not supported"))),
        })
    }
}

impl SimpleBackend for Variables {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let mut by_name = self.by_name.lock().map_err(|_| Error::Msg("the variables are in use".into()))?;
        if let Some(variable) = by_name.get(name) {
            return Ok(variable.as_tensor().clone());
        }
        let variable = Var::from_tensor(&self.tensor(shape, name, init, dtype, device)?)?;
        Ok(by_name.entry(name.to_owned()).or_insert(variable).as_tensor().clone())
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        Err(Error::Msg(format!("{name}: seeded variables need a shape")))
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

struct Frozen(Variables);

impl SimpleBackend for Frozen {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.0.tensor(shape, name, init, dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.0.get_unchecked(name, dtype, device)
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// Names and shapes of a model's weights, found by building it from tensors that take no memory.
///
/// # Errors
/// If the model cannot be built.
pub fn shapes<T>(build: impl FnOnce(VarBuilder<'static>) -> Result<T>) -> Result<BTreeMap<String, Shape>> {
    let seen = Seen::default();
    build(VarBuilder::from_backend(Box::new(seen.clone()), DType::F32, Device::Cpu))?;
    Ok(seen.0.lock().map(|shapes| shapes.clone()).unwrap_or_default())
}

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<BTreeMap<String, Shape>>>);

impl SimpleBackend for Seen {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        if let Ok(mut shapes) = self.0.lock() {
            shapes.insert(name.to_owned(), shape.clone());
        }
        // One element, broadcast to the shape.
        Tensor::zeros(vec![1; shape.rank()], dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        Err(Error::Msg(format!("{name}: its size is needed")))
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_depend_on_seed_and_name_and_have_the_requested_moments() {
        let normal = Init::Randn { mean: 1.0, stdev: 0.5 };
        let values = |seed, name, init| Variables::new(seed).values(name, 40_000, init).expect("values");
        let drawn = values(1, "a", normal);
        assert_eq!(drawn, values(1, "a", normal));
        assert_ne!(drawn, values(2, "a", normal));
        assert_ne!(drawn, values(1, "b", normal));
        let moments = |values: &[f32]| {
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let variance = values.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / values.len() as f32;
            (mean, variance.sqrt())
        };
        let (mean, deviation) = moments(&drawn);
        assert!((mean - 1.0).abs() < 0.02 && (deviation - 0.5).abs() < 0.01, "{mean} {deviation}");
        let uniform = values(1, "a", Init::Uniform { lo: -1.0, up: 3.0 });
        let (mean, deviation) = moments(&uniform);
        assert!((mean - 1.0).abs() < 0.02 && (deviation - 4.0 / 12f32.sqrt()).abs() < 0.01, "{mean} {deviation}");
        assert!(uniform.iter().all(|x| (-1.0..3.0).contains(x)));
    }

    #[test]
    fn shapes_equal_those_of_the_variables() {
        let variables = Variables::new(0);
        let build = |weights: VarBuilder<'static>| {
            weights.get_with_hints((3, 4), "w", Init::Const(0.0))?;
            Ok(weights.get_with_hints(5, "b", Init::Const(0.0))?)
        };
        let shapes = shapes(build).expect("shapes");
        assert_eq!(shapes["w"].dims(), [3, 4]);
        assert_eq!(shapes.values().map(Shape::elem_count).sum::<usize>(), 17);
        build(variables.builder(DType::F32, &Device::Cpu)).expect("built");
        build(variables.builder(DType::F32, &Device::Cpu)).expect("the same again");
        assert_eq!(variables.all().iter().map(|variable| variable.elem_count()).sum::<usize>(), 17);
    }
}
