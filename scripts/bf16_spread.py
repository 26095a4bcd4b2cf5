#!/usr/bin/env python3
"""Measures how the errors of equally good computations in bf16 vary, and by how much worse ones exceed them.

    .venv/bin/python scripts/bf16_spread.py [FIXTURES]

It computes the models of fixtures/generation with numpy, with each result rounded that PyTorch stores, and with variants of this
rounding. For each prompt it compares the errors of the logits from the golden values, as make_bf16_errors.py defines them, and
prints the mean and the standard deviation of the logarithm of the quotient. The variant `other grid` scales each result by a
random number before it is rounded. The tolerances of the tests in 16 bits use its standard deviation.
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
F32 = np.float32
# Features that this script does not compute.
OMITTED = ("yarn", "activation", "attention-softcap")


def rounded(x):
    """The nearest numbers in bf16, or the even of two nearest."""
    bits = np.ascontiguousarray(x, F32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) & np.uint32(0xFFFF0000)).view(F32)


def truncated(x):
    return (np.ascontiguousarray(x, F32).view(np.uint32) & np.uint32(0xFFFF0000)).view(F32)


def tensors(file):
    data = file.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    entries = {name: entry for name, entry in json.loads(data[8:start]).items() if entry.get("dtype") == "F32"}
    return {
        name: np.frombuffer(data[start + entry["data_offsets"][0]:start + entry["data_offsets"][1]], F32).reshape(
            entry["shape"])
        for name, entry in entries.items()
    }


def head_dim_of(config):
    """Some families leave the key out."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def frequencies(rope, head_dim):
    frequency = 1 / rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    if rope["rope_type"] == "linear":
        frequency /= rope["factor"]
    if rope["rope_type"] == "llama3":
        turns = rope["original_max_position_embeddings"] * frequency / (2 * np.pi)
        share = (turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
        share = np.clip(share, 0, 1)
        frequency = (1 - share) * frequency / rope["factor"] + share * frequency
    return frequency.astype(F32)


class Model:
    """`of_weights` rounds weights, `store` rounds results, and `halves` rounds the sums of either half of a product."""

    def __init__(self, config, weights, store=rounded, of_weights=rounded, halves=None):
        self.config, self.store, self.halves = config, store, halves
        self.weights = {name: of_weights(weight) for name, weight in weights.items()}
        self.gemma = config["model_type"].startswith("gemma3")

    def norm(self, x, name):
        weight = self.weights[name + ".weight"]
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + F32(self.config["rms_norm_eps"]))
        return self.store(x * (1 + weight)) if self.gemma else self.store(self.store(x) * weight)

    def product(self, x, name):
        weight, middle = self.weights[name + ".weight"], x.shape[-1] // 2
        if self.halves:
            parts = x[..., :middle] @ weight[:, :middle].T, x[..., middle:] @ weight[:, middle:].T
            y = self.halves(parts[0]) + self.halves(parts[1])
        else:
            y = x @ weight.T
        return self.store(y + self.weights.get(name + ".bias", F32(0)))

    def turned(self, x, rope):
        cos, sin = (np.tile(table, 2)[:, None] for table in rope)
        half = x.shape[-1] // 2
        turned = np.concatenate([-x[..., half:], x[..., :half]], -1)
        return self.store(self.store(x * cos) + self.store(turned * sin))

    def attention(self, x, prefix, rope, seen):
        config, store = self.config, self.store
        heads, groups, head_dim = config["num_attention_heads"], config["num_key_value_heads"], head_dim_of(config)
        q = self.product(x, prefix + "q_proj").reshape(-1, heads, head_dim)
        k = self.product(x, prefix + "k_proj").reshape(-1, groups, head_dim)
        v = self.product(x, prefix + "v_proj").reshape(-1, groups, head_dim)
        if prefix + "q_norm.weight" in self.weights:
            q, k = self.norm(q, prefix + "q_norm"), self.norm(k, prefix + "k_norm")
        q, k = self.turned(q, rope), self.turned(k, rope)
        k, v = (np.repeat(heads_of, heads // groups, 1) for heads_of in (k, v))
        scale = F32(config.get("query_pre_attn_scalar", head_dim) ** -0.5)
        scores = np.where(seen, store(store(np.einsum("ihd,jhd->hij", q, k)) * scale), -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares = store(shares / shares.sum(-1, keepdims=True))
        return self.product(store(np.einsum("hij,jhd->ihd", shares, v)).reshape(len(x), -1), prefix + "o_proj")

    def feed_forward(self, x, prefix):
        gate, up = self.product(x, prefix + "gate_proj"), self.product(x, prefix + "up_proj")
        if self.gemma:
            gate = gate * F32(0.5) * (1 + np.tanh(F32((2 / np.pi) ** 0.5) * (gate + F32(0.044715) * gate**3)))
        else:
            gate = gate / (1 + np.exp(-gate))
        return self.product(self.store(self.store(gate) * up), prefix + "down_proj")

    def logits(self, ids):
        config, store = self.config, self.store
        row, column = np.arange(len(ids))[:, None], np.arange(len(ids))
        x = self.weights["model.embed_tokens.weight"][ids]
        if self.gemma:
            x = store(x * store(F32(config["hidden_size"] ** 0.5)))
        for layer in range(config["num_hidden_layers"]):
            prefix, seen, rope = f"model.layers.{layer}.", column <= row, config["rope_parameters"]
            kind = (config.get("layer_types") or ["full_attention"] * (layer + 1))[layer]
            if kind == "sliding_attention":
                seen = seen & (row - column < config["sliding_window"])
            angles = row.astype(F32) * frequencies(rope.get(kind, rope), head_dim_of(config))
            h = self.norm(x, prefix + "input_layernorm")
            h = self.attention(h, prefix + "self_attn.", (store(np.cos(angles)), store(np.sin(angles))), seen)
            x = store(x + (self.norm(h, prefix + "post_attention_layernorm") if self.gemma else h))
            h = self.norm(x, prefix + ("pre_feedforward_layernorm" if self.gemma else "post_attention_layernorm"))
            h = self.feed_forward(h, prefix + "mlp.")
            x = store(x + (self.norm(h, prefix + "post_feedforward_layernorm") if self.gemma else h))
        head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
        logits = store(self.norm(x, "model.norm") @ self.weights[head + ".weight"].T)
        if cap := config.get("final_logit_softcapping"):
            logits = store(store(np.tanh(store(logits / F32(cap)))) * F32(cap))
        return logits


def main():
    fixtures = (Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "fixtures") / "generation"
    pytorch = json.loads((fixtures / "bf16_errors.json").read_text())
    random = np.random.default_rng(1)

    def on_other_grid(x):
        scale = F32(2 ** random.random())
        return rounded(x * scale) / scale

    variants = {
        "other grid": dict(store=on_other_grid),
        "products rounded in halves": dict(halves=rounded),
        "weights truncated": dict(of_weights=truncated),
        "results truncated": dict(store=truncated),
    }
    found = {name: [] for name in ["PyTorch", *variants]}
    for folder in sorted(path for path in fixtures.iterdir() if path.is_dir()):
        if folder.name.endswith(OMITTED):
            continue
        config = json.loads((folder / "config.json").read_text())
        weights = {name: weight for file in folder.glob("model*.safetensors") for name, weight in tensors(file).items()}
        golden = tensors(folder / "golden.safetensors")
        for prompt in json.loads((folder / "golden.json").read_text())["prompts"]:
            first = len(prompt["ids"]) - 1
            expected = golden[f"{prompt['name']}.logits"][first:]

            def error(**rounding):
                logits = Model(config, weights, **rounding).logits(prompt["ids"] + prompt["greedy"][:-1])[first:]
                return np.linalg.norm(logits - expected) / np.linalg.norm(expected)

            base = error()
            found["PyTorch"].append(np.log(pytorch[folder.name][prompt["name"]] / base))
            for name, rounding in variants.items():
                found[name].append(np.log(error(**rounding) / base))
    for name, quotients in found.items():
        print(f"{name:28} mean {np.mean(quotients):+.3f}, standard deviation {np.std(quotients, ddof=1):.3f}")


if __name__ == "__main__":
    main()
