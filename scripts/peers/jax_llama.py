#!/usr/bin/env python3
"""Generates with JAX on a CPU, as a peer of candlepower: see src/guide/peers.md.

    python3 -m venv .venv && .venv/bin/pip install jax
    . .venv/bin/activate
    CANDLEPOWER_MODELS=llama-mini CANDLEPOWER_ENGINE=tuned,peer:jax cargo bench --bench generation -- '^medium/'

The model is a Llama decoder in jax.numpy, compiled by XLA, with seeded weights and a cache of fixed length.
"""

import gc
import importlib.metadata
import json
import math
import os
import time

import candlepower_peer
from candlepower_peer import Memory, Unsupported


def frequencies(config, head_dim):
    """The angle of each pair of a head at position 1, with Llama 3's scaling."""
    theta, rope = config["rope_theta"], config.get("rope_scaling") or {}
    angles = [theta ** (-2 * pair / head_dim) for pair in range(head_dim // 2)]
    if not rope:
        return angles
    if rope["rope_type"] != "llama3":
        raise Unsupported(f"the adapter has no RoPE of type {rope['rope_type']}")
    original, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]

    def scaled(angle):
        turns = original * angle / (2 * math.pi)
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        return angle * (share + (1 - share) / factor)

    return [scaled(angle) for angle in angles]


class Llama:
    """The decoder. Weights are (inputs, outputs)."""

    def __init__(self, config, dtype, seed):
        import jax
        import jax.numpy as jnp

        self.jax, self.jnp, self.config, self.dtype = jax, jnp, config, dtype
        hidden, inner, self.heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
        self.head_dim = config.get("head_dim") or hidden // self.heads
        self.kv_heads, self.layers = config["num_key_value_heads"], config["num_hidden_layers"]
        self.angles = jnp.array(frequencies(config, self.head_dim), jnp.float32)
        keys = iter(jax.random.split(jax.random.key(seed), 7 * self.layers + 2))

        def matrix(inputs, outputs):
            return (0.02 * jax.random.normal(next(keys), (inputs, outputs), jnp.float32)).astype(dtype)

        def norm():
            return jnp.ones(hidden, dtype)

        def layer():
            queries, values = self.heads * self.head_dim, self.kv_heads * self.head_dim
            return {
                "q": matrix(hidden, queries), "k": matrix(hidden, values), "v": matrix(hidden, values),
                "o": matrix(queries, hidden), "gate": matrix(hidden, inner), "up": matrix(hidden, inner),
                "down": matrix(inner, hidden), "attention_norm": norm(), "feed_forward_norm": norm(),
            }

        self.weights = {
            # (vocabulary, hidden), as it is looked up.
            "embedding": matrix(config["vocab_size"], hidden),
            "norm": norm(),
            "layers": [layer() for _ in range(self.layers)],
        }
        if not config.get("tie_word_embeddings", False):
            self.weights["head"] = matrix(config["vocab_size"], hidden)
        jax.block_until_ready(self.weights)
        self.call = jax.jit(self.forward, donate_argnums=1)

    def cache(self, tokens):
        """Keys and values: (2, layers, tokens, heads, width)."""
        return self.jnp.zeros((2, self.layers, tokens, self.kv_heads, self.head_dim), self.dtype)

    def forward(self, weights, cache, ids, start):
        """The likeliest token after `ids`, which begin at position `start`, as an array of one, and the cache."""
        jnp, eps = self.jnp, self.config["rms_norm_eps"]
        count, length = ids.shape[0], cache.shape[2]
        positions = start + jnp.arange(count)
        turns = positions[:, None].astype(jnp.float32) * self.angles
        cos, sin = jnp.cos(turns)[:, None], jnp.sin(turns)[:, None]
        is_seen = jnp.arange(length)[None] <= positions[:, None]

        def normed(x, weight):
            wide = x.astype(jnp.float32)
            return (wide * self.jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + eps)).astype(self.dtype) * weight

        def rotated(x):
            first, second = jnp.split(x.astype(jnp.float32), 2, -1)
            return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(self.dtype)

        x = weights["embedding"][ids]
        for number, layer in enumerate(weights["layers"]):
            h = normed(x, layer["attention_norm"])
            query = rotated((h @ layer["q"]).reshape(count, self.heads, self.head_dim))
            key = rotated((h @ layer["k"]).reshape(count, self.kv_heads, self.head_dim))
            value = (h @ layer["v"]).reshape(count, self.kv_heads, self.head_dim)
            both = jnp.stack([key, value])[:, None]
            cache = self.jax.lax.dynamic_update_slice(cache, both, (0, number, start, 0, 0))
            query = query.reshape(count, self.kv_heads, -1, self.head_dim)
            scores = jnp.einsum("tkgd,skd->kgts", query, cache[0, number], preferred_element_type=jnp.float32)
            scores = jnp.where(is_seen, scores / math.sqrt(self.head_dim), -jnp.inf)
            shares = self.jax.nn.softmax(scores, -1).astype(self.dtype)
            mixed = jnp.einsum("kgts,skd->tkgd", shares, cache[1, number]).reshape(count, -1)
            x = x + mixed @ layer["o"]
            h = normed(x, layer["feed_forward_norm"])
            x = x + (self.jax.nn.silu(h @ layer["gate"]) * (h @ layer["up"])) @ layer["down"]
        last = normed(x[-1:], weights["norm"])
        logits = last @ weights.get("head", weights["embedding"]).T
        return logits.argmax(-1), cache


