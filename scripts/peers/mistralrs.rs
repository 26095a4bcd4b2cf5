//! Generates with mistral.rs, through its crate, as a peer of candlepower: see src/guide/peers.md. It reads GGUF files and folders of
//! safetensors, on a CPU.
//!
//! The engine of mistral.rs runs a generation to its end without waiting for its caller. A processor of logits, which changes nothing,
//! passes them on and holds the engine until the next token is asked for. So the time of a token is that from the logits before it to its
//! own, which contains sampling, scheduling and the pass, without the pauses.

use std::{
    fs,
    io::{BufRead, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::exit,
    sync::{Arc, Mutex, mpsc},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{
    D, DType, Tensor,
    quantized::gguf_file::{Content, Value as Metadata},
    safetensors::MmapedSafetensors,
};
use mistralrs::{
    AnyModelBuilder, GgufModelBuilder, MistralRs, ModelDType, NormalRequest, Request, RequestMessage, Response,
    SamplingParams, TextModelBuilder, core::MistralRsBuilder,
};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, sync::mpsc as replies};

const PROTOCOL: u32 = 3;

/// The crate's version, which Cargo.toml states.
const VERSION: &str = "mistralrs 0.8.1, candle 0.10.2";

/// A request that the adapter does not serve, so that the benchmark is left out.
#[derive(Debug)]
struct Unsupported(String);

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unsupported {}

fn unsupported(reason: impl Into<String>) -> anyhow::Error {
    Unsupported(reason.into()).into()
}

/// The logits of a token, and when they were there.
struct Seen {
    at: Instant,
    logits: Tensor,
}

/// A generation that the engine runs.
struct Generation {
    seen: mpsc::Receiver<Seen>,
    /// Lets the engine go on.
    go: mpsc::Sender<()>,
    replies: replies::Receiver<Response>,
    tokens: usize,
}

impl Generation {
    /// Lets the engine end the sequence.
    fn finish(mut self) {
        drop(self.go);
        while self.replies.blocking_recv().is_some() {}
    }
}

struct Peer {
    runtime: Runtime,
    engine: Option<Arc<MistralRs>>,
    cache_bytes_per_token: u64,
    resident_before: Option<u64>,
    /// Longest sequence since the last reset.
    longest: usize,
    generation: Option<Generation>,
    requests: usize,
}

impl Peer {
    fn new() -> Result<Self> {
        Ok(Self {
            runtime: Runtime::new()?,
            engine: None,
            cache_bytes_per_token: 0,
            resident_before: None,
            longest: 0,
            generation: None,
            requests: 0,
        })
    }

    fn answer(&mut self, request: &Value) -> Result<Value> {
        match request["request"].as_str().unwrap_or_default() {
            "describe" => Ok(json!({
                "protocol": PROTOCOL, "name": "mistral.rs", "version": VERSION, "work": ["generate", "score"],
            })),
            "load" => self.load(request),
            "reset" => self.reset(request),
            "prefill" => self.prefill(ids(request)?),
            "step" => self.step(count(&request["count"])?),
            "logits" => self.logits(request),
            _ => Err(unsupported("the adapter does not know the request")),
        }
    }

    fn load(&mut self, request: &Value) -> Result<Value> {
        ensure!(request["device"] == "cpu", unsupported("the adapter runs on a CPU"));
        let (model, dtype) = (&request["model"], request["dtype"].as_str().context("no dtype")?);
        self.resident_before = status("VmRSS");
        let (builder, weights) = match (model["gguf"].as_str(), model["folder"].as_str()) {
            (Some(file), _) => of_file(Path::new(file))?,
            (_, Some(folder)) => of_folder(folder, dtype)?,
            _ => return Err(unsupported("mistral.rs reads GGUF files and safetensors, and draws no weights")),
        };
        self.cache_bytes_per_token = weights.cache_bytes_per_token;
        let build = || {
            self.runtime.block_on(async {
                let (pipeline, scheduler, _) = builder.build_pipeline().await?;
                let builder = MistralRsBuilder::new(pipeline, scheduler, false, None);
                // A prompt that is in a cache is not computed, and an end token ends no benchmark.
                anyhow::Ok(builder.with_no_prefix_cache(true).with_disable_eos_stop(true).build().await)
            })
        };
        // It panics on architectures that it does not know.
        let engine = catch_unwind(AssertUnwindSafe(build)).unwrap_or_else(|panic| {
            let message = panic.downcast_ref::<String>().map_or("it panicked", |message| first_line(message));
            Err(anyhow::anyhow!("{message}"))
        });
        self.engine = Some(engine.map_err(|error| unsupported(format!("mistral.rs does not load it: {error:#}")))?);
        Ok(json!({
            "dtype": dtype, "device": "cpu", "threads": candle_core::utils::get_num_threads(),
            "parameters": weights.parameters, "weight_bytes": weights.bytes,
        }))
    }

    fn reset(&mut self, request: &Value) -> Result<Value> {
        let sampling = &request["sampling"];
        let is_greedy = sampling["temperature"] == 0.0 && sampling["repetition_penalty"].is_null();
        ensure!(is_greedy, unsupported("the adapter chooses tokens by argmax only"));
        if let Some(generation) = self.generation.take() {
            generation.finish();
        }
        self.longest = count(&request["tokens"])?;
        // Without this file, the peak is that of the whole process.
        let _ = fs::write("/proc/self/clear_refs", "5");
        Ok(json!({}))
    }

    fn prefill(&mut self, ids: Vec<u32>) -> Result<Value> {
        let (noted, seen) = mpsc::channel();
        let (go, wait) = mpsc::channel();
        let wait = Mutex::new(wait);
        let processor = move |logits: &Tensor, _: &[u32]| {
            // The other ends are gone when the sequence has been left.
            let _ = noted.send(Seen { at: Instant::now(), logits: logits.clone() });
            let _ = wait.lock().map(|wait| wait.recv());
            Ok(logits.clone())
        };
        let tokens = ids.len();
        let new_tokens = self.longest.saturating_sub(tokens);
        let (began, replies) =
            self.send(ids, new_tokens, |request| request.logits_processors = Some(vec![Arc::new(processor)]))?;
        let generation = self.generation.insert(Generation { seen, go, replies, tokens });
        let first = generation.seen.recv().context("mistral.rs computed no logits")?;
        self.answer_tokens(vec![argmax(&first.logits)?], vec![first.at.duration_since(began).as_nanos() as u64])
    }

    fn step(&mut self, count: usize) -> Result<Value> {
        let generation = self.generation.as_mut().context("a step before its prompt")?;
        let (mut tokens, mut ns) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let began = Instant::now();
            generation.go.send(()).context("mistral.rs ended the sequence")?;
            let next = generation.seen.recv().context("mistral.rs ended the sequence")?;
            ns.push(next.at.duration_since(began).as_nanos() as u64);
            tokens.push(argmax(&next.logits)?);
            generation.tokens += 1;
        }
        self.answer_tokens(tokens, ns)
    }

    fn answer_tokens(&self, tokens: Vec<u32>, ns: Vec<u64>) -> Result<Value> {
        let length = self.generation.as_ref().map_or(0, |generation| generation.tokens);
        let peak_bytes = status("VmHWM").zip(self.resident_before).map(|(peak, before)| peak.saturating_sub(before));
        let cache_bytes = self.cache_bytes_per_token * length as u64;
        Ok(json!({"tokens": tokens, "ns": ns, "peak_bytes": peak_bytes, "cache_bytes": cache_bytes}))
    }

    fn logits(&mut self, request: &Value) -> Result<Value> {
        let from = count(&request["from"])?;
        let file = request["file"].as_str().context("no file")?;
        let (_, mut replies) = self.send(ids(request)?, 1, |request| request.return_raw_logits = true)?;
        let reply = replies.blocking_recv().context("mistral.rs gave no logits")?;
        let Response::Raw { logits_chunks, .. } = reply else { bail!("mistral.rs gave something else than logits") };
        let logits = Tensor::cat(&logits_chunks, 0)?.to_dtype(DType::F32)?;
        let logits = logits.reshape(((), logits.dim(D::Minus1)?))?;
        let rows: Vec<f32> = logits.narrow(0, from, logits.dim(0)? - from)?.flatten_all()?.to_vec1()?;
        let bytes: Vec<u8> = rows.iter().flat_map(|value| value.to_le_bytes()).collect();
        fs::write(file, bytes).context(file.to_owned())?;
        Ok(json!({}))
    }

    /// Sends a greedy request, and returns when it began.
    fn send(
        &mut self,
        ids: Vec<u32>,
        max_len: usize,
        change: impl FnOnce(&mut NormalRequest),
    ) -> Result<(Instant, replies::Receiver<Response>)> {
        let (response, replies) = replies::channel(1 << 16);
        // Without a temperature, it samples with 1.
        let sampling = SamplingParams { temperature: Some(0.0), max_len: Some(max_len), ..SamplingParams::neutral() };
        let message = RequestMessage::CompletionTokens(ids);
        self.requests += 1;
        let mut request = NormalRequest::new_simple(message, sampling, response, self.requests, None, None);
        change(&mut request);
        let sender = self.engine.as_ref().context("no model is loaded")?.get_sender(None)?;
        let began = Instant::now();
        sender.blocking_send(Request::Normal(Box::new(request))).context("mistral.rs has ended")?;
        Ok((began, replies))
    }
}

