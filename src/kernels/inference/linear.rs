//! Linear layers, and the products that compute several of them with one meeting of the threads.

use std::ops::Range;

use super::{
    Machine,
    element::Element,
    fused::Activation,
    packed::{PANEL, Packed, Rows},
    pool::Parts,
    quantised::{Inputs, Quantised, Shared},
    simd::{Dispatch, Kernel, Simd},
};

/// Rows of a task: their sums with a panel stay in the L2 cache too. A multiple of the rows of every tile.
const CHUNK: usize = 264;

/// The weights of a linear layer.
pub enum Weights<E> {
    /// In panels.
    Packed(Packed<E>),
    /// In blocks.
    Quantised(Quantised),
}

impl<E> From<Packed<E>> for Weights<E> {
    fn from(packed: Packed<E>) -> Self {
        Self::Packed(packed)
    }
}

impl<E> From<Quantised> for Weights<E> {
    fn from(quantised: Quantised) -> Self {
        Self::Quantised(quantised)
    }
}

impl<E: Element> Weights<E> {
    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        match self {
            Self::Packed(packed) => packed.outputs(),
            Self::Quantised(quantised) => quantised.outputs(),
        }
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        match self {
            Self::Packed(packed) => packed.inputs(),
            Self::Quantised(quantised) => quantised.inputs(),
        }
    }

    /// The name of the weights' format, for example `bf16` or `q4_k`.
    pub fn format(&self) -> &'static str {
        match self {
            Self::Packed(_) => E::NAME,
            Self::Quantised(quantised) => quantised.format(),
        }
    }

    /// Bytes of the weights. The zeros that fill a panel do not count.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Packed(packed) => packed.bytes() as u64,
            Self::Quantised(quantised) => quantised.bytes() as u64,
        }
    }

    /// The memory of the weights.
    pub fn words(&self) -> &[u64] {
        match self {
            Self::Packed(packed) => packed.words(),
            Self::Quantised(quantised) => quantised.words(),
        }
    }

    /// Bytes of a row of inputs in the form that the weights are multiplied with, if that is not as it is.
    pub fn input_bytes(&self, machine: &Machine) -> usize {
        match self {
            Self::Packed(packed) => packed.input_bytes(machine),
            Self::Quantised(quantised) => quantised.input_bytes(),
        }
    }

    /// Writes the weights of one output, as f32.
    ///
    /// # Panics
    /// If there is no such output, or `row` does not have an element for each input.
    pub fn row(&self, output: usize, row: &mut [f32]) {
        match self {
            Self::Packed(packed) => packed.row(output, row),
            Self::Quantised(quantised) => quantised.row(output, row),
        }
    }

    /// The inputs with which [`Self::with_sums`] multiplies; `None` if it multiplies with the rows themselves.
    fn inputs_of(&self, machine: &Machine, x: Rows<E>, shared: &mut Shared<E>) -> Option<Inputs> {
        match self {
            Self::Packed(packed) => packed.inputs_of(machine, x, shared),
            Self::Quantised(quantised) => quantised.inputs_of(machine, x, shared),
        }
    }

    /// Computes the sums of some rows of `x` with a panel, [`PANEL`] for each row, and passes them on.
    fn with_sums<T>(
        &self,
        dispatch: Dispatch,
        x: (Rows<E>, Option<&Inputs>),
        rows: Range<usize>,
        panel: usize,
        with: impl FnOnce(&[f32]) -> T,
    ) -> T {
        f32::scratch(rows.len() * PANEL, |sums| {
            match self {
                Self::Packed(packed) => packed.sums(dispatch, x, rows, panel, sums),
                Self::Quantised(quantised) => quantised.sums(dispatch, x.1, rows, panel, sums),
            }
            with(sums)
        })
    }

    fn panel_count(&self) -> usize {
        self.outputs().div_ceil(PANEL)
    }
}

/// A linear layer.
pub struct Linear<E> {
    weights: Weights<E>,
    /// Zeros where the layer has no bias.
    bias: Vec<f32>,
}

