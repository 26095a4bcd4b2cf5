//! Backbones for multivariate series, which the architecture sweep trains and runs: each of the three is one file, behind
//! one trait, with the same head. `layers` holds the parts that they share, `data` the series.

pub mod data;
mod hybrid_transformer;
mod layers;
mod omni_mixture;
mod state_space;

#[cfg(test)]
mod golden;

use std::{fmt, str::FromStr};

use anyhow::{Result, bail, ensure};
use candle_core::{DType, Tensor};
use candle_nn::{Linear, Module, VarBuilder};
use serde::{Deserialize, Serialize};

use layers::{LayerNorm, linear};

use super::trainable;
use crate::kernels;

/// A network from a window of a series to a representation of each of its steps.
pub trait SequenceBackbone {
    /// From (batch, time, features) to (batch, time, dim).
    fn forward(&self, series: &Tensor) -> Result<Tensor>;
}

/// A backbone that can be built by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// Attention, a feed-forward and a dilated convolution in each layer.
    HybridTransformer,
    /// Attention, a feed-forward, a state mixer and a dilated convolution in each layer, with a coarse second stream.
    OmniMixture,
    /// A gated causal convolution of a state and a feed-forward in each layer, without attention.
    StateSpace,
}

impl Architecture {
    /// Every architecture.
    pub const ALL: [Self; 3] = [Self::HybridTransformer, Self::OmniMixture, Self::StateSpace];

    /// Name in settings and benchmark ids.
    pub fn name(self) -> &'static str {
        match self {
            Self::HybridTransformer => "hybrid_transformer",
            Self::OmniMixture => "omni_mixture",
            Self::StateSpace => "state_space",
        }
    }

    /// Its own sizes, for a series of `features`.
    pub fn sizes(self, features: usize) -> Sizes {
        let hybrid = Sizes {
            features,
            dim: 512,
            depth: 16,
            heads: 8,
            expansion: 4,
            state: 256,
            mixer_kernel: 15,
            conv_kernel: 5,
            dilations: vec![1, 2, 4, 8, 16, 32],
            coarse: 4,
            cross_every: 2,
            positions: 4096,
        };
        match self {
            Self::HybridTransformer => hybrid,
            Self::StateSpace => Sizes { depth: 12, ..hybrid },
            Self::OmniMixture => Sizes {
                dim: 768,
                depth: 24,
                heads: 12,
                mixer_kernel: 16,
                conv_kernel: 7,
                dilations: vec![1, 2, 4, 8, 16, 32, 64],
                ..hybrid
            },
        }
    }

    /// Whether it has heads.
    pub fn attends(self) -> bool {
        self != Self::StateSpace
    }

    /// Builds the backbone from weights, or from their initial values if `weights` makes variables.
    ///
    /// # Errors
    /// When the sizes do not go together, or a tensor is missing.
    pub fn build(self, sizes: &Sizes, weights: VarBuilder) -> Result<Box<dyn SequenceBackbone>> {
        sizes.check(self)?;
        Ok(match self {
            Self::HybridTransformer => Box::new(hybrid_transformer::HybridTransformer::new(sizes, weights)?),
            Self::OmniMixture => Box::new(omni_mixture::OmniMixture::new(sizes, weights)?),
            Self::StateSpace => Box::new(state_space::StateSpace::new(sizes, weights)?),
        })
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Architecture {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(found) = Self::ALL.into_iter().find(|architecture| architecture.name() == text) {
            return Ok(found);
        }
        let names = Self::ALL.map(Self::name);
        match crate::error::nearest(text, &names) {
            Some(near) => bail!("unknown architecture '{text}': did you mean {near}?"),
            None => bail!("unknown architecture '{text}': the architectures are {}", names.join(", ")),
        }
    }
}

/// Sizes of a backbone. Each architecture uses those that it has a use for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sizes {
    /// Features of each step of the series.
    pub features: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Number of layers.
    pub depth: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Inner width of the feed-forward over `dim`; `omni_mixture` doubles it.
    pub expansion: usize,
    /// Width of the state that mixers convolve.
    pub state: usize,
    /// Taps of the mixers' causal convolution.
    pub mixer_kernel: usize,
    /// Taps of the dilated convolution.
    pub conv_kernel: usize,
    /// Of one block after the other, over and over.
    pub dilations: Vec<usize>,
    /// Steps of the stream for one of the coarse one.
    pub coarse: usize,
    /// Every how many blocks one attends to the coarse stream.
    pub cross_every: usize,
    /// The longest series.
    pub positions: usize,
}

