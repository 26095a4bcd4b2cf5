#!/usr/bin/env python3
"""Generates with Hugging Face transformers on PyTorch, as a peer of candlepower: see src/guide/peers.md.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-fixtures.txt
    . .venv/bin/activate
    CANDLEPOWER_ENGINE=stock,tuned,peer:transformers cargo bench --bench generation -- '^medium/'

Attention is `scaled_dot_product_attention`. --compile runs decode steps through torch.compile with a cache of fixed length.
"""

import argparse
import gc
import json
import os
import sys
import time

import candlepower_peer
from candlepower_peer import TorchMemory, Unsupported

# This file has the name of the package that it runs.
sys.path.pop(0)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
DEVICES = {"cpu": "cpu", "metal": "mps"}


class Transformers:
    def __init__(self, is_compiled):
        self.is_compiled = is_compiled

    def describe(self, request):
        mode = "compiled" if self.is_compiled else "eager"
        version = f"{transformers.__version__}, torch {torch.__version__}, {mode}"
        return {"name": "transformers", "version": version, "sequences": candlepower_peer.MOST_SEQUENCES}

    def load(self, request):
        torch.set_num_threads(request["threads"])
        torch.set_flush_denormal(True)
        name = request["device"]
        self.device = torch.device(DEVICES.get(name) or name.replace("cuda", "cuda:"))
        self.memory = TorchMemory(self.device)
        model = request["model"]
        if "gguf" in model:
            raise Unsupported("the adapter reads safetensors, not GGUF files")
        if request["dtype"] not in DTYPES:
            raise Unsupported(f"the adapter computes in {', '.join(DTYPES)}, not in {request['dtype']}")
        dtype = DTYPES[request["dtype"]]
        if "folder" in model:
            self.model = AutoModelForCausalLM.from_pretrained(
                model["folder"], dtype=dtype, local_files_only=True, use_safetensors=True)
        else:
            config = json.loads(model["seeded"]["config"])
            config = CONFIG_MAPPING[config.pop("model_type")].from_dict(config)
            torch.manual_seed(model["seeded"]["seed"])
            with torch.device(self.device):
                self.model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        self.model = self.model.to(self.device).eval().requires_grad_(False)
        self.step_of = self.model
        if self.is_compiled:
            mode = "reduce-overhead" if self.device.type == "cuda" else "default"
            self.step_of = torch.compile(self.model, mode=mode, dynamic=False)
        # A collection of garbage in the middle of a step would be measured.
        gc.collect()
        gc.freeze()
        gc.disable()
        parameters = list(self.model.parameters())
        return {
            "dtype": request["dtype"],
            "device": name,
            "threads": torch.get_num_threads(),
            "parameters": sum(tensor.numel() for tensor in parameters),
            "weight_bytes": sum(tensor.numel() * tensor.element_size() for tensor in parameters),
        }

    def reset(self, request):
        if not candlepower_peer.is_greedy(request["sampling"]):
            raise Unsupported("the adapter chooses tokens by argmax only")
        self.cache = None
        gc.collect()
        if self.is_compiled:
            self.cache = StaticCache(config=self.model.config, max_cache_len=request["tokens"])
        else:
            self.cache = DynamicCache(config=self.model.config)
        self.length, self.sequences = 0, request["sequences"]
        self.positions = torch.arange(request["tokens"], device=self.device)[None]
        self.memory.begin()
        return {}

    def prefill(self, request):
        ids = torch.tensor(request["ids"], device=self.device).view(self.sequences, -1)
        return self.generate(self.model, ids, 1)

    @torch.inference_mode()
    def logits(self, request):
        ids = torch.tensor([request["ids"]], device=self.device)
        kept = ids.shape[1] - request["from"]
        rows = self.model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits[0]
        rows.to("cpu", torch.float32).numpy().tofile(request["file"])
        return {}

    def step(self, request):
        return self.generate(self.step_of, self.last, request["count"])

    @torch.inference_mode()
    def generate(self, model, ids, count):
        """Each token is fetched before the next one is begun."""
        tokens, times = [], []
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        started = time.perf_counter_ns()
        for _ in range(count):
            end = self.length + ids.shape[1]
            positions = self.positions[:, self.length:end]
            out = model(
                input_ids=ids, position_ids=positions, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
            self.length = end
            # A compiled step may reuse the memory of its result.
            ids = out.logits[:, -1].argmax(-1, keepdim=True).clone()
            tokens += ids[:, 0].tolist()
            ended = time.perf_counter_ns()
            times.append(ended - started)
            started = ended
        self.last = ids
        return {"tokens": tokens, "ns": times, "cache_bytes": self.cache_bytes(), "peak_bytes": self.memory.peak_bytes()}

    def cache_bytes(self):
        tensors = [tensor for layer in self.cache.layers for tensor in (layer.keys, layer.values)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", action="store_true", help="run decode steps through torch.compile")
    candlepower_peer.serve(Transformers(parser.parse_args().compile))


if __name__ == "__main__":
    main()