/// The sizes of a model that the answers state.
struct Weights {
    parameters: u64,
    bytes: u64,
    cache_bytes_per_token: u64,
}

fn of_file(file: &Path) -> Result<(AnyModelBuilder, Weights)> {
    let content = Content::read(&mut fs::File::open(file)?)?;
    // The factors of RoPE are no weights.
    let stored = || content.tensor_infos.iter().filter(|(name, _)| !name.starts_with("rope_")).map(|(_, info)| info);
    let elements = |info: &candle_core::quantized::gguf_file::TensorInfo| info.shape.elem_count();
    let bytes = |info| elements(info) / info.ggml_dtype.block_size() * info.ggml_dtype.type_size();
    let architecture = content.metadata.get("general.architecture").context("no architecture")?.to_string()?;
    let key = |name: &str| content.metadata.get(&format!("{architecture}.{name}")).and_then(whole);
    let heads = key("attention.head_count").context("no heads")?;
    let kv_heads = key("attention.head_count_kv").unwrap_or(heads);
    let head =
        key("attention.key_length").or_else(|| Some(key("embedding_length")? / heads)).context("no head size")?;
    let layers = key("block_count").context("no layers")?;
    let folder = file.parent().context("no folder")?.to_string_lossy().into_owned();
    let name = file.file_name().context("no file")?.to_string_lossy().into_owned();
    let weights = Weights {
        parameters: stored().map(elements).sum::<usize>() as u64,
        bytes: stored().map(bytes).sum::<usize>() as u64,
        cache_bytes_per_token: 2 * layers * kv_heads * head * DType::F32.size_in_bytes() as u64,
    };
    Ok((GgufModelBuilder::new(folder, vec![name]).with_force_cpu().into(), weights))
}