impl Sizes {
    /// # Errors
    /// One line that names what does not go together.
    pub fn check(&self, architecture: Architecture) -> Result<()> {
        for (name, size) in [
            ("features", self.features),
            ("dim", self.dim),
            ("depth", self.depth),
            ("heads", self.heads),
            ("expansion", self.expansion),
            ("state", self.state),
            ("mixer_kernel", self.mixer_kernel),
            ("conv_kernel", self.conv_kernel),
            ("dilations", self.dilations.iter().copied().min().unwrap_or(0)),
            ("coarse", self.coarse),
            ("cross_every", self.cross_every),
            ("positions", self.positions),
        ] {
            ensure!(size > 0, "{architecture}: {name} is 0");
        }
        if architecture.attends() {
            ensure!(
                self.dim.is_multiple_of(self.heads),
                "{architecture}: {} heads do not divide dim={}",
                self.heads,
                self.dim
            );
        }
        Ok(())
    }
}

/// A backbone with the head that all share: last step → LayerNorm → linear → GELU → linear → (horizon, outputs).
pub struct Forecaster {
    backbone: Box<dyn SequenceBackbone>,
    norm: LayerNorm,
    hidden: Linear,
    out: Linear,
    horizon: usize,
    outputs: usize,
    positions: usize,
}

impl Forecaster {
    /// # Errors
    /// When the sizes do not go together, or a tensor is missing.
    pub fn new(
        architecture: Architecture,
        sizes: &Sizes,
        horizon: usize,
        outputs: usize,
        weights: VarBuilder,
    ) -> Result<Self> {
        ensure!(horizon > 0, "horizon is 0: at least one step must be forecast");
        ensure!(outputs > 0, "outputs is 0: at least one feature must be forecast");
        let head = weights.pp("head");
        Ok(Self {
            backbone: architecture.build(sizes, weights.pp("backbone"))?,
            norm: LayerNorm::new(sizes.dim, head.pp("norm"))?,
            hidden: linear(sizes.dim, sizes.dim, head.pp("hidden"))?,
            out: linear(sizes.dim, horizon * outputs, head.pp("out"))?,
            horizon,
            outputs,
            positions: if architecture.attends() { sizes.positions } else { usize::MAX },
        })
    }

    /// What it takes to run it on a window.
    ///
    /// # Errors
    /// When the sizes do not go together.
    pub fn cost(architecture: Architecture, sizes: &Sizes, window: &data::Window) -> Result<Cost> {
        let shapes =
            trainable::shapes(|weights| Self::new(architecture, sizes, window.horizon, window.outputs, weights))?;
        let steps = (window.batch * window.time) as u64;
        let coarse = (window.batch * window.time.div_ceil(sizes.coarse)) as u64;
        let products = |name: &str| {
            if name.starts_with("head.") {
                window.batch as u64
            } else if name.contains(".coarse.") || name.contains("cross.key") || name.contains("cross.value") {
                coarse
            } else {
                steps
            }
        };
        let is_matrix = |name: &str| name.ends_with("weight");
        let weights: u64 = shapes
            .iter()
            .filter(|(name, _)| is_matrix(name))
            .map(|(name, shape)| 2 * products(name) * shape.elem_count() as u64)
            .sum();
        // Scores and weighted values, each query with each key.
        let crossings = if architecture == Architecture::OmniMixture { sizes.depth / sizes.cross_every } else { 0 };
        let seen = sizes.depth as u64 * window.time as u64 + crossings as u64 * coarse / window.batch as u64;
        let scores = if architecture.attends() { steps * seen } else { 0 };
        Ok(Cost {
            parameters: shapes.values().map(|shape| shape.elem_count() as u64).sum(),
            forward_flops: weights + 4 * scores * sizes.dim as u64,
            layers: sizes.depth as u64,
            scores: steps * if architecture.attends() { (window.time * sizes.heads) as u64 } else { 0 },
            widest: steps * (sizes.expansion * sizes.dim) as u64,
        })
    }

