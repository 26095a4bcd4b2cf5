//! Compares mixtures of experts with golden files of transformers in `fixtures/moe`. `fixtures/README.md` describes the layout.

use candle_core::DType;

use super::{Decoder, mixture::Mixture, routing::Routes};
use crate::model::{
    CausalLm, Engine,
    checkpoint::read_json,
    config::{ExpertLayout, ModelConfig},
    golden::{Fixture, TOLERANCE, at_device, device, difference, fixtures, incrementally, numbers},
    open,
};

fn decoder(fixture: &Fixture) -> Decoder {
    let layout = fixture.checkpoint.expert_layout().expect("a header");
    fixture.checkpoint.check(&fixture.config.tensors(layout)).expect(&fixture.name);
    let weights = fixture.checkpoint.weights(DType::F32, &device()).expect("weights");
    Decoder::new(fixture.config.clone(), weights, layout).expect(&fixture.name)
}

#[test]
fn logits_equal_the_reference_at_every_position() {
    for fixture in fixtures("moe") {
        let mut model = decoder(&fixture);
        for prompt in &fixture.prompts {
            let what = format!("{}, {}", fixture.name, prompt.name);
            let worst = incrementally(&mut model, &fixture, prompt).expect(&what);
            assert!(worst <= at_device(TOLERANCE), "{what}, token by token: {worst} from the reference");

            let all: Vec<u32> = prompt.ids.iter().chain(&prompt.greedy).copied().collect();
            let expected = &fixture.tensors[&format!("{}.logits", prompt.name)];
            let hidden = model.hidden(&all[..all.len() - 1], 0).expect(&what);
            let logits = model.logits(&hidden).expect(&what);
            assert_eq!(logits.dims(), expected.dims(), "{what}");
            let far = difference(&numbers(&logits), &numbers(expected));
            assert!(far <= at_device(TOLERANCE), "{what}, in one pass: {far} from the reference");

            // In two chunks, at every position of the second.
            let (first, second) = all[..all.len() - 1].split_at(all.len() / 3);
            if !first.is_empty() {
                model.hidden(first, 0).expect(&what);
            }
            let hidden = model.hidden(second, first.len()).expect(&what);
            let logits = model.logits(&hidden).expect(&what);
            let expected = expected.narrow(0, first.len(), second.len()).expect("rows");
            let far = difference(&numbers(&logits), &numbers(&expected));
            assert!(far <= at_device(TOLERANCE), "{what}, in two parts: {far} from the reference");
        }
    }
}

#[test]
fn the_same_experts_are_chosen_with_the_same_weights() {
    let mut checked = 0;
    for fixture in fixtures("moe") {
        for layer in 0..fixture.config.num_hidden_layers {
            let model = decoder(&fixture);
            let prompt = fixture.prompts.last().expect("a prompt");
            let tensor = |what: &str| fixture.tensors.get(&format!("{}.layers.{layer}.{what}", prompt.name));
            let Some(mixture) = model.mixture(layer) else {
                assert!(tensor("experts").is_none(), "{}: layer {layer} is a mixture in the reference", fixture.name);
                continue;
            };
            let what = format!("{}, layer {layer}", fixture.name);
            let (input, output) = (tensor("block_input").expect(&what), tensor("block_output").expect(&what));
            let input = input
                .reshape(((), fixture.config.hidden_size))
                .and_then(|input| input.to_device(&device()))
                .expect("tokens");
            let routes = mixture.route(&input, 0, None).expect(&what);
            let experts = tensor("experts").and_then(|t| t.to_dtype(DType::U32).ok()).expect(&what);
            let experts: Vec<u32> = experts.flatten_all().and_then(|t| t.to_vec1()).expect("experts");
            assert_eq!(routes.experts, experts, "{what}");
            let far = difference(&routes.weights, &numbers(tensor("weights").expect(&what)));
            assert!(far < at_device(1e-5), "{what}: weights {far} from the reference");

            // All tokens at once, and a single token.
            let top_k = routes.top_k;
            let (experts, weights) = (routes.experts[..top_k].to_vec(), routes.weights[..top_k].to_vec());
            let one = input.narrow(0, 0, 1).expect("a token");
            for (input, routes) in [(&input, &routes), (&one, &Routes { top_k, experts, weights })] {
                for dispatch in [Mixture::dispatch, Mixture::dispatch_on_device] {
                    let sum = input.zeros_like().expect("zeros");
                    let found = numbers(&dispatch(mixture, sum, input, routes).expect(&what));
                    let far = difference(&found, &numbers(output)[..found.len()]);
                    assert!(far <= at_device(TOLERANCE), "{what}: the block is {far} from the reference");
                }
            }
            checked += 1;
        }
    }
    assert!(checked > 0, "no mixture was checked");
}

