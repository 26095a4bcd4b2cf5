//! Steps of training and of inference, without a clock: losses, gradients, optimizers. `language` trains language models:
//! `gradients` goes forward and back, with or without checkpointing, `loss` is what it starts from, `optimizer` what it ends
//! in. `forecast` trains a backbone for series. Who is trained is in `subject`; how long it takes is measured in `suite` and
//! `sweep`.

pub mod forecast;
pub mod gradients;
pub mod language;
pub mod loss;
pub mod optimizer;