    /// From (batch, time, features) to (batch, horizon, outputs).
    ///
    /// # Errors
    /// When the series is longer than there are positions.
    pub fn forward(&self, series: &Tensor) -> Result<Tensor> {
        let (batch, time, _) = series.dims3()?;
        ensure!(time > 0 && time <= self.positions, "a series of {time} steps: 1 to {} can be taken", self.positions);
        let x = self.backbone.forward(series)?;
        let last = x.narrow(1, time - 1, 1)?.squeeze(1)?;
        let hidden = kernels::gelu(&self.hidden.forward(&self.norm.forward(&last)?)?)?;
        Ok(self.out.forward(&hidden)?.reshape((batch, self.horizon, self.outputs))?)
    }
}

/// What a backbone and its head take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Number of weights, head included.
    pub parameters: u64,
    /// Floating-point operations of a forward pass in products with weights and of attention; rebuilding the coarse stream
    /// and what is done element by element are left out.
    pub forward_flops: u64,
    layers: u64,
    /// Scores of attention in a layer.
    scores: u64,
    /// Numbers between the two matrices of a feed-forward.
    widest: u64,
}

impl Cost {
    /// Memory that is needed at least: weights, a layer's scores before and after softmax, and what its feed-forward is
    /// widest at; when it trains, gradients and the optimizer's two moments too, and every layer's scores and widths.
    pub fn least_bytes(&self, trains: bool, dtype: DType) -> u64 {
        let layer = (2 * self.scores).max(self.widest);
        let numbers = match trains {
            true => 4 * self.parameters + self.layers * (2 * self.scores + self.widest),
            false => self.parameters + layer,
        };
        numbers * dtype.size_in_bytes() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_as_worked_out_by_hand() {
        let state = Architecture::StateSpace;
        let sizes = Sizes { dim: 4, depth: 1, state: 3, mixer_kernel: 5, ..state.sizes(2) };
        let window = data::Window { batch: 2, time: 10, horizon: 5, outputs: 2 };
        let cost = Forecaster::cost(state, &sizes, &window).expect("a cost");
        let embedding = 2 * 4;
        // Norms, W_i, the convolution, W_o, feed-forward.
        let block = 4 + 4 * 6 + 3 * 5 + 3 * 4 + 4 + 2 * 4 * 16;
        let biases = 4 + (4 + 6 + 3 + 4 + 4 + 16 + 4) + 4 + (4 + 4 + 10);
        let (norm, head) = (4, 4 + 4 * 4 + 4 * 10);
        assert_eq!(cost.parameters, embedding + block + biases + norm + head);
        assert_eq!(cost.forward_flops, 2 * (20 * (embedding + block + norm) + 2 * head));
        let hybrid = Architecture::HybridTransformer;
        let sizes = Sizes { dim: 8, depth: 3, ..hybrid.sizes(2) };
        let (short, long) = (window, data::Window { time: 20, ..window });
        let flops = |window| Forecaster::cost(hybrid, &sizes, window).expect("a cost").forward_flops;
        // 3 layers, 2 series: 4 · 8 operations for each pair of steps, twice as many steps make four times the pairs.
        let pairs = |time: u64| 3 * 2 * 4 * 8 * time * time;
        assert_eq!(flops(&long) - pairs(20), 2 * (flops(&short) - pairs(10)) - 2 * 2 * (8 + 8 * 8 + 8 * 10));
    }

    #[test]
    fn names_are_read_and_near_misses_named() {
        for architecture in Architecture::ALL {
            assert_eq!(architecture.name().parse::<Architecture>().expect("a name"), architecture);
        }
        let message = |text: &str| text.parse::<Architecture>().expect_err(text).to_string();
        assert!(message("state-space").contains("did you mean state_space?"));
        assert!(message("lstm").contains("hybrid_transformer, omni_mixture, state_space"));
    }

    #[test]
    fn sizes_must_go_together() {
        let hybrid = Architecture::HybridTransformer;
        let sizes = Sizes { dim: 500, ..hybrid.sizes(8) };
        assert!(sizes.check(hybrid).expect_err("no heads").to_string().contains("8 heads do not divide dim=500"));
        sizes.check(Architecture::StateSpace).expect("it has no heads");
        let sizes = Sizes { depth: 0, ..hybrid.sizes(8) };
        assert!(sizes.check(hybrid).expect_err("no depth").to_string().contains("depth is 0"));
    }
}
