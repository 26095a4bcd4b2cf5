//! Reads files that Candle writes from the fixtures, and files that are wrong.

use std::{fs, io::Cursor};

use candle_core::quantized::{
    QTensor,
    gguf_file::{TensorInfo, VersionedMagic, write},
};
use candle_transformers::models::quantized_qwen3_moe::GGUFQWenMoE;

use super::*;
use crate::{
    device::Precision,
    model::{
        CausalLm, Engine, Parallel,
        golden::{Fixture, TOLERANCE, difference, fixtures, incrementally, numbers, root},
        open_gguf, shape, synthetic,
        tensors::Tensors,
    },
};

/// The metadata of a configuration; `None` if GGUF files cannot describe it.
fn metadata(config: &ModelConfig) -> Option<Vec<(String, Value)>> {
    // Files of Mixtral have the architecture of Llama.
    let of_file = match config.family.architecture {
        "MixtralForCausalLM" => "LlamaForCausalLM",
        own => own,
    };
    let (name, _) = ARCHITECTURES.iter().find(|(_, architecture)| *architecture == of_file)?;
    let is_usual = config.hidden_act == config.family.hidden_act.1
        && config.attn_logit_softcapping.is_none()
        && config.query_pre_attn_scalar == config.head_dim as f64
        && config.local_rope.as_ref().is_none_or(|rope| rope.scaling == RopeScaling::None);
    let count = |count: usize| Value::U32(count as u32);
    let number = |number: f64| Value::F32(number as f32);
    let mut keys = vec![
        ("attention.head_count", count(config.num_attention_heads)),
        ("attention.head_count_kv", count(config.num_key_value_heads)),
        ("attention.key_length", count(config.head_dim)),
        ("attention.value_length", count(config.head_dim)),
        ("attention.layer_norm_rms_epsilon", number(config.rms_norm_eps)),
        ("block_count", count(config.num_hidden_layers)),
        ("context_length", count(config.max_position_embeddings)),
        ("embedding_length", count(config.hidden_size)),
        ("feed_forward_length", count(config.intermediate_size)),
        ("rope.dimension_count", count(config.head_dim)),
        ("rope.freq_base", number(config.rope.theta)),
    ];
    match &config.rope.scaling {
        RopeScaling::None | RopeScaling::Llama3 { .. } => {}
        RopeScaling::Linear { factor } => {
            keys.push(("rope.scaling.type", Value::String("linear".into())));
            keys.push(("rope.scaling.factor", number(*factor)));
        }
        _ => return None,
    }
    if let Some(cap) = config.final_logit_softcapping {
        keys.push(("final_logit_softcapping", number(cap)));
    }
    if let Some(experts) = &config.experts {
        let is_usual = experts.norm_topk_prob && experts.layers.iter().all(|is_mixture| *is_mixture);
        keys.push(("expert_count", count(experts.num_experts)));
        keys.push(("expert_used_count", count(experts.num_experts_per_tok)));
        keys.push(("expert_feed_forward_length", count(experts.intermediate_size)));
        if !is_usual {
            return None;
        }
    }
    if let (Some(local), Some(window)) = (&config.local_rope, config.sliding_window) {
        let is_pattern = |pattern: &usize| {
            config.sliding_layers.iter().enumerate().all(|(layer, sliding)| *sliding == ((layer + 1) % pattern != 0))
        };
        keys.push(("attention.sliding_window", count(window)));
        keys.push(("attention.sliding_window_pattern", count((1..=config.num_hidden_layers + 1).find(is_pattern)?)));
        keys.push(("rope.freq_base_swa", number(local.theta)));
    } else if config.sliding_layers.contains(&true) {
        return None;
    }
    let own = keys.into_iter().map(|(key, value)| (format!("{name}.{key}"), value));
    let general = ("general.architecture".to_owned(), Value::String((*name).to_owned()));
    is_usual.then(|| [general].into_iter().chain(own).collect())
}

