//! Steps of training and of inference, without a clock: losses, gradients, optimizers. `forecast` trains a backbone for
//! series. Who is trained is in `subject`; how long it takes is measured in `suite` and `sweep`.

pub mod forecast;
