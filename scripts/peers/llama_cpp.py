#!/usr/bin/env python3
"""Generates with llama.cpp, through the package llama-cpp-python, as a peer of candlepower: see src/guide/peers.md.

    python3 -m venv .venv && CMAKE_ARGS=-DGGML_NATIVE=ON .venv/bin/pip install llama-cpp-python gguf
    . .venv/bin/activate
    CANDLEPOWER_DTYPE=q4k CANDLEPOWER_ENGINE=tuned,peer:llama.cpp cargo bench --bench generation -- '^medium/'

It reads GGUF files. Of a shape with seeded weights, it writes such a file and removes it when it is loaded. Keys and values are
f16, as llama.cpp holds them by default.
"""

import gc
import importlib.metadata
import json
import os
import sys
import tempfile
import time

# This file has the name of the package that it runs.
sys.path.append(sys.path.pop(0))

import candlepower_peer
import gguf
import gguf_file
import llama_cpp
import numpy
from candlepower_peer import Memory, Unsupported

# Tokens that are computed together, as llama.cpp does by default.
BATCH = 512


class LlamaCpp:
    context = None

    def describe(self, request):
        version = importlib.metadata.version("llama-cpp-python")
        return {"name": "llama.cpp", "version": f"llama-cpp-python {version}"}

    def load(self, request):
        if request["device"] != "cpu":
            raise Unsupported("the adapter runs on a CPU")
        self.threads = request["threads"]
        self.memory = Memory()
        model = request["model"]
        llama_cpp.llama_backend_init()
        if "gguf" in model:
            self.open(model["gguf"])
        elif "seeded" in model:
            config = json.loads(model["seeded"]["config"])
            if request["dtype"] not in gguf_file.PRECISIONS or config["model_type"] not in gguf_file.ARCHITECTURES:
                raise Unsupported(f"the adapter writes no {config['model_type']} in {request['dtype']}")
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "seeded.gguf")
                try:
                    gguf_file.write_seeded(path, config, request["dtype"], model["seeded"]["seed"])
                except ValueError as error:
                    raise Unsupported(str(error)) from error
                self.open(path)
        else:
            raise Unsupported("llama.cpp reads GGUF files: convert the model, and name path:<file>.gguf")
        # A collection of garbage in the middle of a step would be measured.
        gc.collect()
        gc.freeze()
        gc.disable()
        return {
            "dtype": request["dtype"],
            "device": "cpu",
            "threads": self.threads,
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
        }

    def open(self, path):
        # The factors of RoPE are no weights.
        stored = [tensor for tensor in gguf.GGUFReader(path).tensors if not tensor.name.startswith("rope_")]
        self.parameters = sum(int(tensor.n_elements) for tensor in stored)
        self.weight_bytes = sum(int(tensor.n_bytes) for tensor in stored)
        del stored
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        # Otherwise pages are read in the first pass.
        params.use_mmap = False
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if self.model is None:
            raise RuntimeError("llama.cpp does not load the file")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def reset(self, request):
        if not candlepower_peer.is_greedy(request["sampling"]):
            raise Unsupported("the adapter chooses tokens by argmax only")
        self.empty(request["tokens"])
        gc.collect()
        self.memory.begin()
        return {}

    def empty(self, tokens):
        """Makes the context empty, for so many tokens."""
        if self.context is not None and self.tokens == tokens:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
            return
        if self.context is not None:
            llama_cpp.llama_free(self.context)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = self.tokens = tokens
        params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = self.threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if self.context is None:
            raise RuntimeError("llama.cpp makes no context")

    def logits(self, request):
        ids, begin = request["ids"], request["from"]
        self.empty(len(ids))
        with open(request["file"], "wb") as file:
            for start in range(0, len(ids), BATCH):
                part = ids[start : start + BATCH]
                batch = llama_cpp.llama_batch_init(len(part), 0, 1)
                batch.n_tokens = len(part)
                for place, token in enumerate(part):
                    batch.token[place] = token
                    batch.pos[place] = start + place
                    batch.n_seq_id[place] = 1
                    batch.seq_id[place][0] = 0
                    batch.logits[place] = start + place >= begin
                code = llama_cpp.llama_decode(self.context, batch)
                llama_cpp.llama_batch_free(batch)
                if code != 0:
                    raise RuntimeError(f"llama_decode returned {code}")
                for place in range(max(begin - start, 0), len(part)):
                    row = llama_cpp.llama_get_logits_ith(self.context, place)
                    numpy.ctypeslib.as_array(row, shape=(self.vocab_size,)).tofile(file)
        return {}

    def prefill(self, request):
        return self.generate(request["ids"], 1)

    def step(self, request):
        return self.generate([self.last], request["count"])

    def generate(self, ids, count):
        """Each token is known before the next one is begun."""
        tokens, times = [], []
        given = (llama_cpp.llama_token * len(ids))(*ids)
        one = (llama_cpp.llama_token * 1)()
        started = time.perf_counter_ns()
        for _ in range(count):
            code = llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(given, len(given)))
            if code != 0:
                raise RuntimeError(f"llama_decode returned {code}")
            logits = llama_cpp.llama_get_logits_ith(self.context, -1)
            one[0] = int(numpy.ctypeslib.as_array(logits, shape=(self.vocab_size,)).argmax())
            tokens.append(one[0])
            given = one
            ended = time.perf_counter_ns()
            times.append(ended - started)
            started = ended
        self.last = tokens[-1]
        cache_bytes = llama_cpp.llama_state_seq_get_size(self.context, 0)
        return {"tokens": tokens, "ns": times, "cache_bytes": cache_bytes, "peak_bytes": self.memory.peak_bytes()}


if __name__ == "__main__":
    candlepower_peer.serve(LlamaCpp())