/// The tensors of a model as files hold them. Matrices have a format where their rows are whole blocks.
fn tensors(config: &ModelConfig, weights: &VarBuilder, format: GgmlDType) -> Vec<(String, QTensor)> {
    let is_llama = ["LlamaForCausalLM", "MixtralForCausalLM"].contains(&config.family.architecture);
    let mut tensors = BTreeMap::new();
    let mut experts: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
    for (name, shape) in config.tensors(ExpertLayout::Single) {
        let (single, stacked) = names_in_file(config, &name);
        let mut tensor = weights.get(shape.clone(), &name).expect("a tensor");
        if is_llama && (name.contains("self_attn.q_proj") || name.contains("self_attn.k_proj")) {
            let (heads, half) = (shape[0] / config.head_dim, config.head_dim / 2);
            let halves = tensor.reshape((heads, 2, half, ())).and_then(|t| t.transpose(1, 2)?.contiguous());
            tensor = halves.and_then(|t| t.reshape(shape.clone())).expect("halves in turns");
        }
        if shape.len() == 1 && name.ends_with("norm.weight") {
            tensor = (tensor + config.family.norm_offset).expect("a norm");
        }
        match stacked {
            Some((stacked, _)) => experts.entry(stacked).or_default().push(tensor),
            None => _ = tensors.insert(single, tensor),
        }
    }
    tensors.extend(experts.into_iter().map(|(name, parts)| (name, Tensor::stack(&parts, 0).expect("experts"))));
    if let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } =
        config.rope.scaling
    {
        let of_pair = |pair: usize| {
            let frequency = config.rope.theta.powf(-2.0 * pair as f64 / config.head_dim as f64);
            let turns = original_max_position_embeddings as f64 * frequency / (2.0 * std::f64::consts::PI);
            let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
            match smooth {
                _ if turns > high_freq_factor => 1.0,
                _ if turns < low_freq_factor => factor,
                _ => 1.0 / ((1.0 - smooth) / factor + smooth),
            }
        };
        let factors: Vec<f32> = (0..config.head_dim / 2).map(|pair| of_pair(pair) as f32).collect();
        tensors.insert(ROPE_FACTORS.into(), Tensor::new(factors, &Device::Cpu).expect("factors"));
    }
    let quantised = |(name, tensor): (String, Tensor)| {
        let width = tensor.dims().last().copied().unwrap_or(0);
        let is_matrix = tensor.rank() > 1 && width.is_multiple_of(format.block_size()) && !name.contains("gate_inp");
        let format = if is_matrix { format } else { GgmlDType::F32 };
        (name, QTensor::quantize(&tensor, format).expect("quantised"))
    };
    tensors.into_iter().map(quantised).collect()
}

/// The bytes of a file.
fn file(metadata: &[(String, Value)], tensors: &[(String, QTensor)]) -> Vec<u8> {
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut file = Cursor::new(Vec::new());
    write(&mut file, &metadata, &tensors).expect("written");
    file.into_inner()
}

/// Loads the model of a file with these bytes.
fn loaded(bytes: &[u8]) -> Result<Box<dyn CausalLm>> {
    loaded_on(Engine::Tuned, bytes)
}

fn loaded_on(engine: Engine, bytes: &[u8]) -> Result<Box<dyn CausalLm>> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).expect("written");
    let (source, alone) = ("path:model.gguf".into(), Parallel::default());
    Ok(open_gguf(&path, source, engine, Precision::F32, &Device::Cpu, alone)?.model)
}

fn of_fixture(fixture: &Fixture, format: GgmlDType) -> Option<Vec<u8>> {
    let weights = fixture.checkpoint.weights(DType::F32, &Device::Cpu).expect("weights");
    let is_stacked = fixture.checkpoint.expert_layout().expect("a layout") == ExpertLayout::Stacked;
    let metadata = metadata(&fixture.config).filter(|_| !is_stacked)?;
    Some(file(&metadata, &tensors(&fixture.config, &weights, format)))
}

/// The logits of a file in f32 are those of transformers for the same weights, for every architecture.
#[test]
fn models_in_files_equal_the_reference() {
    let mut architectures = BTreeMap::new();
    for fixture in fixtures("generation").into_iter().chain(fixtures("moe")) {
        let Some(bytes) = of_fixture(&fixture, GgmlDType::F32) else { continue };
        let mut model = loaded(&bytes).expect(&fixture.name);
        for prompt in &fixture.prompts {
            let far = incrementally(model.as_mut(), &fixture, prompt).expect(&fixture.name);
            assert!(far <= TOLERANCE, "{}, {}: {far} from the reference", fixture.name, prompt.name);
        }
        *architectures.entry(fixture.config.family.architecture).or_insert(0) += 1;
    }
    println!("{architectures:?}");
    // All of the table, and Mixtral.
    assert_eq!(architectures.len(), ARCHITECTURES.len() + 1, "{architectures:?}");
    assert!(architectures.values().sum::<usize>() >= 15, "{architectures:?}");
}

/// The same for files that the package `gguf` of llama.cpp wrote, by scripts/make_gguf_fixtures.py.
#[test]
fn files_of_the_reference_writer_equal_the_reference() {
    // The files are those of the checkpoints beside them.
    let folder = root("generation").join("gguf");
    if !folder.is_dir() {
        println!("skipped: {} is missing", folder.display());
        return;
    }
    let mut checked = 0;
    for fixture in fixtures("generation").into_iter().chain(fixtures("moe")) {
        let Ok(bytes) = fs::read(folder.join(format!("{}.gguf", fixture.name))) else { continue };
        let mut model = loaded(&bytes).expect(&fixture.name);
        for prompt in &fixture.prompts {
            let far = incrementally(model.as_mut(), &fixture, prompt).expect(&fixture.name);
            assert!(far <= TOLERANCE, "{}, {}: {far} from the reference", fixture.name, prompt.name);
        }
        checked += 1;
    }
    assert_eq!(checked, fs::read_dir(folder).expect("the folder").count());
}

