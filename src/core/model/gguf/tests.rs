//! Reads files that Candle writes from the fixtures, and files that are wrong.

use std::{fs, io::Cursor};

use candle_core::{
    quantized::{
        GgmlDType, QTensor,
        gguf_file::{Content, write},
    },
    safetensors,
};
use candle_transformers::models::quantized_qwen3_moe::GGUFQWenMoE;

use super::*;
use crate::{
    device::Precision,
    model::{
        CausalLm, Engine, Parallel,
        config::Multipliers,
        golden::{Fixture, TOLERANCE, difference, fixtures, incrementally, numbers, root},
        open_gguf, shape,
        shapes::SYNTHETIC,
        synthetic,
        tensors::Tensors,
    },
};

/// The metadata of a configuration; `None` if GGUF files cannot describe it.
fn metadata(config: &ModelConfig) -> Option<Vec<(String, Value)>> {
    let family = config.family;
    let name = ARCHITECTURES.iter().find(|row| row.config == family.architecture)?.name;
    let has_rope =
        |layer: usize| family.no_rope_layer_interval.is_none_or(|interval| !(layer + 1).is_multiple_of(interval));
    let is_usual = config.hidden_act == family.hidden_act.1
        && config.attn_logit_softcapping.is_none_or(|_| family.soft_caps.is_some())
        && config.query_pre_attn_scalar == config.head_dim as f64
        && config.local_rope.as_ref().is_none_or(|rope| rope.scaling == RopeScaling::None)
        && config.rope_layers.iter().enumerate().all(|(layer, own)| *own == has_rope(layer));
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
        ("rope.dimension_count", count(config.rotary_dim)),
        ("rope.freq_base", number(config.rope.theta)),
    ];
    let Multipliers { embedding, residual, attention, logits } = config.multipliers;
    if let Some(attention) = attention {
        keys.push(("attention.scale", number(attention)));
        keys.push(("embedding_scale", number(embedding)));
        keys.push(("residual_scale", number(residual)));
        keys.push(("logit_scale", number(logits)));
    }
    match &config.rope.scaling {
        RopeScaling::None | RopeScaling::Llama3 { .. } => {}
        RopeScaling::Linear { factor } => {
            keys.push(("rope.scaling.type", Value::String("linear".into())));
            keys.push(("rope.scaling.factor", number(*factor)));
        }
        RopeScaling::LongRope { original_max_position_embeddings, attention_factor, .. } => {
            keys.push(("rope.scaling.original_context_length", count(*original_max_position_embeddings)));
            keys.push(("rope.scaling.attn_factor", number(*attention_factor)));
        }
        _ => return None,
    }
    if let Some(cap) = config.final_logit_softcapping {
        keys.push(("final_logit_softcapping", number(cap)));
    }
    if let Some(cap) = config.score_cap() {
        keys.push(("attn_logit_softcapping", number(cap)));
    }
    if let Some(experts) = &config.experts {
        let has_raw_weights = family.architecture == "Qwen2MoeForCausalLM";
        let is_usual = experts.norm_topk_prob != has_raw_weights && experts.layers.iter().all(|is_mixture| *is_mixture);
        keys.push(("expert_count", count(experts.num_experts)));
        keys.push(("expert_used_count", count(experts.num_experts_per_tok)));
        keys.push(("expert_feed_forward_length", count(experts.intermediate_size)));
        keys.extend(experts.shared_intermediate_size.map(|width| ("expert_shared_feed_forward_length", count(width))));
        if !is_usual {
            return None;
        }
    }
    let is_described = matches!(
        family.architecture,
        "Gemma2ForCausalLM" | "Gemma3ForCausalLM" | "GptOssForCausalLM" | "Phi3ForCausalLM"
    );
    if let (true, Some(window)) = (is_described, config.sliding_window) {
        let is_pattern = |pattern: &usize| {
            config.sliding_layers.iter().enumerate().all(|(layer, sliding)| *sliding == ((layer + 1) % pattern != 0))
        };
        keys.push(("attention.sliding_window", count(window)));
        keys.push(("attention.sliding_window_pattern", count((1..=config.num_hidden_layers + 1).find(is_pattern)?)));
        keys.extend(config.local_rope.as_ref().map(|local| ("rope.freq_base_swa", number(local.theta))));
    } else if config.sliding_layers.contains(&true) {
        return None;
    }
    let own = keys.into_iter().map(|(key, value)| (format!("{name}.{key}"), value));
    let general = ("general.architecture".to_owned(), Value::String(name.to_owned()));
    is_usual.then(|| [general].into_iter().chain(own).collect())
}

