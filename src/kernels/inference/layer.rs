//! Linear layers whose weights have any type, for networks whose values are f32.

use half::{bf16, f16};

use super::{Element, Linear, Machine, Product, Rows, Then, embed, products};

/// A linear layer with inputs and outputs in f32. With weights in bf16 or f16, both are rounded to that type.
pub enum Layer {
    /// Weights in f32, in blocks, or in FP8.
    F32(Linear<f32>),
    /// Weights in bf16.
    BF16(Linear<bf16>),
    /// Weights in f16.
    F16(Linear<f16>),
}

/// Evaluates an expression for the linear layer of any type.
macro_rules! with {
    ($layer:expr, $linear:ident => $result:expr) => {
        match $layer {
            Layer::F32($linear) => $result,
            Layer::BF16($linear) => $result,
            Layer::F16($linear) => $result,
        }
    };
}

impl Layer {
    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        with!(self, linear => linear.weights().outputs())
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        with!(self, linear => linear.weights().inputs())
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> u64 {
        with!(self, linear => linear.weights().bytes())
    }

    /// `x · weightᵀ + bias`, from (rows, inputs) to (rows, outputs).
    ///
    /// # Panics
    /// If there are not as many values.
    pub fn apply(&self, machine: &Machine, x: &[f32], out: &mut [f32]) {
        let count = x.len() / self.inputs();
        assert_eq!((x.len(), out.len()), (count * self.inputs(), count * self.outputs()), "inputs and outputs");
        match self {
            Self::F32(linear) => multiply(machine, linear, Rows::new(x, count, self.inputs()), out),
            Self::BF16(linear) => multiply_rounded(machine, linear, x, out),
            Self::F16(linear) => multiply_rounded(machine, linear, x, out),
        }
    }

    /// The weights of some outputs: (places, inputs).
    ///
    /// # Panics
    /// If there is no such output, or `out` is shorter.
    pub fn rows(&self, machine: &Machine, places: &[u32], out: &mut [f32]) {
        with!(self, linear => embed(machine, linear.weights(), places, 1.0, out));
    }
}

fn multiply<E: Element>(machine: &Machine, layer: &Linear<E>, x: Rows<E>, out: &mut [f32]) {
    products(machine, vec![Product { x, layer, out, then: Then::Store }]);
}

fn multiply_rounded<E: Element>(machine: &Machine, layer: &Linear<E>, x: &[f32], out: &mut [f32]) {
    let width = layer.weights().inputs();
    let (count, stride) = (x.len() / width, Rows::<E>::stride_of(width));
    let mut rounded = vec![E::default(); count * stride];
    machine.each_row(&mut rounded, stride, |number, row| {
        row.iter_mut().zip(&x[number * width..][..width]).for_each(|(to, from)| *to = E::from_f32(*from));
    });
    multiply(machine, layer, Rows::new(&rounded, count, stride), out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::{Packed, Source};

    fn packed<E: Element>(machine: &Machine, (outputs, inputs): (usize, usize), weights: &[f32]) -> Linear<E> {
        let weights: Vec<E> = weights.iter().map(|weight| E::from_f32(*weight)).collect();
        let bias = (0..outputs).map(|output| output as f32).collect();
        Linear::new(Packed::new(machine, outputs, inputs, Source::row_major(&weights, inputs)), Some(bias))
    }

    /// Rows of an odd width have a zero at their end in bf16.
    #[test]
    fn every_type_multiplies_and_looks_up_the_same_weights() {
        let machine = Machine::with_threads(2);
        let shape @ (outputs, inputs) = (5, 7);
        let numbers = |count: usize| -> Vec<f32> { (0..count).map(|at| (at as f32 * 0.7).sin()).collect() };
        let (weights, x) = (numbers(outputs * inputs), numbers(3 * inputs));
        let expected: Vec<f32> = x
            .chunks(inputs)
            .flat_map(|x| weights.chunks(inputs).enumerate().map(move |(output, row)| (x, output, row)))
            .map(|(x, output, row)| output as f32 + x.iter().zip(row).map(|(x, weight)| x * weight).sum::<f32>())
            .collect();
        for (layer, tolerance, bytes) in [
            (Layer::F32(packed(&machine, shape, &weights)), 1e-5, 4),
            (Layer::BF16(packed(&machine, shape, &weights)), 0.05, 2),
            (Layer::F16(packed(&machine, shape, &weights)), 0.01, 2),
        ] {
            assert_eq!((layer.outputs(), layer.inputs(), layer.bytes()), (5, 7, bytes * 35));
            let mut found = vec![f32::NAN; 3 * outputs];
            layer.apply(&machine, &x, &mut found);
            let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart(&found, &expected) < tolerance, "{found:?} are not {expected:?}");
            let mut row = vec![f32::NAN; 2 * inputs];
            layer.rows(&machine, &[4, 1], &mut row);
            assert!(apart(&row[..inputs], &weights[4 * inputs..]) < tolerance);
            assert!(apart(&row[inputs..], &weights[inputs..2 * inputs]) < tolerance);
        }
    }
}
