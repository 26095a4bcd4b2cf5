#!/usr/bin/env python3
"""Makes fixtures/generation: small seeded checkpoints saved by transformers, with golden outputs.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-fixtures.txt
    .venv/bin/python scripts/make_fixtures.py

The layout is described in fixtures/README.md. The same versions make the same files on the same kind of CPU.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

ROOT = Path(__file__).resolve().parent.parent
NEW_TOKENS = 32
# Rounding must not change greedy decoding: the two largest logits of every step differ by at least this.
CLEAR_CHOICE = 2e-3
# A model that repeats one token attends to copies of one value, and errors of attention then have no effect.
DISTINCT_TOKENS = 12


def every(pattern, layers):
    """Layers of which one in `pattern` is full."""
    types = ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers)]
    return dict(num_hidden_layers=layers, layer_types=types)


def llama4(factor, original, beta):
    """YaRN whose queries are multiplied beyond the original positions."""
    return {
        "rope_type": "yarn", "rope_theta": 1e6, "factor": factor, "original_max_position_embeddings": original,
        "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": beta,
    }


# The classes of transformers, and the base of the fixtures.
FAMILIES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", dict(
        hidden_size=64, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2)),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", dict(
        hidden_size=64, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=32)),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", dict(
        hidden_size=48, intermediate_size=40, num_attention_heads=4, num_key_value_heads=1, head_dim=16,
        query_pre_attn_scalar=16, sliding_window=128,
    ) | every(2, 2)),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", dict(
        hidden_size=64, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2)),
    "mistral": ("MistralConfig", "MistralForCausalLM", dict(
        hidden_size=64, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
        sliding_window=None)),
    "granite": ("GraniteConfig", "GraniteForCausalLM", dict(
        hidden_size=64, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, embedding_multiplier=3.0,
        residual_multiplier=0.4, attention_multiplier=0.125, logits_scaling=2.0)),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", dict(
        hidden_size=64, intermediate_size=48, num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=False)),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", dict(
        hidden_size=64, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=4)),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", dict(
        hidden_size=48, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        query_pre_attn_scalar=16, sliding_window=128)),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", dict(
        hidden_size=64, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)),
    "glm4": ("Glm4Config", "Glm4ForCausalLM", dict(
        hidden_size=64, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        tie_word_embeddings=False)),
    "ministral": ("MinistralConfig", "MinistralForCausalLM", dict(
        hidden_size=64, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        tie_word_embeddings=False, sliding_window=8)),
    "ministral3": ("Ministral3Config", "Ministral3ForCausalLM", dict(
        hidden_size=64, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        tie_word_embeddings=False, rope_parameters=llama4(16.0, 16, 0.1))),
    "helium": ("HeliumConfig", "HeliumForCausalLM", dict(
        hidden_size=64, intermediate_size=48, num_attention_heads=4, num_key_value_heads=4, head_dim=16,
        tie_word_embeddings=False)),
}
COMMON = dict(
    vocab_size=320, num_hidden_layers=2, max_position_embeddings=256, rms_norm_eps=1e-5, tie_word_embeddings=True)

# Granite as a Llama: the score of a head of 16 elements is multiplied by 1 / 4.
NO_MULTIPLIERS = dict(
    embedding_multiplier=1.0, residual_multiplier=1.0, attention_multiplier=0.25, logits_scaling=1.0,
    tie_word_embeddings=False)


def llama3(theta, factor=8.0, original=64):
    return {
        "rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": original,
    }


DEFAULT = {"rope_type": "default"}
LINEAR = {"rope_type": "linear", "factor": 8.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}


def gemma_rope(full, sliding, full_type=DEFAULT, sliding_type=DEFAULT):
    return {
        "full_attention": full_type | {"rope_theta": full},
        "sliding_attention": sliding_type | {"rope_theta": sliding},
    }


# Name, family, differences from the family's base and COMMON. candle-transformers computes those that begin with `wrong`
# differently, so engine `stock` must refuse them. The seed of a fixture follows from its place, so new rows go to the end.
FIXTURES = [
    ("llama-gqa-tied", "llama", dict(num_hidden_layers=3, rope_parameters=llama3(10000.0))),
    ("llama-mha-untied", "llama", dict(num_key_value_heads=4, tie_word_embeddings=False)),
    ("llama-mqa-llama3", "llama", dict(
        num_attention_heads=8, num_key_value_heads=1, hidden_size=96, vocab_size=352,
        tie_word_embeddings=False, rope_parameters=llama3(500000.0, 32.0))),
    ("qwen3-gqa-tied", "qwen3", dict(num_hidden_layers=3)),
    ("qwen3-mha-untied", "qwen3", dict(num_key_value_heads=4, head_dim=16, tie_word_embeddings=False)),
    ("qwen3-gqa3-sharded", "qwen3", dict(
        hidden_size=96, num_attention_heads=6, num_key_value_heads=2, head_dim=16, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6})),
    ("gemma3-long-window", "gemma3", every(6, 7)),
    ("gemma3-short-window", "gemma3", dict(sliding_window=16) | every(6, 7)),
    ("gemma3-wide-heads", "gemma3", dict(
        hidden_size=48, head_dim=32, query_pre_attn_scalar=32, num_attention_heads=2, sliding_window=64,
        rope_parameters=gemma_rope(5e5, 2e4)) | every(4, 5)),
    ("gemma3-attention-bias", "gemma3", dict(attention_bias=True, sliding_window=64) | every(3, 4)),
    ("gemma3-final-softcap", "gemma3", dict(final_logit_softcapping=5.0, sliding_window=64) | every(2, 3)),
    ("qwen3-attention-bias", "qwen3", dict(attention_bias=True)),
    ("wrong-llama-attention-bias", "llama", dict(attention_bias=True)),
    ("wrong-llama-head-dim", "llama", dict(head_dim=32)),
    ("wrong-llama-linear-rope", "llama", dict(
        rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0})),
    ("wrong-qwen3-yarn", "qwen3", dict(rope_parameters=YARN)),
    ("wrong-qwen3-sliding", "qwen3", dict(
        use_sliding_window=True, sliding_window=8, max_window_layers=1)),
    ("wrong-gemma3-attention-softcap", "gemma3", dict(attn_logit_softcapping=2.0)),
    ("wrong-gemma3-query-scalar", "gemma3", dict(query_pre_attn_scalar=64)),
    ("wrong-gemma3-two-kv-heads", "gemma3", dict(num_key_value_heads=2)),
    ("wrong-gemma3-untied", "gemma3", dict(tie_word_embeddings=False)),
    ("wrong-gemma3-linear-rope", "gemma3", dict(rope_parameters=gemma_rope(1e6, 1e4, full_type=LINEAR))),
    ("wrong-gemma3-layer-types", "gemma3", dict(sliding_window=8, layer_types=[
        "full_attention", "sliding_attention"])),
    ("wrong-gemma3-sliding-rope", "gemma3", dict(rope_parameters=gemma_rope(1e6, 1e4, sliding_type=LINEAR))),
    ("wrong-llama-mlp-bias", "llama", dict(mlp_bias=True)),
    ("wrong-llama-activation", "llama", dict(hidden_act="gelu")),
    ("wrong-llama-yarn", "llama", dict(rope_parameters=YARN)),
    ("wrong-qwen3-linear-rope", "qwen3", dict(rope_parameters=LINEAR | {"rope_theta": 10000.0})),
    ("qwen2-tied", "qwen2", dict(num_hidden_layers=3)),
    ("qwen2-sliding-yarn", "qwen2", dict(
        tie_word_embeddings=False, use_sliding_window=True, sliding_window=8, max_window_layers=1, rope_parameters=YARN)),
    ("mistral-full", "mistral", dict()),
    ("mistral-sliding-wide-heads", "mistral", dict(sliding_window=8, head_dim=32, tie_word_embeddings=True)),
    ("granite-tied", "granite", dict(num_hidden_layers=3)),
    ("granite-biases-untied", "granite", dict(
        attention_bias=True, mlp_bias=True, tie_word_embeddings=False, logits_scaling=0.7, attention_multiplier=0.4)),
    ("olmo2-mha", "olmo2", dict(num_hidden_layers=3)),
    ("smollm3-tied", "smollm3", dict()),
    ("smollm3-sliding", "smollm3", dict(
        no_rope_layers=[0, 1, 1, 0], use_sliding_window=True, sliding_window=8, attention_bias=True, mlp_bias=True,
        tie_word_embeddings=False)),
    ("gemma2-long-window", "gemma2", dict(num_hidden_layers=3)),
    ("gemma2-narrow-caps", "gemma2", dict(
        sliding_window=8, attn_logit_softcapping=1.5, final_logit_softcapping=4.0, query_pre_attn_scalar=64,
        attention_bias=True, tie_word_embeddings=False)),
    ("phi3-whole-heads", "phi3", dict(num_hidden_layers=3)),
    ("phi3-longrope", "phi3", dict(
        sliding_window=24, tie_word_embeddings=True, original_max_position_embeddings=128, rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.2, 1.5, 2.0, 3.0, 4.5], "long_factor": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]})),
    ("glm4-half-heads", "glm4", dict(num_hidden_layers=3)),
    ("glm4-no-bias", "glm4", dict(
        attention_bias=False, tie_word_embeddings=True, rope_parameters={
            "rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.25})),
    # These have the usual values of keys that files of the Hub and GGUF files state differently.
    ("smollm3-untied", "smollm3", dict(num_hidden_layers=5, num_key_value_heads=4, tie_word_embeddings=False)),
    ("olmo2-gqa", "olmo2", dict(num_key_value_heads=2, rope_parameters=DEFAULT | {"rope_theta": 5e5})),
    ("gemma2-short-window", "gemma2", dict(
        num_hidden_layers=3, sliding_window=8, attn_logit_softcapping=1.5, final_logit_softcapping=4.0)),
    ("phi3-longrope-whole-heads", "phi3", dict(
        sliding_window=24, original_max_position_embeddings=128, rope_parameters={
            "rope_type": "longrope", "rope_theta": 5000.0,
            "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5, 3.1, 3.8],
            "long_factor": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]})),
    ("granite-no-multipliers", "granite", NO_MULTIPLIERS),
    ("wrong-granite-activation", "granite", NO_MULTIPLIERS | dict(hidden_act="gelu")),
    ("wrong-granite-biases", "granite", NO_MULTIPLIERS | dict(attention_bias=True)),
    ("wrong-granite-linear-rope", "granite", NO_MULTIPLIERS | dict(rope_parameters=LINEAR | {"rope_theta": 10000.0})),
    ("wrong-granite-multipliers", "granite", dict(tie_word_embeddings=False)),
    ("wrong-granite-tied", "granite", NO_MULTIPLIERS | dict(tie_word_embeddings=True)),
    ("helium-mha", "helium", dict(num_hidden_layers=3)),
    ("helium-gqa-biases-tied", "helium", dict(
        num_key_value_heads=2, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
        rope_parameters=DEFAULT | {"rope_theta": 2e4})),
    ("ministral-all-sliding", "ministral", dict(num_hidden_layers=3)),
    ("ministral-some-sliding-wide-heads", "ministral", dict(
        num_hidden_layers=4, head_dim=32, tie_word_embeddings=True, layer_types=["full_attention"] + 3 * ["sliding_attention"])),
    ("ministral3-yarn", "ministral3", dict(num_hidden_layers=3)),
    ("ministral3-sliding-wide-heads-tied", "ministral3", dict(
        head_dim=32, sliding_window=24, tie_word_embeddings=True, rope_parameters=DEFAULT | {
            "rope_theta": 5e4, "original_max_position_embeddings": 20, "llama_4_scaling_beta": 0.7})),
]

SHARDED = {"qwen3-gqa3-sharded"}
SHORT_WINDOW = "gemma3-short-window"
WITH_TOKENIZER = "llama-gqa-tied"
WITH_SAMPLING = {"llama-gqa-tied", "qwen3-gqa-tied"}
PROMPT_LENGTHS = [1, 17, 40]
# Below the window, of its length, just past it and far past it.
PROMPT_LENGTHS_OF_SHORT_WINDOW = [1, 8, 16, 17, 40]
# Long enough to show wrong results.
PROMPT_LENGTHS_OF_WRONG = [17]

# None omits a transform.
SAMPLING = [
    ("penalty", dict(repetition_penalty=1.3)),
    ("temperature", dict(temperature=0.7)),
    ("top-k", dict(top_k=20)),
    ("top-k-of-one", dict(top_k=1)),
    ("top-k-past-the-vocabulary", dict(top_k=100000)),
    ("top-k-with-ties", dict(top_k=5)),
    ("top-p", dict(top_p=0.9)),
    ("top-p-of-almost-nothing", dict(top_p=1e-6)),
    ("nucleus", dict(temperature=0.8, top_k=50, top_p=0.9)),
    ("every-transform", dict(repetition_penalty=1.1, temperature=0.8, top_k=50, top_p=0.9)),
]

TEXT = """
A candle gives light because its wax becomes vapour and the vapour burns. The wick lifts the liquid wax, the heat of
the flame turns it into gas, and the gas meets the air. To say how bright a lamp is, people once compared it with a
candle of known weight, at a known distance, in a dark room. Numbers like 12, 48 or 1024 mean little without a limit
beside them. How fast does it burn? How fast could it burn? Those are two questions, and the second is the better one.
"""


def build(family, overrides, seed):
    config_class, model_class, base = FAMILIES[family]
    settings = COMMON | base | overrides
    if family == "gemma3":
        settings = dict(rope_parameters=gemma_rope(1e6, 1e4)) | settings
    config = getattr(transformers, config_class)(**settings, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(config).eval()
    # Gemma adds 1 to the weight of a norm.
    spread(model, 0.0 if family in {"gemma2", "gemma3"} else 1.0)
    return model


def spread(model, one):
    """Draws the weights. `one` is the mean of those of norms."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Norms are spread too, so that a norm in the wrong place shows. Other weights are spread enough that
            # choices are clear.
            if name == "model.norm.weight":
                # Of either sign. Otherwise a tied head predicts the last token again.
                weight.copy_(one - 1.0 + torch.randn_like(weight))
            elif "norm" in name:
                weight.copy_(one + 0.3 * torch.randn_like(weight))
            else:
                weight.copy_(torch.randn_like(weight) * 1.5 / weight.shape[-1] ** 0.5)


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float()


