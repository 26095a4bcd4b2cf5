//! Gradients of a language model, with or without checkpointing. Without it, the backward pass uses the stored
//! activations of all layers. With it, only the input of each layer is stored, and the backward pass recomputes the
//! layer (Chen et al. 2016). Candle's backward pass goes from a scalar to all variables; the parts here start from
//! the gradient of the following part.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor, TensorId, Var};
use tracing::trace_span;

use super::loss;
use crate::{
    kernels::{change, is_plain, with_slices},
    model::psann::Decoder,
};

/// The result of one pass over some sequences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pass {
    /// Sum of the cross-entropy over the tokens, in nats.
    pub loss_sum: f64,
    /// Tokens that had the largest logit.
    pub correct: usize,
}

/// Token ids of sequences, row by row. Each is one longer than the input of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    ids: Vec<u32>,
    length: usize,
}

impl Sequences {
    /// `length` includes the last token, which is only a target.
    ///
    /// # Errors
    /// Returns an error if the ids are not a whole number of sequences, or a sequence has no target.
    pub fn new(ids: Vec<u32>, length: usize) -> Result<Self> {
        ensure!(length > 1, "a sequence of {length} tokens has nothing to predict");
        ensure!(
            !ids.is_empty() && ids.len().is_multiple_of(length),
            "{} tokens are not a whole number of sequences of {length}",
            ids.len()
        );
        Ok(Self { ids, length })
    }

    /// Number of sequences.
    pub(crate) fn rows(&self) -> usize {
        self.ids.len() / self.length
    }

    /// Number of predicted tokens.
    pub fn tokens(&self) -> usize {
        self.rows() * (self.length - 1)
    }

    /// Splits the sequences into parts of at most `rows` rows.
    pub(crate) fn split(&self, rows: usize) -> impl Iterator<Item = Self> {
        self.ids.chunks(rows * self.length).map(|ids| Self { ids: ids.to_vec(), length: self.length })
    }

    /// Input ids.
    fn inputs(&self) -> Vec<u32> {
        self.ids.chunks(self.length).flat_map(|row| &row[..self.length - 1]).copied().collect()
    }

    /// Target ids.
    pub(super) fn targets(&self) -> Vec<u32> {
        self.ids.chunks(self.length).flat_map(|row| &row[1..]).copied().collect()
    }

    pub(super) fn input(&self, model: &Decoder) -> Result<Tensor> {
        let shape = (self.rows(), self.length - 1);
        Ok(Tensor::from_vec(self.inputs(), shape, model.embedding().device())?)
    }
}

/// Input of the head (rows, width), without gradients.
fn hidden(model: &Decoder, sequences: &Sequences) -> Result<Tensor> {
    let mut x = trace_span!("embedding").in_scope(|| model.embed(&sequences.input(model)?))?.detach();
    let _forward = trace_span!("forward").entered();
    for layer in 0..model.layers() {
        // Without `detach`, Candle would keep the earlier layers for a backward pass that never runs.
        x = model.layer(layer, &x)?.detach();
    }
    rows_of(&model.finish(&x)?)
}

/// Buffers that are reused from one batch to the next.
#[derive(Default)]
pub struct Workspace {
    loss: loss::Workspace,
    /// (vocabulary, width): the gradient of the embedding table.
    of_table: Option<Tensor>,
    /// Its rows that are not 0.
    touched: Vec<u32>,
}

/// Computes the loss without gradients.
///
/// # Errors
/// Returns an error if a token is not in the vocabulary, or the device fails.
pub fn evaluate(model: &Decoder, sequences: &Sequences, workspace: &mut Workspace) -> Result<Pass> {
    let hidden = hidden(model, sequences)?;
    let found = loss::cross_entropy(&hidden, model.head(), &sequences.targets(), None, &mut workspace.loss)?;
    Ok(Pass { loss_sum: found.sum, correct: found.correct })
}

/// Gradients of a batch, which can be computed in parts.
pub(crate) struct Gradients<'a> {
    model: &'a Decoder,
    variables: &'a [Var],
    workspace: &'a mut Workspace,
    /// Gradients of the variables so far. Those of the two large tables are in the workspace.
    sums: HashMap<TensorId, Option<Tensor>>,
}

impl<'a> Gradients<'a> {
    /// # Errors
    /// Returns an error if the device fails.
    pub fn new(model: &'a Decoder, variables: &'a [Var], workspace: &'a mut Workspace) -> Result<Self> {
        workspace.loss.clear();
        let table = model.embedding();
        match workspace.of_table.as_ref().filter(|of_table| is_plain(of_table) && of_table.shape() == table.shape()) {
            Some(of_table) => {
                let (width, touched) = (table.dim(1)?, &workspace.touched);
                change(of_table, |numbers| {
                    touched.iter().for_each(|row| numbers[*row as usize * width..][..width].fill(0.0));
                })?;
            }
            None => workspace.of_table = Some(table.zeros_like()?.detach()),
        }
        workspace.touched.clear();
        let large = [model.head().id(), table.id()];
        let small = variables.iter().map(|variable| variable.id()).filter(|id| !large.contains(id));
        Ok(Self { model, variables, sums: small.map(|id| (id, None)).collect(), workspace })
    }