fn whole(value: &Metadata) -> Option<u64> {
    value.to_u64().ok().or_else(|| value.to_u32().ok().map(u64::from))
}

fn of_folder(folder: &str, dtype: &str) -> Result<(AnyModelBuilder, Weights)> {
    let (model_dtype, dtype) = match dtype {
        "f32" => (ModelDType::F32, DType::F32),
        "bf16" => (ModelDType::BF16, DType::BF16),
        "f16" => (ModelDType::F16, DType::F16),
        _ => return Err(unsupported("the adapter reads safetensors in f32, bf16 and f16")),
    };
    let config: Value = serde_json::from_str(&fs::read_to_string(Path::new(folder).join("config.json"))?)?;
    let files: Vec<_> = fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|file| file.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    // SAFETY: nobody writes to the files while the model is measured.
    let tensors = unsafe { MmapedSafetensors::multi(&files)? };
    let is_tied = config["tie_word_embeddings"] == true;
    let parameters = tensors.tensors().into_iter().filter(|(name, _)| !is_tied || name != "lm_head.weight");
    let parameters = parameters.map(|(_, view)| view.shape().iter().product::<usize>()).sum::<usize>() as u64;
    let key = |name: &str| config[name].as_u64();
    let heads = key("num_attention_heads").context("no heads")?;
    let head = key("head_dim").or_else(|| Some(key("hidden_size")? / heads)).context("no head size")?;
    let kv_heads = key("num_key_value_heads").unwrap_or(heads);
    let layers = key("num_hidden_layers").context("no layers")?;
    let element_bytes = dtype.size_in_bytes() as u64;
    let builder = TextModelBuilder::new(folder).with_dtype(model_dtype).with_force_cpu();
    let weights = Weights {
        parameters,
        bytes: parameters * element_bytes,
        cache_bytes_per_token: 2 * layers * kv_heads * head * element_bytes,
    };
    Ok((builder.into(), weights))
}

/// The message of a panic without its backtrace.
fn first_line(message: &str) -> &str {
    message.lines().next().unwrap_or_default()
}

/// The token of the largest logit, which is the one that mistral.rs samples.
fn argmax(logits: &Tensor) -> Result<u32> {
    Ok(logits.flatten_all()?.argmax(D::Minus1)?.to_scalar()?)
}

fn ids(request: &Value) -> Result<Vec<u32>> {
    Ok(serde_json::from_value(request["ids"].clone())?)
}

fn count(value: &Value) -> Result<usize> {
    Ok(value.as_u64().context("no number")? as usize)
}

/// A line of the process's status, in bytes; `None` outside of Linux.
fn status(field: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

fn main() -> Result<()> {
    // mistral.rs prints to standard output, which is for answers.
    let mut answers = fs::File::from(rustix::io::dup(rustix::stdio::stdout())?);
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    let (sender, requests) = mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            let _ = sender.send(line);
        }
        // Candlepower has ended, perhaps in the middle of a step.
        exit(0);
    });
    let mut peer = Peer::new()?;
    for line in requests {
        let request: Value = serde_json::from_str(&line)?;
        if request["request"] == "close" {
            break;
        }
        let answer = peer.answer(&request).unwrap_or_else(|error| match error.downcast_ref::<Unsupported>() {
            Some(reason) => json!({"unsupported": reason.to_string()}),
            None => json!({"error": format!("{error:#}")}),
        });
        writeln!(answers, "{answer}")?;
    }
    // The threads of the engine do not end by themselves.
    exit(0)
}