def greedy(model, prompt):
    """Greedy tokens by full forward passes, so that no cache can be wrong; None if they would test little."""
    ids = list(prompt)
    for _ in range(NEW_TOKENS):
        top = logits_of(model, ids)[-1].topk(2)
        if top.values[0] - top.values[1] < CLEAR_CHOICE:
            return None
        ids.append(int(top.indices[0]))
    tokens = ids[len(prompt):]
    return tokens if len(set(tokens)) >= DISTINCT_TOKENS else None


def prompts_and_logits(model, lengths, vocab_size, seed):
    prompts, tensors = [], {}
    for length in lengths:
        for attempt in range(1000):
            generator = torch.Generator().manual_seed(seed * 100003 + length * 1009 + attempt)
            ids = torch.randint(3, vocab_size, (length,), generator=generator).tolist()
            tokens = greedy(model, ids)
            if tokens is not None:
                break
        else:
            raise SystemExit(f"no prompt of {length} tokens leads to clear and varied choices")
        name = f"prompt-{length}"
        prompts.append({"name": name, "ids": ids, "greedy": tokens})
        tensors[f"{name}.logits"] = logits_of(model, ids + tokens[:-1]).contiguous()
    return prompts, tensors


def sampling_cases(prompts, tensors):
    cases = []
    prompt = prompts[-1]
    # Flat enough that top-k removes relevant probability. For a peaked row, top-p over all tokens and over the rest
    # agree.
    row = tensors[f"{prompt['name']}.logits"][-1]
    row = row / row.std()
    history = prompt["ids"] + prompt["greedy"][:1] + prompt["ids"][:7]
    for name, parameters in SAMPLING:
        logits = row.clone()
        if name == "top-k-with-ties":
            order = logits.argsort(descending=True)
            logits[order[3:9]] = logits[order[4]].item()
        tensors[f"sampling.{name}.logits"] = logits
        scores, stages = logits[None].clone(), []
        transforms = [
            ("repetition_penalty", lambda p: RepetitionPenaltyLogitsProcessor(p)),
            ("temperature", lambda t: TemperatureLogitsWarper(t)),
            ("top_k", lambda k: TopKLogitsWarper(k)),
            ("top_p", lambda p: TopPLogitsWarper(p)),
        ]
        for stage, transform in transforms:
            if parameters.get(stage) is None:
                continue
            scores = transform(parameters[stage])(torch.tensor([history]), scores)
            tensors[f"sampling.{name}.{stage}"] = torch.softmax(scores[0], -1)
            stages.append(stage)
        case = {key: parameters.get(key) for key in ["repetition_penalty", "temperature", "top_k", "top_p"]}
        cases.append({"name": name, "logits": f"sampling.{name}.logits", "history": history, "stages": stages} | case)
    return cases