/// On engine `stock`, the logits of a file in f32 are those of transformers, unless the model announces a deviation. Fails when a Candle release repairs a fault; then remove the fault.
#[test]
fn published_models_on_files_equal_the_reference_and_deviations_are_announced() {
    let (mut equal, mut deviating, mut refused) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    for fixture in fixtures("generation").into_iter().chain(fixtures("moe")) {
        let Some(bytes) = of_fixture(&fixture, GgmlDType::F32) else { continue };
        let architecture = fixture.config.family.architecture;
        let mut model = match loaded_on(Engine::Stock, &bytes) {
            Ok(model) => model,
            Err(error) => {
                assert_eq!(format!("{error:#}").lines().count(), 1, "{error:#}");
                refused.insert(format!("{architecture}: {error:#}"));
                continue;
            }
        };
        for prompt in &fixture.prompts {
            let what = format!("{}, {}", fixture.name, prompt.name);
            let far = incrementally(model.as_mut(), &fixture, prompt).expect(&what);
            let announced = model.deviates(prompt.ids.len(), prompt.greedy.len());
            println!("{what}: {far} from the reference, {announced:?}");
            assert_eq!(far > TOLERANCE, announced.is_some(), "{what}: {far} from the reference, {announced:?}");
            *if announced.is_some() { &mut deviating } else { &mut equal }.entry(architecture).or_insert(0) += 1;
            // A reset forgets everything: the first step gives the same logits again.
            let [first, second] = [(); 2].map(|()| {
                model.reset().expect("a reset");
                numbers(&model.forward(&prompt.ids, 0).expect(&what))
            });
            assert_eq!(difference(&first, &second), 0.0, "{what}");
        }
    }
    println!("{equal:?} equal, {deviating:?} deviating, refused: {refused:#?}");
    assert!(equal.contains_key("LlamaForCausalLM") && deviating.len() > 2, "{equal:?} equal, {deviating:?} deviating");
}

/// candle-transformers' quantized_qwen3_moe runs on CUDA devices only. Fails when a Candle release repairs it; then add its row.
#[test]
fn the_published_mixture_of_qwen3_does_not_run_on_cpus() {
    let fixture = fixtures("moe").into_iter().find(|fixture| fixture.name == "qwen3-8x2").expect("the fixture");
    let mut bytes = Cursor::new(of_fixture(&fixture, GgmlDType::F32).expect("a file"));
    let run = |bytes: &mut Cursor<Vec<u8>>| {
        let content = Content::read(bytes)?;
        let mut model = GGUFQWenMoE::from_gguf(content, bytes, &Device::Cpu, DType::F32)?;
        model.forward(&Tensor::new(&[[3u32, 4]], &Device::Cpu)?, 0)
    };
    let error = run(&mut bytes).err().expect("an error").to_string();
    assert!(error.contains("only implemented for the cuda backend"), "{error}");
}

/// Blocks of a file are used as they are: the model computes exactly what a model computes that is quantised while it is loaded.
#[test]
fn blocks_of_a_file_are_those_of_a_quantised_model() {
    let mut config = shape("llama-mini").expect("a shape");
    // Files hold the factors of the frequencies, whose rounding differs.
    config.rope.scaling = RopeScaling::None;
    let weights = synthetic::weights(&config, 7, DType::F32, &Device::Cpu);
    let bytes = file(&metadata(&config).expect("metadata"), &tensors(&config, &weights, GgmlDType::Q8_0));
    let mut of_file = loaded(&bytes).expect("a model");
    let own = Tensors::new(weights, Precision::Q8_0);
    let mut own = (Engine::Tuned.row().build)(config, own, ExpertLayout::Single, Parallel::default()).expect("a model");
    assert_eq!(of_file.footprint(), own.footprint());
    for tokens in [&[3u32][..], &[7, 5, 1, 4000, 17, 99, 3, 12, 80, 7, 7, 1, 6, 30, 40, 50, 60, 70, 80, 90]] {
        let [found, expected] = [&mut of_file, &mut own].map(|model| {
            model.reset().expect("a reset");
            numbers(&model.forward(tokens, 0).expect("logits"))
        });
        assert_eq!(difference(&found, &expected), 0.0, "{} tokens", tokens.len());
    }
}