impl<E: Element> Linear<E> {
    /// A layer with a bias or without.
    ///
    /// # Panics
    /// If the bias does not have an element for each output.
    pub fn new(weights: impl Into<Weights<E>>, bias: Option<Vec<f32>>) -> Self {
        let weights = weights.into();
        let bias = bias.unwrap_or_else(|| vec![0.0; weights.outputs()]);
        assert_eq!(bias.len(), weights.outputs(), "elements of a bias");
        Self { weights, bias }
    }

    /// The weights.
    pub fn weights(&self) -> &Weights<E> {
        &self.weights
    }

    fn check(&self, x: Rows<E>, out: usize) {
        let inputs = self.weights.inputs();
        assert!(x.stride() >= Rows::<E>::stride_of(inputs), "rows of {} for {inputs} inputs", x.stride());
        assert!(x.count() * self.weights.outputs() <= out, "too little room for the results");
    }
}

/// Use of the result of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It replaces the values of `out`.
    Store,
    /// It is added to them.
    Add,
}

/// A linear layer to be computed.
pub struct Product<'a, E> {
    /// Inputs.
    pub x: Rows<'a, E>,
    pub layer: &'a Linear<E>,
    /// (rows, outputs)
    pub out: &'a mut [f32],
    pub then: Then,
}

/// Computes some linear layers, with one meeting of the threads. Results are rounded to the type of the weights, and so are
/// the sums if they are added.
///
/// # Panics
/// If sizes are inconsistent.
pub fn products<E: Element>(machine: &Machine, products: Vec<Product<E>>) {
    let mut shared = Shared::default();
    let all: Vec<_> = products
        .into_iter()
        .map(|Product { x, layer, out, then }| {
            layer.check(x, out.len());
            (x, layer.weights.inputs_of(machine, x, &mut shared), layer, Parts::new(out), then)
        })
        .collect();
    let sizes = all.iter().map(|(x, _, layer, ..)| (layer.weights.panel_count(), x.count()));
    panels(machine, sizes.collect(), |which, panel, rows| {
        let (x, inputs, layer, out, then) = &all[which];
        let (outputs, first) = (layer.weights.outputs(), panel * PANEL);
        let columns = first..outputs.min(first + PANEL);
        layer.weights.with_sums(machine.dispatch, (*x, inputs.as_ref()), rows.clone(), panel, |sums| {
            for (row, sums) in rows.zip(sums.chunks_exact(PANEL)) {
                // SAFETY: each task has its own panel or its own rows, so that the parts of tasks do not overlap.
                let out = unsafe { out.get(row * outputs + columns.start..row * outputs + columns.end) };
                machine.dispatch.run(Finish::<E> {
                    sums,
                    bias: &layer.bias[columns.clone()],
                    out,
                    then: *then,
                    type_: std::marker::PhantomData,
                });
            }
        });
    });
}

/// Adds the bias, rounds, and stores or adds the results of one row with one panel.
struct Finish<'a, E> {
    sums: &'a [f32],
    bias: &'a [f32],
    out: &'a mut [f32],
    then: Then,
    type_: std::marker::PhantomData<E>,
}

impl<E: Element> Kernel for Finish<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let parts = self.out.iter_mut().zip(self.sums).zip(self.bias);
        match self.then {
            Then::Store => parts.for_each(|((out, sum), bias)| *out = E::round(sum + bias)),
            Then::Add => parts.for_each(|((out, sum), bias)| *out = E::round(*out + E::round(sum + bias))),
        }
    }
}

/// The first half of a gated feed-forward, to be computed.
pub struct Gate<'a, E> {
    /// Inputs.
    pub x: Rows<'a, E>,
    pub gate: &'a Linear<E>,
    pub up: &'a Linear<E>,
    /// A row for each row of `x`, [`Rows::stride_of`] the outputs apart.
    pub out: &'a mut [E],
}