/// The tensors of a model as files hold them, some of them joined. Matrices have a format where their rows are whole blocks.
fn tensors(config: &ModelConfig, weights: &VarBuilder, format: GgmlDType) -> Vec<(String, QTensor)> {
    let row = ARCHITECTURES.iter().find(|row| row.config == config.family.architecture).expect("a row");
    // Names of joined tensors, and the numbers of their parts.
    let joined: &[(&str, &[&str])] = match row.name {
        "phi3" => JOINED,
        "glm4" => &JOINED[1..],
        _ => &[],
    };
    let mut tensors = BTreeMap::new();
    let mut experts: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
    for (name, shape) in config.tensors(ExpertLayout::Single) {
        let (single, stacked) = names_in_file(config, &name);
        let mut tensor = weights.get(shape.clone(), &name).expect("a tensor");
        if row.is_interleaved && (name.contains("self_attn.q_proj") || name.contains("self_attn.k_proj")) {
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
    for layer in 0..config.num_hidden_layers {
        for ((whole, parts), kind) in joined.iter().flat_map(|row| [(row, "weight"), (row, "bias")]) {
            let parts = parts.iter().map(|part| tensors.remove(&format!("blk.{layer}.{part}.{kind}")));
            if let Some(parts) = parts.collect::<Option<Vec<Tensor>>>() {
                tensors.insert(format!("blk.{layer}.{whole}.{kind}"), Tensor::cat(&parts, 0).expect("rows"));
            }
        }
    }
    if let RopeScaling::LongRope { short_factor, .. } = &config.rope.scaling {
        let factors = Tensor::new(&short_factor[..], &Device::Cpu).expect("factors");
        // No test goes beyond the original positions.
        tensors.insert(LONG_FACTORS.into(), (&factors + 1.0).expect("factors"));
        tensors.insert(SHORT_FACTORS.into(), factors);
    }
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
        let is_matrix = is_matrix && !name.ends_with(".bias");
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
    // Checkpoints of gpt-oss hold no experts by themselves. The reference writer makes a file of it.
    assert_eq!(architectures.len(), ARCHITECTURES.len() - 1, "{architectures:?}");
    assert!(architectures.values().sum::<usize>() >= 30, "{architectures:?}");
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

/// Formats that Candle lacks hold what the package `gguf` of llama.cpp reads, in files that scripts/make_gguf_fixtures.py wrote.
/// Engine `tuned` computes with them, and `stock` refuses them by name.
#[test]
fn formats_that_candle_lacks_run_on_tuned() {
    let folder = root("generation").join("gguf-formats");
    let golden = safetensors::load(folder.join("golden.safetensors"), &Device::Cpu).expect("golden values");
    let mut checked = 0;
    for (name, others) in [("iq4_nl", None), ("iq4_xs", Some("iq4_nl")), ("mxfp4", None)] {
        let path = folder.join(format!("{name}.gguf"));
        let bytes = fs::read(&path).expect(name);
        let model = open(&path).expect(name);
        assert!(super::file_type(&path).expect(name).starts_with(name), "{:?}", model.note);
        let weights = model.config.tensors(ExpertLayout::Single).into_iter().map(|(tensor, shape)| {
            let (in_file, values) =
                (names_in_file(&model.config, &tensor).0, model.tensors.values(&tensor).expect(name));
            if let (Some(golden), [.., width]) = (golden.get(&format!("{name}.{in_file}")), &shape[..]) {
                let golden = golden.flatten_all().and_then(|golden| golden.to_vec1::<f32>()).expect("numbers");
                assert_eq!([&values[..*width], &values[values.len() - width..]].concat(), golden, "{name}: {in_file}");
                checked += 1;
            }
            (tensor, Tensor::from_vec(values, shape, &Device::Cpu).expect("a tensor"))
        });
        let weights = VarBuilder::from_tensors(weights.collect(), DType::F32, &Device::Cpu);
        let plain = Tensors::new(weights, Precision::F32);
        let mut plain =
            (Engine::Tuned.row().build)(model.config.clone(), plain, ExpertLayout::Single, Parallel::default());
        let (mut own, plain) = (loaded(&bytes).expect(name), plain.as_mut().expect(name));
        let [own, plain] = [&mut own, plain].map(|model| numbers(&model.forward(&[3, 1, 4, 1, 5, 9], 0).expect(name)));
        // The kernels round inputs to 8 bits. A matrix in a wrong place makes an error of the size of the logits.
        let size = |numbers: &mut dyn Iterator<Item = f32>| numbers.map(|x| x * x).sum::<f32>().sqrt();
        let error =
            size(&mut own.iter().zip(&plain).map(|(own, plain)| own - plain)) / size(&mut plain.iter().copied());
        assert!(error < 0.02, "{name}: {error} from the model in f32");
        let formats: Vec<String> = model.tensors.formats().into_keys().collect();
        let expected: BTreeSet<&str> = ["f32", name].into_iter().chain(others).collect();
        assert_eq!(formats, expected.into_iter().collect::<Vec<_>>());
        let refusal = format!("{:#}", loaded_on(Engine::Stock, &bytes).err().expect("a refusal"));
        let part = format!("Candle reads no {}", others.unwrap_or(name));
        assert!(refusal.contains(&part) && refusal.lines().count() == 1, "{refusal}");
    }
    assert_eq!(checked, golden.len());
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
            // A prompt in two parts has the same logits, or is refused.
            let (begin, end) = prompt.ids.split_at(prompt.ids.len() / 2);
            if !begin.is_empty() {
                model.reset().expect("a reset");
                model.forward(begin, 0).expect(&what);
                match model.forward(end, begin.len()) {
                    Ok(found) => assert!(difference(&numbers(&found), &second) <= TOLERANCE, "{what}"),
                    Err(error) => assert!(error.to_string().contains("one at a time"), "{what}: {error}"),
                }
            }
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
    let error = run(&mut bytes).expect_err("an error").to_string();
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

/// The same for every architecture, also where the rows of the file are in another order, or joined.
#[test]
fn blocks_of_every_architecture_are_those_of_a_quantised_model() {
    let mut architectures = BTreeSet::new();
    for name in SYNTHETIC {
        let mut config = shape(name).expect("a shape");
        if !holds(config.family.architecture) || !architectures.insert(config.family.architecture) {
            continue;
        }
        // Rows of whole blocks. Files hold the factors of the frequencies, whose rounding differs.
        let turned = config.rotary_dim * 32 / config.head_dim;
        (config.hidden_size, config.intermediate_size, config.vocab_size) = (128, 64, 256);
        (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) = (5, 4, 2);
        (config.head_dim, config.rotary_dim, config.query_pre_attn_scalar) = (32, turned, 32.0);
        config.sliding_layers.truncate(5);
        config.rope_layers.truncate(5);
        config.rope.scaling = RopeScaling::None;
        if let Some(experts) = &mut config.experts {
            (experts.num_experts, experts.num_experts_per_tok, experts.intermediate_size) = (4, 2, 64);
            experts.shared_intermediate_size = experts.shared_intermediate_size.map(|_| 64);
            experts.layers.truncate(5);
        }
        let weights = synthetic::weights(&config, 7, DType::F32, &Device::Cpu);
        let Some(metadata) = metadata(&config) else { panic!("{name}: no metadata") };
        let mut of_file = loaded(&file(&metadata, &tensors(&config, &weights, GgmlDType::Q8_0))).expect(name);
        let own = Tensors::new(weights, Precision::Q8_0);
        let has_offset = config.family.norm_offset != 0.0;
        let mut own = (Engine::Tuned.row().build)(config, own, ExpertLayout::Single, Parallel::default()).expect(name);
        assert_eq!(of_file.footprint(), own.footprint(), "{name}");
        let [found, expected] =
            [&mut of_file, &mut own].map(|model| numbers(&model.forward(&[3, 1, 4, 1, 5, 9], 0).expect(name)));
        // Norms with an offset are rounded once more.
        let far = difference(&found, &expected);
        assert!(far <= if has_offset { TOLERANCE } else { 0.0 }, "{name}: {far}");
    }
    println!("{architectures:?}");
    assert!(architectures.len() >= 13, "{architectures:?}");
}

/// Keys that files of these architectures leave out or state otherwise are read as llama.cpp reads them.
#[test]
fn keys_of_each_architecture_mean_what_they_mean_to_the_reference() {
    fn set(key: &str, value: Value) -> Vec<(String, Value)> {
        vec![(key.to_owned(), value)]
    }
    let config = |fixture: &str, more: Vec<(String, Value)>| {
        let bytes = changed_in(fixture, GgmlDType::F32, |keys, _| {
            keys.retain(|(key, _)| more.iter().all(|(other, _)| other != key));
            keys.extend(more);
        });
        opened_from(&bytes).map(|model| (model.positions, model.config))
    };
    let found = |fixture: &str, more| config(fixture, more).expect(fixture).1;
    let zero = || Value::F32(0.0);
    let (_, granite) = config("granite-tied", vec![]).expect("granite");
    assert_eq!((granite.attention_scale(), granite.multipliers.logits), (0.125, 2.0));
    assert_eq!(found("granite-tied", set("granite.attention.scale", zero())).attention_scale(), 0.25);
    assert_eq!(found("granite-tied", set("granite.embedding_scale", zero())).multipliers.embedding, 1.0);
    assert_eq!(found("granite-tied", set("granite.residual_scale", zero())).multipliers.residual, 1.0);
    let without = found("granite-tied", set("granite.rope.scaling.finetuned", Value::Bool(false)));
    assert_eq!((without.rope_layers, granite.rope_layers), (vec![false; 3], vec![true; 3]));
    assert_eq!(found("smollm3-untied", vec![]).rope_layers, [true, true, true, false, true]);

    let gemma = found("gemma2-short-window", vec![]);
    assert_eq!((gemma.sliding_window, &gemma.sliding_layers[..]), (Some(8), &[true, false, true][..]));
    assert_eq!((gemma.score_cap(), gemma.final_logit_softcapping), (Some(1.5), Some(4.0)));
    let no_caps = set("gemma2.attn_logit_softcapping", zero());
    assert_eq!(found("gemma2-short-window", no_caps).score_cap(), None);

    let (positions, phi) = config("phi3-longrope", vec![]).expect("phi3");
    assert_eq!((positions, phi.max_position_embeddings, phi.rotary_dim), (128, 128, 12));
    assert_eq!((phi.sliding_window, &phi.sliding_layers[..]), (Some(24), &[true; 2][..]));
    assert_eq!(found("phi3-longrope", set("phi3.attention.sliding_window", Value::U32(0))).sliding_window, None);
    let (positions, phi) = config("phi3-longrope", set("phi3.context_length", Value::U32(4096))).expect("phi3");
    assert_eq!((positions, phi.max_position_embeddings), (4096, 128));
    // The whole head is turned where the file does not say.
    let keys = |keys: &mut Vec<(String, Value)>| keys.retain(|(key, _)| key != "glm4.rope.dimension_count");
    let bytes = changed_in("glm4-half-heads", GgmlDType::F32, |all, _| keys(all));
    assert_eq!(opened_from(&bytes).expect("glm4").config.rotary_dim, 16);

    for (fixture, key, value, part) in [
        ("olmo2-mha", "olmo2.attention.sliding_window", Value::U32(8), "a sliding window is not supported"),
        ("olmo2-mha", "olmo2.rope.dimension_count", Value::U32(8), "a part of each head is not supported"),
        ("glm4-half-heads", "glm4.rope.dimension_count", Value::U32(7), "turns 7 of the 16 elements"),
        ("glm4-half-heads", "glm4.rope.dimension_count", Value::U32(32), "turns 32 of the 16 elements"),
        ("granite-tied", "granite.logit_scale", zero(), "logits_scaling is 0"),
        ("phi3-longrope", "phi3.rope.scaling.factor", Value::F32(4.0), "not supported beside rope_factors_short"),
        ("phi3-longrope", "phi3.rope.dimension_count", Value::U32(16), "not a number for each pair of a head"),
    ] {
        let error = format!("{:#}", config(fixture, set(key, value)).expect_err(part));
        assert!(error.contains(part) && error.lines().count() == 1, "{fixture}: {error}");
    }
}

/// llama.cpp's converter can join the projections of any architecture (`--fuse-qkv`).
#[test]
fn joined_projections_are_divided_in_every_architecture() {
    for name in ["llama-mha-untied", "qwen2-tied", "granite-biases-untied", "glm4-half-heads"] {
        let mut first = loaded(&changed_in(name, GgmlDType::F32, |_, _| {})).expect(name);
        let bytes = changed_in(name, GgmlDType::F32, |_, tensors| {
            for (layer, kind) in (0..3).flat_map(|layer| [(layer, "weight"), (layer, "bias")]) {
                let parts = ["q", "k", "v"].map(|part| {
                    let place = tensors.iter().position(|(name, _)| *name == format!("blk.{layer}.attn_{part}.{kind}"));
                    place.map(|place| tensors.remove(place).1.dequantize(&Device::Cpu).expect("numbers"))
                });
                if let [Some(q), Some(k), Some(v)] = parts {
                    let joined =
                        Tensor::cat(&[q, k, v], 0).and_then(|joined| QTensor::quantize(&joined, GgmlDType::F32));
                    tensors.push((format!("blk.{layer}.attn_qkv.{kind}"), joined.expect("rows")));
                }
            }
        });
        let mut second = loaded(&bytes).expect(name);
        let [first, second] =
            [&mut first, &mut second].map(|model| numbers(&model.forward(&[3, 1, 4], 0).expect(name)));
        assert_eq!(difference(&first, &second), 0.0, "{name}");
    }
}

/// Changes a part of a file's metadata or tensors.
fn changed(change: impl FnOnce(&mut Vec<(String, Value)>, &mut Vec<(String, QTensor)>)) -> Vec<u8> {
    changed_in("llama-gqa-tied", GgmlDType::Q8_0, change)
}

fn changed_in(
    name: &str,
    format: GgmlDType,
    change: impl FnOnce(&mut Vec<(String, Value)>, &mut Vec<(String, QTensor)>),
) -> Vec<u8> {
    let fixture = fixtures("generation").into_iter().find(|fixture| fixture.name == name).expect("a fixture");
    let weights = fixture.checkpoint.weights(DType::F32, &Device::Cpu).expect("weights");
    let mut metadata = metadata(&fixture.config).expect("metadata");
    let mut tensors = tensors(&fixture.config, &weights, format);
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
    let changes: [(Change, &str); 13] = [
        (
            |keys, _| set(keys, "general.architecture", Value::String("mamba".into())),
            "architecture mamba is not supported; the supported ones are llama, qwen2",
        ),
        (
            |keys, _| set(keys, "general.architecture", Value::String("gemma3n".into())),
            "architecture gemma3n is not supported, the nearest is gemma3; ",
        ),
        (|keys, _| keys.retain(|(key, _)| key != "general.architecture"), "no general.architecture"),
        (|keys, _| keys.retain(|(key, _)| key != "llama.embedding_length"), "hidden_size is missing"),
        (|keys, _| set(keys, "llama.block_count", Value::U32(u32::MAX)), "num_hidden_layers is 4294967295"),
        (|keys, _| set(keys, "llama.attention.head_count", Value::U32(0)), "num_attention_heads is 0"),
        (
            |keys, _| set(keys, "llama.block_count", Value::Array(vec![Value::Bool(true)])),
            "llama.block_count is not a list of finite numbers",
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
        let format = TensorFormat::of_number(8).expect("q8_0");
        let tensors = vec![TensorInfo { name: "a".into(), format, shape: shape.to_vec(), offset }];
        stored(Header { tensors, data: 64, keys: 0 }, 0, 64 + 68)
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
    assert_eq!(super::file_type(&path).expect("a type"), "q8_0");
    assert!(super::file_type(&folder.path().join("none.gguf")).is_err());
}

/// A text in metadata.
fn text(text: &str) -> Value {
    Value::String(text.into())
}

fn list<T>(items: impl IntoIterator<Item = T>, value: impl FnMut(T) -> Value) -> Value {
    Value::Array(items.into_iter().map(value).collect())
}

/// The fixture with these keys more, or in place of its own.
fn with_keys(more: Vec<(&str, Value)>) -> Vec<u8> {
    changed(|keys, _| {
        for (key, value) in more {
            keys.retain(|(other, _)| other != key);
            keys.push((key.to_owned(), value));
        }
    })
}

/// Opens a file with these bytes.
fn opened_from(bytes: &[u8]) -> Result<Model> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).expect("written");
    open(&path)
}

#[test]
fn numbers_have_any_type_and_may_stand_for_each_layer() {
    let layers = "llama.block_count";
    let config = |value: Value| opened_from(&with_keys(vec![("llama.attention.head_count", value)])).map(|m| m.config);
    let heads = config(Value::U32(4)).expect("the fixture's").num_attention_heads;
    assert_eq!(heads, 4);
    for value in [
        Value::U8(4),
        Value::I8(4),
        Value::U16(4),
        Value::I16(4),
        Value::I32(4),
        Value::U64(4),
        Value::I64(4),
        Value::F64(4.0),
        list([4, 4], Value::I32),
        list([4, 4], Value::U64),
    ] {
        assert_eq!(config(value.clone()).expect("a configuration").num_attention_heads, 4, "{value:?}");
    }
    for (key, value, part) in [
        (layers, list([4, 2], Value::U32), "llama.block_count has 2 numbers that differ"),
        (layers, list([0; 0], Value::U32), "llama.block_count is an empty list"),
        (layers, text("two"), "llama.block_count is not a finite number"),
        (layers, Value::I32(-1), "num_hidden_layers"),
        ("llama.rope.freq_base", Value::F32(f32::NAN), "llama.rope.freq_base is not a finite number"),
        ("llama.rope.freq_base", Value::F64(f64::INFINITY), "llama.rope.freq_base is not a finite number"),
        ("llama.rope.scaling.factor", Value::F32(f32::NAN), "llama.rope.scaling.factor is not a finite number"),
        ("llama.rope.scaling.factor", Value::F32(-2.0), "llama.rope.scaling.factor is -2"),
        ("llama.rope.scaling.attn_factor", Value::F32(0.0), "llama.rope.scaling.attn_factor is 0"),
        ("llama.rope.scaling.type", Value::U32(1), "llama.rope.scaling.type is not a text"),
        ("tokenizer.ggml.eos_token_id", text("</s>"), "tokenizer.ggml.eos_token_id is not a whole number"),
        ("tokenizer.ggml.eos_token_ids", list([0.5], Value::F32), "tokenizer.ggml.eos_token_ids is not a list of"),
        ("general.file_type", text("q4_0"), "general.file_type is not a whole number"),
        ("split.count", Value::U32(1 << 20), "split.count is 1048576"),
    ] {
        let message = refused(&with_keys(vec![(key, value)]));
        assert!(message.contains(part), "{part}: {message}");
    }
}

/// The defaults of llama.cpp.
#[test]
fn rope_has_the_defaults_of_the_reference() {
    let rope = |more: Vec<(&str, Value)>| {
        let bytes = changed(|keys, tensors| {
            keys.retain(|(key, _)| more.iter().all(|(other, _)| other != key));
            keys.extend(more.into_iter().map(|(key, value)| (key.to_owned(), value)));
            tensors.retain(|(name, _)| name != ROPE_FACTORS);
        });
        opened_from(&bytes).expect("a model").config.rope
    };
    let factor = |factor| ("llama.rope.scaling.factor", Value::F32(factor));
    let kind = |kind| ("llama.rope.scaling.type", text(kind));
    for (more, scaling) in [
        (vec![], RopeScaling::None),
        (vec![kind("none"), factor(4.0)], RopeScaling::None),
        (vec![kind("yarn")], RopeScaling::None),
        (vec![factor(0.0)], RopeScaling::None),
        (vec![factor(4.0)], RopeScaling::Linear { factor: 4.0 }),
        (vec![("llama.rope.scale_linear", Value::F32(4.0))], RopeScaling::Linear { factor: 4.0 }),
        (vec![kind("linear"), factor(4.0)], RopeScaling::Linear { factor: 4.0 }),
    ] {
        assert_eq!(rope(more.clone()).scaling, scaling, "{more:?}");
    }
    let attention = ("llama.rope.scaling.attn_factor", Value::F32(0.5));
    let yarn = |more: Vec<(&str, Value)>| match rope(more).scaling {
        RopeScaling::Yarn { factor, attention_factor, original_max_position_embeddings, beta_fast, .. } => {
            (factor, attention_factor, original_max_position_embeddings, beta_fast)
        }
        other => panic!("{other:?}"),
    };
    let context = ("llama.context_length", Value::U32(64));
    let scale = 1.0 + 0.1 * 4.0f64.ln();
    assert_eq!(yarn(vec![kind("yarn"), factor(4.0), context.clone()]), (4.0, scale, 64, 32.0));
    let all = vec![
        kind("yarn"),
        factor(4.0),
        context,
        attention.clone(),
        ("llama.rope.scaling.yarn_beta_fast", Value::U8(9)),
    ];
    assert_eq!(yarn(all), (4.0, scale / 2.0, 64, 9.0));
    assert_eq!(yarn(vec![attention]).1, 0.5);

    let mut bytes = Vec::new();
    for fixture in fixtures("generation").into_iter().chain(fixtures("moe")) {
        let Some(keys) = metadata(&fixture.config) else { continue };
        let weights = fixture.checkpoint.weights(DType::F32, &Device::Cpu).expect("weights");
        let keys: Vec<_> = keys.into_iter().filter(|(key, _)| !key.ends_with("rope.freq_base")).collect();
        if fixture.checkpoint.expert_layout().expect("a layout") == ExpertLayout::Single {
            bytes.push(file(&keys, &tensors(&fixture.config, &weights, GgmlDType::F32)));
        }
    }
    assert!(bytes.len() >= 15);
    for bytes in bytes {
        assert_eq!(opened_from(&bytes).expect("a model").config.rope.theta, 10_000.0);
    }
}

#[test]
fn every_token_that_ends_an_answer_counts() {
    let key = |name: &'static str, value: Value| (name, value);
    let (eos, eot, eom) = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id");
    for (more, ids) in [
        (vec![], vec![]),
        (vec![key(eos, Value::U32(7))], vec![7]),
        (vec![key(eos, Value::I32(7)), key(eot, Value::U16(9))], vec![7, 9]),
        (vec![key(eom, Value::U64(300)), key(eos, Value::I64(7)), key(eot, Value::I8(7))], vec![7, 300]),
        (vec![key("tokenizer.ggml.eos_token_ids", list([5, 6], Value::I32)), key(eos, Value::U8(6))], vec![5, 6]),
        (vec![key(eos, list([5, 6], Value::U32))], vec![5, 6]),
        // No tokens of this model.
        (vec![key(eos, Value::I32(-1)), key(eot, Value::U64(u64::MAX)), key(eom, Value::U32(320))], vec![]),
    ] {
        assert_eq!(opened_from(&with_keys(more.clone())).expect("a model").config.eos_token_ids, ids, "{more:?}");
    }
}

#[test]
fn the_file_type_names_a_file_that_has_it() {
    let [f32, f16, q5_0, q8_0, q4_k, q6_k, iq4_nl, iq4_xs] =
        [0, 1, 6, 8, 12, 14, 20, 23].map(|number| TensorFormat::of_number(number).expect("a type"));
    let of = |number: Option<u32>, tensors: &[(&str, TensorFormat, usize)]| {
        let metadata = number.map(|number| ("general.file_type".to_owned(), Value::U32(number)));
        let stored = tensors.iter().map(|(name, format, elements)| {
            let shape = vec![elements / 256, 256];
            (format!("{name}.weight"), Stored { format: *format, shape, part: 0, start: 0 })
        });
        file_type::of(&Metadata(metadata.into_iter().collect()), &stored.collect()).expect("a name")
    };
    // As Gemma 3 270M: the embedding is the largest tensor, and most rows are narrow.
    let gemma = [
        ("token_embd", q8_0, 1 << 20),
        ("blk.0.ffn_up", q5_0, 1 << 18),
        ("blk.0.ffn_down", q4_k, 1 << 16),
        ("blk.0.attn_v", q6_k, 1 << 16),
    ];
    assert_eq!(of(Some(15), &gemma), ("q4_k_m".into(), None));
    assert_eq!(of(Some(0), &[("blk.0.a", f32, 512)]), ("f32".into(), None));
    assert_eq!(of(Some(30), &[("blk.0.a", iq4_xs, 256), ("blk.0.b", iq4_nl, 512)]), ("iq4_xs".into(), None));
    for (number, tensors, part) in [
        (None, &gemma[..], "has no general.file_type"),
        (Some(7), &gemma, "says q8_0"),
        (Some(1), &gemma, "says f16"),
        (Some(999), &gemma, "999 is not known"),
        (Some(15), &[("token_embd", q8_0, 512), ("blk.0.a", f16, 256)], "says q4_k_m"),
    ] {
        let (name, note) = of(number, tensors);
        assert!(name == "q8_0" && note.as_ref().is_some_and(|note| note.contains(part)), "{name}: {note:?}");
    }
    for (name, quantisation) in [
        ("x-Q4_K_M.gguf", Some("q4_k_m")),
        ("a/x.q8_0.gguf", Some("q8_0")),
        ("BF16/x-BF16-00001-of-00002.gguf", Some("bf16")),
        ("Q6_K.gguf", Some("q6_k")),
        ("x-IQ4_XS.gguf", Some("iq4_xs")),
        ("x-Q4_K.gguf", None),
        ("x-q4_0", None),
    ] {
        assert_eq!(quantisation_of_name(name).as_deref(), quantisation, "{name}");
    }
}

/// A model in several files is the model in one, by whichever part it is named.
#[test]
fn parts_are_one_model() {
    let whole = changed(|_, _| {});
    let folder = tempfile::tempdir().expect("a folder");
    let path = |part: usize| folder.path().join(format!("m-{part:05}-of-00003.gguf"));
    let write_part = |place: usize, number: i32, extra: bool| {
        let bytes = changed(|keys, tensors| {
            if place > 0 {
                keys.clear();
            }
            keys.extend([("split.no".into(), Value::I32(number)), ("split.count".into(), Value::U16(3))]);
            let mut index = 0;
            tensors.retain(|_| {
                index += 1;
                index % 3 == place || (extra && index == 3)
            });
        });
        fs::write(path(place + 1), bytes).expect("written");
    };
    (0..3).for_each(|place| write_part(place, place as i32, false));
    let expected = numbers(&loaded(&whole).expect("a model").forward(&[3, 4, 5], 0).expect("logits"));
    for part in 1..=3 {
        let alone = Parallel::default();
        let subject = open_gguf(&path(part), "m".into(), Engine::Tuned, Precision::F32, &Device::Cpu, alone);
        let found = subject.expect("a model").model.forward(&[3, 4, 5], 0).expect("logits");
        assert_eq!(difference(&numbers(&found), &expected), 0.0);
        assert_eq!(files(&path(part)).expect("files").len(), 3);
    }
    let message = |path: &Path| format!("{:#}", open(path).err().expect("a refusal"));
    fs::copy(path(1), folder.path().join("other.gguf")).expect("copied");
    assert!(message(&folder.path().join("other.gguf")).contains("as in -00001-of-00003.gguf"));
    write_part(1, 1, true);
    assert!(message(&path(1)).contains("m-00002-of-00003.gguf: ") && message(&path(1)).contains("in another part too"));
    write_part(1, 2, false);
    assert!(message(&path(3)).contains("m-00002-of-00003.gguf: split.no is 2"), "{}", message(&path(3)));
    fs::remove_file(path(3)).expect("removed");
    assert!(message(&path(1)).contains("m-00003-of-00003.gguf is not beside it"), "{}", message(&path(1)));
}

/// The vocabulary of a byte-level tokenizer: the bytes as printable characters, merges of some of them, and special tokens.
fn byte_level(pre: &str) -> Vec<(&'static str, Value)> {
    let stand_in = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        0..=b' ' => char::from_u32(256 + u32::from(byte)).expect("a character"),
        0x7f..=0xa0 => char::from_u32(256 + 33 + u32::from(byte - 0x7f)).expect("a character"),
        0xad => '\u{143}',
    };
    let mut tokens: Vec<String> = (0..=255).map(|byte| stand_in(byte).to_string()).collect();
    let merges = ["1 2", "12 3", "a b", "\u{120} ab"];
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    tokens.extend(["<s>", "</s>", "<user tag>"].map(str::to_owned));
    let types = (0..tokens.len()).map(|id| [1, 3, 3, 4][id.saturating_sub(tokens.len() - 4)]);
    vec![
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text(pre)),
        ("tokenizer.ggml.token_type", list(types, Value::I32)),
        ("tokenizer.ggml.tokens", list(&tokens, |token| text(token))),
        ("tokenizer.ggml.merges", list(merges, text)),
        ("tokenizer.ggml.bos_token_id", Value::U32(260)),
        ("tokenizer.ggml.eos_token_id", Value::I32(261)),
    ]
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, true).expect("ids").get_ids().to_vec()
}

#[test]
fn the_metadata_of_byte_level_tokenizers_is_one() {
    let made = |pre: &str, more: Vec<(&'static str, Value)>| {
        let all = byte_level(pre).into_iter().filter(|(key, _)| more.iter().all(|(other, _)| other != key));
        opened_from(&with_keys(all.chain(more.clone()).collect())).expect("a model").tokenizer()
    };
    let (a, b, space) = (u32::from(b'a'), u32::from(b'b'), u32::from(b' '));
    for (pre, expected) in [
        // One digit is a word here, and three of them there.
        ("smollm", vec![258, 259, space, 49, 50, 51]),
        ("qwen2", vec![258, 259, space, 49, 50, 51]),
        ("gpt-2", vec![258, 259, space, 257]),
        ("default", vec![258, 259, space, 257]),
        ("llama-bpe", vec![260, 258, 259, space, 257]),
    ] {
        let tokenizer = made(pre, vec![]).expect("a tokenizer");
        assert_eq!(ids(&tokenizer, "ab ab 123"), expected, "{pre}");
        let all = "<s>é ab</s>\n<user tag> \u{1f56f}";
        let of_all = tokenizer.encode(all, false).expect("ids");
        assert_eq!(of_all.get_ids()[..6], [260, 0xc3, 0xa9, 259, 261, 10], "{pre}");
        assert_eq!(tokenizer.decode(of_all.get_ids(), false).expect("a text"), all);
        assert_eq!(tokenizer.decode(of_all.get_ids(), true).expect("a text"), "é ab\n<user tag> \u{1f56f}");
    }
    let flag = |key, flag| vec![(key, Value::Bool(flag))];
    let bos = |adds| ids(&made("llama-bpe", flag("tokenizer.ggml.add_bos_token", adds)).expect("a tokenizer"), "ab");
    assert_eq!((bos(true), bos(false)), (vec![260, 258], vec![258]));
    let eos = made("gpt-2", flag("tokenizer.ggml.add_eos_token", true)).expect("a tokenizer");
    assert_eq!(ids(&eos, "ba"), [b, a, 261]);
    // The special tokens of one family take the spaces after them, except some.
    for (name, expected) in
        [("Phi-3 Mini", vec![260, 259, 261, a, 262, b]), ("Other", vec![260, 259, 261, 10, a, 262, space, b])]
    {
        let named = made("gpt-2", vec![("general.name", text(name))]).expect("a tokenizer");
        assert_eq!(ids(&named, "<s> ab</s>\na<user tag> b"), expected, "{name}");
    }

    let twice = list(["a", "a"], text);
    for (key, value, part) in [
        ("tokenizer.ggml.pre", text("no such"), "its pre-tokenizer no such is not supported"),
        ("tokenizer.ggml.model", text("bert"), "its tokenizer bert is not supported"),
        ("tokenizer.ggml.model", Value::U32(1), "tokenizer.ggml.model is not a text"),
        ("tokenizer.ggml.tokens", list([1, 2], Value::U32), "tokenizer.ggml.tokens is not a list of texts"),
        ("tokenizer.ggml.tokens", twice, "tokens 0 and 1 of its tokenizer are the same"),
        ("tokenizer.ggml.tokens", list(["a".repeat(2000)], |token| text(&token)), "token 0 of its tokenizer has 2000"),
        ("tokenizer.ggml.tokens", list(0..321, |id| text(&id.to_string())), "has 321 tokens, the model has 320"),
        ("tokenizer.ggml.token_type", list([1; 3], Value::I32), "has 3 types of 263 tokens"),
        ("tokenizer.ggml.token_type", Value::U32(3), "tokenizer.ggml.token_type is not a list of"),
        ("tokenizer.ggml.merges", list(["ab"], text), "has 'ab', which is not two tokens"),
        ("tokenizer.ggml.merges", list(["a zz"], text), "its merges: "),
        ("tokenizer.ggml.add_bos_token", Value::U32(1), "tokenizer.ggml.add_bos_token is not true or false"),
    ] {
        let error = format!("{:#}", made("gpt-2", vec![(key, value)]).expect_err(part));
        assert!(error.contains(part) && error.lines().count() == 1, "{part}: {error}");
    }
}

/// SentencePiece as llama.cpp computes it: of all pairs of neighbours whose whole is a piece, the one with the highest score is
/// joined, the leftmost first. What remains and is no piece becomes bytes.
fn joined(pieces: &HashMap<String, (u32, f32)>, text: &str) -> Vec<u32> {
    let mut parts: Vec<String> = text.chars().map(|c| c.to_string()).collect();
    loop {
        let whole = |at: usize| pieces.get(&(parts[at].clone() + &parts[at + 1])).map(|(_, score)| (at, *score));
        let best = (0..parts.len().saturating_sub(1)).filter_map(whole);
        let best = best.max_by(|(a, left), (b, right)| left.total_cmp(right).then(b.cmp(a)));
        let Some((at, _)) = best else { break };
        let right = parts.remove(at + 1);
        parts[at] += &right;
    }
    let bytes = |part: String| match pieces.get(&part) {
        Some((id, _)) => vec![*id],
        None => part.bytes().map(|byte| 3 + u32::from(byte)).collect(),
    };
    parts.into_iter().flat_map(bytes).collect()
}

#[test]
fn the_metadata_of_sentencepiece_is_a_tokenizer() {
    let mut random = 1u32;
    let mut draw = |below: usize| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 16) as usize % below
    };
    let mut tokens = vec!["<unk>".to_owned(), "<s>".into(), "</s>".into()];
    tokens.extend((0..=255).map(|byte: u8| format!("<0x{byte:02X}>")));
    // Letters, and words of words before them, in the order of their scores.
    tokens.extend(["\u{2581}", "a", "b", "é"].map(str::to_owned));
    while tokens.len() < 312 {
        let [left, right] = [0; 2].map(|_| tokens[259 + draw(tokens.len() - 259)].clone());
        let word = left + &right;
        if !tokens.contains(&word) && word.chars().count() < 9 {
            tokens.push(word);
        }
    }
    tokens.push("\n\n".into());
    let kind = |id: usize| match id {
        0 => 2,
        1 | 2 => 3,
        3..=258 => 6,
        312 => 4,
        _ => 1,
    };
    let keys = |prefix: bool| {
        vec![
            ("tokenizer.ggml.model", text("llama")),
            ("tokenizer.ggml.tokens", list(&tokens, |token| text(token))),
            ("tokenizer.ggml.token_type", list(0..tokens.len(), |id| Value::I32(kind(id)))),
            ("tokenizer.ggml.scores", list(0..tokens.len(), |id| Value::F32(-(id as f32)))),
            ("tokenizer.ggml.add_space_prefix", Value::Bool(prefix)),
        ]
    };
    let pieces: HashMap<String, (u32, f32)> =
        (259..312).map(|id| (tokens[id].clone(), (id as u32, -(id as f32)))).collect();
    let made = |prefix| opened_from(&with_keys(keys(prefix))).expect("a model").tokenizer().expect("a tokenizer");
    let (with_prefix, without) = (made(true), made(false));
    for _ in 0..2000 {
        let letters: String = (0..draw(24)).map(|_| ['a', 'b', ' ', 'é', '\u{1f56f}'][draw(5)]).collect();
        let spaces = letters.replace(' ', "\u{2581}");
        // The token that begins a text has the number 1 where the file does not say.
        let expected = |text: &str| [vec![1], joined(&pieces, text)].concat();
        assert_eq!(ids(&without, &letters), expected(&spaces), "{letters:?}");
        if !letters.is_empty() {
            let found = ids(&with_prefix, &letters);
            assert_eq!(found, expected(&format!("\u{2581}{spaces}")), "{letters:?}");
            assert_eq!(with_prefix.decode(&found, true).expect("a text"), letters);
        }
        assert_eq!(without.decode(&ids(&without, &letters), true).expect("a text"), letters);
    }
    assert_eq!(ids(&without, "a\n\nb"), [1, 260, 312, 261]);
    for (key, value, part) in [
        ("tokenizer.ggml.scores", list([1.0], Value::F32), "has 1 scores of 313 tokens"),
        ("tokenizer.ggml.scores", list([f32::NAN; 313], Value::F32), "scores is not a list of finite numbers"),
    ] {
        let keys = keys(true).into_iter().filter(|(other, _)| *other != key).chain([(key, value)]);
        let error = opened_from(&with_keys(keys.collect())).expect("a model").tokenizer().expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    }
}