/// Changes a part of a file's metadata or tensors.
fn changed(change: impl FnOnce(&mut Vec<(String, Value)>, &mut Vec<(String, QTensor)>)) -> Vec<u8> {
    let fixture =
        fixtures("generation").into_iter().find(|fixture| fixture.name == "llama-gqa-tied").expect("a fixture");
    let weights = fixture.checkpoint.weights(DType::F32, &Device::Cpu).expect("weights");
    let mut metadata = metadata(&fixture.config).expect("metadata");
    let mut tensors = tensors(&fixture.config, &weights, GgmlDType::Q8_0);
    change(&mut metadata, &mut tensors);
    file(&metadata, &tensors)
}

fn refused(bytes: &[u8]) -> String {
    let message = format!("{:#}", loaded(bytes).err().expect("a refusal"));
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

#[test]
fn wrong_files_are_refused_in_one_line() {
    type Change = fn(&mut Vec<(String, Value)>, &mut Vec<(String, QTensor)>);
    fn set(metadata: &mut [(String, Value)], key: &str, value: Value) {
        metadata.iter_mut().find(|(other, _)| other == key).expect("the key").1 = value;
    }
    fn tensor(shape: &[usize], format: GgmlDType) -> QTensor {
        QTensor::quantize(&Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("zeros"), format).expect("quantised")
    }
    let changes: [(Change, &str); 12] = [
        (
            |keys, _| set(keys, "general.architecture", Value::String("mamba".into())),
            "architecture mamba is not supported",
        ),
        (|keys, _| keys.retain(|(key, _)| key != "general.architecture"), "no general.architecture"),
        (|keys, _| keys.retain(|(key, _)| key != "llama.embedding_length"), "hidden_size is missing"),
        (|keys, _| set(keys, "llama.block_count", Value::U32(u32::MAX)), "num_hidden_layers is 4294967295"),
        (|keys, _| set(keys, "llama.attention.head_count", Value::U32(0)), "num_attention_heads is 0"),
        (
            |keys, _| set(keys, "llama.block_count", Value::Array(vec![Value::U32(2)])),
            "llama.block_count is not a number",
        ),
        (|keys, _| set(keys, "llama.rope.dimension_count", Value::U32(8)), "a part of each head"),
        (|keys, _| set(keys, "llama.feed_forward_length", Value::U32(32)), "where the metadata makes it"),
        (|_, tensors| tensors.retain(|(name, _)| name != "blk.1.ffn_up.weight"), "missing blk.1.ffn_up.weight"),
        (|_, tensors| tensors.retain(|(name, _)| name != EMBEDDING), "no tensor token_embd.weight"),
        (|_, tensors| tensors.push(("blk.0.ssm_a".into(), tensor(&[4], GgmlDType::F32))), "no place for blk.0.ssm_a"),
        (
            |_, tensors| {
                tensors.iter_mut().filter(|(name, _)| name == "output_norm.weight").for_each(|(_, norm)| {
                    *norm = tensor(&[64], GgmlDType::Q8_0);
                })
            },
            "norms and biases must be f32, f16 or bf16",
        ),
    ];
    for (change, part) in changes {
        let message = refused(&changed(change));
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn a_file_that_is_cut_short_is_refused_at_every_length() {
    let whole = changed(|_, _| {});
    loaded(&whole).expect("a model");
    for length in (0..whole.len()).step_by(997).chain([whole.len() - 33]) {
        let message = refused(&whole[..length]);
        assert!(message.contains("cut short") || length < 4096, "{length} bytes: {message}");
    }
}

/// Sizes that overflow, and places beyond the file.
#[test]
fn tensors_lie_in_the_file() {
    let with = |shape: &[usize], offset: u64| {
        let info = TensorInfo { ggml_dtype: GgmlDType::Q8_0, shape: Shape::from(shape.to_vec()), offset };
        let content = Content {
            magic: VersionedMagic::GgufV3,
            metadata: HashMap::new(),
            tensor_infos: HashMap::from([("a".to_owned(), info)]),
            tensor_data_offset: 64,
        };
        stored(&content, 64 + 68)
    };
    assert_eq!(with(&[2, 32], 0).expect("whole")["a"].start, 64);
    for (shape, offset, part) in [
        (&[2, 32][..], 1, "cut short"),
        (&[2, 32], u64::MAX, "cut short"),
        (&[2, 32], u64::MAX - 64, "cut short"),
        (&[3, 32], 0, "cut short"),
        (&[2, 33], 0, "whole blocks of 32"),
        (&[1 << 62, 32], 0, "more elements than any model"),
        (&[1 << 40, 1 << 20], 0, "more elements than any model"),
    ] {
        let message = with(shape, offset).err().expect(part).to_string();
        assert!(message.contains(part), "{shape:?} at {offset}: {message}");
    }
}

#[test]
fn the_format_of_most_weights_names_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    fs::write(&path, changed(|_, _| {})).expect("written");
    assert_eq!(format_name(&path).expect("a format"), "q8_0");
    assert!(format_name(&folder.path().join("none.gguf")).is_err());
}
