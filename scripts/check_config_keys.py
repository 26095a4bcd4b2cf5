#!/usr/bin/env python3
"""Compares how candlepower and transformers read each key of config.json, in each family that reads it.

    .venv/bin/python scripts/check_config_keys.py --program target/release/candlepower [--only FAMILY] [--key KEY]

The keys are those of the table in src/guide/settings.md. For each, a seeded tiny checkpoint has unusual values of the
key, and the mean negative log-likelihood of a sequence by both programs must agree. The last column is how far
transformers' own result moves from that without the key: where it is 0 for every value of a key, the check says nothing,
and fails. Exit code 1 if a result differs.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from make_fixtures import ROOT, spread

TOLERANCE = 2e-5
IDS = [(7 * i + i * i) % 61 for i in range(48)]
MISSING = object()
# They change no logits.
WITHOUT_LOGITS = {"eos_token_id"}

ARCHITECTURES = {
    "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "mistral": "MistralForCausalLM",
    "granite": "GraniteForCausalLM", "olmo2": "Olmo2ForCausalLM", "smollm3": "SmolLM3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM", "phi3": "Phi3ForCausalLM", "glm4": "Glm4ForCausalLM",
    "helium": "HeliumForCausalLM", "ministral": "MinistralForCausalLM", "ministral3": "Ministral3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM", "qwen2_moe": "Qwen2MoeForCausalLM", "mixtral": "MixtralForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
}
BASE = dict(
    hidden_size=64, intermediate_size=48, vocab_size=64, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=256, pad_token_id=None, bos_token_id=1, eos_token_id=2)
MIXTURE = dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=20, shared_expert_intermediate_size=28)
OWN_BASE = {
    "qwen3_moe": MIXTURE, "qwen2_moe": MIXTURE, "mixtral": dict(num_local_experts=8), "gpt_oss": dict(num_local_experts=8),
    "gemma2": dict(query_pre_attn_scalar=16), "gemma3_text": dict(query_pre_attn_scalar=16),
}

LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0 + 0.5 * i for i in range(8)], "long_factor": [2.0] * 8}
PLAIN = {"rope_type": "default", "rope_theta": 300.0}
TYPES = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
WINDOW = dict(sliding_window=8, use_sliding_window=True)
SHARED_ROPE = [
    PLAIN, LINEAR, YARN, {**YARN, "truncate": False, "rope_theta": 500.0}, {**YARN, "factor": None},
    {**YARN, "attention_factor": 0.7}, {**YARN, "mscale": 0.8, "mscale_all_dim": 0.4}, {**YARN, "mscale": 0.8},
    {**YARN, "beta_fast": 8, "beta_slow": 2.0}, {**YARN, "beta_fast": 0}, LLAMA3, DYNAMIC, {"type": "linear", "factor": 2.0},
]


def ropes(family):
    """Parameters of RoPE as the family may have them."""
    if family == "phi3":
        return [PLAIN, LONG, {**LONG, "rope_type": "su"}, {**LONG, "rope_type": "yarn"}, {**LONG, "attention_factor": 1.5},
                {**LONG, "factor": 8.0}, {"rope_type": "default", "partial_rotary_factor": 0.5}]
    if family == "ministral3":
        # transformers needs both keys. It starts from the first position beyond the original ones.
        beta = dict(llama_4_scaling_beta=0.3, original_max_position_embeddings=20)
        return [{**beta, **rope} for rope in SHARED_ROPE] + [{**YARN, "llama_4_scaling_beta": 0.8}]
    if family == "glm4":
        half = [{**rope, "partial_rotary_factor": 0.25} for rope in (PLAIN, LINEAR, YARN)]
        return [*SHARED_ROPE, *half]
    return SHARED_ROPE


def nested(rope):
    return [{"full_attention": rope}, {"sliding_attention": rope}, {"full_attention": rope, "sliding_attention": PLAIN}]


def cases(family):
    """For each key, values that are unusual, with the other keys that they need."""
    is_nested = family == "gemma3_text"
    # Longest positions and original ones count in these types.
    scaled = {"phi3": LONG, "ministral3": {**YARN, "llama_4_scaling_beta": 0.3}}.get(family, YARN)
    without = {key: value for key, value in scaled.items() if key != "original_max_position_embeddings"}
    flat = [dict(rope_scaling=rope) for rope in ropes(family)]
    nested_ropes = [dict(rope_parameters=both) for rope in (PLAIN, LINEAR, YARN) for both in nested(rope)]
    other = "Qwen2ForCausalLM" if family == "llama" else "LlamaForCausalLM"
    return {
        "architectures": [dict(architectures=[other])],
        "model_type": [dict(architectures=MISSING)],
        # Helium needs heads that are together as wide as the model.
        "hidden_size": [dict(hidden_size=96), dict(hidden_size=128, num_attention_heads=8)],
        "intermediate_size": [dict(intermediate_size=40)],
        "vocab_size": [dict(vocab_size=80)],
        "num_hidden_layers": [dict(num_hidden_layers=3)],
        "num_attention_heads": [dict(num_attention_heads=8), dict(num_attention_heads=8, head_dim=8)],
        "num_key_value_heads": [
            dict(num_key_value_heads=4), dict(num_key_value_heads=None),
            dict(num_key_value_heads=MISSING, num_attention_heads=32, head_dim=8)],
        "head_dim": [dict(head_dim=32), dict(head_dim=32, num_attention_heads=2), dict(head_dim=8), dict(head_dim=MISSING)],
        "max_position_embeddings": [
            dict(max_position_embeddings=64, rope_parameters={"full_attention": without} if is_nested else without)],
        "rms_norm_eps": [dict(rms_norm_eps=0.1)],
        "tie_word_embeddings": [dict(tie_word_embeddings=True), dict(tie_word_embeddings=False)],
        "rope_parameters": nested_ropes if is_nested else [dict(rope_parameters=rope) for rope in ropes(family)],
        "rope_scaling": [
            *flat, dict(rope_scaling={}, rope_theta=50.0),
            *([dict(rope_scaling=LINEAR, rope_parameters=both) for both in nested(PLAIN)] if is_nested else [
                dict(rope_parameters=PLAIN, rope_scaling=ropes(family)[1]), dict(rope_parameters=PLAIN, rope_scaling={}),
                dict(rope_parameters=PLAIN, rope_scaling=None)])],
        "rope_theta": [
            dict(rope_theta=100.0), dict(rope_theta=100, rope_scaling=None),
            *([] if is_nested else [dict(rope_theta=100.0, rope_parameters=PLAIN), dict(rope_theta=100.0, rope_scaling=scaled)])],
        "rope_local_base_freq": [dict(rope_local_base_freq=50.0), dict(rope_local_base_freq=50.0, rope_theta=900.0)],
        "original_max_position_embeddings": [
            dict(original_max_position_embeddings=50, rope_scaling=without),
            dict(original_max_position_embeddings=50, rope_parameters=scaled),
            dict(original_max_position_embeddings=50)],
        "partial_rotary_factor": [
            dict(partial_rotary_factor=0.75), dict(partial_rotary_factor=None), dict(partial_rotary_factor=1.0)],
        "no_rope_layers": [dict(no_rope_layers=[0, 1, 1, 0]), dict(no_rope_layers=None)],
        "no_rope_layer_interval": [dict(no_rope_layer_interval=2)],
        "hidden_act": [dict(hidden_act=name) for name in ("gelu", "gelu_new", "gelu_pytorch_tanh", "swish", "silu")],
        "hidden_activation": [dict(hidden_activation=name) for name in ("gelu", "silu", "gelu_fast")],
        "swiglu_alpha": [dict(swiglu_alpha=0.7)],
        "swiglu_limit": [dict(swiglu_limit=0.3)],
        "attention_bias": [dict(attention_bias=True), dict(attention_bias=False)],
        "qkv_bias": [dict(qkv_bias=True), dict(qkv_bias=False)],
        "mlp_bias": [dict(mlp_bias=True)],
        "embedding_multiplier": [dict(embedding_multiplier=3.0)],
        "residual_multiplier": [dict(residual_multiplier=0.4)],
        "attention_multiplier": [dict(attention_multiplier=0.125)],
        "logits_scaling": [dict(logits_scaling=2.0)],
        "sliding_window": [dict(WINDOW, sliding_window=8, max_window_layers=2), dict(sliding_window=5), dict(
            sliding_window=None), dict(use_sliding_window=True, sliding_window=None, max_window_layers=1)],
        "use_sliding_window": [dict(WINDOW, max_window_layers=1), dict(WINDOW, use_sliding_window=False)],
        "layer_types": [
            # Qwen2-MoE then has sliding layers of no window at all, which candlepower refuses.
            dict(WINDOW, layer_types=TYPES), dict(WINDOW, layer_types=TYPES, use_sliding_window=family == "qwen2_moe"),
            dict(WINDOW, layer_types=["attention", *TYPES[1:]]), dict(layer_types=["full_attention"] * 4)],
        "max_window_layers": [dict(WINDOW, max_window_layers=count) for count in (0, 1, 3)],
        "sliding_window_pattern": [dict(sliding_window=8, sliding_window_pattern=3)],
        "query_pre_attn_scalar": [dict(query_pre_attn_scalar=64), dict(query_pre_attn_scalar=MISSING)],
        "attn_logit_softcapping": [dict(attn_logit_softcapping=1.5), dict(attn_logit_softcapping=None)],
        "final_logit_softcapping": [dict(final_logit_softcapping=4.0), dict(final_logit_softcapping=None)],
        "num_experts": [dict(num_experts=6), dict(num_experts=6, num_local_experts=5)],
        "num_local_experts": [
            dict(num_local_experts=6), dict(num_local_experts=6, num_experts=MISSING), dict(num_local_experts=6, num_experts=5)],
        "num_experts_per_tok": [dict(num_experts_per_tok=3), dict(num_experts_per_tok=MISSING)],
        "moe_intermediate_size": [dict(moe_intermediate_size=24)],
        "shared_expert_intermediate_size": [dict(shared_expert_intermediate_size=36)],
        "norm_topk_prob": [dict(norm_topk_prob=True), dict(norm_topk_prob=False)],
        "decoder_sparse_step": [dict(decoder_sparse_step=2)],
        "mlp_only_layers": [dict(mlp_only_layers=[1]), dict(mlp_only_layers=None)],
    }


# Values with an effect in the families that read the key. The classes of the others must ignore them, as candlepower does.
FOREIGN = dict(
    rope_local_base_freq=50.0, no_rope_layers=[0, 1, 1, 0], no_rope_layer_interval=2, attention_bias=True, qkv_bias=False,
    mlp_bias=True, embedding_multiplier=3.0, residual_multiplier=0.4, attention_multiplier=0.125, logits_scaling=2.0,
    sliding_window=8, use_sliding_window=True, layer_types=TYPES, max_window_layers=1, sliding_window_pattern=3,
    query_pre_attn_scalar=64, attn_logit_softcapping=1.5, final_logit_softcapping=4.0, num_experts=6, num_local_experts=6,
    num_experts_per_tok=3, moe_intermediate_size=24, shared_expert_intermediate_size=36, norm_topk_prob=True,
    decoder_sparse_step=2, mlp_only_layers=[1], swiglu_alpha=0.7, swiglu_limit=0.3, hidden_act="gelu", hidden_activation="gelu")


def read_keys():
    """The families that read each key, by the table of the guide."""
    text = (ROOT / "src/guide/settings.md").read_text()
    table = text.split("<!-- config keys -->")[1].split("<!-- /config keys -->")[0]
    keys = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if len(cells) == 2 and cells[1].startswith("read"):
            families = cells[1].removeprefix("read").strip(": ").split(", ")
            for key in re.findall("`([^`]+)`", cells[0]):
                keys[key] = list(ARCHITECTURES) if families == [""] else families
    return keys


def by_transformers(folder, family):
    """Draws the weights of a config.json, saves them, and returns the mean NLL; None if transformers refuses it."""
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager").eval()
        spread(model, 0.0 if family.startswith("gemma") else 1.0)
        with torch.no_grad():
            logits = model(torch.tensor([IDS]), use_cache=False).logits[0].double()
    except Exception as error:
        return None, str(error).strip().splitlines()[-1][:90]
    is_tied = model.config.tie_word_embeddings
    weights = {n: w.clone().contiguous() for n, w in model.state_dict().items() if not (is_tied and n == "lm_head.weight")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    chances = torch.log_softmax(logits, -1)
    return -chances[torch.arange(len(IDS) - 1), torch.tensor(IDS[1:])].mean().item(), ""


def by_candlepower(program, folder, ids):
    command = [program, "perplexity", ids, "--model", f"path:{folder}", "--engine", "tuned", "--dtype", "f32", "--seq-len",
               str(len(IDS)), "--stride", str(len(IDS)), "--json"]
    settings = {"CANDLEPOWER_OUT": str(folder / "out"), "CANDLEPOWER_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings})
    if done.stdout.startswith("{"):
        return json.loads(done.stdout)["nll"], ""
    return None, done.stderr.strip().splitlines()[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=Path, default=ROOT / "target/release/candlepower")
    parser.add_argument("--only", help="check just the family of this model_type")
    parser.add_argument("--key", help="check just this key")
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    keys = read_keys()
    rows, failures = [], []
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        ids = scratch / "ids.txt"
        ids.write_text(" ".join(map(str, IDS)))

        def compare(family, key, changes):
            config = dict(architectures=[ARCHITECTURES[family]], model_type=family, **BASE) | OWN_BASE.get(family, {}) | changes
            config = {name: value for name, value in config.items() if value is not MISSING}
            folder = scratch / "model"
            folder.mkdir(exist_ok=True)
            (folder / "model.safetensors").unlink(missing_ok=True)
            (folder / "config.json").write_text(json.dumps(config))
            expected, why = by_transformers(folder, family)
            if expected is None:
                return None, f"transformers refuses it: {why}"
            found, why = by_candlepower(arguments.program, folder, ids)
            if found is None:
                failures.append(f"{family} {key} {changes}: refused: {why}")
                return expected, None
            if not abs(found - expected) <= TOLERANCE:
                failures.append(f"{family} {key} {changes}: {found}, not {expected}")
            return expected, abs(found - expected)

        for family in ARCHITECTURES:
            if arguments.only not in (None, family):
                continue
            plain, _ = compare(family, "no key", {})
            own = cases(family)
            for key, families in keys.items():
                if family not in families or key in WITHOUT_LOGITS or arguments.key not in (None, key):
                    continue
                results = [compare(family, key, changes) for changes in own[key]]
                refusals = [why for expected, why in results if expected is None]
                ran = [(expected, far) for expected, far in results if expected is not None]
                worst = max((far for _, far in ran if far is not None), default=None)
                moved = max((abs(expected - plain) for expected, _ in ran), default=0.0)
                rows.append((family, key, len(ran), len(refusals), worst, moved))
                print(f"{family:12} {key:34} {len(ran):2} values, {len(refusals)} refused by transformers, "
                      f"{'-' if worst is None else f'{worst:.1e}'} off, {moved:.1e} moved", flush=True)
            if arguments.key is None:
                foreign = {key: value for key, value in FOREIGN.items() if family not in keys[key]}
                expected, far = compare(family, "keys of other families", foreign)
                print(f"{family:12} {len(foreign)} keys of other families: {far} off", flush=True)
    # A key that moves nothing in any family was not checked. Types and names move nothing, because both say the same.
    for key in {row[1] for row in rows} - {"architectures", "model_type"}:
        if not any(row[5] > 10 * TOLERANCE for row in rows if row[1] == key):
            failures.append(f"{key}: no value moves the result of transformers")
    print("\n".join(failures))
    far = max((row[4] for row in rows if row[4] is not None), default=0.0)
    print(f"{sum(row[2] for row in rows)} configurations, {len(failures)} wrong, largest difference {far:.1e}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