/// A file beside the model comes before what is in it, and an unknown tokenizer leaves token ids.
#[test]
fn texts_and_templates_are_found_in_the_file_or_beside_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    let write = |more: Vec<(&str, Value)>| fs::write(&path, with_keys(more)).expect("written");
    let subject = || {
        open_gguf(&path, "m".into(), Engine::Tuned, Precision::F32, &Device::Cpu, Parallel::default()).expect("a model")
    };
    let template = || crate::model::chat_template(&crate::model::ModelSpec::Path(path.clone())).expect("readable");
    write(byte_level("no such"));
    let found = subject();
    assert!(found.tokenizer.is_none() && template().is_none());
    assert!(found.tokenizer_for("x").expect_err("none").to_string().contains("its pre-tokenizer no such is not"));
    write(byte_level("gpt-2").into_iter().chain([("tokenizer.chat_template", text("inside"))]).collect());
    assert!(subject().tokenizer.is_some() && subject().without_tokenizer.is_none());
    let inside = template().expect("a template");
    assert_eq!((&*inside.source, &*inside.bos_token, &*inside.eos_token), ("inside", "<s>", "</s>"));
    fs::write(folder.path().join("tokenizer_config.json"), r#"{"bos_token": "[B]"}"#).expect("written");
    let beside = template().expect("a template");
    assert_eq!((&*beside.source, &*beside.bos_token), ("inside", "[B]"));
    fs::write(folder.path().join("chat_template.jinja"), "beside").expect("written");
    assert_eq!(template().expect("a template").source, "beside");
    fs::write(folder.path().join("tokenizer.json"), "{}").expect("written");
    let alone = Parallel::default();
    let wrong = open_gguf(&path, "m".into(), Engine::Tuned, Precision::F32, &Device::Cpu, alone);
    assert!(wrong.err().expect("a refusal").to_string().contains("not a tokenizer"));
}
