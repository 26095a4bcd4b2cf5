//! Residual connections.

use super::{
    Mask, dot, each_part,
    elementary::compiled,
    tape::{Memory, Operation},
};

/// `x + branch`, with dropout of the branch.
pub(super) struct Add(pub Mask);

compiled! {
    fn add(x: &[f32], branch: &[f32], out: &mut [f32]) {
        out.iter_mut().zip(x).zip(branch).for_each(|((out, x), branch)| *out = x + branch);
    }

    fn add_masked(x: &[f32], branch: &[f32], mask: Mask, first: usize, out: &mut [f32]) {
        for (i, ((out, x), branch)) in out.iter_mut().zip(x).zip(branch).enumerate() {
            *out = x + mask.factor(first + i) * branch;
        }
    }

    fn masked(grad: &[f32], mask: Mask, first: usize, of_branch: &mut [f32]) {
        for (i, (of_branch, grad)) in of_branch.iter_mut().zip(grad).enumerate() {
            *of_branch = mask.factor(first + i) * grad;
        }
    }

    fn add_times(x: &[f32], branch: &[f32], scale: f32, out: &mut [f32]) {
        out.iter_mut().zip(x).zip(branch).for_each(|((out, x), branch)| *out = x + scale * branch);
    }

    fn times(grad: &[f32], scale: f32, out: &mut [f32]) {
        out.iter_mut().zip(grad).for_each(|(out, grad)| *out = scale * grad);
    }

    fn product_sum(a: &[f32], b: &[f32]) -> f32 {
        dot(a, b)
    }
}

impl Operation for Add {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn forward(&self, inputs: &[&[f32]], out: &mut [f32]) {
        let (x, branch, mask) = (inputs[0], inputs[1], self.0);
        each_part(out, 1, |part, out| {
            let (x, branch) = (&x[part.clone()], &branch[part.clone()]);
            if mask.is_none() { add(x, branch, out) } else { add_masked(x, branch, mask, part.start, out) }
        });
    }

    fn backward(&self, _: &[&[f32]], _: &[f32], grad: Memory, of: &mut [Option<Memory>]) {
        let mask = self.0;
        if let Some(of_branch) = &mut of[1] {
            each_part(of_branch, 1, |part, of_branch| match mask.is_none() {
                true => of_branch.copy_from_slice(&grad[part]),
                false => masked(&grad[part.clone()], mask, part.start, of_branch),
            });
        }
        if let Some(of_x) = &mut of[0] {
            *of_x = grad;
        }
    }
}

/// `x + scale · branch`, with a scalar scale.
pub(super) struct AddScaled;

impl Operation for AddScaled {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn forward(&self, inputs: &[&[f32]], out: &mut [f32]) {
        let (x, branch, scale) = (inputs[0], inputs[1], inputs[2][0]);
        each_part(out, 1, |part, out| add_times(&x[part.clone()], &branch[part], scale, out));
    }

    fn backward(&self, inputs: &[&[f32]], _: &[f32], grad: Memory, of: &mut [Option<Memory>]) {
        /// Elements whose products are added up in f32.
        const SUM: usize = 4096;
        let (branch, scale) = (inputs[1], inputs[2][0]);
        if let Some(of_scale) = &mut of[2] {
            let parts = branch.chunks(SUM).zip(grad.chunks(SUM));
            of_scale[0] = parts.map(|(branch, grad)| f64::from(product_sum(branch, grad))).sum::<f64>() as f32;
        }
        if let Some(of_branch) = &mut of[1] {
            each_part(of_branch, 1, |part, of_branch| times(&grad[part], scale, of_branch));
        }
        if let Some(of_x) = &mut of[0] {
            *of_x = grad;
        }
    }
}
