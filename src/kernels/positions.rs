//! Operations between steps of a sequence: learned positions and means of neighbouring steps.

use super::{
    Mask, each_part,
    elementary::compiled,
    tape::{Memory, Operation},
};

/// `x + positions`, then dropout, with `x` (batch, time, width) and at least `time` rows of positions.
pub(super) struct AddPositions {
    /// Elements of a sequence: its steps times its width.
    pub len: usize,
    pub mask: Mask,
}

compiled! {
    fn placed(x: &[f32], positions: &[f32], mask: Mask, first: usize, out: &mut [f32]) {
        for (i, ((out, x), position)) in out.iter_mut().zip(x).zip(positions).enumerate() {
            *out = (x + position) * mask.factor(first + i);
        }
    }

    fn masked(grad: &[f32], mask: Mask, first: usize, out: &mut [f32]) {
        for (i, (out, grad)) in out.iter_mut().zip(grad).enumerate() {
            *out = grad * mask.factor(first + i);
        }
    }
}

impl Operation for AddPositions {
    fn name(&self) -> &'static str {
        "positions"
    }

    fn forward(&self, inputs: &[&[f32]], out: &mut [f32]) {
        let (x, positions) = (inputs[0], inputs[1]);
        each_part(out, self.len, |sequences, out| {
            for (sequence, out) in sequences.zip(out.chunks_exact_mut(self.len)) {
                let start = sequence * self.len;
                placed(&x[start..start + self.len], positions, self.mask, start, out);
            }
        });
    }

    fn backward(&self, inputs: &[&[f32]], _: &[f32], mut grad: Memory, of: &mut [Option<Memory>]) {
        if !self.mask.is_none() {
            each_part(&mut grad, self.len, |sequences, grad| {
                let of = grad.to_vec();
                masked(&of, self.mask, sequences.start * self.len, grad);
            });
        }
        if let Some(of_positions) = &mut of[1] {
            let (seen, rest) = of_positions.split_at_mut(self.len.min(inputs[1].len()));
            super::linear::column_sums(&grad, seen);
            rest.fill(0.0);
        }
        if let Some(of_x) = &mut of[0] {
            *of_x = grad;
        }
    }
}

/// Means of `factor` steps each, from (batch, time, width). The last mean is over the steps that are left.
pub(super) struct Pool {
    pub time: usize,
    pub width: usize,
    pub factor: usize,
}

impl Pool {
    /// Number of means of a sequence.
    pub fn steps(&self) -> usize {
        self.time.div_ceil(self.factor)
    }

    /// For each of some means: its steps in (batch · time).
    fn steps_of(&self, mean: usize) -> std::ops::Range<usize> {
        let (sequence, mean) = (mean / self.steps() * self.time, mean % self.steps());
        sequence + mean * self.factor..sequence + self.time.min((mean + 1) * self.factor)
    }
}

impl Operation for Pool {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn forward(&self, inputs: &[&[f32]], out: &mut [f32]) {
        let width = self.width;
        each_part(out, width, |means, out| {
            for (mean, out) in means.zip(out.chunks_exact_mut(width)) {
                let steps = self.steps_of(mean);
                let share = 1.0 / steps.len() as f32;
                out.fill(0.0);
                for row in inputs[0][steps.start * width..steps.end * width].chunks_exact(width) {
                    out.iter_mut().zip(row).for_each(|(out, x)| *out += share * x);
                }
            }
        });
    }

    fn backward(&self, _: &[&[f32]], _: &[f32], grad: Memory, of: &mut [Option<Memory>]) {
        let (width, steps) = (self.width, self.steps());
        if let Some(of_x) = &mut of[0] {
            each_part(of_x, self.time * width, |sequences, of_x| {
                for mean in sequences.start * steps..sequences.end * steps {
                    let rows = self.steps_of(mean);
                    let (share, first) = (1.0 / rows.len() as f32, rows.start - sequences.start * self.time);
                    let grad = &grad[mean * width..(mean + 1) * width];
                    for row in of_x[first * width..(first + rows.len()) * width].chunks_exact_mut(width) {
                        row.iter_mut().zip(grad).for_each(|(of_x, grad)| *of_x = share * grad);
                    }
                }
            });
        }
    }
}

/// The last step of each sequence, from (batch, time, width).
pub(super) struct Last {
    pub time: usize,
    pub width: usize,
}

impl Operation for Last {
    fn name(&self) -> &'static str {
        "last"
    }

    fn forward(&self, inputs: &[&[f32]], out: &mut [f32]) {
        let sequences = inputs[0].chunks_exact(self.time * self.width);
        for (out, sequence) in out.chunks_exact_mut(self.width).zip(sequences) {
            out.copy_from_slice(&sequence[(self.time - 1) * self.width..]);
        }
    }

    fn backward(&self, _: &[&[f32]], _: &[f32], grad: Memory, of: &mut [Option<Memory>]) {
        if let Some(of_x) = &mut of[0] {
            let sequences = of_x.chunks_exact_mut(self.time * self.width);
            for (grad, of_x) in grad.chunks_exact(self.width).zip(sequences) {
                let (before, last) = of_x.split_at_mut((self.time - 1) * self.width);
                before.fill(0.0);
                last.copy_from_slice(grad);
            }
        }
    }
}
