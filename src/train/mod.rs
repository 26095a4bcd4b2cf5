//! How a model is trained: loss, step, gradient checkpointing and the signals that say whether training is healthy.
