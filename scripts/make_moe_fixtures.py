#!/usr/bin/env python3
"""Makes fixtures/moe: small seeded mixture-of-experts checkpoints saved by transformers, with golden outputs.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-fixtures.txt
    .venv/bin/python scripts/make_moe_fixtures.py

The layout is described in fixtures/README.md. The same versions make the same files on the same kind of CPU.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from make_fixtures import CLEAR_CHOICE, ROOT, YARN, write_json

NEW_TOKENS = 12
PROMPT_LENGTHS = [1, 9, 24]
# Rounding must not change routing either: the probabilities of the chosen experts and of the next one differ by at
# least this.
CLEAR_ROUTE = 1e-4

FAMILIES = {
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
    "mixtral": (MixtralConfig, MixtralForCausalLM),
    "qwen2_moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM),
    "gpt_oss": (GptOssConfig, GptOssForCausalLM),
}
EXACT_YARN = YARN | {"rope_theta": 150000.0, "truncate": False}
BASE = {
    "qwen3_moe": dict(intermediate_size=48, moe_intermediate_size=20, head_dim=16, norm_topk_prob=True),
    "mixtral": dict(intermediate_size=28, head_dim=12),
    "qwen2_moe": dict(intermediate_size=48, moe_intermediate_size=20, shared_expert_intermediate_size=28),
    "gpt_oss": dict(
        intermediate_size=20, head_dim=16, sliding_window=8, num_local_experts=8, num_experts_per_tok=2,
        # llama.cpp always rounds the bounds of YaRN. Here both are below the second pair of a head, so that this changes nothing.
        rope_parameters=EXACT_YARN | {"original_max_position_embeddings": 16}),
}
COMMON = dict(
    vocab_size=128, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=256, rms_norm_eps=1e-5,
)

FIXTURES = [
    ("qwen3-8x2", "qwen3_moe", dict(num_experts=8, num_experts_per_tok=2)),
    ("qwen3-4x1-raw-weights", "qwen3_moe", dict(num_experts=4, num_experts_per_tok=1, norm_topk_prob=False)),
    ("qwen3-16x4-dense-layer", "qwen3_moe", dict(
        num_experts=16, num_experts_per_tok=4, mlp_only_layers=[1], tie_word_embeddings=True)),
    ("qwen3-8x3-every-second", "qwen3_moe", dict(
        num_experts=8, num_experts_per_tok=3, norm_topk_prob=False, decoder_sparse_step=2, attention_bias=True,
        num_hidden_layers=4)),
    ("qwen3-4x4-all-chosen", "qwen3_moe", dict(num_experts=4, num_experts_per_tok=4, num_key_value_heads=4)),
    ("qwen3-8x2-sharded", "qwen3_moe", dict(num_experts=8, num_experts_per_tok=2, num_key_value_heads=1)),
    ("qwen3-8x2-stacked", "qwen3_moe", dict(num_experts=8, num_experts_per_tok=2)),
    ("mixtral-8x2", "mixtral", dict(num_local_experts=8, num_experts_per_tok=2)),
    ("mixtral-4x1-tied", "mixtral", dict(
        num_local_experts=4, num_experts_per_tok=1, tie_word_embeddings=True, num_key_value_heads=4)),
    ("mixtral-16x4-stacked", "mixtral", dict(num_local_experts=16, num_experts_per_tok=4, intermediate_size=20)),
    ("mixtral-4x2-plain", "mixtral", dict(num_local_experts=4, num_experts_per_tok=2, head_dim=8)),
    ("qwen2-8x2", "qwen2_moe", dict(num_experts=8, num_experts_per_tok=2)),
    ("qwen2-8x3-sliding-stacked", "qwen2_moe", dict(
        num_experts=8, num_experts_per_tok=3, norm_topk_prob=True, mlp_only_layers=[1], use_sliding_window=True,
        sliding_window=8, max_window_layers=3, num_hidden_layers=4, qkv_bias=False, tie_word_embeddings=True)),
    ("qwen2-8x2-every-second", "qwen2_moe", dict(
        num_experts=8, num_experts_per_tok=2, norm_topk_prob=True, decoder_sparse_step=2, num_hidden_layers=4)),
    ("gpt-oss-8x2", "gpt_oss", dict()),
    ("gpt-oss-8x3-full-tied", "gpt_oss", dict(
        num_experts_per_tok=3, attention_bias=False, swiglu_alpha=1.1, swiglu_limit=0.8, tie_word_embeddings=True,
        layer_types=["full_attention", "full_attention", "sliding_attention"], num_key_value_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0})),
    ("gpt-oss-4x2-mxfp4", "gpt_oss", dict(
        hidden_size=64, intermediate_size=32, num_local_experts=4, rope_parameters=EXACT_YARN)),
]
SHARDED = {"qwen3-8x2-sharded"}
# Experts in one tensor per layer, as transformers 5 holds them in memory, instead of one by one as it saves them.
STACKED = {"qwen3-8x2-stacked", "mixtral-16x4-stacked", "qwen2-8x3-sliding-stacked"}
# Experts in MXFP4, as the published checkpoints of gpt-oss have them.
IN_MXFP4 = {"gpt-oss-4x2-mxfp4"}


def build(family, overrides, seed):
    config_class, model_class = FAMILIES[family]
    config = config_class(**(COMMON | BASE[family] | overrides), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(1.0 + 0.3 * torch.randn_like(weight))
            elif name.endswith("bias"):
                weight.copy_(0.2 * torch.randn_like(weight))
            elif name.endswith("sinks"):
                weight.copy_(torch.randn_like(weight))
            elif weight.dim() == 3 and family == "gpt_oss":
                # Inputs are the second dimension. Smaller weights, because 1 is added to what is multiplied with the gate.
                weight.copy_(torch.randn_like(weight) * 0.7 / weight.shape[1] ** 0.5)
            else:
                weight.copy_(torch.randn_like(weight) * (1.0 if "embed" in name else 1.5 / weight.shape[-1] ** 0.5))
    return model


def to_mxfp4(model):
    """Replaces the matrices of experts by numbers of MXFP4, and returns these as files hold them."""
    packed = {}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 3:
                count, inputs, outputs = weight.shape
                blocks = torch.randint(256, (count, outputs, inputs // 32, 16), dtype=torch.uint8)
                # Numbers are up to 6 before the scale, with a root mean square of 2.9.
                middle = 127 + round(math.log2(0.7 / 2.9 / inputs ** 0.5))
                scales = torch.randint(middle - 1, middle + 2, blocks.shape[:3], dtype=torch.uint8)
                weight.copy_(convert_moe_packed_tensors(blocks, scales))
                packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    return packed


class Routes:
    """What the routers and mixtures of a forward pass took in and gave out, by layer."""

    def __init__(self, model):
        self.seen = {}
        for number, layer in enumerate(model.model.layers):
            router = getattr(layer.mlp, "gate", None) or getattr(layer.mlp, "router", None)
            if router is not None:
                router.register_forward_hook(self.hook(number, "route"))
                layer.mlp.register_forward_hook(self.hook(number, "block"))

    def hook(self, layer, what):
        def see(_, inputs, output):
            self.seen[layer, what] = (inputs[0].detach(), output)
        return see

    def layers(self):
        return sorted({layer for layer, _ in self.seen})

    def choices(self, layer):
        """Experts of each token, likeliest first, and their weights."""
        _, (_, weights, experts) = self.seen[layer, "route"]
        return experts, weights

    def are_clear(self, top_k):
        for layer in self.layers():
            _, (logits, *_) = self.seen[layer, "route"]
            ordered = torch.softmax(logits.float(), -1).sort(-1, descending=True).values[:, : top_k + 1]
            if ordered.shape[-1] > 1 and (ordered[:, :-1] - ordered[:, 1:]).min() < CLEAR_ROUTE:
                return False
        return True


def forward(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float()


def greedy(model, routes, prompt):
    """Greedy tokens by full forward passes; None if a choice of a token or of an expert is not clear."""
    ids = list(prompt)
    for _ in range(NEW_TOKENS):
        top = forward(model, ids)[-1].topk(2)
        if top.values[0] - top.values[1] < CLEAR_CHOICE or not routes.are_clear(model.config.num_experts_per_tok):
            return None
        ids.append(int(top.indices[0]))
    return ids[len(prompt):]


def golden(model, routes, seed):
    prompts, tensors = [], {}
    for length in PROMPT_LENGTHS:
        for attempt in range(5000):
            generator = torch.Generator().manual_seed(seed * 100003 + length * 1009 + attempt)
            ids = torch.randint(3, model.config.vocab_size, (length,), generator=generator).tolist()
            tokens = greedy(model, routes, ids)
            if tokens is not None:
                break
        else:
            raise SystemExit(f"no prompt of {length} tokens leads to clear choices only")
        name = f"prompt-{length}"
        prompts.append({"name": name, "ids": ids, "greedy": tokens})
        tensors[f"{name}.logits"] = forward(model, ids + tokens[:-1]).contiguous()
        for layer in routes.layers():
            experts, weights = routes.choices(layer)
            tensors[f"{name}.layers.{layer}.experts"] = experts.contiguous()
            tensors[f"{name}.layers.{layer}.weights"] = weights.contiguous()
            if length == PROMPT_LENGTHS[-1]:
                into, out = routes.seen[layer, "block"]
                out = out[0].view_as(into) if isinstance(out, tuple) else out
                tensors[f"{name}.layers.{layer}.block_input"] = into[0].clone().contiguous()
                tensors[f"{name}.layers.{layer}.block_output"] = out[0].detach().clone().contiguous()
    return prompts, tensors


def hub_form(config):
    """The configuration in the form that the Hub's files have."""
    hub = {key: value for key, value in config.items() if key not in ("rope_parameters", "layer_types", "dtype")}
    hub["torch_dtype"] = config["dtype"]
    rope = config["rope_parameters"]
    hub["rope_theta"] = rope["rope_theta"]
    if config["model_type"] == "qwen3_moe":
        hub["num_experts"] = hub.pop("num_local_experts")
    if config["model_type"] == "gpt_oss":
        hub["layer_types"] = config["layer_types"]
        hub["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    elif config["model_type"] != "mixtral":
        hub["rope_scaling"] = None
    return hub


def make(out, name, family, overrides, seed):
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = build(family, overrides, seed)
    packed = to_mxfp4(model) if name in IN_MXFP4 else {}
    model.save_pretrained(folder, max_shard_size="60KB" if name in SHARDED else "50GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    if name in STACKED:
        tied = model.config.tie_word_embeddings
        state = {k: v.clone() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    if packed:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
        write_json(folder / "config.json", config)
        state = {k: v for k, v in model.state_dict().items() if f"{k}_blocks" not in packed}
        save_file(state | packed, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.hub.json", hub_form(json.loads((folder / "config.json").read_text())))
    prompts, tensors = golden(model, Routes(model), seed)
    write_json(folder / "golden.json", {
        "format": 1,
        "family": family,
        "made_with": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__},
        "seed": seed,
        "prompts": prompts,
    })
    save_file(tensors, folder / "golden.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "fixtures" / "moe")
    parser.add_argument("--seed", type=int, default=60, help="other seeds make other checkpoints of the same shapes")
    parser.add_argument("--only", help="make just the fixture of this name")
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for number, (name, family, overrides) in enumerate(FIXTURES):
        if arguments.only in (None, name):
            make(arguments.out, name, family, overrides, arguments.seed + number)
            print(name)


if __name__ == "__main__":
    main()