/// Computes `activation(gate(x)) · up(x)` for some feed-forwards, with one meeting of the threads. The results of both layers and
/// of the activation are rounded.
///
/// # Panics
/// If sizes are inconsistent.
pub fn gated<E: Element>(machine: &Machine, activation: Activation, gates: Vec<Gate<E>>) {
    let mut shared = Shared::default();
    let all: Vec<_> = gates
        .into_iter()
        .map(|Gate { x, gate, up, out }| {
            gate.check(x, out.len());
            up.check(x, out.len());
            assert_eq!(gate.weights.outputs(), up.weights.outputs(), "outputs of gate and up");
            (x, [gate, up].map(|layer| layer.weights.inputs_of(machine, x, &mut shared)), gate, up, Parts::new(out))
        })
        .collect();
    let sizes = all.iter().map(|(x, _, gate, ..)| (gate.weights.panel_count(), x.count()));
    panels(machine, sizes.collect(), |which, panel, rows| {
        let (x, [gate_inputs, up_inputs], gate, up, out) = &all[which];
        let (outputs, first) = (gate.weights.outputs(), panel * PANEL);
        let columns = first..outputs.min(first + PANEL);
        let stride = Rows::<E>::stride_of(outputs);
        // The last panel also writes the zeros at odd ends.
        let end = if columns.end == outputs { stride } else { columns.end };
        gate.weights.with_sums(machine.dispatch, (*x, gate_inputs.as_ref()), rows.clone(), panel, |gates| {
            up.weights.with_sums(machine.dispatch, (*x, up_inputs.as_ref()), rows.clone(), panel, |ups| {
                let sums = gates.chunks_exact(PANEL).zip(ups.chunks_exact(PANEL));
                for (row, (gates, ups)) in rows.zip(sums) {
                    // SAFETY: each task has its own panel or its own rows, so that the parts of tasks do not overlap.
                    let out = unsafe { out.get(row * stride + columns.start..row * stride + end) };
                    let biases = (&gate.bias[columns.clone()], &up.bias[columns.clone()]);
                    machine.dispatch.run(FinishGate { gates, ups, biases, out, activation });
                }
            });
        });
    });
}

struct FinishGate<'a, E> {
    gates: &'a [f32],
    ups: &'a [f32],
    biases: (&'a [f32], &'a [f32]),
    out: &'a mut [E],
    activation: Activation,
}

impl<E: Element> FinishGate<'_, E> {
    /// Applies `activation` to gates and `shift` to up projections.
    #[inline(always)]
    fn with(self, activation: impl Fn(f32) -> f32, shift: impl Fn(f32) -> f32) {
        let (out, end) = self.out.split_at_mut(self.biases.0.len());
        end.fill(E::default());
        let sums = self.gates.iter().zip(self.ups).zip(self.biases.0).zip(self.biases.1);
        for (out, (((gate, up), gate_bias), up_bias)) in out.iter_mut().zip(sums) {
            let gate = E::round(activation(E::round(gate + gate_bias)));
            *out = E::from_f32(gate * shift(E::round(up + up_bias)));
        }
    }
}

impl<E: Element> Kernel for FinishGate<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        match self.activation {
            Activation::Silu => self.with(Activation::silu, |up| up),
            Activation::Gelu => self.with(Activation::gelu, |up| up),
            Activation::GeluTanh => self.with(Activation::gelu_tanh, |up| up),
            Activation::ClampedSilu { alpha, limit } => self.with(
                |gate| Activation::clamped_silu(gate, alpha, limit),
                |up| E::round(Activation::clamped_shift(up, limit)),
            ),
        }
    }
}

/// Calls `task` for each panel of some products, with the number of the product, that of the panel, and a chunk of the rows.
/// `sizes` are the numbers of panels and rows of each product.
fn panels(machine: &Machine, sizes: Vec<(usize, usize)>, task: impl Fn(usize, usize, Range<usize>) + Sync) {
    let counts: Vec<usize> = sizes.iter().map(|(panels, rows)| panels * rows.div_ceil(CHUNK)).collect();
    machine.pool.run(counts.iter().sum(), |mut number| {
        let mut which = 0;
        while number >= counts[which] {
            number -= counts[which];
            which += 1;
        }
        let (_, rows) = sizes[which];
        // The chunks of rows of one panel follow each other, so that they find its weights in a cache.
        let chunks = rows.div_ceil(CHUNK);
        let (panel, first) = (number / chunks, number % chunks * CHUNK);
        task(which, panel, first..rows.min(first + CHUNK));
    });
}
