//! Benchmarks of whole language models on [Candle](https://github.com/huggingface/candle), with Criterion's statistics.
//!
//! # The way through
//! ```text
//! cargo bench -- '^medium/llama'
//!   settings::Settings::load        what to measure, on what; every bad value named at once
//!   scenario::GENERATION            medium = 256 prompt tokens, 256 new ones, greedy
//!   suite::Suite::generation        a Criterion group a scenario, an entry a model
//!     subject::load                 embedded, synthetic, Hub or folder → impl CausalLm, once
//!     generate::run                 prompt, token loop, sampler → Timeline
//!     measure::…                    limits of the machine, memory, how quiet it was
//!   criterion                       statistics, baselines, change, HTML in target/criterion
//!   record::Sink                    one line a benchmark in target/candlepower/<run>/records.jsonl
//!   report::table                   what is printed at the end
//! ```
//! `cargo bench --bench moe` takes the same way with decoders of [`subject::moe`]; [`sweep`] and [`train`] do so for the
//! backbones of [`subject::temporal`] and the language models of [`subject::psann`], a step an iteration. [`learn`] trains
//! those on a text.
//!
//! A model of one's own implements [`subject::CausalLm`] and runs in every generation scenario: see
//! `examples/bring_your_own_model.rs`.
//!
//! # Methodology
//!
//! **What is timed.** One iteration of a generation benchmark is one generation: the prompt's forward pass, then a
//! forward pass and a choice for each further token. The clock starts when the prompt goes in and stops when the last
//! token is chosen, and on an asynchronous device it is read only when the device is idle. TTFT, every inter-token
//! latency and the time spent choosing tokens come from the same clock readings. Loading, cutting the prompt, emptying
//! the cache, the first generation after loading and Criterion's analysis are not timed.
//!
//! **How often.** Criterion measures ten generations after one that warms up, each a sample of its own; `--sample-size`
//! asks for more. Medians stand in the tables and records, because what disturbs a run only makes it slower and a mean
//! hands every disturbance on. Criterion prints a mean with its interval. Percentiles of the inter-token latency are over
//! every step of every sample.
//!
//! **The work is checked.** A logit that is not finite fails the benchmark. All generations of a benchmark must make the
//! same tokens, or the model keeps something from one to the next, and fails. The digest of the tokens stands in the
//! record: two runs with different digests did different work. End-of-sequence tokens are ignored, so that every
//! generation is as long as its scenario says.
//!
//! **Limits.** MBU is what the decode steps must read (each weight once, and the cache that is in use) over the time they
//! took, as a share of the bandwidth at which this machine reads memory. MFU is what the prefill must compute over TTFT,
//! as a share of the rate of a large matrix product on Candle. Both limits are measured once in the process:
//! [`measure::limits`] says how. A part that does not fit a step's true cost, such as an activation or a copy that an
//! implementation makes of its cache, is not counted: it is what lowers the share.
//!
//! **Noise.** A change below 3 % is called noise by default; `--noise-threshold` says otherwise. Ten samples make an
//! interval for the run that was, not for the next one: heat, neighbours and the layout of memory differ between runs.
//! `scripts/resolution.sh` shows what this machine can tell apart; the README has its outcome. Each record says how much
//! processor time other processes and other guests of the hypervisor took, and the table marks those that were disturbed.
//!
//! **Mixtures of experts.** A step reads the weights of the experts that its token is sent to, so MBU counts those and the
//! rest of the decoder; MFU counts the products with them. `moe_top_k` sends tokens to experts by a seeded draw whose
//! imbalance is set, because the routers of seeded weights choose by accident; they are computed all the same. The ratio
//! to a twin compares medians of the same run.
//!
//! **Steps of the sweep.** A training step is forward, backward and AdamW's update on a new batch; cutting the batch out of
//! the series is not timed. A forecast keeps nothing that a gradient would need. Under Criterion a sample is the mean of as
//! many steps as fit a tenth of a second or one; percentiles are over every step. MFU counts products with weights and of
//! attention, three times over when it trains.
//!
//! **Steps of language models.** A training step is forward, backward, clipping and AdamW's update on new random tokens;
//! `forward` ends with the loss. Logits are made a chunk of rows at a time, and what a step needs again is kept from one to
//! the next. MFU counts products with weights and of attention, three times over when it trains and not again where
//! checkpointing computes them again. Peak memory is a group of its own, whose samples are bytes; Criterion is given a few
//! bytes more in each sample, other ones each time, since it fails to plot samples that are all alike. Records keep what was
//! counted. Weights, gradients and moments are f32; in bf16 the model computes in that.
//!
//! # Known biases
//!
//! * The embedded models fit in memory that a larger cache may hold in part, and their vocabulary of 16384 makes the head
//!   cheaper than a real one's. They show change; for a model's speed, measure its real shape.
//! * Seeded weights cost what trained ones cost, since nothing here depends on their values; what they generate is noise.
//! * The three published families are not one implementation. Llama's cache is concatenated anew for each token and its
//!   attention is plain matrix products; Qwen3's cache is concatenated too, with a fused attention kernel on processors;
//!   Gemma3's sliding layers rotate, and its full layers allocate the longest sequence at once. A Llama bar beside a Qwen3
//!   bar compares these too.
//! * Benchmarks run one after the other: what warms up or drifts over minutes reaches the later ones.
//! * Peak memory counts the program's allocations on the processor's side. Memory-mapped files and other devices' memory
//!   are not in it.
//! * Candle widens 16-bit operands of every matrix product on a processor to f32: engine `stock` in bf16 there is as slow
//!   as it is reported.

pub mod config;
pub mod device;
pub mod doctor;
pub mod error;
pub mod generate;
pub mod kernels;
pub mod measure;
pub mod model;
pub mod record;
pub mod report;
pub mod runner;
pub mod scenario;
pub mod settings;
pub mod train;
pub mod workload;