class Jax:
    def describe(self, request):
        return {"name": "jax", "version": importlib.metadata.version("jax")}

    def load(self, request):
        if request["device"] != "cpu" or request["dtype"] not in ("f32", "bf16"):
            raise Unsupported("the adapter runs on a CPU in f32 or bf16")
        if "seeded" not in request["model"]:
            raise Unsupported("the adapter draws its weights")
        config = json.loads(request["model"]["seeded"]["config"])
        if config["model_type"] != "llama":
            raise Unsupported(f"the adapter runs Llama, not {config['model_type']}")
        # XLA starts a thread for each core that the process may use.
        cores = sorted(os.sched_getaffinity(0))[: request["threads"]]
        os.sched_setaffinity(0, cores)
        os.environ["JAX_PLATFORMS"] = "cpu"
        import jax
        import jax.numpy as jnp

        self.memory, self.jnp = Memory(), jnp
        dtype = {"f32": jnp.float32, "bf16": jnp.bfloat16}[request["dtype"]]
        self.model = Llama(config, dtype, request["model"]["seeded"]["seed"])
        gc.collect()
        gc.freeze()
        gc.disable()
        weights = jax.tree.leaves(self.model.weights)
        return {
            "dtype": request["dtype"],
            "device": "cpu",
            "threads": len(cores),
            "parameters": sum(weight.size for weight in weights),
            "weight_bytes": sum(weight.nbytes for weight in weights),
        }

    def reset(self, request):
        if not candlepower_peer.is_greedy(request["sampling"]):
            raise Unsupported("the adapter chooses tokens by argmax only")
        self.cache = None
        self.cache = self.model.cache(request["tokens"])
        self.length = 0
        gc.collect()
        self.memory.begin()
        return {}

    def prefill(self, request):
        return self.generate(self.jnp.array(request["ids"], self.jnp.int32), 1)

    def step(self, request):
        return self.generate(self.last, request["count"])

    def generate(self, ids, count):
        """Each token is fetched before the next one is begun."""
        tokens, times = [], []
        ids.block_until_ready()
        started = time.perf_counter_ns()
        for _ in range(count):
            length = ids.shape[0]
            ids, self.cache = self.model.call(self.model.weights, self.cache, ids, self.length)
            self.length += length
            tokens.append(int(ids[0]))
            ended = time.perf_counter_ns()
            times.append(ended - started)
            started = ended
        self.last = ids
        return {"tokens": tokens, "ns": times, "cache_bytes": self.cache.nbytes, "peak_bytes": self.memory.peak_bytes()}


if __name__ == "__main__":
    candlepower_peer.serve(Jax())