    /// Adds the gradients of `weight` times the loss of some sequences.
    ///
    /// # Errors
    /// Returns an error if a token is not in the vocabulary, or the device fails.
    pub(crate) fn add(&mut self, sequences: &Sequences, weight: f64, checkpointing: bool) -> Result<Pass> {
        let model = self.model;
        let ids = sequences.input(model)?;
        // A separate variable, so that the backward pass ends here. Only the rows that were looked up have gradients,
        // and Candle would allocate the gradient of the whole table twice.
        let embedded = Var::from_tensor(&trace_span!("embedding").in_scope(|| model.embed(&ids))?.detach())?;
        // The input of each layer after the first, and of the head.
        let mut kept: Vec<Var> = Vec::new();
        let mut x = embedded.as_tensor().clone();
        let forward = trace_span!("forward").entered();
        for layer in 0..model.layers() {
            x = model.layer(layer, &x)?;
            if checkpointing {
                let input = Var::from_tensor(&x.detach())?;
                x = input.as_tensor().clone();
                kept.push(input);
            }
        }
        let hidden = model.finish(&x)?;
        drop((x, forward));
        let targets = sequences.targets();
        let found =
            loss::cross_entropy(&rows_of(&hidden)?, model.head(), &targets, Some(weight), &mut self.workspace.loss)?;
        let of_hidden = found.of_hidden.context("no gradient was computed")?.reshape(hidden.shape())?;
        let last = kept.pop().unwrap_or_else(|| embedded.clone());
        let mut of_x = self.pull(hidden, &of_hidden, last)?;
        if checkpointing {
            for layer in (0..model.layers()).rev() {
                let input = kept.pop().unwrap_or_else(|| embedded.clone());
                let output = trace_span!("recompute").in_scope(|| model.layer(layer, input.as_tensor()))?;
                of_x = self.pull(output, &of_x, input)?;
            }
        }
        self.add_rows(&ids, &of_x)?;
        Ok(Pass { loss_sum: found.sum, correct: found.correct })
    }

    /// Returns the gradients in the order of the variables. They are valid until the next batch.
    ///
    /// # Errors
    /// Returns an error if the loss does not depend on a variable.
    pub(crate) fn finish(mut self) -> Result<Vec<Tensor>> {
        self.sums.insert(self.model.head().id(), Some(self.workspace.loss.of_head()?));
        self.sums.insert(self.model.embedding().id(), self.workspace.of_table.clone());
        let mut of =
            |variable: &Var| self.sums.remove(&variable.id()).flatten().context("the loss does not depend on a weight");
        self.variables.iter().map(&mut of).collect()
    }

    /// Runs the backward pass from `output`, given its gradient, to `input`. Returns the gradient of `input` and
    /// accumulates those of the variables.
    fn pull(&mut self, output: Tensor, gradient: &Tensor, input: Var) -> Result<Tensor> {
        let _backward = trace_span!("backward").entered();
        // A scalar whose gradient with respect to the output is the given one.
        let scalar = (output.to_dtype(DType::F32)? * gradient.to_dtype(DType::F32)?.detach())?.sum_all()?;
        let mut found = scalar.backward()?;
        let of_input = found.remove(input.as_tensor()).context("a layer's output does not depend on its input")?;
        for (id, sum) in &mut self.sums {
            let Some(gradient) = found.get_id(*id) else { continue };
            *sum = Some(match sum.take() {
                Some(sum) => (sum + gradient)?,
                None => gradient.clone(),
            });
        }
        Ok(of_input)
    }

    /// Adds the gradients of embeddings to the rows of the table that they were looked up in.
    fn add_rows(&mut self, ids: &Tensor, of_rows: &Tensor) -> Result<()> {
        let _embedding = trace_span!("embedding").entered();
        let (ids, of_table) = (ids.flatten_all()?, self.workspace.of_table.take().context("no batch was started")?);
        let width = of_table.dim(1)?;
        let of_rows = of_rows.reshape(((), width))?.to_dtype(of_table.dtype())?;
        self.workspace.of_table = Some(match is_plain(&of_table) {
            true => {
                let ids = ids.to_vec1::<u32>()?;
                with_slices([&of_rows], |[of_rows]| {
                    change(&of_table, |numbers| {
                        for (id, of_row) in ids.iter().zip(of_rows.chunks(width)) {
                            let row = &mut numbers[*id as usize * width..][..width];
                            row.iter_mut().zip(of_row).for_each(|(sum, more)| *sum += more);
                        }
                    })
                })??;
                self.workspace.touched.extend(ids);
                of_table
            }
            false => of_table.index_add(&ids, &of_rows, 0)?.detach(),
        });
        Ok(())
    }
}

/// (batch, time, width) as (rows, width), without gradients.
fn rows_of(x: &Tensor) -> Result<Tensor> {
    let (batch, time, width) = x.dims3()?;
    Ok(x.detach().reshape((batch * time, width))?)
}