def hub_form(config, family):
    """The configuration in the form that the Hub's files have; None for what that form can't say."""
    new = {"rope_parameters", "layer_types", "dtype", "_sliding_window_pattern", "use_bidirectional_attention"}
    hub = {key: value for key, value in config.items() if key not in new}
    hub |= {"torch_dtype": config["dtype"], "transformers_version": "4.51.0"}
    rope = config["rope_parameters"]
    if family == "gemma3":
        full, sliding = rope["full_attention"], rope["sliding_attention"]
        if sliding["rope_type"] != "default":
            return None
        hub |= {"cache_implementation": "hybrid", "rope_local_base_freq": whole(sliding["rope_theta"])}
        if hub["tie_word_embeddings"]:
            del hub["tie_word_embeddings"]
        types = config["layer_types"]
        pattern = types.index("full_attention") + 1
        if types == every(pattern, len(types))["layer_types"]:
            hub["sliding_window_pattern"] = pattern
        else:
            hub["layer_types"] = types
    else:
        full = rope
    if family == "ministral":
        hub["layer_types"] = config["layer_types"]
    scaling = {key: value for key, value in full.items() if key not in {"rope_theta", "partial_rotary_factor"}}
    if "partial_rotary_factor" in full:
        hub["partial_rotary_factor"] = full["partial_rotary_factor"]
    hub["rope_theta"] = whole(full["rope_theta"])
    hub["rope_scaling"] = None if scaling == DEFAULT else scaling
    return hub