/// In every layer of the model, the decoder counts the choices of the reference.
#[test]
fn the_load_of_each_expert_equals_the_reference() {
    for fixture in fixtures("moe") {
        let mut model = decoder(&fixture);
        for prompt in &fixture.prompts {
            model.reset().expect("a reset");
            incrementally(&mut model, &fixture, prompt).expect(&fixture.name);
            let mut expected = Vec::new();
            for layer in 0..fixture.config.num_hidden_layers {
                let Some(experts) = fixture.tensors.get(&format!("{}.layers.{layer}.experts", prompt.name)) else {
                    continue;
                };
                let experts = experts.to_dtype(DType::U32).and_then(|t| t.flatten_all()?.to_vec1()).expect("experts");
                let mut load = vec![0; fixture.config.experts.as_ref().expect("experts").num_experts];
                experts.iter().for_each(|expert: &u32| load[*expert as usize] += 1);
                expected.push(load);
            }
            let found = model.expert_load().expect("a load");
            assert_eq!(found.layers, expected, "{}, {}", fixture.name, prompt.name);
        }
    }
}

#[test]
fn both_forms_of_the_configuration_are_equal() {
    for fixture in fixtures("moe") {
        let hub = fixture.checkpoint.weights[0].with_file_name("config.hub.json");
        if hub.is_file() {
            let hub = ModelConfig::from_json(&read_json(&hub).expect("JSON")).expect("the Hub's form");
            assert_eq!(hub, fixture.config, "{}", fixture.name);
        }
    }
}

/// Devices other than CPUs, and dtypes other than f32, use other operations.
#[test]
fn sixteen_bit_dtypes_stay_close() {
    for fixture in fixtures("moe") {
        let prompt = fixture.prompts.last().expect("a prompt");
        for dtype in [DType::BF16, DType::F16] {
            let subject = open(fixture.checkpoint.clone(), Engine::Tuned, dtype, &device()).expect(&fixture.name);
            let mut model = subject.model;
            let logits = numbers(&model.forward(&prompt.ids, 0).expect(&fixture.name));
            let expected = fixture.logits(prompt, prompt.ids.len() - 1);
            let error: f32 = logits.iter().zip(&expected).map(|(a, b)| (a - b).powi(2)).sum();
            let relative = (error / expected.iter().map(|logit| logit.powi(2)).sum::<f32>()).sqrt();
            // A rounded router may choose another expert, so this finds only large errors.
            assert!(relative < 0.3, "{} in {dtype:?}: {relative} off", fixture.name);
        }
    }
}

/// Dense layers, on the checkpoints of the published models.
#[test]
fn dense_models_equal_the_reference() {
    let mut checked = 0;
    for fixture in fixtures("generation").iter().filter(|fixture| super::refusal(&fixture.config).is_none()) {
        let mut model = decoder(fixture);
        for prompt in &fixture.prompts {
            let worst = incrementally(&mut model, fixture, prompt).expect(&fixture.name);
            assert!(worst <= at_device(TOLERANCE), "{}, {}: {worst} from the reference", fixture.name, prompt.name);
            checked += 1;
        }
    }
    assert!(checked > 0, "no dense fixture was checked");
}

#[test]
fn a_step_reads_the_chosen_experts_only() {
    for fixture in fixtures("moe") {
        let (config, footprint) = (&fixture.config, decoder(&fixture).footprint());
        let experts = config.experts.as_ref().expect("experts");
        let mut read = 0;
        for (name, shape) in config.tensors(ExpertLayout::Stacked) {
            let count: usize = shape.iter().product();
            let share =
                if shape.len() == 3 { count / experts.num_experts * experts.num_experts_per_tok } else { count };
            if name != "model.embed_tokens.weight" || config.tie_word_embeddings {
                read += share as u64;
            }
        }
        assert_eq!(footprint.step_weight_bytes, 4 * read, "{}", fixture.name);
        assert!(footprint.flops_per_token <= 2 * read && footprint.flops_per_token > 19 * read / 10);
    }
}

#[test]
fn planted_routes_are_taken() {
    let fixture = fixtures("moe").into_iter().next().expect("a fixture");
    let experts = fixture.config.experts.clone().expect("experts");
    let mut model = decoder(&fixture);
    model.plant(2.0, 42).expect("planted");
    model.forward(&[5; 100], 0).expect("a pass");
    let planted = super::routing::Planted::new(2.0, 42, 1, experts.num_experts);
    let routes = Routes::choose(&planted.logits(0, 0, 100), experts.num_experts, experts.num_experts_per_tok, true);
    let mut load = super::ExpertLoad::new(1, experts.num_experts, experts.num_experts_per_tok);
    load.count(0, &routes);
    assert_eq!(model.expert_load().expect("a load").layers[0], load.layers[0]);
}