def whole(number):
    """Many files on the Hub have RoPE's base without a decimal point."""
    return int(number) if number == int(number) else number


def make_tokenizer(vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(TEXT.strip().splitlines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def make(out, name, family, overrides, seed):
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = build(family, overrides, seed)
    model.save_pretrained(folder, max_shard_size="100KB" if name in SHARDED else "50GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    hub = hub_form(config, family)
    if hub is not None:
        write_json(folder / "config.hub.json", hub)
    lengths = PROMPT_LENGTHS
    if name == SHORT_WINDOW:
        lengths = PROMPT_LENGTHS_OF_SHORT_WINDOW
    elif name.startswith("wrong"):
        lengths = PROMPT_LENGTHS_OF_WRONG
    prompts, tensors = prompts_and_logits(model, lengths, config["vocab_size"], seed)
    golden = {
        "format": 1,
        "family": family,
        "made_with": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__},
        "seed": seed,
        "prompts": prompts,
        "sampling": sampling_cases(prompts, tensors) if name in WITH_SAMPLING else [],
    }
    write_json(folder / "golden.json", golden)
    save_file(tensors, folder / "golden.safetensors")
    if name == WITH_TOKENIZER:
        make_tokenizer(config["vocab_size"]).save_pretrained(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "fixtures" / "generation")
    parser.add_argument("--seed", type=int, default=20, help="other seeds make other checkpoints of the same shapes")
    parser.add_argument("--only", help="make just the fixture of this name")
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if arguments.only not in {None, *(fixture[0] for fixture in FIXTURES)}:
        parser.error(f"--only {arguments.only}: no fixture has this name")
    for number, (name, family, overrides) in enumerate(FIXTURES):
        if arguments.only in (None, name):
            make(arguments.out, name, family, overrides, arguments.seed + number)
            print(name)


if __name__ == "__main__":
    main()
